"""Where the largest entries of windows stand, and what is written there again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, expected, floats, model

# what torch writes for the places of a pool, which it counts from the first entry of each map
PLACES = " o, one = MaxPool<kernel_shape=[1,1]>(x) first = Slice(one, start, stop, axes) at = Sub(i, first)"
CUT: Feeds = {"start": np.array([0, 0]), "stop": np.array([1, 1]), "axes": np.array([2, 3])}
# and for nn.MaxUnpool2d: maps of 4 channels, of `size` entries each
UNPOOL = (
    " s = Shape<end=1>(x) n = Squeeze(s) maps = Mul(n, four) r = Range(zero, maps, unit) v = Reshape(r, each)"
    " m = Mul(v, size) a = Add(at, m) flat = Reshape(a, all) t = Concat<axis=0>(s, image)"
    " c = ConstantOfShape(t) z = Reshape(c, all) u = Reshape(p, all) k = Unsqueeze(flat, all)"
    " w = ScatterND(z, k, u) y = Reshape(w, back)"
)


def unpooled(pool: str, height: int, width: int) -> tuple[str, Feeds]:
    weights: Feeds = {
        "four": np.array(4), "zero": np.array(0), "unit": np.array(1), "each": np.array([-1, 4, 1, 1]),
        "size": np.array(height * width), "all": np.array([-1]), "image": np.array([4, height, width]),
        "back": np.array([-1, 4, height, width]),
    }  # fmt: skip
    return f"p, i = MaxPool<{pool}>(x)" + PLACES + UNPOOL, CUT | weights


@pytest.mark.parametrize(
    ("pool", "shape"),
    [
        ("kernel_shape=[2,2], strides=[2,2]", (2, 4, 6, 8)),
        ("kernel_shape=[2,3], strides=[2,3]", (2, 4, 7, 7)),
        ("kernel_shape=[2,2], strides=[3,2]", (1, 4, 8, 5)),
    ],
)
def test_unpooling_is_a_choice_in_every_window(pool: str, shape: tuple[int, ...]) -> None:
    body, weights = unpooled(pool, *shape[2:])
    proto = model(body, f"float[batch, 4, {shape[2]}, {shape[3]}] x", "float[b, c, h, v] y", weights)
    canonical(proto, {"x": floats(*shape)})


@pytest.mark.parametrize(
    ("pool", "size"),
    [
        ("kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]", "7, 8"),
        ("kernel_shape=[2,2], dilations=[2,1], pads=[0,1,1,0]", "7, 8"),
        ("kernel_shape=[3], strides=[2], ceil_mode=1, pads=[1,1]", "10"),
        ("kernel_shape=[2,2], strides=[2,2]", "h, w"),
    ],
)
def test_places(pool: str, size: str) -> None:
    """Of the largest entries of windows that overlap and reach over the edges; their values, all negative."""
    proto = model(
        f"n = Neg(x) p, i = MaxPool<{pool}>(n) s = Shape(i) r = Reshape(n, flat) f = Reshape(i, flat)"
        " g = Gather(r, f) y = Reshape(g, s)",
        f"float[batch, 3, {size}] x",
        f"float[{', '.join(['b', 'c', 'd', 'e'][: 3 + size.count(',')])}] y",
        {"flat": np.array([-1])},
    )
    sizes = [int(d) if d.isdigit() else 6 for d in size.split(", ")]
    canonical(proto, {"x": 1 + np.abs(floats(2, 3, *sizes))})


def test_a_network_that_pools_and_unpools(tmp_path: Path) -> None:
    body, weights = unpooled("kernel_shape=[2,2], strides=[2,2]", 6, 8)
    body = "d = Conv<pads=[1,1,1,1]>(given, w0) x = Relu(d) " + body.replace("y = ", "back_again = ")
    body += " y = Conv<pads=[1,1,1,1]>(back_again, w1)"
    weights |= {"w0": floats(4, 3, 3, 3) / 5, "w1": floats(2, 4, 3, 3) / 6}
    proto = model(body, "float[batch, 3, 6, 8] given", "float[b, 2, 6, 8] y", weights)
    feeds: Feeds = {"given": floats(32, 3, 6, 8)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.05


def test_max_unpool() -> None:
    window = "<kernel_shape=[2,2], strides=[2,2]>"
    body = f"p, i = MaxPool{window}(x) y = MaxUnpool{window}(p, i)"
    proto = model(body, "float[2, 3, 4, 6] x", "float[b, c, h, v] y")
    feeds: Feeds = {"x": floats(2, 3, 4, 6)}
    (found,) = import_onnx(proto).evaluate(feeds)
    np.testing.assert_array_equal(found, expected(proto, feeds)[0])


def test_windows_that_overlap_are_refused() -> None:
    body, weights = unpooled("kernel_shape=[3,3], strides=[2,2]", 7, 7)
    proto = model(body, "float[batch, 4, 7, 7] x", "float[b, c, h, v] y", weights)
    with pytest.raises(UnsupportedModel, match="the windows overlap"):
        import_onnx(proto)
