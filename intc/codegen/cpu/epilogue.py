"""What happens to an int32 accumulator before it is stored: requantisation, scalar functions, residual
additions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import tvm.tirx as tir
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import Isa
from intc.codegen.cpu.probabilities import normalised_row
from intc.codegen.cpu.vector import Multiplier, Vec, const, load, load_broadcast, ramp, spread, typed
from intc.errors import CodegenError
from intc.ops.fused import activation

Ints: TypeAlias = NDArray[Any]
FAST_EXPONENT: Final = 33  # from here the rounding half lies in the high 32 bits of the product


@dataclass(frozen=True)
class Requantize:
    """``clip((x*m + 2**(e-1)) >> e, lo, hi)`` with m, e per channel or one of each; made by
    :func:`plan_requantize`.

    The multiplier arrays hold ``e + pre``: x is shifted left by ``pre`` first. ``clamp`` limits x to what
    that shift can take, which the clip makes exact. ``exact64`` is the general path for everything else, and
    ``narrow`` the one for int16 values whose e is 15: m is int16 and the product takes 16-bit lanes.
    """

    lo: int
    hi: int
    per_channel: bool = True
    pre: int = 0
    clamp: bool = False
    exact64: bool = False
    narrow: bool = False


@dataclass(frozen=True)
class Pointwise:
    """The GELU of a ``linear`` on int16 values in Q``frac``: "shift" gives int32, the others int16.

    ``centred`` subtracts an int16 constant per channel.
    """

    gelu: str
    frac: int
    centred: bool = False

    @property
    def lanes(self) -> str:
        """The element type that it takes and gives."""
        return "int32" if self.gelu == "shift" else "int16"


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
class Normalise:
    """NormaliseRows: int32 context to int16 by factors of its row."""


Stage: TypeAlias = Requantize | Pointwise | Residual | Normalise


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
    if x_lo >= -32768 and x_hi <= 32767 and np.all(e >= 15) and np.all(m % (1 << (e - 15)) == 0):
        small = m >> (e - 15)
        if np.all(np.abs(small) < 2**15):
            form = Requantize(max(lo, -32768), min(hi, 32767), per_channel=m.size > 1, narrow=True)
            return form, small.astype(np.int16), e
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

    def __init__(self, stage: Requantize, m: Vec, e: Vec, isa: Isa) -> None:
        self.stage, self.m, self.e, self.isa = stage, m, e, isa
        if not stage.exact64 and not stage.narrow:
            self.multiplier = Multiplier(m, isa.even_odd)
            self.shift = e - 32
            # 2**(e - 33) as a shift to the right: by varying counts to the left, SSE4 goes through floats
            self.half = Vec(const(1 << 29, m.lanes), m.lanes) >> (62 - e)

    def __call__(self, x: Vec, dtype: str = "int32") -> Vec:
        """The requantised ``x`` as ``dtype``, which holds [lo, hi]."""
        stage = self.stage
        if stage.narrow:
            return self.isa.algebra.mulhrs(x.cast("int16"), self.m).saturated(stage.lo, stage.hi, dtype)
        x = x.cast("int32")
        if stage.exact64:
            return self._exact64(x).cast(dtype)
        if stage.clamp:
            bound = (1 << (31 - stage.pre)) - 1
            x = x.clip(-bound, bound)
        if stage.pre:
            x = x << stage.pre
        return ((self.multiplier.high(x) + self.half) >> self.shift).saturated(stage.lo, stage.hi, dtype)

    def _exact64(self, x: Vec) -> Vec:
        wide = typed("int64", x.lanes)
        e = T.Bind(T.cast(self.e.expr, wide))
        one = const(1, x.lanes, "int64")
        product = T.Bind(T.cast(x.expr, wide) * T.cast(self.m.expr, wide))
        y = T.Bind(T.shift_right(product + T.shift_left(one, e - one), e))
        lo, hi = (const(v, x.lanes, "int64") for v in (self.stage.lo, self.stage.hi))
        return Vec(T.cast(tir.Min(tir.Max(y, lo), hi), typed("int32", x.lanes)), x.lanes)


def prepare(stage: Requantize, m: Any, e: Any, column: Any, lanes: int, isa: Isa) -> Prepared:
    """Load the multipliers of columns ``column ...`` from the buffers ``m`` and (not if ``narrow``) ``e``."""
    if stage.narrow:
        factor = m[ramp(column, lanes)] if stage.per_channel else spread(m[0], lanes)
        pair = Vec(factor, lanes, "int16"), Vec(const(15, lanes), lanes)
    elif stage.per_channel:
        pair = load(m, column, lanes, "int32"), load(e, column, lanes, "int32")
    else:
        pair = load_broadcast(m, 0, lanes), load_broadcast(e, 0, lanes)
    return Prepared(stage, *pair, isa)


def stage_arguments(stages: tuple[Stage, ...]) -> list[tuple[str, str]]:
    """``(name, dtype)`` of the pointers that the stages read, in order."""
    names: list[tuple[str, str]] = []
    for i, stage in enumerate(stages):
        scaled = stage
        if isinstance(stage, Residual):
            names.append((f"residual{i}", stage.dtype))
            scaled = stage.requantize or stage
        if isinstance(stage, Pointwise) and stage.centred:
            names.append((f"c{i}", "int16"))
        if isinstance(scaled, Requantize):
            names += [(f"m{i}", "int16")] if scaled.narrow else [(f"m{i}", "int32"), (f"e{i}", "int32")]
    return names


class Epilogue:
    """The stages over ``lanes`` columns from ``column`` up to elements of ``dtype``; what does not depend on
    the row is loaded once.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...],
        buffers: dict[str, Any],
        column: Any,
        lanes: int,
        isa: Isa,
        dtype: str,
    ) -> None:
        self.stages, self.buffers, self.lanes, self.isa = stages, buffers, lanes, isa
        self.kinds = [s.lanes if isinstance(s, Pointwise) else "int32" for s in stages[1:]] + [dtype]
        self.prepared: dict[int, Prepared] = {}
        self.centres: dict[int, Vec] = {}
        for i, stage in enumerate(stages):
            scaled = stage.requantize if isinstance(stage, Residual) else stage
            if isinstance(stage, Pointwise) and stage.centred:
                self.centres[i] = Vec(buffers[f"c{i}"][ramp(column, lanes)], lanes, "int16")
            if isinstance(scaled, Requantize):
                m, e = buffers[f"m{i}"], buffers.get(f"e{i}")
                self.prepared[i] = prepare(scaled, m, e, column, lanes, isa)

    def __call__(self, acc: Vec, residual_at: Any, factors: tuple[Any, Any, Any] | None = None) -> Vec:
        """The stages on one row; ``residual_at(buffer, dtype)`` loads the residual's lanes as int32,
        ``factors`` are those of the row for :func:`intc.codegen.cpu.probabilities.normalised_row`.
        """
        value = acc
        for i, (stage, kind) in enumerate(zip(self.stages, self.kinds, strict=False)):
            if isinstance(stage, Requantize):
                value = self.prepared[i](value, kind)
            elif isinstance(stage, Pointwise):
                value = activation(stage.gelu, stage.frac)(self.isa.algebra, value)
                value = value - self.centres[i] if stage.centred else value
            elif isinstance(stage, Normalise):
                assert factors is not None
                value = normalised_row(value, *factors, self.isa)
            else:
                other = residual_at(self.buffers[f"residual{i}"], stage.dtype)
                if i in self.prepared:
                    other = self.prepared[i](other)
                value = (value + other).saturated(stage.lo, stage.hi, kind)
        return value
