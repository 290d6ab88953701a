"""Values with heavy tails: where rounding them would be loud they have more bits, or are not computed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from intc.calibration.histogram import Histogram
from intc.codegen.lower import lower
from intc.ir.graph import Graph
from intc.ir.types import DType
from intc.module import Module
from intc.passes import pipeline
from intc.passes.integer import noise
from intc.passes.pipeline import Pipeline
from intc.passes.plan import Choice, Plan
from intc.report.reference import fidelity
from tests.onnx_models import Feeds, expected, floats, model
from tests.test_floor import calibrated

WIDTH = 32
GATE = "a = MatMul(x, u) b = MatMul(x, v) p = Mul(a, b) y = MatMul(p, w)"
KERNELS = (  # positive features of keys, most far below the largest; a free number of them
    "k = MatMul(x, u) e = Exp(k) t = Transpose<perm=[0, 2, 1]>(e) v = MatMul(x, w) s = MatMul(t, v)"
    " q = MatMul(x, v2) y = MatMul(q, s)"
)
SHARES = (  # of the sum of two, which may be a small one
    "f = Slice(x, zero, two, last) c = Mul(f, f) d = Mul(c, c) s = ReduceSum(d, last)"
    " r = Div(one, s) y = Mul(d, r)"
)
SIZES = "a = MatMul(x, u) y = Exp(a)"


def drawn(names: str, gain: float = 1.0) -> Feeds:
    """Square matrices that keep deviations, times ``gain``."""
    return {
        n: floats(WIDTH, WIDTH, seed=i + 1) * np.float32(gain * WIDTH**-0.5)
        for i, n in enumerate(names.split())
    }


def rows(count: int, seed: int, length: int = 12) -> Feeds:
    return {"x": floats(count, length, WIDTH, seed=seed)}


def written(body: str, weights: Feeds) -> onnx.ModelProto:
    return model(body, f"float[batch, length, {WIDTH}] x", f"float[batch, length, {WIDTH}] y", weights)


def integers(proto: onnx.ModelProto, plan: Plan | None = None) -> Pipeline:
    """The integer graph."""
    state, seen = calibrated(proto, rows(32, 7))
    return pipeline.integerise(state, seen, rounding="nearest", plan=plan or Plan())


def distance(proto: onnx.ModelProto, graph: Graph) -> float:
    """In dB, on other data."""
    held = rows(24, 8)
    return float(fidelity(graph.evaluate(held)[0], expected(proto, held)[0])["sqnr_db"])


def assert_exact(state: Pipeline) -> None:
    """The kernels give the reference's bits."""
    prepared, held = pipeline.prepare(state).graph, rows(5, 9)
    session = Module(state.graph, prepared, lower(prepared, "native"), tuple(state.graph.outputs)).session()
    np.testing.assert_array_equal(session.run(None, held)[0], state.graph.evaluate(held)[0])


def operand(graph: Graph, product: str) -> DType:
    """The type of what the product ``product`` reads."""
    node = next(n for n in graph.nodes if n.op.name == "matmul" and n.output == product)
    return graph.type(node.inputs[0]).dtype


def test_a_product_of_gates_reads_what_it_multiplies_in_16_bits() -> None:
    proto = written(GATE, drawn("u v w"))
    wide, narrow = integers(proto).graph, integers(proto, Plan({"y": Choice(activations=8)})).graph
    assert [operand(wide, x) for x in "aby"] == ["int8", "int8", "int16"]
    assert operand(narrow, "y") == "int8"
    assert distance(proto, wide) > distance(proto, narrow) + 2.5


def test_a_residual_branch_counts_against_the_stream() -> None:
    weights = drawn("u v w")
    weights["w"] *= np.float32(0.2)
    proto = written(GATE.replace("y =", "o =") + " y = Add(x, o)", weights)
    assert operand(integers(proto).graph, "o") == "int8"


def test_a_plan_has_its_way_with_operands() -> None:
    graph = integers(written(GATE, drawn("u v w")), Plan(default=Choice(activations=8))).graph
    assert operand(graph, "y") == "int8"


def test_products_over_a_free_length_are_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = written(KERNELS, drawn("u w v2"))
    state = integers(proto)
    parts = [n for n in state.graph.nodes if n.op.name == "matmul" and n.output.startswith("s.part")]
    assert len(parts) == 2
    assert all(state.graph.type(x).dtype == "int8" for n in parts for x in n.inputs)
    assert_exact(state)
    monkeypatch.setattr(noise, "LOUD", 1e9)
    assert distance(proto, state.graph) > distance(proto, integers(proto).graph) + 4


def test_reciprocals_with_heavy_tails_are_divisors(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = {"zero": np.array([0]), "two": np.array([2]), "last": np.array([-1]), "one": np.float32([1])}
    proto = written(SHARES, numbers)
    state = integers(proto)
    assert "y" in [n.output for n in state.graph.nodes if n.op.name == "divide"]
    assert_exact(state)
    monkeypatch.setattr(noise, "LOUD", 1e9)
    assert distance(proto, state.graph) > distance(proto, integers(proto).graph) + 6


def test_exponentials_keep_what_calibration_did_not_show() -> None:
    proto = written(SIZES, drawn("u", 2.0))
    state = integers(proto)
    (name,) = state.graph.outputs
    assert state.graph.type(name).dtype == "int32"
    assert_exact(state)
    assert distance(proto, state.graph) > 20


def test_an_exponential_of_what_is_never_positive_has_16_bits() -> None:
    body = "a = MatMul(x, u) m = ReduceMax<axes=[-1], keepdims=1>(a) d = Sub(a, m) y = Exp(d)"
    graph = integers(written(body, drawn("u"))).graph
    assert graph.type(graph.outputs[0]).dtype == "int16"


def test_excesses_and_what_is_beyond() -> None:
    rng = np.random.default_rng(0)
    values = np.stack([rng.exponential(size=20000), rng.uniform(size=20000), np.zeros(20000)], axis=1)
    counted = Histogram(4096)
    counted.update(values.astype(np.float32))
    excesses = counted.excesses(1 / 32)
    assert excesses[:2] == pytest.approx([1.0, 1 / 64], rel=0.15)
    limits = np.array([2.0, 0.5, 1.0])
    wanted = (np.maximum(values - limits, 0) ** 2).mean(axis=0)
    assert counted.beyond(limits) == pytest.approx(wanted, rel=0.02)
