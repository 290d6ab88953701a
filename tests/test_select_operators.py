"""The largest entries of a row, writes at positions of each row's own, Fourier transforms, patches, and
functions of one value: as onnxruntime computes them, and exact once compiled.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, floats, model

W: Feeds = {"w": floats(6, 6) / 2}
K: Feeds = {"k": np.array([2])}
EXPERTS = "g = MatMul(x, w) p = Softmax(g) v, i = TopK(p, k) "


@pytest.mark.parametrize("largest", [0, 1])
@pytest.mark.parametrize("axis", [-1, 1])
def test_largest_entries_in_order_and_where_they_stand(largest: int, axis: int) -> None:
    body = f"v, i = TopK<axis={axis}, largest={largest}>(x, k) f = Cast<to=1>(i) y = Add(v, f)"
    x = np.random.default_rng(1).integers(-2, 3, (4, 5, 5)).astype(np.float32)  # many are equal
    canonical(model(body, "float[batch, 5, 5] x", "float[a, b, c] y", K), {"x": x})


@pytest.mark.parametrize(("size", "k"), [(2049, 1), (2600, 6), (2048, 700)])
def test_largest_entries_of_long_rows(size: int, k: int) -> None:
    """The first of every group are candidates; of equal ones the first of the row wins."""
    x = np.random.default_rng(1).integers(-9, 10, (2, size)).astype(np.float32)
    proto = model(
        "v, i = TopK(x, k)", f"float[batch, {size}] x", "float[a, b] v, int64[a, b] i", {"k": np.array([k])}
    )
    graph = canonical(proto, {"x": x})
    largest = max(math.prod(d for d in v.type.shape if isinstance(d, int)) for v in graph.values.values())
    assert largest <= size * max(1024, 2 * k)


def test_more_entries_than_are_ordered_are_refused() -> None:
    proto = model("y, i = TopK(x, k)", "float[batch, 90000] x", "float[a, b] y", K)
    with pytest.raises(UnsupportedModel, match="2 of 90000 entries take more than 67108864 comparisons"):
        import_onnx(proto)


MIXTURES = {
    "written": "d = Shape(p) z = ConstantOfShape(d) s = ScatterElements<axis=-1>(z, i, v) y = MatMul(s, w)",
    "added": 'd = Shape(p) z = ConstantOfShape(d) s = ScatterElements<axis=-1, reduction="add">(z, i, v)'
    " y = MatMul(s, w)",
    "one-hot": "h = OneHot(i, depth, values) u = Unsqueeze(v, last) q = Mul(h, u) s = ReduceSum(q, two)"
    " y = MatMul(s, w)",
}


@pytest.mark.parametrize("form", MIXTURES)
def test_experts_that_a_row_chooses(form: str, tmp_path: Path) -> None:
    weights = {**W, **K, "depth": np.array([6]), "values": np.array([0, 1], np.float32)}
    weights |= {"last": np.array([-1]), "two": np.array([-2])}
    proto = model(EXPERTS + MIXTURES[form], "float[batch, seq, 6] x", "float[a, b, c] y", weights)
    feeds = {"x": decided(floats(400, 6))[:80].reshape(16, 5, 6)}
    canonical(proto, feeds)
    assert distance(compiled(proto, feeds, tmp_path, rounding="nearest"), proto, feeds) < 0.05


def decided(rows: np.ndarray) -> np.ndarray:
    """The rows of which rounding cannot change the two largest gates."""
    gates = np.sort(rows @ W["w"], axis=-1)
    return rows[gates[:, -2] - gates[:, -3] > 0.2]


def test_positions_that_count_from_the_end(tmp_path: Path) -> None:
    body = "m = ArgMax<axis=-1>(x) i = Sub(m, six) y = ScatterElements<axis=-1>(x, i, u)"
    weights = {"six": np.array([6]), "u": np.zeros((4, 1), np.float32)}
    canonical(model(body, "float[4, 6] x", "float[4, 6] y", weights), {"x": floats(4, 6)})


@pytest.mark.parametrize("onesided", [0, 1])
def test_fourier_transforms(onesided: int, tmp_path: Path) -> None:
    """One axis of real numbers, then another of complex ones, and back."""
    body = (
        f"u = Unsqueeze(x, last) a = DFT<axis=2, onesided={onesided}>(u) b = DFT<axis=1>(a)"
        " c = DFT<axis=1, inverse=1>(b) d = Add(b, c) y = ReduceSum(d, last)"
    )
    proto = model(body, "float[batch, 5, 6] x", "float[a, b, c] y", {"last": np.array([-1])}, opset=18)
    graph = canonical(proto, {"x": floats(8, 5, 6)})
    assert {node.op.name for node in graph.nodes} <= {"matmul", "reshape", "transpose", "add", "reduce_sum"}
    feeds: Feeds = {"x": floats(16, 5, 6)}
    assert distance(compiled(proto, feeds, tmp_path, rounding="nearest"), proto, feeds) < 0.02
    free = model("u = Unsqueeze(x, last) y = DFT<axis=1>(u)", "float[batch, seq] x", "float[a, b, c] y",
                 {"last": np.array([-1])}, opset=18)  # fmt: skip
    with pytest.raises(UnsupportedModel, match="the signal must have a fixed size"):
        import_onnx(free)


def test_patches_put_back() -> None:
    sizes: Feeds = {"image": np.array([4, 6]), "block": np.array([2, 3])}
    body = "y = Col2Im<strides=[2, 3]>(x, image, block)"
    proto = model(body, "float[batch, 12, 4] x", "float[a, b, c, d] y", sizes, opset=18)
    canonical(proto, {"x": floats(2, 12, 4)})
    crossing = model(
        "y = Col2Im(x, image, block)", "float[batch, 12, 12] x", "float[a, b, c, d] y", sizes, opset=18
    )
    canonical(crossing, {"x": floats(2, 12, 12)})


FUNCTIONS = {
    **{name: f"y = {name}(t)" for name in ("Acos", "Asin", "Atan", "Sinh", "Cosh", "Asinh", "Atanh")},
    "Acosh": "e = Exp(x) f = Add(e, two) y = Acosh(f)",
    "Sign": "y = Sign(t)",
    "Mod": "s = Mul(t, three) y = Mod<fmod=1>(s, one)",
    "Mean": "y = Mean(t, x, one)",
    "ThresholdedRelu": "y = ThresholdedRelu<alpha=0.2>(t)",
    "Shrink": "y = Shrink<bias=0.1, lambd=0.3>(t)",
    "Swish": "y = Swish<alpha=1.3>(t)",
    "Hardmax": "y = Hardmax(t)",
    "ReduceLogSumExp": "y = ReduceLogSumExp<axes=[-1]>(t)",
    "ReduceLogSum": "e = Exp(t) y = ReduceLogSum<axes=[-1], keepdims=0>(e)",
    "CastLike": "p = Less(t, one) f = CastLike(p, t) y = Add(f, t)",
    "Xor": "p = Less(t, one) q = Less(one, x) r = Xor(p, q) f = Cast<to=1>(r) y = Add(f, t)",
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    rank = "float[a, b] y" if name == "ReduceLogSum" else "float[a, b, c] y"
    numbers = {n: np.float32(v) for n, v in (("one", 0.3), ("two", 2), ("three", 3), ("near", 0.9))}
    body = "h = Tanh(x) t = Mul(h, near) " + FUNCTIONS[name]
    proto = model(body, "float[batch, 5, 6] x", rank, numbers, opset=24 if name == "Swish" else 17)
    canonical(proto, {"x": floats(3, 5, 6)})


@pytest.mark.parametrize(
    "power", ["Pow(a, channels)", "Pow(m, whole)", "Pow(bases, m)", "Pow(a, a)", "Pow(m, alike)"]
)
def test_powers_of_several_numbers(power: str, tmp_path: Path) -> None:
    """An exponent for each channel, as energies of a spectrum are compressed; polynomials; computed ones."""
    weights: Feeds = {
        "w": floats(6, 6) / 2,
        "channels": np.array([0.3, 0.5, 1.2, 2, 3, 1], np.float32),
        "whole": np.array([0, 1, 2, 3, 1, 2], np.float32),
        "bases": np.array([0.5, 1, 2, 3, 4, 5], np.float32),
        "alike": np.full(6, 2, np.float32),
    }
    proto = model(f"m = MatMul(x, w) a = Abs(m) y = {power}", "float[batch, 6] x", "float[a, 6] y", weights)
    feeds: Feeds = {"x": floats(64, 6)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.02
