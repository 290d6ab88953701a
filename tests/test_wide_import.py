"""What exporters of many architectures write: functions of positions, computed sizes, image operators.

Each model's float graph gives what onnxruntime gives; each is then compiled, and its kernels give the exact
reference's bits, close to fp32.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.errors import FeedError, UsageError
from intc.frontend import import_onnx
from intc.ir.graph import Graph
from intc.passes.pipeline import canonicalise
from tests.onnx_models import Feeds, expected, floats, model, operators

RNG = np.random.default_rng(23)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.onnx"


ANGLES = "d = Shape(x) n = Gather(d, one) r = Range(zero, n, one) f = Cast<to=1>(r) u = Unsqueeze(f, last) "
W = (floats(6, 6) / 2).astype(np.float32)
SIZE = {"zero": np.int64(0), "one": np.int64(1), "last": np.array([-1]), "w": W}

# name: (body, shape of x, weights, operators that the canonical graph holds)
SEQUENCES: dict[str, tuple[str, Feeds, set[str]]] = {
    "rotary": (
        ANGLES
        + "a = Mul(u, freq) s = Sin(a) c = Cos(a) p = Mul(x, c) q = Mul(x, s) t = Add(p, q) y = MatMul(t, w)",
        {"freq": np.geomspace(1, 0.01, 6).astype(np.float32)},
        {"lookup"},
    ),
    "logarithmic buckets": (
        "d = Shape(x) n = Gather(d, one) r = Range(zero, n, one) i = Unsqueeze(r, last)"
        " j = Unsqueeze(r, first) v = Sub(j, i) m = Abs(v) k = Add(m, one) f = Cast<to=1>(k) l = Log(f)"
        " g = Mul(l, two) b = Cast<to=7>(g) e = Gather(table, b) s = MatMul(x, z) t = Add(s, e)"
        " p = Softmax(t) y = MatMul(p, x)",
        {
            "first": np.array([0]),
            "two": np.float32(2),
            "table": floats(16),
            "z": np.zeros((6, 1), np.float32),
        },
        {"lookup", "softmax"},
    ),
    "RMS norm": (
        "s = Pow(x, two) m = ReduceMean<axes=[-1]>(s) a = Add(m, eps) r = Sqrt(a) i = Reciprocal(r)"
        " n = Mul(x, i) g = Mul(n, gain) y = MatMul(g, w)",
        {"two": np.float32(2), "eps": np.float32(1e-6), "gain": floats(6)},
        {"layer_norm"},
    ),
    "unit length": (
        "n = ReduceL2<axes=[-1]>(x) c = Max(n, tiny) y = Div(x, c)",
        {"tiny": np.float32(1e-9)},
        {"layer_norm"},
    ),
    "mish": ("s = Softplus(x) t = Tanh(s) m = Mul(x, t) y = MatMul(m, w)", {}, {"pointwise"}),
    "gated": ("v = MatMul(x, w) s = Sigmoid(x) g = Mul(x, s) y = Mul(g, v)", {}, {"gelu"}),
    "masked mean": (
        "q = Greater(x, half) k = Cast<to=1>(q) p = Mul(x, k) s = ReduceSum(p, mid) c = ReduceSum(k, mid)"
        " l = Max(c, unit) m = Div(s, l) y = MatMul(m, w)",
        {"half": np.float32(0), "mid": np.array([1]), "unit": np.float32(1)},
        {"div", "reduce_sum"},
    ),
    "mean over tokens": ("m = ReduceMean<axes=[1]>(x) y = MatMul(m, w)", {}, {"reduce_mean"}),
    "known branch": (
        "y = If(c) <then_branch = g () => (float[b2, s2, 6] p) { p = MatMul(x, w) },"
        " else_branch = h () => (float[b2, s2, 6] n) { n = Neg(x) }>",
        {"c": np.array(True)},
        {"matmul"},
    ),
    "a cut of interleaved projections": (
        "p = MatMul(x, w3) s = Shape(x) h = Concat<axis=0>(heads, parts) r = Reshape(p, h)"
        " q = Slice(r, at0, at1, ax) k = Slice(r, at1, at2, ax) m = Mul(q, k) y = ReduceSum(m, ax)",
        {
            "w3": floats(6, 12),
            "heads": np.array([0, 0]),
            "parts": np.array([3, 4]),
            "at0": np.array([0]),
            "at1": np.array([2]),
            "at2": np.array([4]),
            "ax": np.array([3]),
        },
        {"matmul"},
    ),
}
IMAGES: dict[str, tuple[str, Feeds, str]] = {
    "depthwise": (
        "c = Conv<group=4, pads=[1,1,1,1], strides=[2,2]>(x, k, b) y = Relu(c)",
        {"k": floats(4, 1, 3, 3), "b": floats(4)},
        "grouped_conv",
    ),
    "in small groups": ("y = Conv<group=2>(x, k)", {"k": floats(6, 2, 3, 3)}, "matmul"),
    "in groups": (
        "y = Conv<group=2, pads=[1,0,1,2]>(x, k, b)",
        {"k": floats(64, 2, 3, 3), "b": floats(64)},
        "concat",
    ),
    "channels repeated": ("y = Conv<group=4, strides=[2,1]>(x, k)", {"k": floats(12, 1, 3, 2)}, "matmul"),
    "bottleneck": (
        "a = Conv(x, k1) n = BatchNormalization(a, g, o, u, v) r = Relu(n) c = Conv<pads=[1,1,1,1]>(r, k3)"
        " t = Relu(c) e = Conv(t, k2) s = Add(e, x) y = Relu(s)",
        {
            "k1": floats(5, 4, 1, 1),
            "g": floats(5),
            "o": floats(5, seed=1),
            "u": floats(5, seed=2),
            "v": np.abs(floats(5, seed=3)) + 1,
            "k3": floats(5, 5, 3, 3) / 3,
            "k2": floats(4, 5, 1, 1),
        },
        "matmul",
    ),
    "pools": (
        "m = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)"
        " a = AveragePool<kernel_shape=[2,2], pads=[1,0,0,1]>(m) y = Add(a, a)",
        {},
        "max_pool",
    ),
    "group norm": (
        "r = Reshape(x, rows) i = InstanceNormalization(r, g2, b2) s = Shape(x) t = Reshape(i, s)"
        " u = Mul(t, g) y = Add(u, b)",
        {
            "rows": np.array([0, 2, -1]),
            "g2": np.ones(2, np.float32),
            "b2": np.zeros(2, np.float32),
            "g": floats(4, 1, 1),
            "b": floats(4, 1, 1, seed=1),
        },
        "layer_norm",
    ),
    "bilinear": (
        'y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, , scales)',
        {"scales": np.array([1, 1, 2, 1.5], np.float32)},
        "matmul",
    ),
    "nearest": (
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
        "(x, , scales)",
        {"scales": np.array([1, 1, 2, 2], np.float32)},
        "gather",
    ),
    "reflected": (
        'p = Pad<mode="reflect">(x, pads) y = Relu(p)',
        {"pads": np.array([0, 0, 1, 2, 0, 0, 0, 1])},
        "gather",
    ),
    "upsampled by learning": (
        "y = ConvTranspose<strides=[2,2]>(x, k, b)",
        {"k": floats(4, 3, 2, 2), "b": floats(3)},
        "matmul",
    ),
}


def drawn(shape: tuple[int, ...]) -> np.ndarray:
    """Numbers away from 0, so that a comparison with it is decided alike when they are quantised."""
    x = RNG.standard_normal(shape).astype(np.float32)
    return x + np.sign(x) * np.float32(0.05)


def compiled(
    path: Path, body: str, inputs: str, outputs: str, weights: Feeds, shape: tuple[int, ...]
) -> tuple[Graph, float]:
    """The canonical graph, and the SQNR in dB of the compiled model, after all comparisons."""
    used = {k: v for k, v in weights.items() if k in re.findall(r"\w+", body)}
    proto = model(body, inputs, outputs, used)
    feeds: Feeds = {"x": drawn(shape)}
    graph = canonicalise(import_onnx(proto)).graph
    (want,) = expected(proto, feeds)
    np.testing.assert_allclose(graph.evaluate(feeds)[0], want, rtol=1e-3, atol=2e-4)
    calibration: Feeds = {"x": drawn((64, *shape[1:]))}
    onnx.save(proto, path)
    module = intc.compile(path, calibration)
    (exact,) = module.graph.evaluate(feeds)
    (found,) = module.session().run(None, feeds)
    assert np.array_equal(exact, found)
    return graph, float(10 * np.log10((want**2).sum() / ((want - found) ** 2).sum()))


@pytest.mark.parametrize("name", SEQUENCES)
def test_sequences_of_any_length(name: str, path: Path) -> None:
    body, weights, holds = SEQUENCES[name]
    out = "float[b2, m]" if "mean" in name else "float[b2, s2, m]"
    graph, decibels = compiled(
        path, body, "float[batch, seq, 6] x", f"{out} y", {**SIZE, **weights}, (5, 7, 6)
    )
    assert holds <= set(operators(graph))
    assert decibels > 26  # 8-bit inputs, one scale


@pytest.mark.parametrize("name", IMAGES)
def test_images(name: str, path: Path) -> None:
    body, weights, holds = IMAGES[name]
    graph, decibels = compiled(
        path, body, "float[batch, 4, 6, 8] x", "float[b2, c2, h2, w2] y", weights, (3, 4, 6, 8)
    )
    assert holds in operators(graph)
    assert decibels > 30


def test_neighbouring_convolutions_need_no_transposes() -> None:
    body, weights, _ = IMAGES["bottleneck"]
    proto = model(body, "float[batch, 4, 6, 8] x", "float[b2, c2, h2, w2] y", weights)
    counts = operators(canonicalise(import_onnx(proto)).graph)
    assert counts["transpose"] == 1, "only where a map meets the input"
    assert counts["im2col"] == 2 and counts["matmul"] == 3  # the input keeps its layout, the 3x3 its taps
    assert "mul" not in counts, "batch normalisation is part of the weights"


def test_a_table_of_positions_bounds_the_length() -> None:
    body, weights, _ = SEQUENCES["rotary"]
    proto = model(body, "float[batch, seq, 6] x", "float[b2, s2, 6] y", {**SIZE, **weights})
    long = {"x": floats(1, 5000, 6)}
    with pytest.raises(FeedError, match="at most 4096"):
        import_onnx(proto).evaluate(long)
    (got,) = import_onnx(proto, longest=5000).evaluate(long)
    np.testing.assert_allclose(got, expected(proto, long)[0], atol=1e-3)
    for odd in (0, 2**30, 5.0):
        with pytest.raises(UsageError, match="longest: from 1 to"):
            import_onnx(proto, longest=odd)  # type: ignore[arg-type]


def test_computed_positions_read_inside_whatever_they_are(path: Path) -> None:
    """Positions from an input, beyond either end of an axis of any length: the nearest row is read."""
    body = "e = Relu(x) y = Gather<axis=1>(e, i)"
    onnx.save(model(body, "float[batch, seq, 4] x, int64[n] i", "float[b2, n, 4] y"), path)
    feeds: Feeds = {"x": np.abs(floats(3, 5, 4)), "i": np.array([0, -1, 4])}
    module = intc.compile(path, [feeds])
    far = {"x": feeds["x"], "i": np.array([10**12, -(10**12), 3])}
    (exact,), (found,) = module.graph.evaluate(far), module.session().run(None, far)
    assert np.array_equal(exact, found)
    np.testing.assert_allclose(found[:, :2], feeds["x"][:, [4, 0]], atol=0.05)
    (near,) = module.session().run(None, feeds)
    np.testing.assert_allclose(near, feeds["x"][:, [0, 4, 4]], atol=0.05)


def test_rows_that_a_finite_mask_leaves_empty_are_uniform() -> None:
    body = (
        "k = Cast<to=9>(keep) u = Unsqueeze(k, a1) v = Unsqueeze(k, a2) m = And(u, v) s = Where(m, x, low)"
        " y = Softmax(s)"
    )
    weights = {"a1": np.array([1]), "a2": np.array([2]), "low": np.float32(-3.4e38)}
    proto = model(body, "float[batch, seq, seq] x, int64[batch, seq] keep", "float[b2, s2, s3] y", weights)
    feeds: Feeds = {"x": floats(2, 5, 5), "keep": np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]])}
    graph = canonicalise(import_onnx(proto)).graph
    np.testing.assert_allclose(graph.evaluate(feeds)[0], expected(proto, feeds)[0], atol=1e-6)


def test_an_output_that_is_a_scaled_value_keeps_its_factor(path: Path) -> None:
    proto = model("t = Tanh(x) y = Mul(t, c)", "float[batch, 6] x", "float[b2, 6] y", {"c": np.float32(30)})
    feeds: Feeds = {"x": floats(64, 6)}
    onnx.save(proto, path)
    (found,) = intc.compile(path, feeds).graph.evaluate(feeds)
    np.testing.assert_allclose(found, expected(proto, feeds)[0], atol=0.5)  # the input has 8 bits
