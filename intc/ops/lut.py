"""Softmax of 8-bit scores by a table of exponentials."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import exp
from typing import Any, ClassVar

import numpy as np

from intc.errors import GraphError
from intc.ir.op import Array, FormulaOp, Sizes
from intc.ir.types import TensorType
from intc.ops.rows import check_scores, exact_scale
from intc.ops.scalar import EXACT
from intc.ops.shift import normalise


@dataclass(frozen=True)
class LutSoftmax(FormulaOp):
    """Softmax over the last axis: weights ``table[max - x]`` in Q15, then Shiftmax's normalisation.

    Inputs: x int8 or uint8 [.., L]; table int32 [256] in [0, 32768], ``rhe(exp(-i * s) * 2**15)``; optionally
    a bool mask broadcastable to x, True = keep (a row without a kept element is all zero). Output as
    Shiftmax: ``bits = 8`` uint8 of scale 2**-8 saturating at 255, ``bits = 16`` int16 of scale 2**-15.
    ``error_bound``: absolute, on a probability of 8 bits, against the softmax of the quantised scores, L <=
    512.
    """

    bits: int
    name: ClassVar[str] = "lut_softmax"
    arity: ClassVar[tuple[int, ...]] = (2, 3)
    error_bound: ClassVar[float] = 0.004

    @staticmethod
    def table(scale: float | Fraction) -> Array:
        """The 256 weights for scores of ``scale``; entry 0 is 32768."""
        s = float(exact_scale(scale))
        return np.asarray([round(exp(-i * s) * 2**15) for i in range(256)], np.int32)

    @property
    def output_scale(self) -> float:
        return 2.0**-8 if self.bits == 8 else 2.0**-15

    def infer(self, *types: TensorType) -> TensorType:
        x = check_scores(self.name, types, mask_at=2)
        table = types[1]
        if self.bits not in (8, 16):
            raise GraphError(f"{self.name} gives 8 or 16 bits, not {self.bits}")
        if x.dtype not in ("int8", "uint8") or table.dtype != "int32" or table.shape != (256,):
            raise GraphError(f"{self.name} takes int8 or uint8 and 256 entries of int32, not {x} and {table}")
        if table.interval[0] < 0 or table.interval[1] > 2**15:
            raise GraphError(f"{self.name} takes weights in [0, 32768], not {table}")
        return TensorType(x.shape, "uint8") if self.bits == 8 else TensorType(x.shape, "int16", 0, 32767)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        p = self.formula(EXACT, *(a.astype(np.int64) for a in arrays[:2]), *arrays[2:])
        return np.asarray(p, np.uint8 if self.bits == 8 else np.int16)

    def formula(self, ns: Any, *operands: Any) -> Any:
        x, table, *mask = operands
        weights = ns.take(table, ns.distance(x, *mask))
        return normalise(ns, ns.where(mask[0], weights, 0) if mask else weights, self.bits)


OPS = (LutSoftmax,)
