"""Ranges without data: they hold whatever the input, and are as narrow as the quantisers make them."""

from __future__ import annotations

import numpy as np
import pytest

from intc.calibration import derive, is_quantised
from intc.frontend import import_onnx
from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.passes.pipeline import canonicalise
from tests.onnx_models import Feeds, floats, model

RNG = np.random.default_rng(3)
GRID: Feeds = {"s": np.float32(0.05), "z": np.int8(3)}
IN = "q = QuantizeLinear(x, s, z) a = DequantizeLinear(q, s, z)"
OUT = "u = QuantizeLinear(b, s, z) y = DequantizeLinear(u, s, z)"


def graph_of(body: str, weights: Feeds) -> Graph:
    proto = model(f"{IN} {body} {OUT}", "float[batch, 8] x", "float[n, 8] y", {**GRID, **weights}, opset=18)
    return canonicalise(import_onnx(proto)).graph


def outputs(graph: Graph, x: Array, cut: bool) -> Array:
    """What ``graph`` makes of ``x``, every value ``cut`` to its derived range or not."""
    ranges = derive(graph) if cut else {}
    live = {**graph.constants, graph.inputs[0]: x}
    for name in graph.inputs:
        live[name] = _cut(live[name], ranges.get(name))
    for node in graph.nodes:
        result = node.op.evaluate(*(live[i] for i in node.inputs), sizes=graph.bind({graph.inputs[0]: x}))
        live[node.output] = _cut(result, ranges.get(node.output))
    if cut:
        assert {n.output for n in graph.nodes} <= set(ranges), "all are known"
    return live[graph.outputs[0]]


def _cut(array: Array, known: object) -> Array:
    return array if known is None else np.clip(array, known.low[0], known.high[0])  # type: ignore[attr-defined]


BODIES: dict[str, tuple[str, Feeds]] = {
    "a product and a bias": ("m = MatMul(a, w) b = Add(m, c)", {"w": floats(8, 8), "c": floats(8)}),
    "a norm": ("b = LayerNormalization(a, g, c)", {"g": floats(8, seed=1), "c": floats(8, seed=2)}),
    "sums and products": ("m = Mul(a, a) n = Sub(m, a) b = Mul(n, c)", {"c": floats(8, seed=3) + 3}),
    "functions": ("m = Sigmoid(a) n = Exp(m) b = Mul(n, a)", {}),
    "a function of a sum": ("m = MatMul(a, w) n = Sigmoid(m) b = Mul(m, n)", {"w": floats(8, 8, seed=1)}),
    "a quotient": ("m = Exp(a) n = Sigmoid(m) b = Div(a, n)", {}),
    "a softmax": ("m = Softmax(a) b = Mul(m, c)", {"c": floats(8, seed=4)}),
    "joined": ("m = Relu(a) j = Concat<axis=1>(m, a) b = MatMul(j, w)", {"w": floats(16, 8)}),
    "a mean": ("m = ReduceMean<keepdims=1>(a, i) n = Max(a, c) b = Add(n, m)",
               {"c": floats(8, seed=5), "i": np.array([1])}),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_what_is_cut_at_its_range_makes_no_difference(name: str) -> None:
    graph = graph_of(*BODIES[name])
    x = RNG.uniform(-12, 12, (256, 8)).astype(np.float32)
    assert is_quantised(graph)
    np.testing.assert_allclose(outputs(graph, x, cut=True), outputs(graph, x, cut=False), atol=1e-5)


def test_a_quantiser_narrows_what_stands_in_front_of_it() -> None:
    """The sum of products can be far larger than what the quantiser behind the function can tell apart."""
    graph = graph_of("m = MatMul(a, w) b = Relu(m)", {"w": floats(8, 8, seed=2) * 50})
    ranges = derive(graph)
    (product,) = (n.output for n in graph.nodes if n.op.name == "matmul")
    (values,) = (n.output for n in graph.nodes if n.op.name == "relu")
    assert 124 * 0.05 <= ranges[product].high[0] <= 127 * 0.05 + 0.05
    assert ranges[product].low[0] >= -0.1, "all below zero is zero"
    assert ranges[values].looseness == ranges[product].looseness == 1


def test_sums_of_products_say_how_loose_they_are() -> None:
    """|w|_1 / |w|_2 of 8 equal weights is the root of 8; of an input that nothing quantises none is known."""
    body = "m = MatMul(a, w) n = LayerNormalization(m, g, c) b = Relu(n)"
    one = np.ones(8, np.float32)
    ones: Feeds = {"w": np.ones((8, 8), np.float32), "g": one, "c": 0 * one}
    graph = graph_of(body, ones)
    (product,) = (n.output for n in graph.nodes if n.op.name == "matmul")
    assert derive(graph)[product].looseness == pytest.approx(8**0.5, rel=1e-6)
    plain = canonicalise(import_onnx(model("y = Relu(x)", "float[n, 8] x", "float[m, 8] y", {}))).graph
    assert not is_quantised(plain) and not derive(plain)
