"""Every integer operator as C99: no warning, no undefined behaviour, and the bits of ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T

from intc.codegen.c.printer import Helpers, print_kernel
from intc.codegen.c.source import lower_source
from intc.codegen.cpu.vector import ramp
from intc.codegen.kernel import Frame, define, local, store
from intc.codegen.rules import SCALAR_RULES
from intc.errors import CodegenError
from intc.ir.bound import bound
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.elementwise import Add
from intc.ops.matmul import MatMul
from intc.ops.requantize import Clip
from intc.ops.row_softmax import NormaliseRows
from tests.c_programs import UNDEFINED, compile_network, link, run_program
from tests.kernel_cases import Case
from tests.native import emit_side_by_side, random_feed
from tests.op_cases import CASES, FLOAT_ONLY, sample
from tests.test_kernels_generic import GROUPS

CONSTANT = {"linear": range(1, 9), "attention": range(3, 5)}  # inputs that a kernel wants as constants


def side_by_side(cases: Sequence[Case]) -> Graph:
    """All cases in one graph, their sizes fixed; inputs of one type are one."""
    b = Builder("cases")
    sizes: dict[str, int] = {}
    for case in cases:
        sizes |= case.sizes
    emit_side_by_side(b, [(case.op, case.inputs) for case in cases])
    graph = b.finish()
    return bound(graph, {s: n for s, n in sizes.items() if s in graph.symbols()})


def check(graph: Graph, folder: Path, flags: Sequence[str] = ("-O1", *UNDEFINED)) -> None:
    """The program equals the graph on random feeds; undefined behaviour ends it."""
    source = lower_source(graph, graph.outputs)
    program = link(source, compile_network(source, folder, flags=flags), flags=flags)
    rng = np.random.default_rng(5)
    feeds = [{n: random_feed(graph.type(n), {}, rng) for n in graph.inputs} for _ in range(2)]
    for feed, found in zip(feeds, run_program(source, program, feeds), strict=True):
        for name, want in graph.run(feed).items():
            wrong = int(np.sum(found[name] != want))
            assert not wrong, f"{name}: {wrong} of {want.size} differ"


def consistent(case: Case) -> bool:
    """Whether any inputs of these types can occur together: normalise_rows takes a row's sum beside it."""
    return case.op.name != "normalise_rows"


@pytest.mark.parametrize("group", GROUPS)
def test_groups_of_operators(group: str, tmp_path: Path) -> None:
    check(side_by_side([c for c in GROUPS[group]() if consistent(c)]), tmp_path)


def test_one_example_of_every_operator(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    cases = []
    for example in CASES:
        fixed = CONSTANT.get(example.op.name, ())
        if example.op.name in FLOAT_ONLY or any(t.is_float for t in example.inputs):
            continue
        inputs = [sample(t, rng) if i in fixed else t for i, t in enumerate(example.inputs)]
        cases.append(Case(example.op, tuple(inputs), {}))
    assert {c.op.name for c in cases} == set(SCALAR_RULES)
    check(side_by_side([c for c in cases if consistent(c)]), tmp_path)


def test_rows_divided_by_their_own_sums(tmp_path: Path) -> None:
    b = Builder("rows")
    for length in (1, 9, 300):
        weights = b.input(f"w{length}", TensorType((2, 3, 5, length), "uint8"))
        values = b.input(f"v{length}", TensorType((2, 3, length, 7), "int8"))
        b.output(b.emit(NormaliseRows(), b.emit(MatMul(), weights, values), weights))
    check(b.finish(), tmp_path)


def refused(body: Callable[[Frame], None], message: str) -> None:
    kernel = define([("x", "int8"), ("f", "float32")], ["m"], (), body, "none")[0]
    with pytest.raises(CodegenError, match=message):
        print_kernel("kernel", kernel, Helpers())


def test_what_is_no_integer_c_is_refused() -> None:
    refused(lambda f: store(f.buffers["f"], T.FloatImm("float32", 1.0), 0), "float32|FloatImm")
    refused(lambda f: store(f.buffers["x"], T.cast(f.buffers["f"][0], "int8"), 0), "float32")
    refused(lambda f: T.buffer_store(f.buffers["x"], f.buffers["x"][ramp(4, 4)], [ramp(0, 4)]), "Ramp|int8x4")
    refused(lambda f: store(f.buffers["x"], T.cast(T.popcount(f.scalars["m"]), "int8"), 0), "popcount")


def test_printed_names_and_unused_parts() -> None:
    def body(frame: Frame) -> None:
        T.bind(frame.buffers["x"][3])  # nothing reads it
        total = local("int32")
        T.buffer_store(total, T.IntImm("int32", 0), [0])
        with T.serial(0, 3) as i, T.serial(0, 1) as j:
            T.buffer_store(total, total[0] + T.cast(frame.buffers["x"][i + j], "int32"), [0])
        store(frame.buffers["y"], total[0], 0)

    kernel = define([("x", "int8"), ("y", "int16")], ["unused"], (), body, "none")[0]
    assert (
        print_kernel("sum", kernel, Helpers()).text
        == """static void sum(const int8_t *restrict x, i16 *restrict y, int64_t unused)
{
    (void)unused;
    int32_t s1 = 0;
    for (int32_t i = 0; i < 3; ++i) {
        s1 = s1 + (int32_t)x[i];
    }
    y[0] = (int16_t)s1;
}"""
    )


def test_names_of_all_kinds(tmp_path: Path) -> None:
    """Names that C keeps for itself, that differ in case alone or need other letters; an input unread."""
    b = Builder("names")
    byte = TensorType((2, 3), "int8", -128, 127)
    names = ["int", "x", "X", "a.b/c:0", "clip_0", "bytes", "state", "7", "min_i32"]
    for name in names:
        b.input(name, byte)
    b.input("unread", byte)
    total = names[0]
    for name in names[1:]:
        total = b.emit(Add(), total, name, name=f"*/ // /* ??/ {name}", source=f"*/ // /* ??/ {name}")
    b.output(total)
    b.output(b.emit(Clip(-5, 5, "int8"), total, name="x.out"))
    b.output("x")
    graph = b.finish()
    source = lower_source(graph, ["sum", "int", "x"])
    assert [p.name for p in source.ports[:3]] == ["int_2", "x", "X_2"]
    assert [p.name for p in source.ports[-3:]] == ["sum", "int_3", "x_3"]
    check(graph, tmp_path)


def test_a_graph_without_work(tmp_path: Path) -> None:
    """Outputs that are an input, and a constant."""
    b = Builder("nothing")
    b.output(b.input("x", TensorType((3,), "bool")))
    b.output(b.constant("c", np.array([-(2**63), 2**63 - 1, -(2**31)])))
    check(b.finish(), tmp_path)
