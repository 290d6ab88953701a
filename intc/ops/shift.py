"""The default family: base-2 shift exponentials, with every published weak point corrected.

Shiftmax and ShiftGELU after I-ViT (Li & Gu 2022), made accurate: log2(e) folds into the dyadic factor of the
scores, the exponential has a second-order term, the sigmoid pivots on each element, sums are normalised
before the division.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import broadcast
from intc.ir.op import Array, FormulaOp, Sizes
from intc.ir.types import DType, TensorType
from intc.ops import scalar

ROW_MAX: Final = 65535  # longest softmax row: 65535 terms of at most 2**15 stay below 2**31
EXPONENT_MAX: Final = 2**20 - 1  # Q15 octaves: beyond 31 octaves the exponential is 0


def check_rows(x: TensorType, mask: Sequence[TensorType]) -> None:
    """Refuse scores ``x``, and at most one mask, that are no rows that a softmax can take."""
    length = x.shape[-1]
    if isinstance(length, int) and length > ROW_MAX:
        raise QuantizationError(f"a softmax row of {length} elements exceeds {ROW_MAX}")
    if x.interval[1] - x.interval[0] >= 2**31:
        raise QuantizationError(f"the distance to the row maximum of {x} can exceed 31 bits")
    if mask and broadcast(x.shape, mask[0].shape) != x.shape:
        raise GraphError(f"mask {mask[0]} does not broadcast to {x}")


@dataclass(frozen=True)
class Shiftmax(FormulaOp):
    """Softmax over the last axis of int32 scores; ``m, e`` turn score units into Q15 octaves (log2(e)
    included).

    Inputs: x [.., L], L <= 65535; optionally a bool mask broadcastable to it, True = keep. A row without a
    kept element is all zero. ``bits = 8``: uint8, scale 2**-8, saturating at 255; ``bits = 16``: int16, scale
    2**-15.
    """

    m: int
    e: int
    bits: int
    name: ClassVar[str] = "shiftmax"
    arity: ClassVar[tuple[int, ...]] = (1, 2)
    error_bound: ClassVar[float] = 0.004  # absolute, on a probability

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if self.bits not in (8, 16) or not 1 <= self.e <= 62 or not 0 <= self.m < 2**31:
            raise GraphError(f"shiftmax cannot use m={self.m}, e={self.e}, bits={self.bits}")
        check_rows(x, types[1:])
        return TensorType(x.shape, "uint8") if self.bits == 8 else TensorType(x.shape, "int16", 0, 32767)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        p = self.formula(scalar.EXACT, arrays[0].astype(np.int64), *arrays[1:])
        return np.asarray(p, np.uint8 if self.bits == 8 else np.int16)

    def formula(self, ns: Any, *operands: Any) -> Any:
        distance = ns.distance(*operands)
        weights = scalar.exp2_neg(ns, scalar.requantize(ns, distance, self.m, self.e, 0, EXPONENT_MAX))
        return normalise(ns, ns.where(operands[1], weights, 0) if len(operands) == 2 else weights, self.bits)


def normalise(ns: scalar.RowAlgebra, weights: Any, bits: int) -> Any:
    """Rows of Q15 weights (0 .. 2**15) divided by their sums, by one normalised 16-bit reciprocal a row."""
    total = ns.row_sum(weights)
    nb = ns.maximum(ns.bit_length(total), 16)
    factor = ns.floor_div((1 << (15 + nb)) - 1, ns.maximum(total, 1))
    factor = ns.assume(ns.where(total > 0, factor, 0), 0, 2**31)  # total >= 2**(nb - 1) where nb > 16
    if bits == 8:
        return ns.minimum((weights * factor + (1 << (6 + nb))) >> (7 + nb), 255)
    return ns.minimum((weights * factor + (1 << (nb - 1))) >> nb, 32767)


@dataclass(frozen=True)
class ShiftLayerNorm(FormulaOp):
    """LayerNorm over the last axis with an exact mean and an exact integer square root.

    Inputs: x int16 [.., C]; g int32 [C]; b int64 [C] (beta and the rounding half, at 2**-e of an output
    step). ``S = sum x``; ``Q = C*sum x^2 - S^2 + eps_q``; ``z = (C*x - S) / isqrt(Q)`` in Q20;
    ``y = clip((z*g + b) >> e)``. Not ``centred``, S is 0: RMSNorm.
    """

    eps_q: int
    e: int
    lo: int
    hi: int
    dtype: DType
    centred: bool = True
    name: ClassVar[str] = "shift_layer_norm"
    arity: ClassVar[tuple[int, ...]] = (3,)
    error_bound: ClassVar[float] = 0.52  # output steps, unsaturated; C * deviation >= 2**12

    def infer(self, *types: TensorType) -> TensorType:
        x, g, b = types
        channels = x.shape[-1]
        if not isinstance(channels, int) or g.shape != (channels,) or b.shape != (channels,):
            raise GraphError(f"shift_layer_norm needs g and b of {x.shape[-1]} channels, not {g} and {b}")
        if x.magnitude > 32767 or channels * 2 * x.magnitude >= 2**31:
            raise QuantizationError(f"a row of {channels} values of {x} overflows the 32-bit deviations")
        if not 32 <= self.e <= 62 or self.eps_q < 1 or self.eps_q >= 2**61:
            raise QuantizationError(f"shift_layer_norm cannot use e={self.e}, eps_q={self.eps_q}")
        if b.magnitude + 2**20 * (math.isqrt(channels) + 3) * g.magnitude >= 2**63:
            raise QuantizationError("gamma and beta overflow the 64-bit affine step")
        return TensorType(x.shape, self.dtype, self.lo, self.hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(scalar.EXACT, *(a.astype(np.int64) for a in arrays)), self.dtype)

    def formula(self, ns: Any, *operands: Any) -> Any:
        x, g, b = operands
        channels = ns.size(g)
        total = ns.row_sum(x) * int(self.centred)
        # C * sum x^2 >= (sum x)^2 (Cauchy-Schwarz), and at most what infer admits
        spread = ns.assume(channels * ns.row_sum(x * x) - total * total + self.eps_q, 1, 2**62 - 1)
        deviation = ns.isqrt(spread)
        nb = ns.bit_length(deviation)
        factor = ns.assume(ns.floor_div((1 << (30 + nb)) - 1, deviation), 0, 2**31)
        z = ((channels * x - total) * factor + (1 << (9 + nb))) >> (10 + nb)
        limit = 2**20 * (math.isqrt(channels) + 3)  # Samuelson: |x - mean| <= sqrt(C) deviations
        y = (ns.assume(z, -limit, limit) * g + b) >> self.e
        return ns.minimum(ns.maximum(y, self.lo), self.hi)


@dataclass(frozen=True)
class _FixedPoint(FormulaOp):
    """A scalar formula of :mod:`intc.ops.scalar` applied to int16 x in Q``frac``."""

    frac: int

    def check(self, x: TensorType, low: int, high: int) -> None:
        if x.magnitude > 32767:
            raise QuantizationError(f"{self.name} takes values in [-32767, 32767], not {x}")
        if not low <= self.frac <= high:
            raise GraphError(f"{self.name} takes {low} to {high} fraction bits, not {self.frac}")


@dataclass(frozen=True)
class ShiftGelu(_FixedPoint):
    """GELU of x in Q``frac`` (4..14), as int32 in Q(frac + 15)."""

    name: ClassVar[str] = "shift_gelu"
    error_bound: ClassVar[float] = 0.0007  # absolute, for frac >= 11; one input step below that

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        self.check(x, 4, 14)
        return TensorType(x.shape, "int32", -(x.magnitude << 15), x.magnitude << 15)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(scalar.EXACT, arrays[0].astype(np.int64)), np.int32)

    def formula(self, ns: Any, *operands: Any) -> Any:
        return scalar.gelu(ns, operands[0], self.frac)


@dataclass(frozen=True)
class ShiftTanh(_FixedPoint):
    """tanh of x in Q``frac`` (5..15), as int32 in Q15, in [-32768, 32768]."""

    name: ClassVar[str] = "shift_tanh"
    error_bound: ClassVar[float] = 0.0015  # absolute

    def infer(self, *types: TensorType) -> TensorType:
        self.check(types[0], 5, 15)
        return TensorType(types[0].shape, "int32", -32768, 32768)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(scalar.EXACT, arrays[0].astype(np.int64)), np.int32)

    def formula(self, ns: Any, *operands: Any) -> Any:
        return scalar.tanh(ns, operands[0], self.frac)


@dataclass(frozen=True)
class ShiftSigmoid(_FixedPoint):
    """The logistic function of x in Q``frac`` (4..15), as int32 in Q15, in [0, 32768]."""

    name: ClassVar[str] = "shift_sigmoid"
    error_bound: ClassVar[float] = 0.0008  # absolute

    def infer(self, *types: TensorType) -> TensorType:
        self.check(types[0], 4, 15)
        return TensorType(types[0].shape, "int32", 0, 32768)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(scalar.EXACT, arrays[0].astype(np.int64)), np.int32)

    def formula(self, ns: Any, *operands: Any) -> Any:
        return scalar.sigmoid(ns, operands[0], self.frac)


OPS = (Shiftmax, ShiftLayerNorm, ShiftGelu, ShiftTanh, ShiftSigmoid)
