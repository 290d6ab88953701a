"""Converters of quotients, of remainders, of bits, and of what makes numbers whole."""

from __future__ import annotations

import numpy as np

from intc.frontend.call import Call, Converter
from intc.frontend.converters.elementwise import elementwise
from intc.frontend.symbolic import Imported
from intc.ir.op import Array, Op
from intc.ops import elementwise as ew
from intc.ops import logic
from intc.ops.division import Divide
from intc.ops.fused import WIDE
from intc.ops.requantize import Clip


def _ceil(call: Call) -> list[Imported]:
    down = call.emit(ew.Floor(), call.emit(ew.Mul(), call.x(), call.constant([-1.0]), last=False), last=False)
    return [call.emit(ew.Mul(), down, call.constant([-1.0]))]


def _divide(call: Call) -> list[Imported]:
    if call.dtype(call.x(0)) == "float32":
        return elementwise(ew.Div())(call)
    return [_quotient(call, call.x(0), truncated=True)]


def _quotient(call: Call, x: str, truncated: bool) -> str:
    """The integers ``x``, saturated at 58 bits, divided by known positive ones: toward zero, or down."""
    dtype, divisor = call.dtype(x), call.known(1, "the divisor of integers")
    divisor = np.atleast_1d(divisor).astype(np.int64)
    call.refuse((divisor < 1).any() or (divisor > WIDE).any(), "the divisor of integers must be positive")
    if not truncated:
        return call.emit(ew.Cast(dtype), _down(call, x, divisor))
    x = x if dtype == "int64" else call.emit(ew.Cast("int64"), x, last=False)
    zero = _constant(call, np.zeros(1))
    minus = call.emit(ew.Sub(), zero, x, last=False)
    above, below = (_down(call, call.emit(ew.Max(), v, zero, last=False), divisor) for v in (x, minus))
    return call.emit(ew.Cast(dtype), call.emit(ew.Sub(), above, below, last=False))


def _down(call: Call, x: str, divisor: Array) -> str:
    """``floor(x / divisor)`` as int64; of more than 30 bits first by a power of two times
    the divisor, as large as fits them, and then what that leaves by the divisor itself.
    """

    def divided(numerator: str, by: Array) -> str:
        lower = call.emit(ew.Sub(), numerator, _constant(call, by // 2), last=False)
        return call.emit(ew.Cast("int64"), call.emit(Divide(0, WIDE), lower, _constant(call, by), last=False))

    if call.ctx.type_of(x).magnitude <= WIDE // 2:
        return divided(call.emit(Clip(-WIDE // 2, WIDE // 2, "int32"), x, last=False), divisor)
    times = 2 ** np.floor(np.log2(WIDE / divisor)).astype(np.int64)
    wide = call.emit(Clip(-(2**58), 2**58, "int64"), x, last=False)
    first = divided(wide, divisor * times)
    taken = call.emit(ew.Mul(), first, _constant(call, divisor * times), last=False)
    rest = call.emit(Clip(0, WIDE, "int32"), call.emit(ew.Sub(), wide, taken, last=False), last=False)
    first = call.emit(ew.Mul(), first, _constant(call, times), last=False)
    return call.emit(ew.Add(), first, divided(rest, divisor), last=False)


def _constant(call: Call, value: Array) -> str:
    return call.ctx.builder.constant(f"{call.node.output[0]}.c", value.astype(np.int32))


def _remainder(call: Call) -> list[Imported]:
    """``a - b * floor(a / b)``, with the sign of b; with ``fmod`` of the magnitudes, with the sign of a."""
    if call.dtype(call.x(0)) != "float32":
        return [_integer_remainder(call, truncated=bool(call.attributes.get("fmod")))]
    if not call.attributes.get("fmod"):
        a, b = call.x(0), call.x(1)
        whole = call.emit(ew.Floor(), call.emit(ew.Div(), a, b, last=False), last=False)
        return [call.emit(ew.Sub(), a, call.emit(ew.Mul(), whole, b, last=False))]
    a, b = (call.emit(ew.Abs(), call.x(i), last=False) for i in (0, 1))
    whole = call.emit(ew.Floor(), call.emit(ew.Div(), a, b, last=False), last=False)
    rest = call.emit(ew.Sub(), a, call.emit(ew.Mul(), whole, b, last=False), last=False)
    below = call.emit(logic.Less(), call.x(0), call.constant([0.0]), last=False)
    return [call.emit(ew.Where(), below, call.emit(ew.Mul(), rest, call.constant([-1.0]), last=False), rest)]


def _integer_remainder(call: Call, truncated: bool) -> str:
    dtype, x = call.dtype(call.x(0)), call.x(0)
    whole = _quotient(call, x, truncated)
    x, whole, divisor = (
        v if call.dtype(v) == "int64" else call.emit(ew.Cast("int64"), v, last=False)
        for v in (x, whole, call.x(1))
    )
    rest = call.emit(ew.Sub(), x, call.emit(ew.Mul(), whole, divisor, last=False), last=False)
    most = int(call.known(1, "the divisor of integers").max()) - 1
    return call.emit(ew.Cast(dtype), call.emit(Clip(-most, most, "int32"), rest, last=False))


def _bits(op: Op) -> Converter:
    """Of truth values that are kept as integers; the lowest bits of an integer are a remainder."""

    def run(call: Call) -> list[Imported]:
        for x, y in (call.inputs, call.inputs[::-1]):
            size = int(y.item()) + 1 if isinstance(y, np.ndarray) and y.size == 1 else 0
            if isinstance(op, ew.Min) and size > 2 and size & (size - 1) == 0:
                return call.apply("Mod", [x, np.full_like(y, size)])
        values = [call.x(0), call.x(1)]
        call.refuse(
            any(call.ctx.type_of(x).interval not in ((0, 0), (0, 1), (1, 1)) for x in values),
            "only the bits of 0 and 1, and the lowest of an integer, are supported",
        )
        return [call.emit(op, *values)]

    return run


def _complement(call: Call) -> list[Imported]:
    x = call.x()
    call.refuse(call.dtype(x).startswith("u"), "bits of unsigned integers are not supported")
    minus = call.ctx.builder.constant(f"{call.node.output[0]}.minus", np.full(1, -1, call.dtype(x)))
    return [call.emit(ew.Sub(), minus, x)]


CONVERTERS: dict[str, Converter] = {
    "Div": _divide,
    "Mod": _remainder,
    "BitwiseAnd": _bits(ew.Min()),
    "BitwiseOr": _bits(ew.Max()),
    "BitwiseNot": _complement,
    "Floor": elementwise(ew.Floor()),
    "Ceil": _ceil,
    "Round": elementwise(ew.Round()),
}
