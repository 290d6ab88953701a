"""Converters of models that are already quantised: QDQ pairs, and operators on quantised tensors.

A quantised tensor is imported as the real value that it stands for. ``QuantizeLinear`` of a computed value
becomes FakeQuantize, which remembers scale and zero point; ``DequantizeLinear`` behind it is the identity; of
constants it is computed. Operators on quantised operands are the plain operators between the two. Dynamic
quantisation has no scale of its own: its values stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx

from intc.frontend import converters_elementwise, converters_image, converters_movement, converters_nn
from intc.frontend.call import Call, Converter
from intc.frontend.symbolic import Imported
from intc.ir.op import Array
from intc.ops import elementwise as ew
from intc.ops.fake_quantize import FakeQuantize
from intc.ops.movement import MOVEMENT
from intc.ops.window import MaxPool

LIMITS: dict[int, tuple[int, int]] = {
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT16: (0, 2**16 - 1),
    onnx.TensorProto.INT16: (-(2**15), 2**15 - 1),
    onnx.TensorProto.UINT4: (0, 15),
    onnx.TensorProto.INT4: (-8, 7),
}
PLAIN: dict[str, Converter] = {
    **converters_elementwise.CONVERTERS,
    **converters_movement.CONVERTERS,
    **converters_nn.CONVERTERS,
    **converters_image.CONVERTERS,
}


def _number(call: Call, i: int, what: str, default: float | None = None) -> Any:
    """Input ``i``, one known number."""
    if not call.has(i) and default is not None:
        return np.asarray(default)
    array = np.asarray(call.known(i, what))
    call.refuse(array.size != 1, f"{what} of a computed value must be one number, not {array.size}")
    return array.reshape(())


def _quantised(call: Call, value: Imported, scale: Any, zero: Any, limits: tuple[int, int]) -> str:
    x = call.ctx.live(value, call.node.output[0])
    op = FakeQuantize(float(scale), int(zero), *limits)
    return call.emit(op, x)


def _quantize_linear(call: Call) -> list[Imported]:
    kind = int(call.attributes.get("output_dtype", 0)) or onnx.TensorProto.UINT8
    if call.has(2):
        kind = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(call.inputs[2]).dtype)
    call.refuse(
        kind not in LIMITS, f"only {', '.join(map(onnx.TensorProto.DataType.Name, LIMITS))} are supported"
    )
    value = call.inputs[0]
    if isinstance(value, np.ndarray):
        scale, zero = _spread(call, value, 1, 2)
        return [np.clip(np.rint(value / scale) + zero, *LIMITS[kind]).astype(np.int32)]
    scale, zero = _number(call, 1, "the scale"), _number(call, 2, "the zero point", 0)
    return [_quantised(call, value, scale, zero, LIMITS[kind])]


def _spread(call: Call, value: Array, scale_at: int, zero_at: int) -> tuple[Array, Array]:
    """Scale and zero point of constant ``value`` as float32 that broadcast to it: one, one per index of the
    axis, or one per block of it.
    """
    axis = int(call.attributes.get("axis", 1)) % max(value.ndim, 1)
    out = []
    for i, default in ((scale_at, 1), (zero_at, 0)):
        array = np.asarray(call.known(i, "the scale") if call.has(i) else default, np.float32)
        if array.size == 1:
            array = array.reshape(())
        elif array.ndim == value.ndim:
            block = int(call.attributes.get("block_size", 0)) or -(-value.shape[axis] // array.shape[axis])
            array = np.repeat(array, block, axis=axis).take(range(value.shape[axis]), axis=axis)
        else:
            array = array.reshape([-1 if a == axis else 1 for a in range(value.ndim)])
        out.append(array)
    return out[0], out[1]


def quantiser_of(call: Call, value: str) -> FakeQuantize | None:
    """What quantised ``value``, seen through operators that only move elements."""
    producers = {n.output: n for n in call.ctx.builder.graph.nodes}
    while (node := producers.get(value)) is not None:
        if isinstance(node.op, FakeQuantize):
            return node.op
        if not isinstance(node.op, (*MOVEMENT, MaxPool)):
            return None
        value = node.inputs[0]
    return None


def _real(call: Call, i: int, scale_at: int, zero_at: int) -> Imported:
    """Quantised input ``i`` as the real value that it stands for."""
    value = call.inputs[i]
    if isinstance(value, np.ndarray):
        scale, zero = _spread(call, value, scale_at, zero_at)
        return np.asarray((value.astype(np.float32) - zero) * scale, np.float32)
    x = call.ctx.live(value, call.node.input[i])
    scale, zero = _number(call, scale_at, "the scale"), _number(call, zero_at, "the zero point", 0)
    if not call.ctx.builder.graph.type(x).is_float:  # an integer input of the model
        number = call.emit(ew.Cast("float32"), x, last=False)
        shifted = call.emit(ew.Sub(), number, call.constant([float(zero)]), last=False)
        return call.emit(ew.Mul(), shifted, call.constant([float(scale)]), last=False)
    known = quantiser_of(call, x)
    same = known is not None and np.float32(known.scale) == np.float32(scale) and known.zero == int(zero)
    call.refuse(not same, "its scale and zero point are not those that the value was quantised with")
    return x


def _dequantize_linear(call: Call) -> list[Imported]:
    return [_real(call, 0, 1, 2)]


def _dynamic(call: Call) -> list[Imported]:
    """The value itself, at scale 1 with zero point 0."""
    return [call.x(), np.ones((), np.float32), np.zeros((), np.uint8)]


def _plain(call: Call, op: str, inputs: Sequence[Imported | None], attributes: dict[str, Any]) -> Imported:
    """What the converter of ``op`` makes of ``inputs``."""
    stem = f"{call.node.output[0]}.real"
    node = onnx.helper.make_node(
        op, [f"{stem}.{i}" if x is not None else "" for i, x in enumerate(inputs)], [stem]
    )
    return PLAIN[op](Call(call.ctx, node, inputs, attributes, call.label))[0]


def _without_zero(call: Call, i: int, zero_at: int) -> Imported:
    """Integer input ``i`` less its zero point, as a number."""
    value = call.inputs[i]
    zero = np.asarray(call.known(zero_at, "the zero point"), np.float32) if call.has(zero_at) else np.zeros(1)
    if isinstance(value, np.ndarray):
        return np.asarray(value.astype(np.float32) - zero.astype(np.float32), np.float32)
    x = call.x(i)
    number = x if call.ctx.builder.graph.type(x).is_float else call.emit(ew.Cast("float32"), x, last=False)
    if not zero.any():
        return number
    return call.emit(ew.Sub(), number, call.constant(zero), last=False)


def _integer_product(op: str) -> Converter:
    """MatMulInteger and ConvInteger: inputs a, b, a's zero point, b's zero point."""
    return lambda call: [
        _plain(call, op, [_without_zero(call, 0, 2), _without_zero(call, 1, 3)], dict(call.attributes))
    ]


def _scaled_product(dynamic: bool) -> Converter:
    """MatMulIntegerToFloat (a, b, scales, zeros, bias); DynamicQuantizeMatMul (a, b, scale, zero, bias)."""

    def run(call: Call) -> list[Imported]:
        a = call.x(0) if dynamic else _without_zero(call, 0, 4)
        b_zero, b_scale, bias = (3, 2, 4) if dynamic else (5, 3, 6)
        weight = np.asarray(call.known(1, "the weights"), np.float32)
        zero = np.asarray(call.inputs[b_zero], np.float32) if call.has(b_zero) else np.zeros(1, np.float32)
        scale = np.asarray(call.known(b_scale, "the scale"), np.float32)
        if not dynamic:
            scale = scale * np.asarray(call.known(2, "the scale"), np.float32)
        y = _plain(call, "MatMul", [a, np.asarray((weight - zero) * scale, np.float32)], {})
        return [_plain(call, "Add", [y, call.x(bias)], {}) if call.has(bias) else y]

    return run


def _out(call: Call, y: Imported, scale_at: int, zero_at: int) -> list[Imported]:
    zero = call.inputs[zero_at] if call.has(zero_at) else np.zeros((), np.uint8)
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.asarray(zero).dtype)
    limits = LIMITS[kind]
    return [_quantised(call, y, _number(call, scale_at, "the scale"), np.asarray(zero).ravel()[0], limits)]


def _qlinear(op: str, operands: int) -> Converter:
    """``op`` on operands (value, scale, zero point), then the result's scale and zero point."""

    def run(call: Call) -> list[Imported]:
        reals = [_real(call, 3 * i, 3 * i + 1, 3 * i + 2) for i in range(operands)]
        y = _plain(call, op, reals, dict(call.attributes))
        return _out(call, y, 3 * operands, 3 * operands + 1)

    return run


def _bias(call: Call, i: int) -> Array:
    """Integer bias ``i``, which is in units of the sums, as numbers."""
    scale = np.asarray(call.known(1, "the scale")) * np.asarray(call.known(4, "the scale"))
    scale = scale * float(call.attributes.get("alpha", 1.0))
    return np.asarray(np.asarray(call.known(i, "the bias")) * scale.ravel(), np.float32)


def _qlinear_conv(call: Call) -> list[Imported]:
    call.attributes["axis"] = 0
    x, w = _real(call, 0, 1, 2), _real(call, 3, 4, 5)
    inputs: list[Imported] = [x, w]
    if call.has(8):
        inputs.append(_bias(call, 8))
    attributes = {k: v for k, v in call.attributes.items() if k != "axis"}
    return _out(call, _plain(call, "Conv", inputs, attributes), 6, 7)


def _qgemm(call: Call) -> list[Imported]:
    call.attributes["axis"] = 0 if call.attributes.get("transB") else 1
    a, b = _real(call, 0, 1, 2), _real(call, 3, 4, 5)
    inputs: list[Imported] = [a, b]
    if call.has(6):
        inputs.append(_bias(call, 6))
    attributes = {k: v for k, v in call.attributes.items() if k != "axis"}
    y = _plain(call, "Gemm", inputs, attributes)
    return _out(call, y, 7, 8) if call.has(7) else [y]


def _qlinear_concat(call: Call) -> list[Imported]:
    """Inputs: the result's scale and zero point, then (value, scale, zero point) of every part."""
    parts = [_real(call, i, i + 1, i + 2) for i in range(2, len(call.inputs), 3)]
    return _out(call, _plain(call, "Concat", parts, dict(call.attributes)), 0, 1)


def _clip(call: Call) -> list[Imported]:
    """Bounds that are integers narrow the quantiser of what they clip (Brevitas writes them so)."""
    known = [b for b in call.inputs[1:3] if isinstance(b, np.ndarray)]
    quantiser = quantiser_of(call, call.x()) if known and known[0].dtype.kind in "iu" else None
    if quantiser is None:
        return converters_elementwise.CONVERTERS["Clip"](call)
    lo, hi = (
        int(np.asarray(call.inputs[i]).ravel()[0]) if call.has(i) else bound
        for i, bound in ((1, quantiser.lo), (2, quantiser.hi))
    )
    op = FakeQuantize(quantiser.scale, quantiser.zero, max(lo, quantiser.lo), min(hi, quantiser.hi))
    return [call.emit(op, call.x())]


def _softmax(call: Call) -> list[Imported]:
    call.attributes.pop("opset", None)
    return _qlinear("Softmax", 1)(call)


CONVERTERS: dict[str, Converter] = {
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "DynamicQuantizeLinear": _dynamic,
    "MatMulInteger": _integer_product("MatMul"),
    "ConvInteger": _integer_product("Conv"),
    "QLinearMatMul": _qlinear("MatMul", 2),
    "QLinearConv": _qlinear_conv,
    "Clip": _clip,
}
MICROSOFT: dict[str, Converter] = {
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "MatMulIntegerToFloat": _scaled_product(False),
    "DynamicQuantizeMatMul": _scaled_product(True),
    "QLinearAdd": _qlinear("Add", 2),
    "QLinearMul": _qlinear("Mul", 2),
    "QLinearSigmoid": _qlinear("Sigmoid", 1),
    "QLinearLeakyRelu": _qlinear("LeakyRelu", 1),
    "QLinearGlobalAveragePool": _qlinear("GlobalAveragePool", 1),
    "QLinearAveragePool": _qlinear("AveragePool", 1),
    "QLinearSoftmax": _softmax,
    "QLinearConcat": _qlinear_concat,
    "QGemm": _qgemm,
}
