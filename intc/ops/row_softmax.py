"""Softmax in two halves around the product with the values: weights before it, their division behind it.

Weights relative to the row's largest use all of their 8 bits whatever the length of the row; probabilities
would not (1/197 is 1.3 steps of 2**-8). And a row has fewer outputs than weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import Dim
from intc.ir.op import Array, FormulaOp, Sizes
from intc.ir.types import TensorType
from intc.ops import scalar
from intc.ops.shift import check_rows

CONTEXT_FRAC: Final = 8  # fraction bits of a normalised row, in steps of the values
SHIFT_MAX: Final = 31
SHIFT_LEFT_MAX: Final = 14  # a distance of 1 is 16 octaves then, and its weight 0


def octave_factor(ratio: Fraction) -> tuple[int, int]:
    """``(m, shift)`` for scores of which one unit is ``ratio`` octaves, ``m * 2**(-25 - shift) ~ ratio``."""
    shift = 0
    scaled = ratio * 2**25
    while scaled >= 2**15 and shift > -SHIFT_LEFT_MAX:
        scaled, shift = scaled / 2, shift - 1
    while scaled < 2**14 and shift < SHIFT_MAX:
        scaled, shift = scaled * 2, shift + 1
    return min(round(scaled), 2**15 - 1), shift


@dataclass(frozen=True)
class ShiftWeights(FormulaOp):
    """Softmax numerators over the last axis of int32 scores: uint8, 255 at the row's maximum.

    ``t = m * (max - x) >> shift`` in Q10 octaves, ``w = round(255 * 2**-t)`` by a shift exponential
    (``bounded_distance`` and ``exp2_weight`` of :mod:`intc.ops.scalar`). Inputs: x [.., L], L <= 65535;
    optionally a bool mask broadcastable to it, True = keep; what is not kept weighs 0. Where ``uniform``, a
    row that keeps nothing weighs 255 everywhere.
    """

    m: int
    shift: int
    uniform: bool = False
    name: ClassVar[str] = "shift_weights"
    arity: ClassVar[tuple[int, ...]] = (1, 2)
    error_bound: ClassVar[float] = 0.005  # of a weight, relative to the largest

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if not 0 <= self.m < 2**15 or not -SHIFT_LEFT_MAX <= self.shift <= SHIFT_MAX:
            raise GraphError(f"shift_weights cannot use m={self.m}, shift={self.shift}")
        check_rows(x, types[1:])
        return TensorType(x.shape, "uint8")

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(scalar.EXACT, arrays[0].astype(np.int64), *arrays[1:]), np.uint8)

    def formula(self, ns: Any, *operands: Any) -> Any:
        distance = scalar.bounded_distance(ns, ns.distance(*operands), self.shift)
        weights = (scalar.exp2_weight(ns, distance, self.m) + 64) >> 7
        if len(operands) == 1:
            return weights
        weights = ns.where(operands[1], weights, 0)
        return ns.where(ns.row_sum(weights) > 0, weights, 255) if self.uniform else weights


@dataclass(frozen=True)
class NormaliseRows(FormulaOp):
    """``context / (sum of weights)`` in Q8, as int16: what softmax times values is, in steps of the values.

    Inputs: context int32 [.., S, D] = weights @ values, values of 8 bits, so that ``|context|`` is at most
    255 times the sum of the weights (or 255); weights uint8 [.., S, L]. With D the sum of a row and
    nb its bit length: ``F = (2**(30 + nb) - 1) // D``, ``z = ((c * F >> 32) + 2**12) >> 13`` where c is
    ``context << (23 - nb)`` (a negative shift goes right). A row without weights gives 0.
    """

    name: ClassVar[str] = "normalise_rows"
    arity: ClassVar[tuple[int, ...]] = (2,)
    error_bound: ClassVar[float] = 0.51  # output steps, for row sums below 2**23

    def infer(self, *types: TensorType) -> TensorType:
        context, weights = types
        if context.dtype != "int32" or weights.dtype != "uint8" or context.shape[:-1] != weights.shape[:-1]:
            raise GraphError(f"normalise_rows cannot divide {context} by the sums of {weights}")
        return TensorType(context.shape, "int16", -32767, 32767)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(scalar.EXACT, *(a.astype(np.int64) for a in arrays)), np.int16)

    def row(self, *types: TensorType) -> Dim:
        return types[1].shape[-1]

    def formula(self, ns: Any, *operands: Any) -> Any:
        context, weights = operands
        total = ns.maximum(ns.row_sum(weights), 1)
        nb = ns.bit_length(total)
        factor = ns.assume(ns.floor_div((1 << (30 + nb)) - 1, total), 0, 2**31)  # total >= 2**(nb - 1)
        moved = (context << ns.maximum(23 - nb, 0)) >> ns.maximum(nb - 23, 0)
        moved = ns.assume(moved, -(2**31), 2**31)  # 255 * total < 2**(nb + 8)
        z = (((moved * factor) >> 32) + 4096) >> 13
        return ns.minimum(ns.maximum(z, -32767), 32767)


OPS = (ShiftWeights, NormaliseRows)
