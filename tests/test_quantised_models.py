"""Models that arrive quantised: their scales, zero points and weights are what the integers compute with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

import intc
from intc.errors import ImportFailure
from intc.frontend import import_onnx
from intc.passes.integer.widths import grid_scales
from tests.onnx_models import Feeds, floats, model

RNG = np.random.default_rng(31)
BODY = (
    "a = Conv<pads=[1,1,1,1]>(x, k, b) r = Relu(a) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)"
    " f = Flatten(p) h = Gemm(f, w, c) s = Sigmoid(h) y = Gemm(s, v)"
)
WEIGHTS: Feeds = {
    "k": floats(6, 3, 3, 3) / 3,
    "b": floats(6),
    "w": floats(96, 24) / 6,
    "c": floats(24),
    "v": floats(24, 5) / 4,
}


class Reader(CalibrationDataReader):
    def __init__(self, feeds: Feeds) -> None:
        self.samples = iter([{"x": feeds["x"][i : i + 1]} for i in range(len(feeds["x"]))])

    def get_next(self) -> Any:
        return next(self.samples, None)


def samples(count: int) -> Feeds:
    return {"x": RNG.standard_normal((count, 3, 8, 8)).astype(np.float32)}


def run(path: Path, feeds: Feeds) -> np.ndarray:
    """The model as its operators say, without onnxruntime's integer kernels, which saturate without VNNI."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return np.asarray(onnxruntime.InferenceSession(str(path), options).run(None, feeds)[0])


def compiled(path: Path, calibration: Feeds | None, feeds: Feeds) -> np.ndarray:
    module = intc.compile(path, calibration)
    (exact,) = module.graph.evaluate(feeds)
    (found,) = module.session().run(None, feeds)
    assert np.array_equal(exact, found)
    return np.asarray(found)


def decibels(want: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((want**2).sum() / ((want - got) ** 2).sum()))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    proto = model(BODY, "float[batch, 3, 8, 8] x", "float[b2, 5] y", WEIGHTS)
    onnx.save(proto, tmp_path / "plain.onnx")
    return tmp_path / "plain.onnx"


FORMS: dict[str, dict[str, Any]] = {
    "uint8 and int8 per channel": {"per_channel": True, "weight_type": QuantType.QInt8},
    "int8, symmetric": {
        "activation_type": QuantType.QInt8,
        "weight_type": QuantType.QInt8,
        "extra_options": {"ActivationSymmetric": True},
    },
    "uint8 weights with a zero point": {
        "activation_type": QuantType.QUInt8,
        "weight_type": QuantType.QUInt8,
    },
    "operators on integers": {"quant_format": QuantFormat.QOperator, "weight_type": QuantType.QInt8},
    "products only": {"op_types_to_quantize": ["Gemm", "Conv"], "weight_type": QuantType.QInt8},
}


@pytest.mark.parametrize("form", FORMS)
def test_onnxruntime_static(form: str, plain: Path) -> None:
    calibration, feeds, path = samples(32), samples(16), plain.with_name("quantised.onnx")
    quantize_static(plain, path, Reader(calibration), **FORMS[form])
    got, quantised = compiled(path, calibration, feeds), run(path, feeds)
    assert decibels(quantised, got) > 34, "far nearer to the quantised model than that is to fp32"
    assert decibels(run(plain, feeds), got) > decibels(run(plain, feeds), quantised) - 2


def test_a_model_whose_scales_say_all_needs_no_data(plain: Path) -> None:
    """All that 16-bit activations leave to lose is in the last bits."""
    path = plain.with_name("quantised.onnx")
    kinds = {"activation_type": QuantType.QUInt16, "weight_type": QuantType.QInt8}
    quantize_static(plain, path, Reader(samples(32)), **kinds)
    feeds = samples(16)
    assert decibels(run(path, feeds), compiled(path, None, feeds)) > 60


def test_few_samples_do_not_cut_what_the_model_does_not(plain: Path) -> None:
    """Calibrated on one sample, the quantised model is still what it is."""
    path = plain.with_name("quantised.onnx")
    quantize_static(plain, path, Reader(samples(32)), **FORMS["products only"])
    feeds = samples(16)
    assert decibels(run(path, feeds), compiled(path, samples(1), feeds)) > 34


def test_onnxruntime_dynamic(plain: Path) -> None:
    feeds, path = samples(16), plain.with_name("quantised.onnx")
    quantize_dynamic(plain, path, weight_type=QuantType.QInt8)
    assert decibels(run(plain, feeds), compiled(path, samples(32), feeds)) > 25


def test_weights_and_ranges_quantised_in_the_graph(tmp_path: Path) -> None:
    """As training tools write them: weights in float, a narrow range by Clip, per channel along axis 1."""
    body = (
        "q = QuantizeLinear(x, sx, zero) n = Clip(q, low, high) d = DequantizeLinear(n, sx, zero)"
        " wq = QuantizeLinear<axis=1>(w, sw, zw) wd = DequantizeLinear<axis=1>(wq, sw, zw) y = MatMul(d, wd)"
    )
    weights: Feeds = {
        "sx": np.float32(0.02),
        "zero": np.int8(0),
        "low": np.int8(-127),
        "high": np.int8(127),
        "w": floats(12, 4),
        "sw": np.array([0.02, 0.03, 0.025, 0.04], np.float32),
        "zw": np.zeros(4, np.int8),
    }
    path = tmp_path / "trained.onnx"
    onnx.save(model(body, "float[batch, 12] x", "float[b2, 4] y", weights), path)
    feeds: Feeds = {"x": floats(64, 12)}
    graph = intc.compile(path, feeds).graph
    (w,) = (a for n, a in graph.constants.items() if a.shape == (12, 4))
    clipped = np.clip(np.rint(weights["w"] / weights["sw"]), -128, 127)
    assert np.array_equal(w, clipped), "the very integers of the model"
    assert decibels(run(path, feeds), graph.evaluate(feeds)[0]) > 55


def test_weights_on_a_grid_are_found_and_others_are_not() -> None:
    integers = RNG.integers(-128, 128, (40, 6))
    scale = RNG.uniform(0.001, 0.1, 6)
    integers[0], integers[1] = -128, 127
    np.testing.assert_allclose(grid_scales((integers * scale).astype(np.float32)), scale, rtol=1e-5)
    assert not grid_scales(RNG.standard_normal((40, 6))).any()


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = QuantizeLinear(x, s, z)", "output 'y' is declared as UINT8, but computed as real numbers"),
        (
            "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, t, z)",
            "not those that the value was quantised",
        ),
    ],
)
def test_what_has_no_meaning_is_refused(body: str, reason: str) -> None:
    kind = "float" if "Dequantize" in body else "uint8"
    weights: Feeds = {"s": np.float32(0.1), "t": np.float32(0.2), "z": np.uint8(7)}
    used = {k: v for k, v in weights.items() if f"{k}," in body or f"{k})" in body or f" {k}" in body}
    with pytest.raises(ImportFailure, match=reason):
        import_onnx(model(body, "float[batch, 6] x", f"{kind}[b2, 6] y", used))
