"""Guards of finite values, products along an axis, entries in a batch, given whole numbers, sizes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, floats, model, operators

ZERO: Feeds = {"zero": np.float32(0)}
GUARDS = {
    "isfinite": "i = IsInf(x) n = IsNaN(x) b = Or(i, n) f = Not(b) g = Where(f, x, zero)",
    "nan_to_num": "n = IsNaN(x) a = Where(n, zero, x) i = IsInf(a) p = Less(zero, a) u = And(i, p)"
    " g = Where(u, zero, a)",
    "x equals x": "e = Equal(x, x) g = Where(e, x, zero)",
    "entries set to 0": "i = IsInf(x) z = NonZero(i) t = Transpose<perm=[1, 0]>(z) r = Reshape(i, flat)"
    " c = Cast<to=7>(r) s = ReduceSum<keepdims=1>(c, first) v = Expand(zero, s) g = ScatterND(x, t, v)",
}


@pytest.mark.parametrize("form", GUARDS)
def test_guards_of_finite_values(form: str) -> None:
    weights: Feeds = ZERO | {"w": floats(8, 4), "flat": np.array([-1]), "first": np.array([0])}
    body = GUARDS[form] + " y = MatMul(g, w)"
    used = {name: array for name, array in weights.items() if name in body}
    graph = canonical(model(body, "float[batch, 8] x", "float[batch, 4] y", used), {"x": floats(3, 8)})
    assert operators(graph) == {"matmul": 1}


@pytest.mark.parametrize("guard", ["Where(n, zero, p)", "Where(k, p, zero)"])
def test_rows_that_keep_nothing_are_zero(guard: str) -> None:
    body = f"s = Where(m, x, low) p = Softmax(s) n = IsNaN(p) k = Not(n) y = {guard}"
    proto = model(body, "float[b, 8] x, bool[b, 8] m", "float[b, 8] y", ZERO | {"low": np.float32(-np.inf)})
    mask = np.arange(8) < np.array([[0], [3]])
    canonical(proto, {"x": floats(2, 8), "m": mask})


def test_what_replaces_nan_must_be_zero() -> None:
    body = "s = Where(m, x, low) p = Softmax(s) n = IsNaN(p) y = Where(n, one, p)"
    weights: Feeds = {"low": np.float32(-np.inf), "one": np.float32(1)}
    with pytest.raises(UnsupportedModel, match="only Where"):
        import_onnx(model(body, "float[b, 8] x, bool[b, 8] m", "float[b, 8] y", weights))


@pytest.mark.parametrize(("size", "keepdims"), [(1, 1), (5, 0), (8, 1)])
def test_products_over_an_axis(size: int, keepdims: int, tmp_path: Path) -> None:
    body = f"s = Sigmoid(x) p = ReduceProd<axes=[1], keepdims={keepdims}>(s) y = Sub(p, half)"
    out = "float[b, 1, 3] y" if keepdims else "float[b, 3] y"
    proto = model(body, f"float[b, {size}, 3] x", out, {"half": np.float32(0.5)})
    feeds: Feeds = {"x": floats(16, size, 3) + 3}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.01


def test_products_over_a_free_axis_are_refused() -> None:
    proto = model("y = ReduceProd<axes=[1], keepdims=0>(x)", "float[b, n] x", "float[b] y")
    with pytest.raises(UnsupportedModel, match="a product of n computed values; 64 can be multiplied"):
        import_onnx(proto)


@pytest.mark.parametrize("shape", ["[b, 6]", "[b, 6, 3]"])
def test_entries_in_a_batch(shape: str) -> None:
    body = "r = Relu(x) y = GatherND<batch_dims=1>(r, at)"
    proto = model(body, f"float{shape} x, int64[b, 4, 1] at", "float[b, 4, rest] y")
    if shape == "[b, 6]":
        proto = model(body, f"float{shape} x, int64[b, 4, 1] at", "float[b, 4] y")
    at = np.array([[[0], [5], [2], [2]], [[1], [0], [-1], [3]]])
    feeds: Feeds = {"x": floats(2, 6) if shape == "[b, 6]" else floats(2, 6, 3), "at": at}
    canonical(proto, feeds)


def test_coordinates_of_several_axes_in_a_batch_are_refused() -> None:
    proto = model("y = GatherND<batch_dims=1>(x, at)", "float[b, 6, 3] x, int64[b, 4, 2] at", "float[b, 4] y")
    with pytest.raises(UnsupportedModel, match="coordinates of several axes in a batch"):
        import_onnx(proto)


def test_given_numbers_become_integers(tmp_path: Path) -> None:
    """An adjacency matrix in floats: its rows are counted, and choose embeddings."""
    body = "d = ReduceSum<keepdims=0>(x, last) i = Cast<to=7>(d) c = Clip(i, none, most) y = Gather(table, c)"
    weights: Feeds = {
        "table": floats(7, 5),
        "last": np.array([-1]),
        "none": np.int64(0),
        "most": np.int64(6),
    }
    proto = model(body, "float[b, 9, 9] x", "float[b, 9, 5] y", weights)
    edges = np.random.default_rng(0).random((16, 9, 9))
    feeds: Feeds = {"x": (edges < 0.4).astype(np.float32)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.01


def test_given_numbers_are_truncated(tmp_path: Path) -> None:
    proto = model("i = Cast<to=7>(x) f = Cast<to=1>(i) y = Mul(f, k)", "float[b, 8] x", "float[b, 8] y",
                  {"k": np.float32(0.25)})  # fmt: skip
    feeds: Feeds = {"x": np.linspace(-4, 4, 256, dtype=np.float32).reshape(32, 8)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.001


def test_computed_numbers_do_not_become_integers(tmp_path: Path) -> None:
    proto = model("m = MatMul(x, w) i = Cast<to=7>(m) y = Gather(table, i)", "float[b, 8] x",
                  "float[b, 2, 5] y", {"w": floats(8, 2), "table": floats(7, 5)})  # fmt: skip
    with pytest.raises(UnsupportedModel, match="becomes an integer"):
        compiled(proto, {"x": np.abs(floats(16, 8))}, tmp_path)


@pytest.mark.parametrize("length", [5, 24])
def test_the_smaller_of_a_length_and_a_number(length: int, tmp_path: Path) -> None:
    """A table is cut to the length or to what it has; it goes for both."""
    body = (
        "d = Shape<start=1, end=2>(x) m = Min(d, most) r = Slice(table, zero, m, zero) t = Transpose(r)"
        " s = MatMul(x, t) a = Softmax(s) y = MatMul(a, r)"
    )
    weights: Feeds = {"most": np.array([16]), "zero": np.array([0]), "table": floats(16, 8)}
    proto = model(body, "float[b, n, 8] x", "float[b, n, 8] y", weights)
    feeds: Feeds = {"x": floats(8, length, 8)}
    canonical(proto, feeds)
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.05


@pytest.mark.parametrize("shift", [1, 3, -2])
def test_rows_rolled_by_a_number(shift: int) -> None:
    """As the dynamo exporter writes ``torch.roll`` along a free axis: shifts modulo the length."""
    body = (
        "d = Shape<start=1, end=2>(x) k = Sub(d, shift) m = Mod(k, d) a = Slice(x, m, d, one)"
        " b = Slice(x, zero, m, one) y = Concat<axis=1>(a, b)"
    )
    weights: Feeds = {"shift": np.array([shift]), "one": np.array([1]), "zero": np.array([0])}
    proto = model(body, "float[b, n, 3] x", "float[b, n, 3] y", weights)
    for length in (1, 2, 3, 4, 9):
        canonical(proto, {"x": floats(2, length, 3)})
