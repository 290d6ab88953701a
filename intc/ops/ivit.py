"""The I-ViT operators (Li & Gu, ICCV 2023) as published, in exact integers.

They follow the authors' PyTorch modules step by step, weak points included, so that checkpoints trained
against them keep their meaning; :mod:`intc.ops.shift` holds the corrected forms. Where the modules let
float32 grow (the exponential of a positive argument), only values that the following saturation makes
indistinguishable are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Final

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType
from intc.ops.rows import (
    below_maximum,
    check_layer_norm,
    check_scores,
    exact_scale,
    normalised_bias,
    normalised_type,
    round_mean,
)

SUM_MAX: Final = 2**31 - 1
X0_LIMIT: Final = 2**27  # |x0| below this keeps every exponential within 64 bits
SHIFT_MAX: Final = 33  # from here on an exponential is at least 2**31 and saturates the sum
SLOPE: Final = Fraction(1702, 1000)  # gelu(x) ~ x * sigmoid(1.702 x)
NEWTON_STEPS: Final = 10
NEWTON_START: Final = 2**16


def negative_reciprocal(scale: Fraction) -> int:
    """``x0 = floor(-1 / scale)``; QuantizationError where the exponential would leave 64 bits."""
    x0 = (-scale.denominator) // scale.numerator
    if x0 <= -X0_LIMIT:
        raise QuantizationError(f"scale {float(scale):.4g} is too fine for the I-ViT exponential (2^-27)")
    return x0


def shift_exp(x: Array, x0: int, n: int) -> Array:
    """I-ViT's shift-exp of integers x of scale ~ -1/x0: ``exp(x * s) * 2**n / s``, floored, at least 1.

    Exact for x <= 0; results beyond 2**31 - 1 for x > 0 may be smaller, but never below 2**31.
    """
    octaves = x + (x >> 1) - (x >> 4)
    octaves = np.maximum(octaves, n * x0)
    q = octaves // x0
    r = octaves - q * x0
    return np.asarray(((r - 2 * x0) << np.minimum(n - q, SHIFT_MAX)) >> 1)


def quotient(e: Array, total: Array, bits: int) -> Array:
    """``(e * fl((2**31-1) / total)) >> (32 - bits)``, the sum cut at 2**31 - 1; 0 where it is 0."""
    total = np.minimum(total, SUM_MAX)
    factor = np.where(total > 0, SUM_MAX // np.maximum(total, 1), 0)
    return np.asarray((e * factor) >> (32 - bits))


@dataclass(frozen=True)
class IvitShiftmax(Op):
    """I-ViT Shiftmax over the last axis: ``p = (E * fl((2**31-1) / sum E)) >> (32 - bits)``.

    Inputs: x integer [.., L] of scale s; optionally a bool mask broadcastable to it, True = keep (masked: 0;
    a row without a kept element is all zero). ``x0 = fl(-1/s)``; ``n`` octaves below the maximum are
    resolved. Output int8 (bits = 8) or int16 (bits = 16) in [0, 2**(bits-1) - 1], scale 2**-(bits-1).
    ``error_bound``: absolute, on a probability, for 8 bits, s <= 1/16 and L <= 512.
    """

    x0: int
    bits: int = 8
    n: int = 15
    name: ClassVar[str] = "ivit_shiftmax"
    arity: ClassVar[tuple[int, ...]] = (1, 2)
    error_bound: ClassVar[float] = 0.04

    @classmethod
    def from_scale(cls, scale: float | Fraction, bits: int = 8) -> IvitShiftmax:
        """The operator for scores of ``scale``."""
        return cls(negative_reciprocal(exact_scale(scale)), bits)

    @property
    def output_scale(self) -> float:
        return 2.0 ** (1 - self.bits)

    def infer(self, *types: TensorType) -> TensorType:
        x = check_scores(self.name, types)
        if self.bits not in (8, 16) or not 1 <= self.n <= 31 or not -X0_LIMIT < self.x0 <= -1:
            raise GraphError(f"{self.name} cannot use x0={self.x0}, bits={self.bits}, n={self.n}")
        return TensorType(x.shape, "int8" if self.bits == 8 else "int16", 0, 2 ** (self.bits - 1) - 1)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x, keep = below_maximum(arrays[0], arrays[1] if len(arrays) > 1 else None)
        e = shift_exp(x, self.x0, self.n)
        if keep is not None:
            e = np.where(keep, e, 0)
        p = quotient(e, e.sum(axis=-1, keepdims=True), self.bits)
        return p.astype(np.int8 if self.bits == 8 else np.int16)


@dataclass(frozen=True)
class IvitShiftGelu(Op):
    """I-ViT ShiftGELU ``x * sigmoid(1.702 x)``, the sigmoid pivoted on the maximum M of the last axis.

    ``E = exp(x - M)``, ``E0 = exp(-M)``, ``g = (E * fl((2**31-1) / (E + E0))) >> (32 - bits)``, ``y = x *
    g``. The input scale is the rational ``num / den``; exponentials use ``1.702 * scale``. Input [.., C] of
    at most 16 bits; output int32 of scale ``scale * 2**-(bits-1)``.
    ``error_bound``: absolute, for int8 input of scale 1/64 or 1/32; the published pivot fails for rows of
    range beyond 9.4.
    """

    num: int
    den: int
    bits: int = 8
    n: int = 23
    name: ClassVar[str] = "ivit_shift_gelu"
    error_bound: ClassVar[float] = 0.3

    @classmethod
    def from_scale(cls, scale: float | Fraction, bits: int = 8) -> IvitShiftGelu:
        """The operator for inputs of ``scale``."""
        exact = exact_scale(scale)
        negative_reciprocal(exact * SLOPE)
        return cls(exact.numerator, exact.denominator, bits)

    @property
    def x0(self) -> int:
        """``fl(-1 / (1.702 * scale))``."""
        return negative_reciprocal(Fraction(self.num, self.den) * SLOPE)

    @property
    def output_scale(self) -> float:
        return float(Fraction(self.num, self.den) / 2 ** (self.bits - 1))

    def infer(self, *types: TensorType) -> TensorType:
        (x,) = types
        if self.num < 1 or self.den < 1 or self.bits not in (8, 16) or not 1 <= self.n <= 31:
            raise GraphError(
                f"{self.name} cannot use scale {self.num}/{self.den}, bits={self.bits}, n={self.n}"
            )
        if not x.rank or x.magnitude > 2**15:
            raise QuantizationError(f"{self.name} takes rows of at most 16 bits, not {x}")
        # e * factor <= 2**31 - 1 unless the sum saturated; then the factor is 1 and e itself is the product.
        gate = max(SUM_MAX, -self.x0 << self.n) >> (32 - self.bits)
        lo, hi = min(x.interval[0], 0) * gate, max(x.interval[1], 0) * gate
        if max(-lo, hi) >= 2**31:
            raise QuantizationError(
                f"{self.name}: x * g can reach {max(-lo, hi)}, beyond 32 bits; coarsen the scale"
            )
        return TensorType(x.shape, "int32", lo, hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x = arrays[0].astype(np.int64)
        top = x.max(axis=-1, keepdims=True, initial=-(2**15))
        e = shift_exp(x - top, self.x0, self.n)
        gate = quotient(e, e + shift_exp(-top, self.x0, self.n), self.bits)
        return (x * gate).astype(np.int32)


@dataclass(frozen=True)
class IvitLayerNorm(Op):
    """I-ViT I-LayerNorm over the last axis: ten Newton steps from 2**16 for the root of the squares.

    Inputs: x [.., C] of at most 16 bits; b int32 [C] = ``fl((beta/gamma) * 2**30 / sqrt(C))``. ``y = x -
    rhe(mean)``, ``k ~ sqrt(sum y**2)``, output int32 ``fl(y * fl((2**31-1)/k) / 2) + b`` of scale ``gamma *
    sqrt(C) / 2**30`` per channel, sign included. No epsilon, as published.
    ``error_bound``: absolute, in standard deviations, for C >= 64 and rows whose standard deviation is at
    least 128 steps.
    """

    name: ClassVar[str] = "ivit_layer_norm"
    arity: ClassVar[tuple[int, ...]] = (2,)
    error_bound: ClassVar[float] = 0.01

    @classmethod
    def from_affine(cls, gamma: Array, beta: Array) -> tuple[IvitLayerNorm, Array, Array]:
        """The operator, its bias (int32 [C]) and the output scales (float64 [C], signed)."""
        return cls(), *normalised_bias(gamma, beta)

    def infer(self, *types: TensorType) -> TensorType:
        x, b = types
        check_layer_norm(self.name, x, b)
        # k never falls below isqrt(sum y**2) >= |y|, so |y * F| <= 2**31 - 1.
        return normalised_type(self.name, x, b, 2**30 - 1)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x, b = (a.astype(np.int64) for a in arrays)
        y = x - round_mean(x.sum(axis=-1, keepdims=True), x.shape[-1])
        squares = (y * y).sum(axis=-1, keepdims=True)
        root = np.full_like(squares, NEWTON_START)
        for _ in range(NEWTON_STEPS):
            root = (root + squares // root) >> 1
        return np.asarray(((y * (SUM_MAX // root)) >> 1) + b, np.int32)


OPS = (IvitShiftmax, IvitShiftGelu, IvitLayerNorm)
