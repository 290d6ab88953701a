"""ShiftWeights of one row in registers: scores in, 8-bit weights out as packed A; and NormaliseRows."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import tvm.tirx as tir
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import Isa
from intc.codegen.cpu.vector import (
    TIR,
    Multiplier,
    Vec,
    const,
    first_lanes,
    load,
    ramp,
    reduce_lanes,
    spread,
    stack,
)
from intc.codegen.kernel import bit_length, int64
from intc.ops import scalar

LOWEST: Final = -(2**31)


def score_parameters(m: int, shift: int) -> NDArray[np.int32]:
    """``(m, |shift|, bound)`` that :class:`RowWeights` reads; ``bound`` limits a distance that goes left."""
    return np.array([m, abs(shift), 32767 >> max(-shift, 0)], np.int32)


def row_factor(total: Any) -> tuple[Any, Any, Any]:
    """int64 ``(F, left, right)`` of NormaliseRows for an int64 row sum."""
    safe = T.bind(T.max(total, int64(1)))
    nb = T.bind(bit_length(safe))
    factor = T.bind(T.truncdiv(T.shift_left(int64(1), nb + 30) - int64(1), safe))
    return factor, T.bind(T.max(int64(23) - nb, int64(0))), T.bind(T.max(nb - int64(23), int64(0)))


def normalised_row(x: Vec, factor: Any, left: Any, right: Any, isa: Isa) -> Vec:
    """NormaliseRows of ``lanes`` elements of one row as int16, with the int32 scalars of its row."""
    every = (Vec(spread(v, x.lanes), x.lanes) for v in (factor, left, right))
    multiplier, up, down = every
    moved = (x << up) >> down
    high = Multiplier(multiplier, isa.even_odd).high(moved)
    return ((high + 4096) >> 13).saturated(-32767, 32767, "int16")


class RowWeights:
    """Weights of rows of ``length`` int32 scores; whole vectors are read and written, zeros beyond the row.

    ``left``: whether distances are shifted left, where one unit of score is many octaves.
    """

    def __init__(self, isa: Isa, parameters: Any, length: Any, left: bool) -> None:
        self.isa, self.lanes, self.left = isa, isa.epilogue, left
        m, shift, bound = (T.Bind(parameters[i]) for i in range(3))
        self.m = Vec(spread(T.cast(m, "int16"), self.lanes), self.lanes, "int16")
        self.shift, self.bound = self._all(shift), self._all(bound)
        self.full = T.Bind(tir.floordiv(length, self.lanes))
        self.tail = T.Bind(tir.floormod(length, self.lanes))

    def _all(self, value: Any) -> Vec:
        return Vec(spread(value, self.lanes), self.lanes)

    def _vectors(self, body: Any) -> None:
        """``body(base, inside)`` over the row; ``inside`` is None for whole vectors, else which lanes
        exist.
        """
        with T.serial(0, self.full) as i:
            body(T.Bind(i * self.lanes), None)
        if self.lanes == 1:
            return
        with T.If(self.tail > 0), T.Then():
            base = T.Bind(self.full * self.lanes)
            body(base, first_lanes(self.tail, self.lanes))

    def _keep(self, mask: Any, base: Any, inside: Any) -> Any:
        """Lanes that take part; ``mask`` is a row of int8 in scratch, zero beyond ``length``, or None."""
        if mask is None:
            return inside
        buf, at = mask
        return tir.NE(buf[ramp(at + base, self.lanes)], const(0, self.lanes, "int8"))

    def emit(self, scores: Any, at: Any, p: Any, p_at: Any, mask: Any) -> Any:
        """One row: scores at ``scores[at]``, weights to ``p[p_at]`` as packed A; returns their int32 sum."""
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
        top = self._all(reduce_lanes(best[whole], lanes, tir.Max))

        def weigh(base: Any, inside: Any) -> None:
            x = load(scores, at + base, lanes, "int32")
            keep = self._keep(mask, base, inside)
            if keep is not None:
                x = TIR.where(keep, x, top)  # what is not kept may lie above the maximum, or too far below it
            distance = top - x
            if self.left:
                distance = TIR.minimum(distance, self.bound) << self.shift
            else:
                distance = distance >> self.shift
            narrow = distance.saturated(-32768, 32767, "int16")
            weight = (scalar.exp2_weight(self.isa.algebra, narrow, self.m) + 64) >> 7
            if keep is not None:
                weight = TIR.where(keep, weight, 0)
            T.buffer_store(p, weight.cast(self.isa.a_dtype).expr, [ramp(p_at + base, lanes)])
            self._add(total, weight)

        self._vectors(weigh)
        return reduce_lanes(total[whole], lanes)

    def _add(self, total: Any, weight: Vec) -> None:
        """Add int16 ``weight`` to the lanes of ``total``: pairs at once where a dot instruction does that."""
        isa, lanes = self.isa.wide(), self.lanes
        if isa.dot != "generic" and isa.lanes * 2 == lanes:
            here = ramp(0, isa.lanes)
            ones = const(1, lanes, "int16")
            T.buffer_store(total, isa.emit_dot_vector(total[here], weight.expr, ones), [here])
        else:
            T.buffer_store(total, total[ramp(0, lanes)] + weight.cast("int32").expr, [ramp(0, lanes)])
