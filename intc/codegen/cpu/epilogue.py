"""What happens to an int32 accumulator before it is stored: requantisation, scalar functions, residual
additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import numpy as np
import tvm.tirx as tir
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.vector import TIR, Multiplier, Vec, const, load, load_broadcast, typed
from intc.errors import CodegenError
from intc.ops import scalar

Ints: TypeAlias = NDArray[Any]
FAST_EXPONENT: Final = 33  # from here the rounding half lies in the high 32 bits of the product


@dataclass(frozen=True)
class Requantize:
    """``clip((x*m + 2**(e-1)) >> e, lo, hi)`` with m, e per channel or one of each; made by
    :func:`plan_requantize`.

    The multiplier arrays hold ``e + pre``: x is shifted left by ``pre`` first. ``clamp`` limits x to what
    that shift can take, which the clip makes exact. ``exact64`` is the general path for everything else.
    """

    lo: int
    hi: int
    per_channel: bool = True
    pre: int = 0
    clamp: bool = False
    exact64: bool = False


@dataclass(frozen=True)
class Pointwise:
    """A function of :mod:`intc.ops.scalar` on int16 values in Q``frac``."""

    function: Literal["gelu", "sigmoid", "tanh"]
    frac: int


@dataclass(frozen=True)
class Residual:
    """``clip(x + r, lo, hi)`` with ``r`` a tensor of the output's shape, requantised by scalars first if so
    asked.
    """

    lo: int
    hi: int
    dtype: str = "int16"
    requantize: Requantize | None = None


@dataclass(frozen=True)
class Offset:
    """``x + o`` with ``o`` int32 per channel."""


Stage: TypeAlias = Requantize | Pointwise | Residual | Offset


def plan_requantize(
    m: Ints, e: Ints, lo: int, hi: int, x_lo: int = -(2**31), x_hi: int = 2**31 - 1
) -> tuple[Requantize, Ints, Ints]:
    """The cheapest exact form of a requantisation of values in [x_lo, x_hi], with the int32 arrays that it
    reads.

    ``m`` and ``e`` are both of shape () or [C]. Raises CodegenError outside 1 <= e <= 62 or |m| < 2**31.
    """
    m, e = np.atleast_1d(np.asarray(m, np.int64)), np.atleast_1d(np.asarray(e, np.int64))
    m, e = np.broadcast_arrays(m, e)
    if np.any((e < 1) | (e > 62)) or np.any(np.abs(m) >= 2**31):
        raise CodegenError("requantisation needs 1 <= e <= 62 and |m| < 2**31; renormalise the multiplier")
    per_channel = m.size > 1
    m, e = _normalise(m, e)
    pre = max(0, FAST_EXPONENT - int(e.min()))
    form = Requantize(lo, hi, per_channel, exact64=True)
    if pre == 0:
        form = Requantize(lo, hi, per_channel)
    elif int(e.max()) + pre <= 62 and pre <= 30:
        bound = (1 << (31 - pre)) - 1
        half = [1 << (int(k) - 1) for k in e]
        top = [(bound * int(f) + h) >> int(k) for f, k, h in zip(m, e, half, strict=True)]
        bottom = [(-bound * int(f) + h) >> int(k) for f, k, h in zip(m, e, half, strict=True)]
        if -bound <= x_lo and x_hi <= bound:
            form = Requantize(lo, hi, per_channel, pre)
        elif np.all(m > 0) and min(top) >= hi and max(bottom) <= lo:
            form = Requantize(lo, hi, per_channel, pre, clamp=True)
    shift = 0 if form.exact64 else form.pre
    return form, m.astype(np.int32), (e + shift).astype(np.int32)


def _normalise(m: Ints, e: Ints) -> tuple[Ints, Ints]:
    """Equal multipliers with small exponents raised where the mantissa leaves room: 2m / 2**(e+1) rounds
    alike.
    """
    m, e = m.copy(), np.where(m == 0, max(FAST_EXPONENT, int(e.max())), e)
    while np.any(small := (np.abs(m) < 2**30) & (e < FAST_EXPONENT)):
        m, e = np.where(small, 2 * m, m), np.where(small, e + 1, e)
    return m, e


class Prepared:
    """The multipliers of one :class:`Requantize` for a run of columns, in registers."""

    def __init__(self, stage: Requantize, m: Vec, e: Vec, even_odd: bool) -> None:
        self.stage, self.m, self.e = stage, m, e
        if not stage.exact64:
            self.multiplier = Multiplier(m, even_odd)
            self.shift = e - 32
            one = Vec(const(1, m.lanes), m.lanes)
            self.half = one << (e - FAST_EXPONENT)

    def __call__(self, x: Vec) -> Vec:
        stage = self.stage
        if stage.exact64:
            return self._exact64(x)
        if stage.clamp:
            bound = (1 << (31 - stage.pre)) - 1
            x = x.clip(-bound, bound)
        if stage.pre:
            x = x << stage.pre
        return ((self.multiplier.high(x) + self.half) >> self.shift).clip(stage.lo, stage.hi)

    def _exact64(self, x: Vec) -> Vec:
        wide = typed("int64", x.lanes)
        e = T.Bind(T.cast(self.e.expr, wide))
        one = const(1, x.lanes, "int64")
        product = T.Bind(T.cast(x.expr, wide) * T.cast(self.m.expr, wide))
        y = T.Bind(T.shift_right(product + T.shift_left(one, e - one), e))
        lo, hi = (const(v, x.lanes, "int64") for v in (self.stage.lo, self.stage.hi))
        return Vec(T.cast(tir.Min(tir.Max(y, lo), hi), typed("int32", x.lanes)), x.lanes)


def prepare(stage: Requantize, m: Any, e: Any, column: Any, lanes: int, even_odd: bool) -> Prepared:
    """Load the multipliers of columns ``column ...`` from the int32 buffers ``m`` and ``e``."""
    if stage.per_channel:
        pair = load(m, column, lanes, "int32"), load(e, column, lanes, "int32")
    else:
        pair = load_broadcast(m, 0, lanes), load_broadcast(e, 0, lanes)
    return Prepared(stage, *pair, even_odd)


def stage_arguments(stages: tuple[Stage, ...]) -> list[tuple[str, str]]:
    """``(name, dtype)`` of the pointers that the stages read, in order."""
    names: list[tuple[str, str]] = []
    for i, stage in enumerate(stages):
        scaled = stage
        if isinstance(stage, Residual):
            names.append((f"residual{i}", stage.dtype))
            scaled = stage.requantize or stage
        if isinstance(stage, Offset):
            names.append((f"offset{i}", "int32"))
        if isinstance(scaled, Requantize):
            names += [(f"m{i}", "int32"), (f"e{i}", "int32")]
    return names


class Epilogue:
    """The stages over ``lanes`` columns from ``column``, with everything that does not depend on the row
    loaded.
    """

    def __init__(
        self, stages: tuple[Stage, ...], buffers: dict[str, Any], column: Any, lanes: int, even_odd: bool
    ) -> None:
        self.stages, self.buffers, self.lanes = stages, buffers, lanes
        self.prepared: dict[int, Prepared] = {}
        self.offsets: dict[int, Vec] = {}
        for i, stage in enumerate(stages):
            scaled = stage.requantize if isinstance(stage, Residual) else stage
            if isinstance(stage, Offset):
                self.offsets[i] = load(buffers[f"offset{i}"], column, lanes, "int32")
            if isinstance(scaled, Requantize):
                m, e = buffers[f"m{i}"], buffers[f"e{i}"]
                self.prepared[i] = prepare(scaled, m, e, column, lanes, even_odd)

    def __call__(self, acc: Vec, residual_at: Any) -> Vec:
        """The stages on one row; ``residual_at(buffer, dtype)`` loads the residual's lanes as int32."""
        value = acc
        for i, stage in enumerate(self.stages):
            if isinstance(stage, Requantize):
                value = self.prepared[i](value)
            elif isinstance(stage, Pointwise):
                value = getattr(scalar, stage.function)(TIR, value, stage.frac)
            elif isinstance(stage, Offset):
                value = value + self.offsets[i]
            else:
                other = residual_at(self.buffers[f"residual{i}"], stage.dtype)
                if i in self.prepared:
                    other = self.prepared[i](other)
                value = (value + other).clip(stage.lo, stage.hi)
        return value
