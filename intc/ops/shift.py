"""The default family: base-2 shift exponentials, with every published weak point corrected.

Shiftmax and ShiftGELU after I-ViT (Li & Gu 2022), made accurate: log2(e) folds into the dyadic factor of the
scores, the exponential has a second-order term, the sigmoid pivots on each element, sums are normalised
before the division.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import broadcast
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import DType, TensorType
from intc.ops import scalar
from intc.ops.integer_math import bit_length, isqrt

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
class Shiftmax(Op):
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
        x = arrays[0].astype(np.int64)
        if len(arrays) == 1:
            distance = x.max(axis=-1, keepdims=True, initial=-(2**31)) - x
            weights = scalar.exp2_neg(scalar.EXACT, self._octaves(distance))
        else:
            keep = np.broadcast_to(arrays[1], x.shape)
            top = np.where(keep, x, -(2**31)).max(axis=-1, keepdims=True, initial=-(2**31))
            distance = np.where(keep, top - x, 0)
            weights = np.where(keep, scalar.exp2_neg(scalar.EXACT, self._octaves(distance)), 0)
        return normalise(weights, self.bits)

    def _octaves(self, distance: Array) -> Array:
        t = scalar.requantize(scalar.EXACT, distance, np.int64(self.m), np.int64(self.e), 0, EXPONENT_MAX)
        return np.asarray(t)


def normalise(weights: Array, bits: int) -> Array:
    """Rows of Q15 weights (0 .. 2**15) divided by their sums, by one normalised 16-bit reciprocal a row."""
    total = weights.sum(axis=-1, keepdims=True)
    nb = np.maximum(bit_length(total), 16)
    factor = ((np.int64(1) << (15 + nb)) - 1) // np.maximum(total, 1)
    factor = np.where(total > 0, factor, 0)
    if bits == 8:
        p = np.minimum((weights * factor + (np.int64(1) << (6 + nb))) >> (7 + nb), 255)
        return np.asarray(p, np.uint8)
    return np.asarray(np.minimum((weights * factor + (np.int64(1) << (nb - 1))) >> nb, 32767), np.int16)


@dataclass(frozen=True)
class ShiftLayerNorm(Op):
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
        x, g, b = (a.astype(np.int64) for a in arrays)
        channels = x.shape[-1]
        total = x.sum(axis=-1, keepdims=True) * self.centred
        spread = channels * (x * x).sum(axis=-1, keepdims=True) - total * total + self.eps_q
        deviation = isqrt(spread)
        nb = bit_length(deviation)
        factor = ((np.int64(1) << (30 + nb)) - 1) // deviation
        z = ((channels * x - total) * factor + (np.int64(1) << (9 + nb))) >> (10 + nb)
        return np.asarray(np.clip((z * g + b) >> self.e, self.lo, self.hi), self.dtype)


@dataclass(frozen=True)
class _FixedPoint(Op):
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
        return np.asarray(scalar.gelu(scalar.EXACT, arrays[0].astype(np.int64), self.frac), np.int32)


@dataclass(frozen=True)
class ShiftTanh(_FixedPoint):
    """tanh of x in Q``frac`` (5..15), as int32 in Q15, in [-32768, 32768]."""

    name: ClassVar[str] = "shift_tanh"
    error_bound: ClassVar[float] = 0.0015  # absolute

    def infer(self, *types: TensorType) -> TensorType:
        self.check(types[0], 5, 15)
        return TensorType(types[0].shape, "int32", -32768, 32768)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(scalar.tanh(scalar.EXACT, arrays[0].astype(np.int64), self.frac), np.int32)


@dataclass(frozen=True)
class ShiftSigmoid(_FixedPoint):
    """The logistic function of x in Q``frac`` (4..15), as int32 in Q15, in [0, 32768]."""

    name: ClassVar[str] = "shift_sigmoid"
    error_bound: ClassVar[float] = 0.0008  # absolute

    def infer(self, *types: TensorType) -> TensorType:
        self.check(types[0], 4, 15)
        return TensorType(types[0].shape, "int32", 0, 32768)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(scalar.sigmoid(scalar.EXACT, arrays[0].astype(np.int64), self.frac), np.int32)


OPS = (Shiftmax, ShiftLayerNorm, ShiftGelu, ShiftTanh, ShiftSigmoid)
