"""Masks in further spellings: as onnxruntime computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from intc.passes.pipeline import canonicalise
from tests.compiled_models import compiled, distance, error
from tests.onnx_models import Feeds, canonical, expected, floats, model, operators

RNG = np.random.default_rng(41)
LENGTHS = np.arange(12)[None] < RNG.integers(4, 13, 32)[:, None]
WEIGHTS: Feeds = {
    "w": floats(8, 8) / 2,
    "one": np.float32(1),
    "big": np.float32(-1e9),
    "low": np.float32(-np.inf),
    "far": np.float32(-9e15),
    "high": np.float32(3.4e38),
    "zero": np.float32(0),
    "ax": np.array([1]),
    "lots": np.float32(1e9),
}
SCORES = "h = MatMul(x, w) k = Transpose<perm=[0, 2, 1]>(h) s = MatMul(x, k) u = Unsqueeze(m, ax) "
# a float input for a mask, in sums and as the model itself tests it; along columns; with tests for infinity
MASKS = {
    "scaled and subtracted": "r = Sub(one, u) b = Mul(r, big) t = Mul(s, u) a = Add(t, b) p = Softmax(a)",
    "one less": "r = Sub(u, one) b = Mul(r, lots) a = Add(s, b) p = Softmax(a)",
    "negated": "r = Sub(one, u) t = Mul(r, lots) b = Neg(t) a = Add(s, b) p = Softmax(a)",
    "inverted": "r = Sub(one, u) c = Cast<to=9>(r) a = Where(c, low, s) p = Softmax(a)",
    "tested": "c = Cast<to=9>(u) a = Where(c, s, low) p = Softmax(a)",
    "in front of two summands": (
        "c = Equal(u, zero) a = Where(c, far, s) t = Sigmoid(s) d = Add(a, t) v = Tanh(s) e = Add(d, v)"
        " p = Softmax(e)"
    ),
    "along columns": (
        "c = Equal(u, zero) a = Where(c, far, s) t = Transpose<perm=[0, 2, 1]>(a) q = Softmax<axis=1>(t)"
        " p = Transpose<perm=[0, 2, 1]>(q)"
    ),
    "the smaller of two": (
        "r = Sub(one, u) b = Mul(r, big) c = Equal(u, zero) e = Where(c, far, zero) d = Min(b, e)"
        " a = Add(s, d) p = Softmax(a)"
    ),
    "less a function of masked scores": (
        "c = Cast<to=9>(u) a = Where(c, s, low) t = Transpose<perm=[0, 2, 1]>(a) g = Relu(t)"
        " d = Sub(a, g) p = Softmax(d)"
    ),
    "with numbers for infinity": (
        "c = Equal(u, zero) a = Where(c, far, s) q = Softmax(a) n = IsNaN(q) f = Where(n, zero, q)"
        " i = IsInf(f) g = Less(zero, f) j = And(i, g) p = Where(j, high, f)"
    ),
}


@pytest.mark.parametrize("form", MASKS)
def test_spellings_of_masks(form: str, tmp_path: Path) -> None:
    body = SCORES + MASKS[form] + " y = MatMul(p, h)"
    proto = model(body, "float[batch, seq, 8] x, float[batch, seq] m", "float[a, b, c] y", WEIGHTS)
    feeds = {"x": floats(32, 12, 8) / 2, "m": LENGTHS.astype(np.float32)}
    graph = canonicalise(import_onnx(proto)).graph
    (softmax,) = (node for node in graph.nodes if node.op.name == "softmax")
    assert len(softmax.inputs) == 2
    assert graph.type(softmax.inputs[1]).dtype == "bool"
    assert error(proto, feeds, tmp_path) < 0.04


def test_weighted_edges_are_kept_wherever_they_are_not_zero() -> None:
    """A float input that the model compares with 0 may hold more than 0 and 1."""
    body = "c = Equal(e, zero) a = Where(c, far, s) y = Softmax(a)"
    proto = model(body, "float[batch, 5, 5] s, float[batch, 5, 5] e", "float[a, b, c] y", WEIGHTS)
    edges = np.where(RNG.random((6, 5, 5)) < 0.5, 0, 0.3 * RNG.random((6, 5, 5))).astype(np.float32)
    edges[:, :, 0] = 0.1
    canonical(proto, {"s": floats(6, 5, 5), "e": edges})


def test_tests_for_infinity_of_masked_scores_are_refused() -> None:
    body = "c = Equal(e, zero) a = Where(c, low, s) i = IsInf(a) b = Where(i, zero, a) y = Softmax(b)"
    proto = model(body, "float[batch, 5, 5] s, float[batch, 5, 5] e", "float[a, b, c] y", WEIGHTS)
    with pytest.raises(UnsupportedModel, match="values that the model sets to infinity"):
        import_onnx(proto)


def test_a_bias_that_holds_the_mask_and_is_repeated_for_groups_of_heads(tmp_path: Path) -> None:
    body = (
        "t = Transpose<perm=[0, 1, 3, 2]>(x) s = MatMul(x, t) c = Equal(m, none) b = Where(c, low, bias)"
        " u = Unsqueeze(b, two) r = Expand(u, four) f = Reshape(r, flat) a = Add(s, f) p = Softmax(a)"
        " y = MatMul(p, x)"
    )
    weights = {"none": np.int64(0), "low": np.float32(-3e38), "two": np.array([2])}
    weights |= {"four": np.array([1, 1, 2, 1, 1]), "flat": np.array([-1, 4, 12, 12])}
    inputs = "float[batch, 4, 12, 8] x, int64[batch, 1, 1, 12] m, float[batch, 2, 12, 12] bias"
    proto = model(body, inputs, "float[a, b, c, d] y", weights)
    feeds: Feeds = {"x": floats(16, 4, 12, 8) / 2, "bias": floats(16, 2, 12, 12)}
    feeds["m"] = LENGTHS[:16, None, None].astype(np.int64)
    canonical(proto, feeds)
    graph = canonicalise(import_onnx(proto)).graph
    assert [len(n.inputs) for n in graph.nodes if n.op.name == "softmax"] == [2]
    assert distance(compiled(proto, feeds, tmp_path, rounding="nearest"), proto, feeds) < 0.04


def test_a_mask_that_is_padded_with_the_lowest_number(tmp_path: Path) -> None:
    """Blocks that are shifted by half a block: the padding counts as keys that are hidden."""
    body = (
        "t = Transpose<perm=[0, 2, 1]>(x) s = MatMul(x, t) v = Pad(s, beside) r = Sub(one, m)"
        " b = Mul(r, far) c = Pad(b, around, low) u = Unsqueeze(c, ax) a = Add(v, u) p = Softmax(a)"
        " k = Pad(x, rows) y = MatMul(p, k)"
    )
    weights = {**WEIGHTS, "around": np.array([0, 2, 0, 2]), "rows": np.array([0, 2, 0, 0, 2, 0])}
    weights |= {"low": np.float32(-3.4e38), "beside": np.array([0, 0, 2, 0, 0, 2])}
    proto = model(body, "float[batch, seq, 8] x, float[batch, seq] m", "float[a, b, c] y", weights)
    feeds = {"x": floats(32, 12, 8) / 2, "m": LENGTHS.astype(np.float32)}
    graph = canonicalise(import_onnx(proto)).graph
    assert [len(n.inputs) for n in graph.nodes if n.op.name == "softmax"] == [2]
    assert error(proto, feeds, tmp_path) < 0.04


def test_conditions_that_always_hold_have_a_shape() -> None:
    """``(arange(n) >= 0)[:, None] & mask`` is as large as both."""
    body = (
        "d = Shape(x) n = Gather(d, ax) l = Squeeze(n) r = Range(none, l, unit) u = Unsqueeze(r, ax)"
        " t = GreaterOrEqual(u, none) k = Cast<to=9>(m) a = And(t, k) c = Where(a, zero, one)"
        " y = Concat<axis=0>(c, x)"
    )
    weights = {**WEIGHTS, "none": np.int64(0), "unit": np.int64(1)}
    proto = model(body, "float[p, q] x, float[1, q] m", "float[e, f] y", weights)
    feeds = {"x": floats(3, 5), "m": np.array([[0, 1, 1, 0, 1]], np.float32)}
    graph = import_onnx(proto)
    np.testing.assert_array_equal(graph.evaluate(feeds)[0], expected(proto, feeds)[0])


def test_a_mask_that_is_joined_with_zeros_for_a_learned_prefix(tmp_path: Path) -> None:
    body = (
        "d = Shape(x) o = Gather(d, first) e = Concat<axis=0>(o, rest)"
        " p = Expand(prefix, e) k = Concat<axis=1>(p, x) t = Transpose<perm=[0, 2, 1]>(k) s = MatMul(x, t)"
        " r = Sub(one, m) g = Mul(r, big) c = Concat<axis=0>(o, two) z = Expand(zero, c)"
        " j = Concat<axis=1>(z, g) u = Unsqueeze(j, ax) a = Add(s, u) q = Softmax(a) y = MatMul(q, k)"
    )
    weights = {**WEIGHTS, "first": np.array([0]), "rest": np.array([2, 8]), "two": np.array([2])}
    weights["prefix"] = floats(1, 2, 8) / 2
    proto = model(body, "float[batch, seq, 8] x, float[batch, seq] m", "float[a, b, c] y", weights)
    graph = canonicalise(import_onnx(proto)).graph
    assert [len(n.inputs) for n in graph.nodes if n.op.name == "softmax"] == [2]
    feeds = {"x": floats(32, 12, 8) / 2, "m": LENGTHS.astype(np.float32)}
    assert error(proto, feeds, tmp_path) < 0.04


MASKED = {
    "chosen": "m = Unsqueeze(keep, two) z = Where(m, x, low)",
    "infinite": "m = Unsqueeze(keep, two) z = Where(m, x, inf)",
    "the smallest": "m = Unsqueeze(keep, two) z = Where(m, x, plus)",
    "added": "m = Unsqueeze(keep, two) f = Cast<to=1>(m) g = Sub(one, f) h = Mul(g, low) z = Add(x, h)",
    "added to the smallest": (
        "m = Unsqueeze(keep, two) f = Cast<to=1>(m) g = Sub(one, f) h = Mul(g, high) z = Add(x, h)"
    ),
}


@pytest.mark.parametrize("form", MASKED)
def test_maxima_over_what_a_mask_keeps(form: str, tmp_path: Path) -> None:
    weights: Feeds = {"two": np.array([2]), "w": floats(3, 4)}
    weights |= {"one": np.float32(1), "low": np.float32(-1e9), "inf": np.float32(-np.inf)}
    weights |= {"plus": np.float32(np.inf), "high": np.float32(1e9)}
    reduce = "ReduceMin" if form.endswith("the smallest") else "ReduceMax"
    body = MASKED[form] + f" p = {reduce}<keepdims=0, axes=[1]>(z) y = MatMul(p, w)"
    proto = model(body, "float[batch, n, 3] x, bool[batch, n] keep", "float[b, 4] y", weights)
    lengths = np.random.default_rng(1).integers(1, 6, 40)
    feeds: Feeds = {"x": floats(40, 5, 3), "keep": np.arange(5)[None] < lengths[:, None]}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.03


def test_a_mask_of_zeros_keeps_its_shape_for_what_moves_the_sum() -> None:
    """A causal mask that masks nothing, added to a padding mask per head, then split into batch and heads."""
    body = "k = Reshape(pad, to_row) e = Expand(k, per_head) f = Reshape(e, to_rows) m = Add(zeros, f)"
    body += " r = Reshape(m, to_scores) t = Add(x, r) y = Softmax<axis=-1>(t)"
    weights = {
        "to_row": np.array([2, 1, 1, 5]), "per_head": np.array([2, 3, 1, 5]), "to_rows": np.array([6, 1, 5]),
        "to_scores": np.array([2, 3, 5, 5]), "zeros": np.zeros((5, 5), np.float32),
        "fzero": np.float32(0), "inf": np.float32(-np.inf),
    }  # fmt: skip
    body = body.replace("k = Reshape(pad", "p = Where(keep, fzero, inf) k = Reshape(p")
    proto = model(body, "float[2, 3, 5, 5] x, bool[2, 5] keep", "float[2, 3, 5, 5] y", weights)
    feeds: Feeds = {"x": floats(2, 3, 5, 5), "keep": np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], bool)}
    assert operators(canonical(proto, feeds)).keys() == {"reshape", "expand", "softmax"}


def test_a_sum_of_masks_with_a_floor() -> None:
    """Twice the least float is minus infinity, which the model raises to the least float again."""
    body = "m = Cast<to=1>(mask) i = Sub(one, m) p = Mul(i, least) u = Unsqueeze(p, axis) c = Add(causal, u)"
    body += " f = Max(c, least) s = Add(x, f) y = Softmax(s)"
    least = np.finfo(np.float32).min
    weights = {
        "one": np.float32(1), "least": least, "axis": np.array([1]),
        "causal": np.triu(np.full((5, 5), least), 1),
    }  # fmt: skip
    proto = model(body, "float[batch, 5, 5] x, int64[batch, 5] mask", "float[batch, 5, 5] y", weights)
    graph = canonicalise(import_onnx(proto)).graph
    assert "max" not in operators(graph) and operators(graph)["softmax"] == 1
    feeds: Feeds = {"x": floats(2, 5, 5), "mask": np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]])}
    np.testing.assert_allclose(graph.evaluate(feeds)[0], expected(proto, feeds)[0], atol=1e-6)


def test_padding_that_comes_as_a_float_and_is_reduced(tmp_path: Path) -> None:
    """Patches count as padded where all of their numbers are (TimesFM)."""
    body = "f = Reshape(p, shape) g = ReduceMin<axes=[2], keepdims=0>(f) u = Unsqueeze(g, one) "
    body += "m = Mul(u, least) s = Mul(x, x) z = Add(s, m) y = Softmax(z)"
    weights = {"shape": np.array([-1, 4, 3]), "one": np.array([1]), "least": np.finfo(np.float32).min}
    proto = model(body, "float[b, 4, 4] x, float[b, 12] p", "float[b, 4, 4] y", weights)
    feeds: Feeds = {"x": floats(8, 4, 4), "p": (np.arange(12) < [[5], [0]] * 4).astype(np.float32)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.02


def test_a_mask_that_is_a_product_of_what_is_padded(tmp_path: Path) -> None:
    """Pairs of which both are padding (Mllama), where the last column, written in place, is."""
    body = "f = Cast<to=1>(m) k = Slice(f, none, last, unit) j = Concat<axis=1>(k, zeros) i = Sub(one, j) "
    body += "c = Unsqueeze(i, two) r = Unsqueeze(i, unit) n = MatMul(c, r) p = Mul(n, least) "
    body += "s = Mul(x, x) z = Add(s, p) y = Softmax(z)"
    weights = {"none": np.array([0]), "last": np.array([4]), "unit": np.array([1]), "two": np.array([2]),
               "one": np.float32(1), "zeros": np.zeros((8, 1), np.float32),
               "least": np.finfo(np.float32).min}  # fmt: skip
    proto = model(body, "float[8, 5, 5] x, int64[8, 5] m", "float[8, 5, 5] y", weights)
    feeds: Feeds = {"x": floats(8, 5, 5), "m": (np.arange(5) < [[3], [5]] * 4).astype(np.int64)}
    several = [{name: np.roll(a, k, 0) for name, a in feeds.items()} for k in range(4)]
    assert distance(compiled(proto, several, tmp_path), proto, feeds) < 0.02


def test_a_mask_of_minus_infinity_that_is_tested() -> None:
    """Tokens that an additive mask hides, told by its not being zero (NLLB's experts)."""
    body = "k = Cast<to=9>(m) a = Where(k, zero, least) t = Cast<to=9>(a) y = Where(t, zero, x)"
    weights = {"zero": np.float32(0), "least": np.finfo(np.float32).min}
    proto = model(body, "float[b, 5] x, int64[b, 5] m", "float[b, 5] y", weights)
    feeds: Feeds = {"x": floats(8, 5), "m": (np.arange(5) < [[3], [5]] * 4).astype(np.int64)}
    assert operators(canonical(proto, feeds))["where"] == 1
