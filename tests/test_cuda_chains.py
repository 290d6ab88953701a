"""Elementwise operators and moves as one kernel on a GPU equal ``evaluate``; nothing between is stored."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from intc.codegen.cuda.elementwise import high_word, inlined
from intc.codegen.lower import staged
from intc.codegen.program import Program
from intc.codegen.targets import resolve
from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.elementwise import Add, Mul
from intc.ops.fused import Linear
from intc.ops.movement import Concat, Expand, Reshape, Slice, Transpose
from intc.ops.requantize import Clip, Requantize
from tests.emulated import check_graph, emulation
from tests.kernel_cases import ints

B = symbol("batch")
WIDE = Requantize(-(2**30) + 1, 2**30 - 1, "int32")
BYTES = Requantize(-127, 127, "int8")


def factors(b: Builder, channels: int = 1) -> tuple[str, str]:
    m = b.constant("m", ints(2**30, 2**31 - 1, (channels,), np.int32))
    return m, b.constant("e", ints(33, 36, (channels,), np.int32))


def rolled(b: Builder, x: str, size: int, by: int) -> str:
    """``x`` [.., size, size, C] rolled along both of those axes."""
    for axis in (1, 2):
        parts = b.emit(Slice(axis, by, size), x), b.emit(Slice(axis, 0, by), x)
        x = b.emit(Concat(axis), *parts)
    return x


def residual_of_windows(channels: int) -> Graph:
    """The sum of tokens and of what windows of 2 x 2 tokens, rolled by one, give back."""
    b = Builder("windows")
    x = b.input("x", TensorType((B, 36, channels), "int16", -32767, 32767))
    w = b.input("w", TensorType((9 * B, 4, channels), "int16", -32767, 32767))
    split = b.emit(Reshape((B, 3, 3, 2, 2, channels)), w)
    tokens = b.emit(Reshape((B, 6, 6, channels)), b.emit(Transpose((0, 1, 3, 2, 4, 5)), split))
    back = b.emit(Reshape((B, 36, channels)), rolled(b, tokens, 6, 1))
    branches = b.emit(WIDE, x, *factors(b, channels)), b.emit(WIDE, back, *factors(b))
    b.output(b.emit(Clip(-32767, 32767, "int16"), b.emit(Add(), *branches)))
    return b.finish()


def windows_of_tokens() -> Graph:
    """The other way round, read by a product, which needs them in memory."""
    b = Builder("tokens")
    x = b.input("x", TensorType((B, 36, 16), "int16", -32767, 32767))
    small = b.emit(BYTES, x, *factors(b))
    map_ = rolled(b, b.emit(Reshape((B, 6, 6, 16)), small), 6, 2)
    apart = b.emit(Transpose((0, 1, 3, 2, 4, 5)), b.emit(Reshape((B, 3, 2, 3, 2, 16)), map_))
    weight, bias = b.constant("w", ints(-127, 127, (16, 8), np.int8)), b.constant("b", np.zeros(8, np.int32))
    rows = b.emit(Reshape((9 * B, 4, 16)), apart)
    b.output(b.emit(Linear(-(2**31), 2**31 - 1, "int32", raw=True), rows, weight, bias))
    return b.finish()


def masks() -> Graph:
    """A constant mask repeated for every sample, plus one value a head."""
    b = Builder("masks")
    table = b.constant("table", ints(-32767, 0, (1, 4, 1, 7, 7), np.int16))
    rows = b.emit(Reshape((4 * B, 1, 7, 7)), b.emit(Expand((B, 4, 1, 7, 7)), table))
    heads = b.constant("heads", ints(-999, 999, (1, 3, 7, 7), np.int32))
    total = b.emit(Clip(-32767, 32767, "int16"), b.emit(Add(), b.emit(WIDE, rows, *factors(b)), heads))
    x = b.input("x", TensorType((B, 1), "int8", -127, 127))
    b.output(b.emit(Reshape((B, 4, 147)), b.emit(WIDE, total, *factors(b))))
    b.output(b.emit(Mul(), x, b.constant("two", np.array([2], np.int8))))
    return b.finish()


def merged_patches() -> Graph:
    """Every second row and column, side by side, as a merge of patches reads them."""
    b = Builder("patches")
    x = b.input("x", TensorType((B, 6, 4, 8), "int16", -32767, 32767))
    rows = [b.emit(Slice(1, i, 6, 2), x) for i in range(2)]
    parts = [b.emit(Slice(2, j, 4, 2), row) for j in range(2) for row in rows]
    b.output(b.emit(Reshape((B, 6, 32)), b.emit(Concat(3), *parts)))
    return b.finish()


def reused() -> Graph:
    """A value that is an output and read twice, a square, and axes that trade the last place."""
    b = Builder("reused")
    x = b.input("x", TensorType((B, 5, 12), "int16", -181, 181))
    small = b.emit(BYTES, x, *factors(b, 12))
    square = b.emit(Mul(), small, small)
    b.output(small)
    b.output(b.emit(Clip(-100, 9999, "int16"), b.emit(Transpose((2, 0, 1)), square)))
    return b.finish()


GRAPHS: dict[str, tuple[Any, int]] = {  # and the kernels that they need
    "wide residual": (lambda: residual_of_windows(32), 1),
    "odd residual": (lambda: residual_of_windows(5), 1),
    "windows": (windows_of_tokens, 2),
    "masks": (masks, 2),
    "patches": (merged_patches, 1),
    "reused": (reused, 2),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_chains(name: str) -> None:
    build, kernels = GRAPHS[name]
    graph = build()
    program, _ = staged(graph, resolve("cuda:sm_90"))
    assert len(program.stages) == kernels
    with emulation():
        for batch in (1, 3):
            check_graph(graph, {"batch": batch})


def test_whole_accesses() -> None:
    """Eight 16-bit elements a thread, read and written at once, though they are rolled and regrouped."""
    program, _ = staged(residual_of_windows(32), resolve("cuda:sm_90"))
    (kernel,) = program.kernels.values()
    accesses = re.findall(r"move_together<(\d+)>\(&(\w+)\[", kernel)
    assert {int(count) for count, _ in accesses} == {8}
    assert not re.search(r"= x\d_\d\[(?!0\])", kernel), "an operand is read element by element"


@pytest.mark.parametrize("op", [WIDE, BYTES, Requantize(0, 255, "uint8")])
def test_results_in_the_high_word(op: Requantize) -> None:
    """Operands with room on the left, and without; ties, and results beyond the limits."""
    b = Builder("requantize")
    count = 0
    for dtype, shifts in (("int16", (15, 16, 31)), ("int16", (32, 47)), ("int8", (30, 38)), ("int32", (31,))):
        info = np.iinfo(dtype)
        x = b.input(f"x{count}", TensorType((B, 64, 8), dtype, info.min + 1, info.max))
        for e in shifts:
            m = np.array([2**31 - 1, 1 - 2**31, 2**30, 3, 0, 1 << min(e, 30), 2**30 + 1, 7], np.int32)
            for more in (np.zeros(8), np.arange(8)):
                b.output(b.emit(op, x, b.constant("m", m), b.constant("e", (e + more).astype(np.int32))))
            count += 1
    graph = b.finish()
    program = Program(graph, resolve("cuda:sm_90"))
    found = [high_word(program, node) for node in graph.nodes]
    assert found[:2] == [None, None]  # int16 that would need 17 bits more
    assert {form[0] for form in found[2:-2] if form is not None} == {16, 2, 1, 0}
    assert found[-2:] == [None, None]
    with emulation():
        check_graph(graph, {"batch": 2})


def test_what_would_be_computed_many_times_is_stored() -> None:
    graph = reused()
    assert graph.nodes[0].output not in inlined(graph)
    b = Builder("broadcast")
    row, x = (
        b.input(name, TensorType(shape, "int16", -99, 99)) for name, shape in (("row", (1, 8)), ("x", (B, 8)))
    )
    small = b.emit(BYTES, row, *factors(b))
    b.output(b.emit(Add(), small, x))
    assert not inlined(b.finish())
