"""Eight bits for ranges on one side of zero: what stands for zero, also around images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc import api
from intc.calibration import collect, open_feeds
from intc.frontend import import_onnx
from intc.ir.graph import Graph
from intc.ops.im2col import Im2col
from intc.passes import pipeline
from intc.passes.integer import codes
from intc.report.reference import fidelity
from tests.onnx_models import expected, model

SIZE, CHANNELS = 9, 8
SWISH = "s = Sigmoid(h) a = Mul(h, s)"
LEAKY = "a = LeakyRelu<alpha=0.1>(h)"


def image_net(function: str, channels: int = CHANNELS) -> onnx.ModelProto:
    """Two convolutions, and between them ``function``, which gives ``channels``."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(CHANNELS, 3, 3, 3)), rng.normal(size=(6, channels, 3, 3))
    weights = {"v": first / 4, "w": second / 8, "tenth": np.float32([0.1])}
    return model(
        f"h = Conv<pads=[1, 1, 1, 1]>(x, v) {function} y = Conv<pads=[1, 1, 1, 1]>(a, w)",
        f"float[batch, 3, {SIZE}, {SIZE}] x",
        f"float[batch, 6, {SIZE}, {SIZE}] y",
        {name: array.astype(np.float32) for name, array in weights.items()},
    )


def images(count: int, seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)}


def integer(proto: onnx.ModelProto, data: dict[str, np.ndarray]) -> Graph:
    """The integer graph, calibrated on ``data``."""
    state = pipeline.canonicalise(import_onnx(proto))
    state, batches = api.equalised(state, open_feeds(state.graph, data))
    return pipeline.integerise(state, collect(state.graph, batches, products=True)).graph


def windows(function: str) -> tuple[int, str]:
    """What surrounds the images of the second convolution, and the type of its windows."""
    graph = integer(image_net(function), images(32, 1))
    node = [n for n in graph.nodes if isinstance(n.op, Im2col)][-1]
    assert isinstance(node.op, Im2col)
    return node.op.fill, graph.type(node.output).dtype


def distance(proto: onnx.ModelProto) -> float:
    """dB from float on other data."""
    held = images(16, 2)
    (found,) = integer(proto, images(32, 1)).evaluate(held)
    return fidelity(found, expected(proto, held)[0])["sqnr_db"]


@pytest.mark.parametrize("function", [SWISH, LEAKY])
def test_codes_of_one_sided_ranges_are_finer(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    proto = image_net(function)
    finer = distance(proto)
    monkeypatch.setattr(codes, "WORTHWHILE", 0.0)
    assert finer > distance(proto) + 1.0


def test_what_surrounds_an_image_is_zero(tmp_path: Path) -> None:
    """Nothing in gives the same at the border as within, which is next to nothing; kernels agree."""
    fill, dtype = windows(SWISH)
    assert dtype == "int8" and -127 <= fill < -40
    onnx.save(image_net(SWISH), tmp_path / "m.onnx")
    module = intc.compile(tmp_path / "m.onnx", images(32, 1))
    session, held = module.session(), images(4, 2)
    np.testing.assert_array_equal(session.run(None, held)[0], module.graph.evaluate(held)[0])
    (found,) = session.run(None, {"x": np.zeros((2, 3, SIZE, SIZE), np.float32)})
    assert (found == found[0, :, :1, :1]).all()
    assert np.abs(found).max() < 0.02


def test_values_that_are_never_negative_are_unsigned_behind_moves() -> None:
    assert windows("b = Relu(h) a = Transpose<perm=[0, 1, 3, 2]>(b)") == (0, "uint8")


def test_even_ranges_stay_signed() -> None:
    assert windows("a = Tanh(h)") == (0, "int8")


def test_the_parts_of_a_joined_value_count_alike() -> None:
    """A branch that is never negative beside one that is at times."""
    joined = "p = Relu(h) n = Mul(h, tenth) a = Concat<axis=1>(p, n)"
    graph = integer(image_net(joined, 2 * CHANNELS), images(32, 1))
    fills = [n.op.fill for n in graph.nodes if isinstance(n.op, Im2col)]
    assert fills[-1] < -40
    assert distance(image_net(joined, 2 * CHANNELS)) > 30


@pytest.mark.parametrize(
    ("samples", "low", "dtype"), [(32, 0.0, "uint8"), (2, 0.0, "int8"), (32, -0.1, "int8")]
)
def test_images_that_are_never_negative_are_unsigned(samples: int, low: float, dtype: str) -> None:
    """Where there were enough of their numbers to tell."""
    data = {"x": np.random.default_rng(0).uniform(low, 1, (samples, 3, SIZE, SIZE)).astype(np.float32)}
    proto = image_net("a = Relu(h)")
    graph = integer(proto, data)
    assert graph.type("x").dtype == dtype
    assert fidelity(graph.evaluate(data)[0], expected(proto, data)[0])["sqnr_db"] > 28


def test_a_model_s_own_zero_point_takes_one_byte_in_padded_windows() -> None:
    weights = {
        "s": np.float32(0.02),
        "z": np.uint8(90),
        "w": np.random.default_rng(0).normal(size=(4, 3, 3, 3)),
    }
    proto = model(
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Conv<pads=[1, 1, 1, 1]>(d, w)",
        f"float[batch, 3, {SIZE}, {SIZE}] x",
        f"float[batch, 4, {SIZE}, {SIZE}] y",
        {**weights, "w": weights["w"].astype(np.float32)},
    )
    graph, held = integer(proto, images(32, 1)), images(16, 2)
    (node,) = (n for n in graph.nodes if isinstance(n.op, Im2col))
    assert isinstance(node.op, Im2col)
    assert (node.op.fill, graph.type(node.output).dtype) == (90 - 128, "int8")
    assert fidelity(graph.evaluate(held)[0], expected(proto, held)[0])["sqnr_db"] > 35
