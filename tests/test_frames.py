"""Convolutions over frames (three dimensions), and integers of several widths that meet."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, expected, floats, model

RNG = np.random.default_rng(59)


@pytest.mark.parametrize(
    ("attributes", "kernel"),
    [
        ("strides=[2,4,4]", (8, 3, 2, 4, 4)),
        ("pads=[1,1,0,1,1,0], strides=[1,2,2]", (4, 3, 3, 3, 2)),
        ("group=3, dilations=[2,1,1]", (6, 1, 2, 3, 3)),
        ("", (5, 3, 1, 1, 1)),
    ],
)
def test_convolutions_over_frames(attributes: str, kernel: tuple[int, ...]) -> None:
    body = f"y = Conv<{attributes}>(x, w, b)" if attributes else "y = Conv(x, w, b)"
    weights = {"w": floats(*kernel) / 4, "b": floats(kernel[0])}
    proto = model(body, "float[batch, 3, 5, 8, 8] x", "float[b2, c, d, h, v] y", weights)
    canonical(proto, {"x": floats(2, 3, 5, 8, 8)})


def test_a_video_compiles(tmp_path: Path) -> None:
    weights = {"w": floats(8, 3, 2, 4, 4) / 6, "b": floats(8), "flat": np.array([0, 8, -1])}
    body = "c = Conv<strides=[2,4,4]>(x, w, b) f = Reshape(c, flat) y = Transpose<perm=[0, 2, 1]>(f)"
    proto = model(body, "float[batch, 3, 4, 8, 8] x", "float[b2, n, 8] y", weights)
    feeds: Feeds = {"x": floats(32, 3, 4, 8, 8)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.03


def test_a_join_of_parts_in_16_and_32_bits(tmp_path: Path) -> None:
    """A class token joined in front of patches whose 16-bit scale is that of the sum behind."""
    places = np.zeros((1, 5, 6), np.float32)
    places[0, 0] = 0.01
    weights: Feeds = {
        "w": floats(6, 3, 4, 4) / 6, "token": floats(1, 1, 6) / 9, "places": places,
        "flat": np.array([0, 6, -1]),
        "one": np.array([1]), "six": np.array([6]), "at": np.array([0]),
    }  # fmt: skip
    body = (
        "i = Conv<strides=[4,4]>(x, w) r = Reshape(i, flat) p = Transpose<perm=[0, 2, 1]>(r) s = Shape(x)"
        " b = Gather(s, at) n = Concat<axis=0>(b, one, six) t = Expand(token, n) c = Concat<axis=1>(t, p)"
        " e = Add(c, places) y = Softmax(e)"
    )
    proto = model(body, "float[batch, 3, 8, 8] x", "float[b2, 5, 6] y", weights)
    feeds: Feeds = {"x": floats(32, 3, 8, 8)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.06


def test_scores_with_a_scale_per_head_and_a_bias(tmp_path: Path) -> None:
    """Cosine attention: the integers of such scores would span more than 31 bits."""
    weights: Feeds = {
        "scale": np.array([0.02, 9.0], np.float32).reshape(2, 1, 1), "bias": 14 * floats(2, 5, 5),
    }  # fmt: skip
    body = (
        "k = Transpose<perm=[0, 1, 3, 2]>(x) s = MatMul(x, k) m = Mul(s, scale) a = Add(m, bias)"
        " p = Softmax(a) y = MatMul(p, x)"
    )
    proto = model(
        body,
        "float[batch, 2, 5, 8] x",
        "float[b2, 2, 5, 8] y",
        {k: v for k, v in weights.items() if k in body},
    )
    feeds: Feeds = {"x": floats(32, 2, 5, 8)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.05


def test_sums_of_a_mask(tmp_path: Path) -> None:
    """int64 masks are summed as they are: the mean of the tokens that they keep."""
    weights = {"one": np.array([1]), "last": np.array([2])}
    body = (
        "n = ReduceSum(mask, one) f = Cast<to=1>(n) m = Cast<to=1>(mask) u = Unsqueeze(m, last) p = Mul(x, u)"
        " t = ReduceSum<keepdims=0>(p, one) y = Div(t, f)"
    )
    proto = model(body, "float[batch, seq, 6] x, int64[batch, seq] mask", "float[b2, 6] y", weights)
    mask = (np.arange(7) < RNG.integers(1, 8, (32, 1))).astype(np.int64)
    feeds: Feeds = {"x": floats(32, 7, 6), "mask": mask}
    onnx.save(proto, tmp_path / "m.onnx")
    module = intc.compile(tmp_path / "m.onnx", feeds)
    (found,), (exact,) = module.session().run(None, feeds), module.graph.evaluate(feeds)
    assert np.array_equal(found, exact)
    np.testing.assert_allclose(found, expected(proto, feeds)[0], atol=0.06)
