"""Masks in further spellings, sizes and whole numbers as data, images sampled at computed places: as
onnxruntime computes them, and exact once compiled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from intc.passes.pipeline import canonicalise
from tests.compiled_models import compiled, distance
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


def error(proto: onnx.ModelProto, feeds: Feeds, folder: Path) -> float:
    """The compiled model's distance from fp32; its kernels equal the reference at another size, too."""
    module = compiled(proto, feeds, folder, rounding="nearest")
    some = {name: array[:1, :7] for name, array in feeds.items()}
    assert np.array_equal(module.session().run(None, some)[0], module.graph.evaluate(some)[0])
    return distance(module, proto, feeds)


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


@pytest.mark.parametrize("function", ["Identity", "Sqrt", "Log"])
def test_a_length_as_a_number(function: str, tmp_path: Path) -> None:
    body = (
        f"d = Shape(x) n = Gather(d, at) f = Cast<to=1>(n) g = {function}(f) h = MatMul(x, w) y = Div(h, g)"
    )
    weights = {**WEIGHTS, "at": np.array(1)}
    proto = model(body, "float[batch, seq, 8] x", "float[a, b, c] y", weights)
    feeds = {"x": floats(16, 12, 8)}
    canonical(proto, feeds)
    assert error(proto, feeds, tmp_path) < 0.03


@pytest.mark.parametrize(
    ("body", "most"),
    [("Round(x)", 0.001), ("Floor(x)", 0.001), ("Ceil(x)", 0.001), ("Mod<fmod=1>(x, c)", 0.15)],
)
def test_whole_numbers_of_floats(body: str, most: float, tmp_path: Path) -> None:
    """Not at a jump, to which 8 bits may bring a number that is near."""
    x = RNG.integers(-12, 12, (15, 17)).astype(np.float32) + np.float32(0.3)
    proto = model(f"y = {body}", "float[batch, seq] x", "float[a, b] y", {"c": np.float32(2)}, opset=18)
    canonical(proto, {"x": x})
    assert error(proto, {"x": x}, tmp_path) < most


@pytest.mark.parametrize(
    "place",
    ["n = Ceil(m) r = Cast<to=7>(n)", "k = Mul(f, three) l = Round(a) n = Add(k, l) r = Cast<to=7>(n)"],
)
def test_places_from_rounded_numbers(place: str, tmp_path: Path) -> None:
    """Whole numbers stay whole in what is computed of them: rows of a grid, its neighbours above."""
    body = f"m = MatMul(x, w) a = Relu(m) f = Floor(a) {place} y = Gather(table, r)"
    weights: Feeds = {"w": np.eye(6, dtype=np.float32), "three": np.float32(3), "table": floats(40, 4)}
    proto = model(body, "float[batch, 6] x", "float[a, 6, 4] y", weights)
    x = RNG.integers(0, 7, (16, 6)).astype(np.float32) + np.float32(0.3)
    canonical(proto, {"x": x})
    module = compiled(proto, {"x": x}, tmp_path, rounding="nearest")
    assert distance(module, proto, {"x": x}) < 0.001


def test_places_that_are_counted_in_floats(tmp_path: Path) -> None:
    """Every token's row goes to the place of its number among those of its kind; the fourth is dropped."""
    body = (
        "h = OneHot<axis=-1>(k, three, off_on) n = CumSum(h, ax) p = Sub(n, one) q = Mul(p, h)"
        " l = Less(q, room) f = Cast<to=1>(l) g = Mul(h, f) s = ReduceSum<keepdims=0>(q, two)"
        " i = Cast<to=7>(s) d = OneHot<axis=-1>(i, four, off_on) e = Unsqueeze(d, two) u = Unsqueeze(g, last)"
        ' a = Mul(e, u) y = Einsum<equation="bskc,bsd->bkcd">(a, x)'
    )
    weights: Feeds = {
        "three": np.int64(3), "four": np.int64(4), "off_on": np.array([0, 1], np.float32), "ax": np.int64(1),
        "one": np.float32(1), "room": np.float32(3), "two": np.array([2]), "last": np.array([3]),
    }  # fmt: skip
    proto = model(body, "int64[batch, n] k, float[batch, n, 4] x", "float[b, 3, 4, 4] y", weights)
    feeds: Feeds = {"k": np.random.default_rng(2).integers(0, 3, (16, 12)), "x": floats(16, 12, 4)}
    assert error(proto, feeds, tmp_path) < 0.01


def test_what_is_added_to_whole_numbers_is_not_rounded_to_them(tmp_path: Path) -> None:
    """Places counted in a mask, less a half: positional embeddings of detectors."""
    body = (
        "k = Cast<to=9>(m) c = Cast<to=1>(k) n = CumSum(c, ax) d = Sub(n, half) u = Unsqueeze(d, last)"
        " h = MatMul(x, w) y = Mul(h, u)"
    )
    weights: Feeds = {**WEIGHTS, "half": np.float32(0.5), "ax": np.int64(1), "last": np.array([-1])}
    proto = model(body, "int64[batch, n] m, float[batch, n, 8] x", "float[b, n, 8] y", weights)
    feeds: Feeds = {"m": LENGTHS[:16].astype(np.int64), "x": floats(16, 12, 8)}
    canonical(proto, feeds)
    assert error(proto, feeds, tmp_path) < 0.02


@pytest.mark.parametrize("test", ["Less(a, tiny)", "LessOrEqual(a, half)", "Less(half, a)", "Less(minus, d)"])
def test_whole_numbers_compared_with_others(test: str) -> None:
    """Flags that are tested for 1 with a tolerance."""
    body = f"f = Cast<to=1>(k) d = Sub(f, one) a = Abs(d) l = {test} y = Where(l, f, d)"
    weights: Feeds = {
        n: np.float32(v) for n, v in (("one", 1), ("tiny", 1e-7), ("half", 2.5), ("minus", -0.5))
    }
    feeds: Feeds = {"k": np.arange(-3, 5)}
    proto = model(body, "int64[n] k", "float[n] y", weights)
    graph = canonicalise(import_onnx(proto)).graph
    assert np.array_equal(graph.evaluate(feeds)[0], expected(proto, feeds)[0])
    (comparison,) = (n for n in graph.nodes if n.op.name in ("less", "less_or_equal"))
    assert not any(graph.type(x).is_float for x in comparison.inputs)


@pytest.mark.parametrize(
    "body", ["Div(x, c)", "Mod(x, c)", "Mod<fmod=1>(x, c)", "ReduceMin<keepdims=1>(x, ax)"]
)
def test_whole_numbers_of_integers(body: str) -> None:
    x = np.arange(-40, 32).reshape(8, 9)
    weights = {"c": np.array([3]), "ax": np.array([1])}
    canonical(model(f"y = {body}", "int64[batch, 9] x", "int64[a, b] y", weights, opset=18), {"x": x})


@pytest.mark.parametrize("body", ["Mod(x, c)", "Mod<fmod=1>(x, c)", "Div(x, c)"])
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_integers_of_all_bits_are_divided(body: str, kind: str, tmp_path: Path) -> None:
    """Identifiers that are hashed."""
    rng = np.random.default_rng(5)
    x = rng.integers(-(2**31), 2**31, (8, 6))
    x = x.astype(np.int32) if kind == "int32" else x * rng.integers(0, 2**26, (8, 6))
    body = f"q = {body} r = Mod(q, c) z = Mul(r, r) k = Div(z, c) y = Gather(table, k)"
    weights: Feeds = {"c": np.array([97], kind), "table": floats(98, 4)}
    proto = model(body, f"{kind}[b, n] x", "float[a, m, d] y", weights, opset=18)
    canonical(proto, {"x": x})
    assert distance(compiled(proto, {"x": x}, tmp_path), proto, {"x": x}) < 1e-4


def test_integers_are_divided_by_known_positive_ones() -> None:
    for divisor in (0, -2):
        with pytest.raises(UnsupportedModel, match="the divisor of integers must be positive"):
            weights = {"c": np.array([divisor])}
            import_onnx(model("y = Div(x, c)", "int64[batch, 9] x", "int64[a, b] y", weights))


@pytest.mark.parametrize(
    "body",
    [
        "d = Div(f, ten) a = Abs(d) w = Floor(a) s = Sign(d) m = Mul(w, s) k = Cast<to=7>(m)",
        "d = Mul(tenth, f) e = Add(d, one) k = Cast<to=7>(e)",
        "d = Div(f, ten) e = Sub(d, half) w = Floor(e) k = Cast<to=7>(w)",
    ],
)
def test_integers_divided_in_floats_and_cut_off(body: str, tmp_path: Path) -> None:
    """As exporters write ``torch.div(x, 10, rounding_mode="trunc")`` and ``(x / 10 + 1).int()``."""
    known: Feeds = {
        "ten": np.float32(10), "tenth": np.float32(0.1), "one": np.float32(1), "half": np.float32(0.5),
    }  # fmt: skip
    weights = {"table": floats(40, 8), **{k: v for k, v in known.items() if k in body}}
    proto = model(
        f"f = Cast<to=1>(x) {body} y = Gather(table, k)", "int64[b, n] x", "float[a, m, c] y", weights
    )
    feeds: Feeds = {"x": np.arange(0, 300).reshape(10, 30)}
    places = canonicalise(import_onnx(proto)).graph
    assert [n.op.name for n in places.nodes if places.type(n.output).is_float] == ["gather"]
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 1e-4


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("corners", [0, 1])
def test_sampled_images(padding: str, corners: int, tmp_path: Path) -> None:
    body = f'y = GridSample<mode="bilinear", align_corners={corners}, padding_mode="{padding}">(x, g)'
    proto = model(body, "float[batch, 3, 9, 7] x, float[batch, 5, 4, 2] g", "float[a, b, c, d] y")
    grid = (0.7 * RNG.normal(size=(24, 5, 4, 2))).astype(np.float32)  # many places lie outside
    feeds = {"x": floats(24, 3, 9, 7), "g": grid}
    graph = canonical(proto, feeds, 1e-4)
    assert operators(graph)["gather_elements"] == 4
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.1


def test_images_sampled_at_pixels(tmp_path: Path) -> None:
    """The shares of the pixels are 0 but for the rounding of floats, which says nothing of their range."""
    body = 'y = GridSample<mode="bilinear", align_corners=1, padding_mode="zeros">(x, g)'
    proto = model(body, "float[batch, 3, 7, 7] x, float[batch, 5, 4, 2] g", "float[a, b, c, d] y")
    pixels = RNG.integers(0, 7, (24, 5, 4, 2)).astype(np.float32)
    feeds: Feeds = {"x": floats(24, 3, 7, 7), "g": pixels / np.float32(3) - np.float32(1 - 3e-7)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.01


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_the_nearest_pixels(padding: str, tmp_path: Path) -> None:
    body = f'y = GridSample<mode="nearest", padding_mode="{padding}">(x, g)'
    proto = model(body, "float[batch, 3, 9, 7] x, float[batch, 5, 4, 2] g", "float[a, b, c, d] y")
    places = RNG.integers(-2, 11, (24, 5, 4, 2)) + RNG.uniform(-0.45, 0.45, (24, 5, 4, 2))
    places = (places + 0.5) / np.array([7, 9]) * 2 - 1
    feeds: Feeds = {"x": floats(24, 3, 9, 7), "g": places.astype(np.float32)}
    canonical(proto, feeds)
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.01


def test_cubic_mixtures_of_pixels_are_refused() -> None:
    body, inputs = 'y = GridSample<mode="cubic">(x, g)', "float[n, 3, 9, 7] x, float[n, 5, 4, 2] g"
    with pytest.raises(UnsupportedModel, match="the mode cubic is not supported"):
        import_onnx(model(body, inputs, "float[a, b, c, d] y", opset=20))


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("sides", [(5, 4), (3, 5, 4)])
def test_places_that_affine_maps_give(sides: tuple[int, ...], corners: int, tmp_path: Path) -> None:
    rank = len(sides)
    body, result = f"y = AffineGrid<align_corners={corners}>(t, size)", "abcde"[: rank + 2]
    weights = {"size": np.array([24, 3, *sides])}
    inputs, outputs = f"float[n, {rank}, {rank + 1}] t", f"float[{', '.join(result)}] y"
    proto = model(body, inputs, outputs, weights, opset=20)
    feeds: Feeds = {"t": floats(24, rank, rank + 1)}
    canonical(proto, feeds)
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.001


SUMS = {
    "...si,...id->...sd": ((3, 2, 4, 5), (3, 2, 5, 6)),
    "bhij,...ij->bh": ((3, 2, 4, 5), (4, 5)),
    "...ij,...jk": ((2, 3, 4), (2, 4, 5)),
    "bhnd,bhde,bhn->bhne": ((2, 3, 4, 5), (2, 3, 5, 6), (2, 3, 4)),
    "bi,bj,bk->bijk": ((2, 3), (2, 4), (2, 5)),
}


@pytest.mark.parametrize("equation", SUMS)
def test_sums_over_letters_and_the_axes_before(equation: str) -> None:
    feeds = dict(zip("xzw", (floats(*shape) for shape in SUMS[equation]), strict=False))
    rank = len(np.einsum(equation, *feeds.values()).shape)
    inputs = ", ".join(f"float[{','.join(map(str, a.shape))}] {n}" for n, a in feeds.items())
    body = f'y = Einsum<equation="{equation}">({", ".join(feeds)})'
    canonical(model(body, inputs, f"float[{','.join('abcd'[:rank])}] y"), feeds, 1e-4)


def test_a_sum_over_nothing_is_an_elementwise_product() -> None:
    body = 'y = Einsum<equation="bc,bnc->bnc">(x, z)'
    proto = model(body, "float[2,4] x, float[2,3,4] z", "float[a,b,c] y")
    assert "matmul" not in operators(canonical(proto, {"x": floats(2, 4), "z": floats(2, 3, 4)}))


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


def test_probabilities_that_are_averaged_are_finer_than_eight_bits(tmp_path: Path) -> None:
    body = "p = Softmax<axis=-1>(x) y = ReduceMean<keepdims=0, axes=[1]>(p)"
    proto = model(body, "float[batch, n, 40] x", "float[b, 40] y")
    feeds: Feeds = {"x": floats(32, 6, 40)}
    onnx.save(proto, tmp_path / "m.onnx")
    module = intc.compile(tmp_path / "m.onnx", feeds)
    (found,), (exact,) = module.session().run(None, feeds), module.graph.evaluate(feeds)
    assert np.array_equal(found, exact)
    assert np.abs(found - expected(proto, feeds)[0]).max() < 2**-11


def test_waves_of_many_turns(tmp_path: Path) -> None:
    """The embedding of a time step, which is an input, at frequencies from 1 to 1/1000."""
    body = "f = Cast<to=1>(t) c = Unsqueeze(f, ax) a = Mul(c, w)"
    body += " s = Sin(a) k = Cos(a) y = Concat<axis=1>(s, k)"
    weights: Feeds = {"ax": np.array([1]), "w": np.logspace(0, -3, 8, dtype=np.float32)}
    proto = model(body, "int64[batch] t", "float[b, 16] y", weights)
    feeds: Feeds = {"t": np.random.default_rng(0).integers(0, 1000, 64)}
    onnx.save(proto, tmp_path / "m.onnx")
    module = intc.compile(tmp_path / "m.onnx", feeds)
    further: Feeds = {"t": np.array([0, 999, 1500, 60000])}
    for given in (feeds, further):
        (found,), (exact,) = module.session().run(None, given), module.graph.evaluate(given)
        assert np.array_equal(found, exact)
        angles = given["t"][:, None] * weights["w"].astype(np.float64)
        want = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
        assert np.abs(found - want).max() < 1e-3


def test_softmax_of_negated_roots(tmp_path: Path) -> None:
    """Distances as scores: the less, the more."""
    body = "q = Mul(x, x) s = Sqrt(q) n = Neg(s) p = Softmax<axis=-1>(n) y = MatMul(p, z)"
    proto = model(body, "float[batch, n, 8] x, float[batch, 8, 4] z", "float[b, m, 4] y")
    feeds: Feeds = {"x": floats(32, 6, 8), "z": floats(32, 8, 4)}
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


def test_truth_values_that_are_kept_as_integers() -> None:
    """As CPM-Ant joins masks; opset 18 has operators on the bits of integers."""
    body = (
        "a = Greater(x, zero) i = Cast<to=6>(a) b = Less(x, one) j = Cast<to=6>(b)"
        " both = BitwiseAnd(i, j) far = BitwiseOr(both, known) n = BitwiseNot(far) k = Cast<to=1>(n)"
        " y = Mul(x, k)"
    )
    weights: Feeds = {
        "zero": np.float32(0), "one": np.float32(1), "known": np.array([0, 1, 0, 0, 1], np.int32),
    }  # fmt: skip
    proto = model(body, "float[batch, 5] x", "float[b, c] y", weights, opset=18)
    canonical(proto, {"x": floats(8, 5)})
    proto = model("y = BitwiseAnd(x, c)", "int64[b, n] x", "int64[a, m] y", {"c": np.int64(7)}, opset=18)
    canonical(proto, {"x": np.arange(-20, 20).reshape(4, 10)})
    proto = model("y = BitwiseAnd(x, x)", "int32[batch, 5] x", "int32[b, c] y", opset=18)
    with pytest.raises(UnsupportedModel, match="only the bits of 0 and 1"):
        import_onnx(proto)


def test_a_choice_between_positions_and_integers_of_32_bits() -> None:
    body = (
        "s = Shape<start=1, end=2>(x) n = Squeeze(s) r = Range(start, n, step) c = Cast<to=6>(r)"
        " k = Cast<to=6>(x) p = Cast<to=9>(x) t = Where(p, c, k) y = Cast<to=1>(t)"
    )
    weights: Feeds = {"start": np.int64(0), "step": np.int64(1)}
    proto = model(body, "int64[batch, n] x", "float[b, c] y", weights)
    canonical(proto, {"x": np.array([[0, 3, 1], [2, 0, 0]])})
