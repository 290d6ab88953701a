"""Converters of elementwise operators: arithmetic, comparisons, logic and casts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx

from intc.errors import GraphError, QuantizationError
from intc.frontend.call import Call, Converter
from intc.frontend.converters.few import of_few
from intc.frontend.load import element_name
from intc.frontend.symbolic import Imported, NanTest, Splat
from intc.ir.dims import Shape, broadcast
from intc.ir.op import Array, Op
from intc.ir.types import LIMITS, DType, TensorType
from intc.ops import circular, logic
from intc.ops import elementwise as ew
from intc.ops.movement import Expand, Reshape
from intc.ops.softmax import Softmax

MOST_POWERS = 8  # whole exponents below it are told apart where one value has several
TINY = 2.0**-40  # the least number whose logarithm a power takes
HUGE = 1e37  # numbers beyond it stand for infinity
CASTS: dict[int, DType] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float32",
    onnx.TensorProto.BFLOAT16: "float32",
    onnx.TensorProto.DOUBLE: "float32",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.INT16: "int16",
    onnx.TensorProto.INT8: "int8",
    onnx.TensorProto.UINT8: "uint8",
}


def _scalars(call: Call, value: str) -> str:
    """Constants of rank 0 are stored with one axis; a result of rank 0 loses it again."""
    if all(x is not None and call.ctx.shape_of(x) == () for x in call.inputs) and call.shape(value) == (1,):
        return call.emit(Reshape(()), value)
    return value


def elementwise(op: Op) -> Converter:
    return lambda call: [_scalars(call, call.emit(op, *(call.x(i) for i in range(len(call.inputs)))))]


def _arithmetic(op: Op) -> Converter:
    """``op``, in 64 bits where 32 may not hold what it gives on int32 inputs, and wrapped like ONNX's."""

    def run(call: Call) -> list[Imported]:
        pair = [call.x(0), call.x(1)]
        if not _overflows(op, [call.ctx.builder.graph.type(x).with_shape(()) for x in pair]):
            return [_scalars(call, call.emit(op, *pair))]
        wide = [x if call.dtype(x) == "int64" else call.emit(ew.Cast("int64"), x, last=False) for x in pair]
        return [_scalars(call, call.emit(ew.Cast("int32"), call.emit(op, *wide, last=False)))]

    return run


def _overflows(op: Op, types: Sequence[TensorType]) -> bool:
    try:
        op.infer(*types)
    except QuantizationError:
        return True
    return False


def _pow(call: Call) -> list[Imported]:
    """Powers of one exponent; else ``exp(e * log(x))`` of x above 0, and whole small exponents in a table one
    by one.
    """
    base, exponent = call.inputs[:2]
    known = isinstance(exponent, np.ndarray) and exponent.dtype != object
    if isinstance(exponent, np.ndarray) and (exponent.size == 1 or (known and np.unique(exponent).size == 1)):
        same = exponent if exponent.size == 1 else exponent.ravel()[0]
        power = call.emit(ew.Pow(), call.x(0), call.constant(same))
        shape = broadcast(call.shape(power), exponent.shape)
        return [_scalars(call, power if call.shape(power) == shape else call.emit(Expand(shape), power))]
    if (isinstance(base, np.ndarray) and base.size == 1) or call.dtype(call.x(0)) != "float32":
        return [_scalars(call, call.emit(ew.Pow(), call.x(0), call.x(1)))]
    if isinstance(exponent, np.ndarray) and known and _is_small_and_whole(exponent):
        return [_powers(call, call.x(0), exponent)]
    if isinstance(base, np.ndarray):
        call.refuse(base.dtype == object or (base <= 0).any(), "a power of a number that is not above 0")
        log = call.constant(np.log(base))
    else:
        above = call.emit(ew.Max(), call.x(0), call.constant([TINY]), last=False)
        log = call.emit(ew.Log(), above, last=False)
    right = call.constant(exponent) if isinstance(exponent, np.ndarray) else call.x(1)
    if call.dtype(right) != "float32":
        right = call.emit(ew.Cast("float32"), right, last=False)
    return [call.emit(ew.Exp(), call.emit(ew.Mul(), log, right, last=False))]


def _is_small_and_whole(exponent: Array) -> bool:
    return bool(np.isin(exponent, range(MOST_POWERS)).all())


def _powers(call: Call, x: str, exponent: Array) -> str:
    """``x`` to these exponents, each chosen where it stands."""
    shape = broadcast(call.shape(x), exponent.shape)
    x = x if call.shape(x) == shape else call.emit(Expand(shape), x, last=False)
    result = ""
    for e in np.unique(exponent):
        power = x if e == 1 else call.emit(ew.Pow(), x, call.constant([e]), last=False)
        here = call.ctx.builder.constant(f"{call.node.output[0]}.here", exponent == e)
        result = call.emit(ew.Where(), here, power, result) if result else power
    return result


def _neg(call: Call) -> list[Imported]:
    """``-x = x * -1``."""
    x = call.x()
    one = np.full(1, -1, call.ctx.builder.graph.type(x).dtype)
    return [call.emit(ew.Mul(), x, call.ctx.builder.constant(f"{call.node.output[0]}.c", one))]


def _reciprocal(call: Call) -> list[Imported]:
    return [call.emit(ew.Div(), call.constant([1.0]), call.x())]


def _many(op: Op) -> Converter:
    """``op`` over any number of inputs, from left to right."""

    def run(call: Call) -> list[Imported]:
        total = call.x(0)
        for i in range(1, len(call.inputs)):
            total = call.emit(op, total, call.x(i))
        return [_scalars(call, total)]

    return run


def _clip(call: Call) -> list[Imported]:
    """``min(max(x, low), high)``; either bound may be missing."""
    x = call.x()
    for i, op in ((1, ew.Max()), (2, ew.Min())):
        if call.has(i):
            x = call.emit(op, x, call.x(i))
    return [x]


def composed(build: Callable[[Call, str], str]) -> Converter:
    """``build(call, x)`` of the first input."""
    return lambda call: [build(call, call.x())]


def absolute(call: Call, x: str, last: bool = False) -> str:
    """``|x|``; of integers the larger of x and -x."""
    if call.dtype(x) == "float32":
        return call.emit(ew.Abs(), x, last=last)
    zero = call.ctx.builder.constant(f"{call.node.output[0]}.zero", np.zeros(1, call.dtype(x)))
    return call.emit(ew.Max(), x, call.emit(ew.Sub(), zero, x, last=False), last=last)


def _sign(call: Call, x: str) -> str:
    """``(0 < x) - (x < 0)``."""
    zero = call.ctx.builder.constant(f"{call.node.output[0]}.zero", np.zeros(1, call.dtype(x)))
    above, below = (call.emit(logic.Less(), *pair, last=False) for pair in ((zero, x), (x, zero)))
    parts = (call.emit(ew.Cast(call.dtype(x)), part, last=False) for part in (above, below))
    return call.emit(ew.Sub(), *parts)


def _mean(call: Call) -> list[Imported]:
    (total,) = _many(ew.Add())(call)
    return [call.emit(ew.Mul(), total, call.constant([1 / len(call.inputs)]))]


def _xor(call: Call) -> list[Imported]:
    same = call.emit(logic.Equal(), call.x(0), call.x(1), last=False)
    return [_scalars(call, call.emit(logic.Not(), same))]


def _tan(call: Call, x: str) -> str:
    return call.emit(ew.Div(), call.emit(ew.Sin(), x, last=False), call.emit(ew.Cos(), x, last=False))


def _identity(call: Call) -> list[Imported]:
    value = call.inputs[0]
    assert value is not None
    return [value]


def _dropout(call: Call) -> list[Imported]:
    training = call.inputs[2] if call.has(2) else False
    call.refuse(
        not isinstance(training, np.ndarray | bool) or np.any(training),
        "training mode is not supported; export the model in evaluation mode",
    )
    return _identity(call)


def _cast_like(call: Call) -> list[Imported]:
    dtype = call.dtype(call.x(1))
    return [call.x() if call.dtype(call.x()) == dtype else call.emit(ew.Cast(dtype), call.x())]


def _cast(call: Call) -> list[Imported]:
    to = int(call.attributes["to"])
    x = call.x()
    if to not in CASTS:
        raise GraphError(f"cast to {element_name(to)} is not supported")
    if call.dtype(x) == "float32" and CASTS[to] in ("int64", "int32"):
        x = of_few(call, x) or x
    type_, (low, high) = call.ctx.builder.graph.type(x), LIMITS.get(CASTS[to], (0, 0))
    if CASTS[to] in ("int16", "int8", "uint8") and not type_.is_float:
        call.refuse(
            type_.interval[0] < low or type_.interval[1] > high,
            f"a cast to {element_name(to)} of numbers that may not fit",
        )
    same = type_.dtype == CASTS[to]
    return [x if same else call.emit(ew.Cast(CASTS[to]), x)]


def _everywhere(value: Imported | None) -> bool | None:
    """The one value of a known condition, or None."""
    if isinstance(value, Splat):
        return None if value.value is None else bool(value.value)
    if isinstance(value, np.ndarray) and value.dtype == bool and value.size:
        return bool(value.flat[0]) if value.all() == value.any() else None
    return None


def _whole(call: Call) -> Shape:
    """The shape that all inputs broadcast to."""
    shape: Shape = ()
    for value in call.inputs:
        shape = broadcast(shape, call.ctx.shape_of(value))
    return shape


def _joined(op: Op, neutral: bool) -> Converter:
    """``true & x`` is x and ``false & x`` false, and the other way round: exporters spell such masks out."""

    def run(call: Call) -> list[Imported]:
        for other, value in (call.inputs, call.inputs[::-1]):
            known = _everywhere(value)
            if known is neutral and isinstance(other, str) and _whole(call) != call.shape(other):
                return [call.emit(Expand(_whole(call)), other)]
            if known is neutral and other is not None:
                return [other]
            if known is not neutral and known is not None:
                return [Splat(_whole(call), np.bool_(known))]
        return [call.emit(op, call.x(0), call.x(1))]

    return run


def _swapped(op: Op) -> Converter:
    """``a > b`` is ``b < a``; ``a >= b`` is ``b <= a``."""
    return lambda call: [_scalars(call, call.emit(op, call.x(1), call.x(0)))]


def _where(call: Call) -> list[Imported]:
    condition = call.inputs[0]
    if isinstance(condition, NanTest):
        zero, x = call.inputs[1:] if not condition.negated else call.inputs[:0:-1]
        if _zero(zero) and x == condition.value:
            return [condition.value]
        raise GraphError("only Where(IsNaN(x), 0, x) has a meaning without NaN")
    known = _everywhere(condition)
    if known is not None:
        chosen = call.inputs[1 if known else 2]
        if isinstance(chosen, str) and _whole(call) == call.shape(chosen):
            return [chosen]
    pair = [call.x(1), call.x(2)]
    if {*map(call.dtype, pair)} == {"int32", "int64"}:  # positions are of 64 bits
        pair = [x if call.dtype(x) == "int64" else call.emit(ew.Cast("int64"), x, last=False) for x in pair]
    return [call.emit(ew.Where(), call.x(0), *pair)]


def _zero(value: Imported | None) -> bool:
    """Whether ``value`` is known to be 0 everywhere."""
    if isinstance(value, Splat):
        return value.value is not None and not value.value
    return isinstance(value, np.ndarray) and not np.any(value)


def _is_nan(call: Call) -> list[Imported]:
    """False, for values that no infinity reaches, not even through a softmax of nothing else."""
    x = call.x()
    return [NanTest(x) if _infinite(call, x, ()) else Splat(call.shape(x), np.bool_(False))]


def _is_inf(call: Call) -> list[Imported]:
    """False, for values that no infinity reaches."""
    x = call.x()
    call.refuse(_infinite(call, x), "tests of values that the model sets to infinity are not supported")
    return [Splat(call.shape(x), np.bool_(False))]


def _not(call: Call) -> list[Imported]:
    x = call.inputs[0]
    if isinstance(x, NanTest):
        return [replace(x, negated=not x.negated)]
    return [call.emit(logic.Not(), call.x())]


def _infinite(call: Call, value: str, through: tuple[type[Op], ...] = (Softmax,)) -> bool:
    """Whether an infinite constant (or one close to it) may reach ``value``, but not ``through`` these."""
    graph = call.ctx.builder.graph
    producers = graph.producers()
    pending, seen = [value], set[str]()
    while pending:
        name = pending.pop()
        if name in seen or not graph.type(name).is_float:
            continue
        seen.add(name)
        constant, node = graph.constants.get(name), producers.get(name)
        if constant is not None and np.any(np.abs(constant) > HUGE):
            return True
        if node is not None and not isinstance(node.op, through):
            pending += node.inputs
    return False


def _equal(call: Call) -> list[Imported]:
    """A comparison with infinity tests for it, and one of numbers with themselves for NaN."""
    x, y = call.inputs
    if isinstance(x, str) and isinstance(y, str) and x == y and call.dtype(x) == "float32":
        return call.apply("Not", _is_nan(call))
    for value, other in (call.inputs, call.inputs[::-1]):
        infinite = isinstance(other, np.ndarray) and other.dtype.kind == "f" and np.isinf(other).all()
        if infinite and isinstance(value, str):
            call.refuse(_infinite(call, value), "tests for infinity of masked values are not supported")
            return [Splat(call.shape(value), np.bool_(False))]
    return elementwise(logic.Equal())(call)


CONVERTERS: dict[str, Converter] = {
    "Identity": _identity,
    "Dropout": _dropout,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Add": _arithmetic(ew.Add()),
    "Sub": _arithmetic(ew.Sub()),
    "Mul": _arithmetic(ew.Mul()),
    "Pow": _pow,
    "Sum": _many(ew.Add()),
    "Max": _many(ew.Max()),
    "Clip": _clip,
    "Min": _many(ew.Min()),
    "Abs": lambda call: [_scalars(call, absolute(call, call.x(), last=True))],
    "Log": elementwise(ew.Log()),
    "Sin": elementwise(ew.Sin()),
    "Cos": elementwise(ew.Cos()),
    "Tan": composed(_tan),
    **{op.__name__: elementwise(op()) for op in circular.OPS},
    "Sign": composed(_sign),
    "Mean": _mean,
    "Xor": _xor,
    "Neg": _neg,
    "Reciprocal": _reciprocal,
    "Sqrt": elementwise(ew.Sqrt()),
    "Erf": elementwise(ew.Erf()),
    "Exp": elementwise(ew.Exp()),
    "Equal": _equal,
    "Less": elementwise(logic.Less()),
    "LessOrEqual": elementwise(logic.LessOrEqual()),
    "Greater": _swapped(logic.Less()),
    "GreaterOrEqual": _swapped(logic.LessOrEqual()),
    "And": _joined(logic.And(), True),
    "Or": _joined(logic.Or(), False),
    "Not": _not,
    "Where": _where,
    "IsNaN": _is_nan,
    "IsInf": _is_inf,
}
