"""Shiftmax of one row in registers: scores in, weights in place, 8-bit probabilities out as packed rows of
A.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import tvm.tirx as tir
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.epilogue import FAST_EXPONENT, plan_requantize
from intc.codegen.cpu.isa import Isa
from intc.codegen.cpu.vector import TIR, Multiplier, Vec, const, load, ramp, stack, store, typed
from intc.ops import scalar

OCTAVES: Final = 2**20 - 1  # exponents are capped here: 2**-32 is 0 in Q15
LOWEST: Final = -(2**31)


def score_parameters(m: int, e: int) -> NDArray[np.int32]:
    """``(m, e, pre, bound)`` that :class:`RowSoftmax` reads for scores times ``m / 2**e`` in Q15 octaves.

    The distance is limited to ``bound`` and shifted left by ``pre``, so that the exponent reaches 33;
    whatever the limit changes lies beyond the cap.
    """
    if m >> e > OCTAVES:
        m, e = 2**30, 9  # one score unit reaches the cap either way
    form, ms, es = plan_requantize(np.array(m), np.array(e), 0, OCTAVES, 0, 2**31 - 1)
    assert not form.exact64
    bound = (1 << (31 - form.pre)) - 1
    return np.array([ms[0], es[0], form.pre, bound], np.int32)


class RowSoftmax:
    """Row softmax over ``length`` int32 scores; whole vectors are read and written, the rest of the last one
    as zeros.
    """

    def __init__(self, isa: Isa, parameters: Any, length: Any) -> None:
        self.isa, self.lanes, self.length = isa, isa.epilogue, length
        self.m, self.e, self.pre, self.bound = (T.Bind(parameters[i]) for i in range(4))
        self.full = T.Bind(tir.floordiv(length, self.lanes))
        self.tail = T.Bind(tir.floormod(length, self.lanes))
        self.multiplier = Multiplier(self._all(self.m), isa.even_odd)
        self.half = self._all(T.shift_left(tir.IntImm("int32", 1), self.e - FAST_EXPONENT))

    def _all(self, value: Any) -> Vec:
        return Vec(tir.Broadcast(value, self.lanes), self.lanes)

    def _vectors(self, body: Any) -> None:
        """``body(base, inside)`` over the row; ``inside`` is None for whole vectors, else which lanes
        exist.
        """
        with T.serial(0, self.full) as i:
            body(T.Bind(i * self.lanes), None)
        with T.If(self.tail > 0), T.Then():
            base = T.Bind(self.full * self.lanes)
            body(base, tir.LT(ramp(tir.IntImm("int32", 0), self.lanes), tir.Broadcast(self.tail, self.lanes)))

    def _keep(self, mask: Any, base: Any, inside: Any) -> Any:
        """Lanes that take part; ``mask`` is a row of int8 in scratch, zero beyond ``length``, or None."""
        if mask is None:
            return inside
        buf, at = mask
        return tir.NE(buf[ramp(at + base, self.lanes)], const(0, self.lanes, "int8"))

    def emit(self, scores: Any, at: Any, p: Any, p_at: Any, mask: Any) -> None:
        """One row: scores at ``scores[at]`` become weights, probabilities go to ``p[p_at]`` as elements of
        packed A.
        """
        lanes, whole = self.lanes, ramp(0, self.lanes)
        best, total = stack(lanes, "int32"), stack(lanes, "int32")
        T.buffer_store(best, const(LOWEST, lanes), [whole])
        T.buffer_store(total, const(0, lanes), [whole])

        def find_max(base: Any, inside: Any) -> None:
            x = load(scores, at + base, lanes, "int32")
            keep = self._keep(mask, base, inside)
            if keep is not None:
                x = TIR.where(keep, x, LOWEST)
            T.buffer_store(best, tir.Max(best[whole], x.expr), [whole])

        self._vectors(find_max)
        top = self._all(self._reduce(best, tir.Max))
        bound, pre, shift = self._all(self.bound), self._all(self.pre), self._all(self.e - 32)

        def weigh(base: Any, inside: Any) -> None:
            x = load(scores, at + base, lanes, "int32")
            distance = TIR.minimum(TIR.maximum(top - x, 0), bound) << pre
            t = TIR.minimum((self.multiplier.high(distance) + self.half) >> shift, OCTAVES)
            weight = scalar.exp2_neg(TIR, t)
            keep = self._keep(mask, base, inside)
            if keep is not None:
                weight = TIR.where(keep, weight, 0)
            store(scores, at + base, weight, "int32")
            T.buffer_store(total, total[whole] + weight.expr, [whole])

        self._vectors(weigh)
        factor, half, down = self._reciprocal(self._reduce(total, lambda a, b: a + b))

        def normalise(base: Any, inside: Any) -> None:
            weight = scores[ramp(at + base, lanes)]
            kind = typed("uint32", lanes)
            product = T.cast(weight, kind) * tir.Broadcast(factor, lanes) + tir.Broadcast(half, lanes)
            value = tir.Min(T.shift_right(product, tir.Broadcast(down, lanes)), const(255, lanes, "uint32"))
            narrow = T.cast(T.cast(value, typed("int32", lanes)), typed(self.isa.a_dtype, lanes))
            T.buffer_store(p, narrow, [ramp(p_at + base, lanes)])

        self._vectors(normalise)

    def _reduce(self, buf: Any, combine: Any) -> Any:
        """All lanes of ``buf`` combined pairwise, as a scalar."""
        values = [T.Bind(buf[i]) for i in range(self.lanes)]
        while len(values) > 1:
            values = [T.Bind(combine(a, b)) for a, b in zip(values[::2], values[1::2], strict=True)]
        return values[0]

    def _reciprocal(self, total: Any) -> tuple[Any, Any, Any]:
        """uint32 ``(F, half, shift)`` with ``P = (E*F + half) >> shift``; from a sum of 2**24 on, every P is
        0.
        """
        positive = T.Bind(tir.Max(total, tir.IntImm("int32", 1)))
        bits = T.Bind(tir.Max(32 - T.clz(positive), tir.IntImm("int32", 16)))
        one = tir.IntImm("int64", 1)
        factor = T.Bind(
            T.truncdiv(T.shift_left(one, T.cast(bits + 15, "int64")) - one, T.cast(positive, "int64"))
        )
        none = tir.Or(bits > 24, total == 0)
        small = T.Bind(tir.Select(none, tir.IntImm("uint32", 0), T.cast(factor, "uint32")))
        shift = T.Bind(T.cast(tir.Min(bits + 7, tir.IntImm("int32", 31)), "uint32"))
        half = T.Bind(T.shift_left(tir.IntImm("uint32", 1), shift - tir.IntImm("uint32", 1)))
        return small, half, shift
