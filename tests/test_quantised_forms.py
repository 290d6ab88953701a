"""The forms in which models arrive quantised: scales per channel, zero points, packed weights, operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnxruntime.quantization import QuantType, quantize_dynamic

import intc
from intc.cli import main
from intc.errors import CalibrationError, ImportFailure, UnsupportedModel, UsageError
from intc.frontend import import_onnx
from tests.onnx_models import Feeds, floats, model

RNG = np.random.default_rng(17)
F8 = onnx.TensorProto.FLOAT8E4M3FN


def run(path: Path, feeds: Feeds) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    return np.asarray(onnxruntime.InferenceSession(str(path), options).run(None, feeds)[0])


def decibels(want: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((want**2).sum() / max(((want - got) ** 2).sum(), 1e-30)))


def imported(proto: onnx.ModelProto | Path, feeds: Feeds) -> np.ndarray:
    """What the float graph of the model computes."""
    return next(iter(import_onnx(proto).run(feeds).values()))


def saved(proto: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(proto, folder / "model.onnx")
    return folder / "model.onnx"


def agreement(path: Path, feeds: Feeds, calibration: Feeds | None = None) -> float:
    """Kernels equal to the reference; the distance in dB from what onnxruntime makes of the model."""
    module = intc.compile(path, calibration)
    (exact,) = module.graph.evaluate(feeds)
    (found,) = module.run(None, feeds)
    assert np.array_equal(exact, found)
    return decibels(run(path, feeds), np.asarray(found))


PAIR = "QuantizeLinear(x, sx, zx) x1 = DequantizeLinear(q, sx, zx)"


@pytest.mark.parametrize(("zero", "low"), [(131, "uint8"), (7, "int8"), (31000, "uint16"), (-3, "int16")])
def test_zero_points_in_front_of_a_product(zero: int, low: str, tmp_path: Path) -> None:
    """8 bits with a zero point are computed in 8 bits; 16 bits with one take a seventeenth."""
    kind = np.dtype(low)
    weights: Feeds = {
        "sx": np.float32(6 / 2 ** (8 * kind.itemsize)),
        "zx": kind.type(zero),
        "w": RNG.integers(-127, 128, (24, 10)).astype(np.int8),
        "sw": RNG.uniform(0.005, 0.02, 10).astype(np.float32),
        "zw": np.zeros(10, np.int8),
    }
    body = f"q = {PAIR} v = DequantizeLinear<axis=1>(w, sw, zw) y = MatMul(x1, v)"
    path = saved(model(body, "float[batch, 24] x", "float[b2, 10] y", weights, opset=21), tmp_path)
    feeds: Feeds = {"x": RNG.uniform(-2.5, 2.5, (64, 24)).astype(np.float32)}
    assert agreement(path, feeds) > (66 if kind.itemsize == 1 else 56)
    graph = intc.compile(path).prepared
    (product,) = (n for n in graph.nodes if n.op.name == "linear")
    assert graph.type(product.inputs[0]).dtype == ("int8" if kind.itemsize == 1 else "int16")


def test_one_scale_per_channel_of_a_computed_value(tmp_path: Path) -> None:
    """In front of convolutions the scales go into the weights, in groups too; elsewhere they stay scales."""
    body = (
        "a = Conv<pads=[1,1,1,1]>(x, k) r = Relu(a) q = QuantizeLinear<axis=1>(r, s, z)"
        " d = DequantizeLinear<axis=1>(q, s, z)"
        " g = Conv<group=8, pads=[1,1,1,1]>(d, g0) h = Conv(d, h0) t = Add(g, h)"
        " u = QuantizeLinear(t, st, zt) y = DequantizeLinear(u, st, zt)"
    )
    weights: Feeds = {
        "k": floats(8, 3, 3, 3),
        "s": RNG.uniform(0.02, 0.08, 8).astype(np.float32),
        "z": np.zeros(8, np.uint8),
        "g0": floats(8, 1, 3, 3),
        "h0": floats(8, 8, 1, 1),
        "st": np.float32(0.5),
        "zt": np.int8(0),
    }
    path = saved(model(body, "float[batch, 3, 8, 8] x", "float[b, 8, 8, 8] y", weights), tmp_path)
    calibration: Feeds = {"x": floats(32, 3, 8, 8)}
    assert agreement(path, {"x": floats(8, 3, 8, 8)}, calibration) > 30


def test_scales_per_channel_in_front_of_a_product(tmp_path: Path) -> None:
    body = (
        "q = QuantizeLinear<axis=-1>(x, s, z) d = DequantizeLinear<axis=-1>(q, s, z)"
        " y0 = MatMul(d, w) y = Relu(y0)"
    )
    weights: Feeds = {
        "s": RNG.uniform(0.01, 0.05, 12).astype(np.float32),
        "z": np.zeros(12, np.int8),
        "w": np.float32(0.01) * RNG.integers(-127, 128, (12, 5)).astype(np.float32),
    }
    path = saved(model(body, "float[batch, 12] x", "float[b, 5] y", weights), tmp_path)
    feeds: Feeds = {"x": floats(64, 12)}
    assert agreement(path, feeds, feeds) > 40


@pytest.mark.parametrize("layout", ["rows", "columns", "blocks"])
def test_packed_weights_are_dequantised(layout: str, tmp_path: Path) -> None:
    """4-bit weights with a scale per row, per column or per block of rows."""
    shape = {"rows": (32, 1), "columns": (1, 6), "blocks": (4, 6)}[layout]
    scale = RNG.uniform(0.05, 0.2, shape).astype(np.float32)
    codes = RNG.integers(-8, 8, (32, 6))
    repeat = {"rows": 1, "columns": 32, "blocks": 8}[layout]
    attributes = {"rows": {"axis": 0}, "columns": {"axis": 1}, "blocks": {"axis": 0, "block_size": 8}}[layout]
    node = onnx.helper.make_node("DequantizeLinear", ["w", "s"], ["v"], **attributes)
    proto = model("y = MatMul(x, v)", "float[batch, 32] x", "float[b, 6] y", opset=21)
    proto.graph.node.insert(0, node)
    scales = scale if layout == "blocks" else scale.ravel()
    packed = onnx.helper.make_tensor("w", onnx.TensorProto.INT4, (32, 6), codes.ravel())
    proto.graph.initializer.extend([packed, onnx.numpy_helper.from_array(scales, "s")])
    graph = import_onnx(proto)
    (weight,) = (a for a in graph.constants.values() if a.shape == (32, 6))
    np.testing.assert_allclose(weight, codes * np.repeat(scale, repeat, 0), rtol=1e-6)


@pytest.mark.parametrize("zeros", [False, True])
def test_matmul_nbits(zeros: bool, tmp_path: Path) -> None:
    k, n, block = 40, 6, 16  # the last block is not full
    codes = RNG.integers(0, 16, (n, 3 * block)).astype(np.uint8)
    packed = (codes[:, 0::2] | (codes[:, 1::2] << 4)).reshape(n, 3, block // 2)
    weights: Feeds = {"w": packed, "s": RNG.uniform(0.05, 0.2, (n, 3)).astype(np.float32)}
    operands = ["x", "w", "s"]
    if zeros:
        points = RNG.integers(0, 16, (n, 4)).astype(np.uint8)
        weights["z"] = points[:, 0::2] | (points[:, 1::2] << 4)
        operands.append("z")
    proto = model("y = Identity(x)", f"float[batch, {k}] x", f"float[b, {n}] y", weights, microsoft=True)
    node = onnx.helper.make_node(
        "MatMulNBits", operands, ["y"], domain="com.microsoft", K=k, N=n, bits=4, block_size=block
    )
    proto.graph.node[0].CopyFrom(node)
    feeds: Feeds = {"x": floats(16, k)}
    assert decibels(run(saved(proto, tmp_path), feeds), imported(proto, feeds)) > 60


def test_attention_with_quantised_weights(tmp_path: Path) -> None:
    """QAttention, as onnxruntime's dynamic quantiser writes it."""
    weights: Feeds = {"w": floats(16, 48) / 4, "b": floats(48) / 4}
    body = "y = com.microsoft.Attention<num_heads=2>(x, w, b)"
    proto = model(body, "float[batch, 5, 16] x", "float[b2, 5, 16] y", weights, microsoft=True)
    path, quantised = saved(proto, tmp_path), tmp_path / "quantised.onnx"
    quantize_dynamic(path, quantised, weight_type=QuantType.QInt8)
    assert "QAttention" in {n.op_type for n in onnx.load(quantised).graph.node}
    feeds: Feeds = {"x": floats(8, 5, 16)}
    assert decibels(run(path, feeds), imported(quantised, feeds)) > 35


@pytest.mark.parametrize(
    ("operator", "operands"),
    [("QLinearSigmoid", "q, sx, zx, sy, zy"), ("QLinearAdd", "q, sx, zx, q, sx, zx, sy, zy"),
     ("QLinearWhere", "c, q, sx, zx, q, sx, zx, sy, zy")],
)  # fmt: skip
def test_operators_on_quantised_tensors(operator: str, operands: str, tmp_path: Path) -> None:
    body = (
        f"q = QuantizeLinear(x, sx, zx) c = Greater(x, half) r = com.microsoft.{operator}({operands})"
        " y = DequantizeLinear(r, sy, zy)"
    )
    weights: Feeds = {
        "sx": np.float32(0.04),
        "zx": np.uint8(120),
        "sy": np.float32(0.05),
        "zy": np.uint8(100),
        "half": np.float32(0.5),
    }
    if "Where" not in operator:
        body = body.replace("c = Greater(x, half)", "")
        del weights["half"]
    proto = model(body, "float[batch, 12] x", "float[b, 12] y", weights, microsoft=True)
    feeds: Feeds = {"x": floats(32, 12)}
    found, want = imported(proto, feeds), run(saved(proto, tmp_path), feeds)
    step = np.abs(found - want).max() / 0.05
    assert step < 1.01, "one step of the grid, where a tie is rounded another way"
    assert (np.abs(found - want) > 1e-6).mean() < 0.1


def test_a_quantised_tensor_is_cast_and_padded_as_integers(tmp_path: Path) -> None:
    body = (
        "q = QuantizeLinear(x, s, z) i = Cast<to=2>(q) p = Pad(i, pads, fill) y = DequantizeLinear(p, s, z)"
    )
    weights: Feeds = {
        "s": np.float32(0.1),
        "z": np.uint8(9),
        "pads": np.array([0, 1, 0, 1]),
        "fill": np.array(9, np.uint8),
    }
    proto = model(body, "float[batch, 4] x", "float[b, 6] y", weights)
    feeds: Feeds = {"x": floats(3, 4)}
    np.testing.assert_allclose(imported(proto, feeds), run(saved(proto, tmp_path), feeds), atol=1e-6)


@pytest.mark.parametrize(
    ("body", "weights", "reason"),
    [
        ("q = QuantizeLinear<axis=1>(x, s, z) y = DequantizeLinear<axis=1>(q, s, z)",
         {"s": np.full(6, 0.1, np.float32), "z": np.arange(6, dtype=np.uint8)}, "zero points that differ"),
        ("q = QuantizeLinear<axis=1>(x, s, z) y = DequantizeLinear<axis=1>(q, s, z)",
         {"s": np.full(5, 0.1, np.float32), "z": np.zeros(5, np.uint8)}, "5 scales for 6 channels"),
        ("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)",
         {"s": np.float32(-0.1), "z": np.uint8(0)}, "not positive"),
    ],
)  # fmt: skip
def test_what_has_no_integer_form_is_refused(body: str, weights: Feeds, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        import_onnx(model(body, "float[batch, 6] x", "float[b, 6] y", weights))


def test_eight_bit_floats_are_refused_by_name() -> None:
    proto = model("y = Identity(x)", "float[batch, 6] x", "float[b, 6] y", opset=21)
    proto.graph.initializer.append(onnx.helper.make_tensor("z", F8, (1,), [0.0]))
    with pytest.raises(ImportFailure, match="'z' is FLOAT8E4M3FN: 8-bit and 4-bit floats"):
        import_onnx(proto)
    node = onnx.helper.make_node("TRT_FP8QuantizeLinear", ["x", "s"], ["y"], domain="trt", name="quantiser")
    proto = model("y = Mul(x, s)", "float[n, 4] x", "float[n, 4] y", {"s": np.float32(1)}, opset=19)
    proto.graph.node[0].CopyFrom(node)
    proto.opset_import.append(onnx.helper.make_opsetid("trt", 1))
    with pytest.raises(UnsupportedModel, match=r"'quantiser'.*8-bit and 4-bit floats have no integer form"):
        import_onnx(proto)


def test_the_values_whose_range_nothing_gives_are_named(tmp_path: Path) -> None:
    """A norm between quantisers needs no data, an input that nothing quantises does."""
    body = (
        f"q = {PAIR} n = LayerNormalization(x1, g, b) a = MatMul(n, w)"
        " u = QuantizeLinear(a, sx, zx) y = DequantizeLinear(u, sx, zx)"
    )
    weights: Feeds = {
        "sx": np.float32(0.05),
        "zx": np.int8(0),
        "g": np.ones(96, np.float32),
        "b": np.zeros(96, np.float32),
        "w": floats(96, 4),
    }
    proto = model(body, "float[batch, 96] x", "float[b2, 4] y", weights)
    assert agreement(saved(proto, tmp_path), {"x": floats(32, 96)}) > 22
    plain = model("y = MatMul(x, w)", "float[batch, 96] x", "float[b2, 4] y", {"w": floats(96, 4, seed=1)})
    with pytest.raises(CalibrationError, match="no calibration data: pass calibration="):
        intc.compile(saved(plain, tmp_path))
    partly = model(
        f"h = MatMul(x, w) a = Add(h, h) q = {PAIR.replace('(x,', '(a,')} y = MatMul(x1, v)",
        "float[batch, 96] x", "float[b2, 3] y",
        {"w": floats(96, 4, seed=2), "v": floats(4, 3), "sx": np.float32(0.1), "zx": np.int8(0)},
    )  # fmt: skip
    with pytest.raises(CalibrationError, match="do not give the range of input 'x'; give calibration data"):
        intc.compile(saved(partly, tmp_path))
    with pytest.raises(CalibrationError, match="judged on calibration data"):
        intc.compile(saved(proto, tmp_path), bits="auto")


def test_the_command_line_needs_no_data_either(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    body = f"q = {PAIR} a = MatMul(x1, w) u = QuantizeLinear(a, sx, zx) y = DequantizeLinear(u, sx, zx)"
    weights: Feeds = {"sx": np.float32(0.05), "zx": np.int8(0), "w": floats(8, 4)}
    path = saved(model(body, "float[batch, 8] x", "float[b2, 4] y", weights), tmp_path)
    assert main(["compile", str(path), "-o", str(tmp_path / "m.intc")]) == 0
    assert main(["inspect", str(path), "--after", "integerise"]) == 0
    assert "%x : int8" in capsys.readouterr().out
    assert main(["compile", str(path), "--report", str(tmp_path / "r.html")]) == 2
    assert "measured on calibration data" in capsys.readouterr().err
    with pytest.raises(UsageError, match="compiled without data"):
        intc.compile(path).report()
