"""Constants that are repeated for every sample: computed once, and taken out of joined operands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.frontend import import_onnx
from intc.ir.graph import Graph
from intc.passes.fold_constants import FoldConstants
from intc.passes.fold_expanded import FoldExpanded
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, expected, floats, model, operators

CODES, WIDTH = 5, 8
WEIGHTS: Feeds = {
    "codes": floats(1, CODES, WIDTH),
    "w": floats(WIDTH, WIDTH) / 2,
    "m": floats(WIDTH + 1, 6) / 3,
    "minus": np.float32(-2),
    "two": np.float32(2),
    "ax": np.array([2]),
    "first": np.array([0]),
    "one": np.array([1]),
    "of": np.array([CODES, WIDTH]),
    "unit": np.ones(1, np.float32),
}
FEEDS: Feeds = {"x": floats(32, 12, WIDTH)}
X = f"float[batch, 12, {WIDTH}] x"
# as torch.cdist is exported: [-2x, |x|^2, 1] @ [c, 1, |c|^2]
JOINED = (
    "h = MatMul(x, w) n = Shape(h) b = Slice(n, first, one) s = Concat<axis=0>(b, of) c = Expand(codes, s)"
    " p = Pow(h, two) hh = ReduceSum(p, ax) q = Pow(c, two) cc = ReduceSum(q, ax) g = Mul(h, minus)"
    " hs = Shape(hh) u = Expand(unit, hs) cs = Shape(cc) v = Expand(unit, cs)"
    " l = Concat<axis=2>(g, hh, u) r = Concat<axis=2>(c, v, cc) t = Transpose<perm=[0, 2, 1]>(r)"
    " d = MatMul(l, t)"
)


def folded(body: str, outputs: str) -> Graph:
    """The graph of ``body``, equal to onnxruntime's before and after."""
    proto = model(body, X, outputs, WEIGHTS)
    graph = FoldConstants().run(import_onnx(proto))
    after = FoldExpanded().run(graph)
    for found, want in zip(after.evaluate(FEEDS), expected(proto, FEEDS), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)
    return after


def test_distances_are_one_product_with_the_codes() -> None:
    graph = folded(JOINED + " y = Identity(d)", "float[a, b, c] y")
    counts = operators(graph)
    assert counts["matmul"] == 2
    assert "concat" not in counts
    assert "expand" not in counts
    product = graph.producers()[next(n.inputs[0] for n in graph.nodes if n.source and "bias" in n.output)]
    np.testing.assert_array_equal(graph.constants[product.inputs[1]], WEIGHTS["codes"][0].T)


def test_the_nearest_code_is_found(tmp_path: Path) -> None:
    proto = model(JOINED + " i = ArgMin<axis=2, keepdims=0>(d)", X, "int64[a, b] i", WEIGHTS)
    module = compiled(proto, FEEDS, tmp_path, rounding="nearest")
    (found,) = module.session().run(None, FEEDS)
    np.testing.assert_array_equal(found, module.graph.evaluate(FEEDS)[0])
    assert (found == expected(proto, FEEDS)[0]).mean() > 0.95


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("s = ReduceMax<axes=[2]>(x) l = Concat<axis=2>(x, s) y = MatMul(l, m)", {"concat": 1, "add": 0}),
        ("n = Shape(x) e = Expand(unit, n) y = Add(x, e)", {"expand": 1, "add": 1}),
    ],
)
def test_what_is_computed_stays_joined(body: str, kept: dict[str, int]) -> None:
    counts = operators(folded(body, "float[a, b, c] y"))
    assert {name: counts.get(name, 0) for name in kept} == kept


def test_what_gradients_are_passed_by_is_no_sum(tmp_path: Path) -> None:
    body = "h = MatMul(x, w) r = Round(h) d = Sub(r, h) s = Add(h, d) y = MatMul(s, w)"
    proto = model(body, X, "float[a, b, c] y", WEIGHTS)
    graph = FoldConstants().run(import_onnx(proto))
    assert [n.op.name for n in graph.nodes] == ["matmul", "round", "matmul"]
    assert distance(compiled(proto, FEEDS, tmp_path, rounding="nearest"), proto, FEEDS) < 0.2


def test_operators_without_inputs_are_no_products() -> None:
    body = JOINED + (
        " k = Shape<end=1>(x) size = Squeeze(k) i = Range(zero, size, step) f = Cast<to=1>(i)"
        " f3 = Unsqueeze(f, both) y = Add(d, f3)"
    )
    weights = {**WEIGHTS, "zero": np.int64(0), "step": np.int64(1), "both": np.array([1, 2])}
    proto = model(body, X, "float[a, b, c] y", weights)
    graph = FoldConstants().run(import_onnx(proto))
    assert any(not node.inputs for node in graph.nodes)
    (found,) = FoldExpanded().run(graph).evaluate(FEEDS)
    np.testing.assert_allclose(found, expected(proto, FEEDS)[0], rtol=1e-4, atol=1e-4)
