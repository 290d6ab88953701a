"""Converters of operators on quantised tensors: the plain operators between dequantising and quantising."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx

from intc.frontend.call import Call, Converter
from intc.frontend.converters import (
    activations,
    attention,
    elementwise,
    image,
    movement,
    nn,
    resize,
    window,
)
from intc.frontend.converters.quantised import PAIRS, limits_of, number, quantised, real
from intc.frontend.symbolic import Imported
from intc.ir.op import Array
from intc.ops import elementwise as ew

PLAIN: Final[dict[str, Converter]] = {
    **elementwise.CONVERTERS,
    **activations.CONVERTERS,
    **movement.CONVERTERS,
    **nn.CONVERTERS,
    **image.CONVERTERS,
    **window.CONVERTERS,
    **resize.CONVERTERS,
    "com.microsoft.Attention": attention.MICROSOFT["Attention"],
}


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
    units = x if call.ctx.builder.graph.type(x).is_float else call.emit(ew.Cast("float32"), x, last=False)
    if not zero.any():
        return units
    return call.emit(ew.Sub(), units, call.constant(zero), last=False)


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
    zero = np.asarray(call.inputs[zero_at] if call.has(zero_at) else np.zeros((), np.uint8))
    limits = limits_of(call, onnx.helper.np_dtype_to_tensor_dtype(zero.dtype))
    return [quantised(call, y, number(call, scale_at, "the scale"), zero.ravel()[0], limits)]


def _qlinear(op: str, operands: int, first: int = 0) -> Converter:
    """``op`` on ``operands`` (value, scale, zero point) behind ``first`` inputs that are no numbers, then the
    result's scale and zero point.
    """
    last = first + 3 * operands

    def run(call: Call) -> list[Imported]:
        reals = [real(call, i, i + 1, i + 2) for i in range(first, last, 3)]
        y = _plain(call, op, [*call.inputs[:first], *reals], dict(call.attributes))
        return _out(call, y, last, last + 1)

    return run


def _bias(call: Call, i: int) -> Array:
    """Integer bias ``i``, which is in units of the sums, as numbers."""
    scale = np.asarray(call.known(1, "the scale")) * np.asarray(call.known(4, "the scale"))
    scale = scale * float(call.attributes.get("alpha", 1.0))
    return np.asarray(np.asarray(call.known(i, "the bias")) * scale.ravel(), np.float32)


def _qlinear_conv(call: Call) -> list[Imported]:
    call.refuse(call.attributes.pop("channels_last", 0), "only images with channels first are supported")
    attributes = dict(call.attributes)
    call.attributes["axis"] = 0
    inputs: list[Imported] = [real(call, 0, 1, 2), real(call, 3, 4, 5)]
    if call.has(8):
        inputs.append(_bias(call, 8))
    return _out(call, _plain(call, "Conv", inputs, attributes), 6, 7)


def _qlinear_pool(op: str) -> Converter:
    def run(call: Call) -> list[Imported]:
        call.refuse(call.attributes.pop("channels_last", 0), "only images with channels first are supported")
        return _qlinear(op, 1)(call)

    return run


def _qgemm(call: Call) -> list[Imported]:
    attributes = dict(call.attributes)
    call.attributes["axis"] = 0 if attributes.get("transB") else 1
    inputs: list[Imported] = [real(call, 0, 1, 2), real(call, 3, 4, 5)]
    if call.has(6):
        inputs.append(_bias(call, 6))
    y = _plain(call, "Gemm", inputs, attributes)
    return _out(call, y, 7, 8) if call.has(7) else [y]


def _qlinear_concat(call: Call) -> list[Imported]:
    """Inputs: the result's scale and zero point, then (value, scale, zero point) of every part."""
    attributes = dict(call.attributes)
    parts = [real(call, i, i + 1, i + 2) for i in range(2, len(call.inputs), 3)]
    return _out(call, _plain(call, "Concat", parts, attributes), 0, 1)


def _softmax(call: Call) -> list[Imported]:
    call.attributes.pop("opset", None)
    return _qlinear("Softmax", 1)(call)


def _qattention(call: Call) -> list[Imported]:
    """Attention with a quantised input and weights: both, a bias, their scales, a mask, their zero points."""
    x = real(call, 0, 3, 6)
    call.attributes["axis"] = 1
    inputs: list[Imported | None] = [x, real(call, 1, 4, 7), call.inputs[2]]
    inputs += [call.inputs[5] if call.has(5) else None, call.inputs[8] if call.has(8) else None]
    attributes = {k: v for k, v in call.attributes.items() if k not in ("axis", "past_present_share_buffer")}
    return [_plain(call, "com.microsoft.Attention", inputs, attributes)]


def _matmul_nbits(call: Call) -> list[Imported]:
    """Inputs a, b [N, blocks, bytes], scales, zero points (default: the middle), order of rows, bias: the
    columns of the weights [K, N] in blocks of ``block_size`` with a scale each.
    """
    bits, block = int(call.attributes.get("bits", 4)), int(call.attributes["block_size"])
    k, n = int(call.attributes["K"]), int(call.attributes["N"])
    call.refuse(bits not in (2, 4, 8), f"weights of {bits} bits")
    call.refuse(call.has(4), "weights in another order of rows")
    blocks = -(-k // block)
    packed = np.asarray(call.known(1, "the weights")).reshape(n, -1)
    codes = _unpacked(packed, bits)[:, : blocks * block].reshape(n, blocks, block)
    scale = np.asarray(call.known(2, "the scales"), np.float32).reshape(n, blocks, 1)
    zero: Array = np.full((n, blocks, 1), 2.0 ** (bits - 1), np.float32)
    if call.has(3):
        given = np.asarray(call.known(3, "the zero points"))
        zeros = given if given.dtype.kind == "f" else _unpacked(given.reshape(n, -1), bits)[:, :blocks]
        zero = zeros.astype(np.float32).reshape(n, blocks, 1)
    weight = ((codes.astype(np.float32) - zero) * scale).reshape(n, blocks * block)[:, :k]
    y = _plain(call, "MatMul", [call.x(0), np.ascontiguousarray(weight.T)], {})
    return [_plain(call, "Add", [y, call.x(5)], {}) if call.has(5) else y]


def _unpacked(rows: Array, bits: int) -> Array:
    """The codes in the bytes of ``rows``, the lowest bits first."""
    parts = [(rows >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return np.stack(parts, axis=-1).reshape(len(rows), -1)


CONVERTERS: dict[str, Converter] = {
    "MatMulInteger": _integer_product("MatMul"),
    "ConvInteger": _integer_product("Conv"),
    "QLinearMatMul": _qlinear("MatMul", 2),
    "QLinearConv": _qlinear_conv,
}
MICROSOFT: dict[str, Converter] = {
    **PAIRS,
    "MatMulIntegerToFloat": _scaled_product(False),
    "MatMulNBits": _matmul_nbits,
    "DynamicQuantizeMatMul": _scaled_product(True),
    "QAttention": _qattention,
    "QGemm": _qgemm,
    "QLinearAdd": _qlinear("Add", 2),
    "QLinearAveragePool": _qlinear_pool("AveragePool"),
    "QLinearConcat": _qlinear_concat,
    "QLinearConv": _qlinear_conv,
    "QLinearGlobalAveragePool": _qlinear_pool("GlobalAveragePool"),
    "QLinearLeakyRelu": _qlinear("LeakyRelu", 1),
    "QLinearMul": _qlinear("Mul", 2),
    "QLinearSigmoid": _qlinear("Sigmoid", 1),
    "QLinearSoftmax": _softmax,
    "QLinearWhere": _qlinear("Where", 2, first=1),
}
