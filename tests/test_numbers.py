"""Sizes and whole numbers as data, sums over letters, large numbers: as onnxruntime computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from intc.passes.pipeline import canonicalise
from tests.compiled_models import compiled, distance, error
from tests.onnx_models import Feeds, canonical, expected, floats, model, operators

RNG = np.random.default_rng(41)
LENGTHS = RNG.integers(0, 2, (16, 12))
WEIGHTS: Feeds = {"w": floats(8, 8) / 2}


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
    feeds: Feeds = {"m": LENGTHS, "x": floats(16, 12, 8)}
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
