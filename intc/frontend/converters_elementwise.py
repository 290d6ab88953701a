"""Converters of elementwise operators: arithmetic, comparisons, logic and casts."""

from __future__ import annotations

import numpy as np
import onnx

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.load import element_name
from intc.frontend.symbolic import Imported, NanTest, Splat
from intc.ir.op import Op
from intc.ir.types import DType
from intc.ops import elementwise as ew
from intc.ops.movement import Reshape

CASTS: dict[int, DType] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float32",
    onnx.TensorProto.DOUBLE: "float32",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
}


def _scalars(call: Call, value: str) -> str:
    """Constants of rank 0 are stored with one axis; a result of rank 0 loses it again."""
    if all(x is not None and call.ctx.shape_of(x) == () for x in call.inputs) and call.shape(value) == (1,):
        return call.emit(Reshape(()), value)
    return value


def _elementwise(op: Op) -> Converter:
    return lambda call: [_scalars(call, call.emit(op, *(call.x(i) for i in range(len(call.inputs)))))]


def _pow(call: Call) -> list[Imported]:
    exponent = call.inputs[1]
    right = call.constant(exponent) if isinstance(exponent, np.ndarray) else call.x(1)
    return [_scalars(call, call.emit(ew.Pow(), call.x(0), right))]


def _sum(call: Call) -> list[Imported]:
    total = call.x(0)
    for i in range(1, len(call.inputs)):
        total = call.emit(ew.Add(), total, call.x(i))
    return [total]


def _neg(call: Call) -> list[Imported]:
    """``-x = x * -1``."""
    return [call.emit(ew.Mul(), call.x(), call.constant([-1.0]))]


def _reciprocal(call: Call) -> list[Imported]:
    return [call.emit(ew.Div(), call.constant([1.0]), call.x())]


def _silu(call: Call) -> list[Imported]:
    call.refuse(float(call.attributes.get("alpha", 1.0)) != 1.0, "only alpha = 1 is supported")
    gate = call.emit(ew.Sigmoid(), call.x(), last=False)
    return [call.emit(ew.Mul(), call.x(), gate)]


def _identity(call: Call) -> list[Imported]:
    value = call.inputs[0]
    assert value is not None
    return [value]


def _dropout(call: Call) -> list[Imported]:
    training = call.inputs[2] if call.has(2) else False
    call.refuse(
        not isinstance(training, np.ndarray | bool) or np.any(training), "training mode is not supported"
    )
    return _identity(call)


def _cast(call: Call) -> list[Imported]:
    to = int(call.attributes["to"])
    x = call.x()
    if to not in CASTS:
        raise GraphError(f"cast to {element_name(to)} is not supported")
    same = call.ctx.builder.graph.type(x).dtype == CASTS[to]
    return [x if same else call.emit(ew.Cast(CASTS[to]), x)]


def _and(call: Call) -> list[Imported]:
    """``true & x`` is x: exporters spell such masks out."""
    for i in (0, 1):
        other, value = call.inputs[1 - i], call.inputs[i]
        true = isinstance(value, Splat) and value.value is not None and bool(value.value)
        true = true or (isinstance(value, np.ndarray) and value.dtype == bool and bool(value.all()))
        if true and other is not None:
            return [other]
    return [call.emit(ew.And(), call.x(0), call.x(1))]


def _swapped(op: Op) -> Converter:
    """``a > b`` is ``b < a``; ``a >= b`` is ``b <= a``."""
    return lambda call: [_scalars(call, call.emit(op, call.x(1), call.x(0)))]


def _where(call: Call) -> list[Imported]:
    condition = call.inputs[0]
    if isinstance(condition, NanTest):
        zero = call.inputs[1]
        if isinstance(zero, np.ndarray) and not np.any(zero) and call.inputs[2] == condition.value:
            return [condition.value]
        raise GraphError("only Where(IsNaN(x), 0, x) has a meaning without NaN")
    return [call.emit(ew.Where(), call.x(0), call.x(1), call.x(2))]


def _is_nan(call: Call) -> list[Imported]:
    return [NanTest(call.x())]


CONVERTERS: dict[str, Converter] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "Add": _elementwise(ew.Add()),
    "Sub": _elementwise(ew.Sub()),
    "Mul": _elementwise(ew.Mul()),
    "Div": _elementwise(ew.Div()),
    "Pow": _pow,
    "Sum": _sum,
    "Neg": _neg,
    "Reciprocal": _reciprocal,
    "Sqrt": _elementwise(ew.Sqrt()),
    "Erf": _elementwise(ew.Erf()),
    "Exp": _elementwise(ew.Exp()),
    "Tanh": _elementwise(ew.Tanh()),
    "Sigmoid": _elementwise(ew.Sigmoid()),
    "Swish": _silu,
    "Relu": _elementwise(ew.Relu()),
    "Equal": _elementwise(ew.Equal()),
    "Less": _elementwise(ew.Less()),
    "LessOrEqual": _elementwise(ew.LessOrEqual()),
    "Greater": _swapped(ew.Less()),
    "GreaterOrEqual": _swapped(ew.LessOrEqual()),
    "And": _and,
    "Or": _elementwise(ew.Or()),
    "Not": _elementwise(ew.Not()),
    "Where": _where,
    "IsNaN": _is_nan,
}
