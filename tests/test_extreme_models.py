"""Models that are valid but extreme: functions without end, sums of a thousand terms, sizes that explode,
nothing to compute. Each is imported, or refused in one line, in seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

import intc
from intc.errors import CalibrationError, ImportFailure, IntcError, UnsupportedModel, UsageError
from intc.frontend import import_onnx
from intc.passes.integer.rounding import compensated, nearest
from intc.passes.pipeline import canonicalise
from tests.onnx_models import Feeds, canonical, floats, model


def graph(
    nodes: Sequence[onnx.NodeProto],
    weights: Feeds | None = None,
    functions: Sequence[onnx.FunctionProto] = (),
) -> onnx.ModelProto:
    """From x [batch, 8] to y [batch, 8] by ``nodes``."""
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["batch", 8]) for n in ("x", "y")]
    constants = [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in (weights or {}).items()]
    body = helper.make_graph(nodes, "g", ends[:1], ends[1:], constants)
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid("own", 1)] if functions else [])]
    return helper.make_model(body, opset_imports=opsets, functions=list(functions), ir_version=8)


def function(name: str, *nodes: onnx.NodeProto) -> onnx.FunctionProto:
    """From a to c."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    return helper.make_function("own", name, ["a"], ["c"], list(nodes), opsets)


def call(name: str, given: str, made: str) -> onnx.NodeProto:
    return helper.make_node(name, [given], [made], domain="own")


def test_local_functions_are_written_out() -> None:
    gate = [helper.make_node("Sigmoid", ["a"], ["s"]), helper.make_node("Mul", ["a", "s"], ["c"])]
    twice = function("Twice", call("Gate", "a", "t"), call("Gate", "t", "c"))
    proto = graph([call("Twice", "x", "y")], functions=[function("Gate", *gate), twice])
    canonical(proto, {"x": floats(5, 8)})


@pytest.mark.parametrize("callee", ["F", "G"])
def test_functions_without_end_are_refused(callee: str) -> None:
    functions = [function("F", call(callee, "a", "c")), function("G", call("F", "a", "c"))]
    with pytest.raises(ImportFailure, match="call each other without end"):
        import_onnx(graph([call("F", "x", "y")], functions=functions))


def test_functions_that_double_forty_times_are_refused() -> None:
    functions = [function("F0", helper.make_node("Relu", ["a"], ["c"]))]
    functions += [
        function(f"F{i}", call(f"F{i - 1}", "a", "t"), call(f"F{i - 1}", "t", "c")) for i in range(1, 41)
    ]
    with pytest.raises(ImportFailure, match=f"become {2**40} nodes"):
        import_onnx(graph([call("F40", "x", "y")], functions=functions))


def chain(op: str, count: int, *more: int) -> list[onnx.NodeProto]:
    """``a[i] = op(a[i-1], a[i-d])`` for the last of ``more`` (or x), from x to y."""

    def at(i: int) -> str:
        return "x" if i < 0 else "y" if i == count - 1 else f"a{i}"

    return [helper.make_node(op, [at(i - 1), *(at(i - d) for d in more)], [at(i)]) for i in range(count)]


@pytest.mark.parametrize("op", ["Add", "Max", "Mul", "Tanh"])
def test_a_thousand_nodes_in_a_row(op: str) -> None:
    nodes = chain(op, 1000, *(() if op == "Tanh" else (1001,)))
    assert canonicalise(import_onnx(graph(nodes))).graph.nodes


def test_a_thousand_sums_of_a_whole_number_and_of_a_product() -> None:
    def sums(start: str, end: str) -> list[onnx.NodeProto]:
        names = [start, *(f"{end}{i}" for i in range(999)), end]
        return [helper.make_node("Add", [a, "one"], [b]) for a, b in pairwise(names)]

    ahead = [
        helper.make_node("Round", ["x"], ["r"]),
        helper.make_node("Cast", ["r"], ["n"], to=onnx.TensorProto.INT32),
    ]
    nodes = [
        *ahead,
        helper.make_node("Cast", ["n"], ["f"], to=onnx.TensorProto.FLOAT),
        *sums("f", "whole"),
        helper.make_node("MatMul", ["x", "w"], ["p"]),
        *sums("p", "real"),
        helper.make_node("Less", ["whole", "limit"], ["m"]),
        helper.make_node("Where", ["m", "real", "x"], ["y"]),
    ]
    weights = {"one": np.ones(8, np.float32), "limit": np.float32(1003.5), "w": floats(8, 8)}
    canonical(graph(nodes, weights), {"x": floats(5, 8, seed=1)})


@pytest.mark.parametrize("op", ["Add", "Max", "Mul"])
def test_values_with_2_to_the_40_paths_to_the_input(op: str) -> None:
    """Matching must not walk every path."""
    assert canonicalise(import_onnx(graph(chain(op, 60, 2)))).graph.nodes


def test_a_mask_with_2_to_the_40_paths_to_its_condition() -> None:
    nodes = [
        helper.make_node("Less", ["x", "zero"], ["l"]),
        helper.make_node("Where", ["l", "low", "zero"], ["m"]),
    ]
    steps = [["m", "m"], ["s0", "m"], *([f"s{i - 1}", f"s{i - 2}"] for i in range(2, 60))]
    nodes += [helper.make_node("Add", pair, [f"s{i}"]) for i, pair in enumerate(steps)]
    nodes += [helper.make_node("Add", ["x", "s59"], ["z"]), helper.make_node("Softmax", ["z"], ["y"])]
    assert canonicalise(
        import_onnx(graph(nodes, {"zero": np.float32(0), "low": np.float32(-1e9)}))
    ).graph.nodes


@pytest.mark.parametrize(
    ("start", "reason"),
    [("s", "more than 256 terms or 16 factors"), ("numbers", "leaves 64 bits")],
)
def test_sizes_that_square_again_and_again(start: str, reason: str) -> None:
    nodes = [helper.make_node("Shape", ["x"], ["d"]), helper.make_node("Add", ["d", "one"], ["s"])]
    first = ["s", "s"] if start == "s" else ["d", "numbers"]
    nodes += [helper.make_node("Mul", first if i == 0 else [f"m{i - 1}"] * 2, [f"m{i}"]) for i in range(40)]
    nodes += [helper.make_node("Reshape", ["x", "m39"], ["y"])]
    weights = {"one": np.array([1, 1]), "numbers": np.array([2**40, 2**40])}
    used = {k: v for k, v in weights.items() if k in {i for n in nodes for i in n.input}}
    with pytest.raises(UnsupportedModel, match=reason):
        import_onnx(graph(nodes, used))


def refused(proto: onnx.ModelProto, folder: Path, reason: str) -> None:
    onnx.save(proto, folder / "m.onnx")
    with pytest.raises(IntcError, match=reason) as caught:
        intc.compile(folder / "m.onnx", {"x": floats(8, 8)})
    assert "\n" not in str(caught.value)


def test_nothing_in_or_out_is_refused(tmp_path: Path) -> None:
    proto = model("y = MatMul(x, w)", "float[batch, 8] x", "float[batch, 8] y", {"w": floats(8, 8)})
    none, twice, untyped = (onnx.ModelProto() for _ in range(3))
    for copy in (none, twice, untyped):
        copy.CopyFrom(proto)
    del none.graph.output[:]
    refused(none, tmp_path, "the model has no outputs")
    twice.graph.output.append(twice.graph.output[0])
    refused(twice, tmp_path, "output 'y' is listed twice")
    untyped.graph.input[0].type.tensor_type.ClearField("shape")
    refused(untyped, tmp_path, "input 'x' has no shape")
    wrong = model("y = Relu(x)", "float[batch, 8] x", "int64[batch, 8] y")
    refused(wrong, tmp_path, "output 'y' is declared as INT64, but computed as real numbers")
    refused(
        model("y = Relu(w)", "", "float[8, 8] y", {"w": floats(8, 8)}), tmp_path, "the model has no inputs"
    )
    with pytest.raises(ImportFailure, match="not a regular file"):
        import_onnx(tmp_path)


def test_statistics_that_are_no_covariance_still_round_weights() -> None:
    """Squares that vanish in float32 leave negative variances."""
    rng = np.random.default_rng(3)
    weight, scale = rng.standard_normal((8, 5)), np.full(5, 0.01)
    rows = rng.standard_normal((64, 8))
    broken = rows.T @ rows / 64 - 40 * np.eye(8)
    found = compensated(weight, scale, 127, broken)
    assert np.array_equal(found, np.rint(found)) and np.abs(found).max() <= 127
    assert np.abs(found - nearest(weight, scale, 127)).mean() < 20


def test_an_integer_output_may_be_constant(tmp_path: Path) -> None:
    proto = graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Neg", ["c"], ["z"])], {"c": np.arange(3)}
    )
    proto.graph.output.append(helper.make_tensor_value_info("z", onnx.TensorProto.INT64, [3]))
    onnx.save(proto, tmp_path / "m.onnx")
    intc.compile(tmp_path / "m.onnx", {"x": floats(8, 8)}).save(tmp_path / "m.intc")
    session = intc.load(tmp_path / "m.intc")
    assert session.run(["z"], {"x": floats(2, 8)})[0].tolist() == [0, -1, -2]


def test_random_data_of_gigabytes_are_not_made(tmp_path: Path) -> None:
    proto = model("y = ReduceMean(x)", "float[64, 1024, 2048] x", "float[1, 1, 1] y", {})
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(CalibrationError, match="'x' would have 134217728 elements; give real samples"):
        intc.compile(tmp_path / "m.onnx", "random")


def test_a_model_in_memory_is_refused_by_name() -> None:
    proto = model("y = Relu(x)", "float[batch, 8] x", "float[batch, 8] y", {})
    with pytest.raises(UsageError, match="not ModelProto; onnx"):
        intc.compile(proto, {"x": floats(8, 8)})  # type: ignore[arg-type]
