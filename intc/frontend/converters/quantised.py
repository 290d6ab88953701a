"""Converters of the pairs that quantise a model: QuantizeLinear, DequantizeLinear and what stands between.

A quantised tensor is imported as the real value that it stands for. ``QuantizeLinear`` of a computed value
becomes FakeQuantize, which remembers scale and zero point; ``DequantizeLinear`` behind it is the identity; of
constants it is computed. One scale per channel of a computed value is a division in front of a grid of
integers and a product behind it. Dynamic quantisation has no scale of its own: its values stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx

from intc.frontend.call import Call, Converter
from intc.frontend.converters import elementwise, image
from intc.frontend.load import element_name
from intc.frontend.symbolic import Imported
from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops import elementwise as ew
from intc.ops.fake_quantize import FakeQuantize
from intc.ops.movement import MOVEMENT
from intc.ops.window import MaxPool

LIMITS: Final[dict[int, tuple[int, int]]] = {
    onnx.TensorProto.UINT8: (0, 255),
    onnx.TensorProto.INT8: (-128, 127),
    onnx.TensorProto.UINT16: (0, 2**16 - 1),
    onnx.TensorProto.INT16: (-(2**15), 2**15 - 1),
    onnx.TensorProto.UINT4: (0, 15),
    onnx.TensorProto.INT4: (-8, 7),
}


@dataclass(frozen=True)
class Quantiser:
    """The grid of a computed value: ``op`` with one scale, or ``op`` at scale 1 between a division by
    ``scale`` and a product with it, where that is one number per channel.
    """

    op: FakeQuantize
    scale: Array

    def equals(self, scale: Array, zero: Array) -> bool:
        """Whether dequantising by ``scale`` and ``zero``, which broadcast to the value, gives it back."""
        same = np.array_equal(np.float32(self.scale).ravel(), np.float32(scale).ravel())
        return same and bool((zero == self.op.zero).all())


def number(call: Call, i: int, what: str, default: float | None = None) -> Any:
    """Input ``i``, one known number."""
    if not call.has(i) and default is not None:
        return np.asarray(default)
    array = np.asarray(call.known(i, what))
    call.refuse(array.size != 1, f"{what} of a computed value must be one number, not {array.size}")
    return array.reshape(())


def limits_of(call: Call, kind: int) -> tuple[int, int]:
    """The integers of element type ``kind``."""
    known = ", ".join(map(element_name, LIMITS))
    call.refuse(kind not in LIMITS, f"{element_name(kind)} has no integer form; quantise to one of {known}")
    return LIMITS[kind]


def quantised(call: Call, value: Imported, scale: Any, zero: Any, limits: tuple[int, int]) -> str:
    """``value`` on the grid of ``scale`` and ``zero``: one number each, or arrays that broadcast to it."""
    x = call.ctx.live(value, call.node.output[0])
    scale, zero = np.asarray(scale, np.float32), np.asarray(zero)
    call.refuse(not (scale > 0).all(), "a scale is not positive")
    call.refuse(np.ptp(zero), "zero points that differ between the channels of a computed value")
    offset = int(zero.ravel()[0])
    if scale.size == 1:
        return call.emit(FakeQuantize(float(scale.ravel()[0]), offset, *limits), x)
    steps = call.constant(scale)
    units = call.emit(ew.Div(), x, steps, last=False)
    return call.emit(ew.Mul(), call.emit(FakeQuantize(1.0, offset, *limits), units, last=False), steps)


def _quantize_linear(call: Call) -> list[Imported]:
    kind = int(call.attributes.get("output_dtype", 0)) or onnx.TensorProto.UINT8
    if call.has(2):
        kind = onnx.helper.np_dtype_to_tensor_dtype(call.known(2, "the zero point").dtype)
    limits, value = limits_of(call, kind), call.inputs[0]
    shape = call.ctx.shape_of(value) if value is not None else ()
    scale, zero = _spread(call, shape, 1, 2)
    if isinstance(value, np.ndarray):
        return [np.asarray(np.clip(np.rint(value / scale) + zero, *limits), np.int32)]
    blocked = scale.size > 1 and sum(d != 1 for d in scale.shape) > 1
    call.refuse(blocked, "a computed value in blocks with scales of their own")
    return [quantised(call, value, scale, zero, limits)]


def _spread(call: Call, shape: Any, scale_at: int, zero_at: int) -> tuple[Array, Array]:
    """Scale and zero point of a value of ``shape`` as float32 that broadcast to it: one, one per index of the
    axis, or one per block of it.
    """
    rank = len(shape)
    axis = int(call.attributes.get("axis", 1))
    call.refuse(
        rank and not -rank <= axis < rank and _several(call, scale_at), f"axis {axis} is none of {rank}"
    )
    axis %= max(rank, 1)
    out = []
    for i, default in ((scale_at, 1), (zero_at, 0)):
        array = np.asarray(call.known(i, "the scale") if call.has(i) else default, np.float32)
        if array.size == 1:
            array = array.reshape(())
        elif array.ndim == rank and rank > 1:
            block = int(call.attributes.get("block_size", 0)) or -(-shape[axis] // array.shape[axis])
            array = np.repeat(array, block, axis=axis).take(range(shape[axis]), axis=axis)
        else:
            call.refuse(array.size != shape[axis], f"{array.size} scales for {shape[axis]} channels")
            array = array.reshape([-1 if a == axis else 1 for a in range(rank)])
        out.append(array)
    return out[0], out[1]


def _several(call: Call, i: int) -> bool:
    return call.has(i) and np.asarray(call.inputs[i]).size > 1


def quantiser_of(call: Call, value: str) -> Quantiser | None:
    """What quantised ``value``, seen through operators that only move elements."""
    graph = call.ctx.builder.graph
    producers = {n.output: n for n in graph.nodes}
    first = producers.get(value)
    if first is not None and isinstance(first.op, ew.Mul) and first.inputs[1] in graph.constants:
        inner = producers.get(first.inputs[0])
        if inner is not None and isinstance(inner.op, FakeQuantize):
            return Quantiser(inner.op, graph.constants[first.inputs[1]])
    node: Node | None = first
    while node is not None:
        if isinstance(node.op, FakeQuantize):
            return Quantiser(node.op, np.asarray(node.op.scale))
        if not isinstance(node.op, (*MOVEMENT, MaxPool)):
            return None
        node = producers.get(node.inputs[0])
    return None


def real(call: Call, i: int, scale_at: int, zero_at: int) -> Imported:
    """Quantised input ``i`` as the real value that it stands for."""
    value = call.inputs[i]
    shape = call.ctx.shape_of(value) if value is not None else ()
    scale, zero = _spread(call, shape, scale_at, zero_at)
    if isinstance(value, np.ndarray):
        return np.asarray((value.astype(np.float32) - zero) * scale, np.float32)
    x = call.ctx.live(value, call.node.input[i])
    if not call.ctx.builder.graph.type(x).is_float:  # an integer input of the model
        units = call.emit(ew.Cast("float32"), x, last=False)
        shifted = call.emit(ew.Sub(), units, call.constant(np.atleast_1d(zero)), last=False)
        return call.emit(ew.Mul(), shifted, call.constant(np.atleast_1d(scale)), last=False)
    known = quantiser_of(call, x)
    dynamic = bool((scale == 1).all() and (zero == 0).all())  # see _dynamic
    same = known.equals(scale, zero) if known is not None else dynamic
    call.refuse(not same, "its scale and zero point are not those that the value was quantised with")
    return x


def _dequantize_linear(call: Call) -> list[Imported]:
    return [real(call, 0, 1, 2)]


def _dynamic(call: Call) -> list[Imported]:
    """The value itself, at scale 1 with zero point 0."""
    return [call.x(), np.ones((), np.float32), np.zeros((), np.uint8)]


def _clip(call: Call) -> list[Imported]:
    """Bounds that are integers narrow the quantiser of what they clip (Brevitas writes them so)."""
    known = [b for b in call.inputs[1:3] if isinstance(b, np.ndarray)]
    quantiser = quantiser_of(call, call.x()) if known and known[0].dtype.kind in "iu" else None
    if quantiser is None:
        return elementwise.CONVERTERS["Clip"](call)
    op = quantiser.op
    lo, hi = (
        int(np.asarray(call.inputs[i]).ravel()[0]) if call.has(i) else bound
        for i, bound in ((1, op.lo), (2, op.hi))
    )
    return [quantised(call, call.x(), quantiser.scale, op.zero, (max(lo, op.lo), min(hi, op.hi)))]


def _cast(call: Call) -> list[Imported]:
    """Between integer types that hold the grid, a quantised tensor stays what it is."""
    limits = LIMITS.get(int(call.attributes["to"]))
    quantiser = quantiser_of(call, call.x()) if limits is not None else None
    if limits is None or quantiser is None:
        return elementwise.CONVERTERS["Cast"](call)
    call.refuse(quantiser.op.lo < limits[0] or quantiser.op.hi > limits[1], "the type does not hold the grid")
    return [call.x()]


def _pad(call: Call) -> list[Imported]:
    """An integer that fills a quantised tensor stands for the number that it means there."""
    fill = call.inputs[2] if call.has(2) else None
    quantiser = (
        quantiser_of(call, call.x()) if isinstance(fill, np.ndarray) and fill.dtype.kind in "iu" else None
    )
    if quantiser is not None and isinstance(fill, np.ndarray):
        call.refuse(quantiser.scale.size > 1, "padding of a value that is quantised per channel")
        real_fill = (fill.astype(np.float64) - quantiser.op.zero) * quantiser.scale.ravel()
        call.inputs[2] = np.asarray(real_fill, np.float32)
    return image.CONVERTERS["Pad"](call)


def _float8(call: Call) -> list[Imported]:
    call.refuse(True, "8-bit and 4-bit floats have no integer form; quantise to INT8")
    return []


CONVERTERS: dict[str, Converter] = {
    "QuantizeLinear": _quantize_linear,
    "DequantizeLinear": _dequantize_linear,
    "DynamicQuantizeLinear": _dynamic,
    "Clip": _clip,
    "Cast": _cast,
    "Pad": _pad,
}
PAIRS: dict[str, Converter] = {k: CONVERTERS[k] for k in ("QuantizeLinear", "DequantizeLinear")}
TENSORRT: dict[str, Converter] = {  # ModelOpt writes these
    **PAIRS,
    "TRT_INT4QuantizeLinear": _quantize_linear,
    "TRT_INT4DequantizeLinear": _dequantize_linear,
    "TRT_FP8QuantizeLinear": _float8,
    "TRT_FP8DequantizeLinear": _float8,
    "TRT_MXFP8QuantizeLinear": _float8,
    "TRT_MXFP8DequantizeLinear": _float8,
    "TRT_FP4DynamicQuantize": _float8,
}
