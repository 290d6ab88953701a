"""The I-ViT operators (Li & Gu, ICCV 2023) as published, in exact integers.

They follow the authors' PyTorch modules step by step, weak points included, so that checkpoints trained
against them keep their meaning; :mod:`intc.ops.shift` holds the corrected forms. Where the modules let
float32 grow (the exponential of a positive argument), only values that the following saturation makes
indistinguishable are cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.op import Array, FormulaOp, Sizes
from intc.ir.types import TensorType
from intc.ops.rows import (
    check_layer_norm,
    check_scores,
    exact_scale,
    normalised_bias,
    normalised_type,
    round_mean,
)
from intc.ops.scalar import EXACT, RowAlgebra

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


def shift_exp(ns: RowAlgebra, x: Any, x0: int, n: int) -> Any:
    """I-ViT's shift-exp of integers x of scale ~ -1/x0: ``exp(x * s) * 2**n / s``, floored, at least 1.

    Exact for x <= 0; results beyond 2**31 - 1 for x > 0 may be smaller, but never below 2**31.
    """
    octaves = x + (x >> 1) - (x >> 4)
    octaves = ns.minimum(octaves, ns.maximum(x + (x >> 1), 0))  # it never is more, which intervals do not see
    octaves = ns.maximum(octaves, n * x0)
    q = ns.floor_div(octaves, x0)
    r = ns.assume(octaves - q * x0, x0 + 1, 0)  # a remainder
    return ((r - 2 * x0) << ns.minimum(n - q, SHIFT_MAX)) >> 1


def quotient(ns: RowAlgebra, e: Any, total: Any, bits: int) -> Any:
    """``(e * fl((2**31-1) / total)) >> (32 - bits)``, the sum cut at 2**31 - 1; 0 where it is 0."""
    total = ns.minimum(total, SUM_MAX)
    factor = ns.where(total > 0, ns.floor_div(SUM_MAX, ns.maximum(total, 1)), 0)
    # e is a part of the total, unless that was cut: then the factor is 1
    return ns.product(e, factor, 0, 2**62) >> (32 - bits)


@dataclass(frozen=True)
class IvitShiftmax(FormulaOp):
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
        p = self.formula(EXACT, arrays[0].astype(np.int64), *arrays[1:])
        return np.asarray(p, np.int8 if self.bits == 8 else np.int16)

    def formula(self, ns: Any, *operands: Any) -> Any:
        e = shift_exp(ns, 0 - ns.distance(*operands), self.x0, self.n)
        e = ns.where(operands[1], e, 0) if len(operands) == 2 else e
        return ns.assume(quotient(ns, e, ns.row_sum(e), self.bits), 0, 2 ** (self.bits - 1) - 1)


@dataclass(frozen=True)
class IvitShiftGelu(FormulaOp):
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
        return np.asarray(self.formula(EXACT, arrays[0].astype(np.int64)), np.int32)

    def formula(self, ns: Any, *operands: Any) -> Any:
        x = operands[0]
        e = shift_exp(ns, 0 - ns.distance(x), self.x0, self.n)
        gate = quotient(ns, e, e + shift_exp(ns, 0 - ns.row_max(x), self.x0, self.n), self.bits)
        return x * ns.assume(gate, 0, max(SUM_MAX, -self.x0 << self.n) >> (32 - self.bits))


@dataclass(frozen=True)
class IvitLayerNorm(FormulaOp):
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
        return np.asarray(self.formula(EXACT, *(a.astype(np.int64) for a in arrays)), np.int32)

    def formula(self, ns: Any, *operands: Any) -> Any:
        x, b = operands
        y = x - round_mean(ns, ns.row_sum(x), ns.size(b))
        squares = ns.row_sum(y * y)
        root = (NEWTON_START + (squares >> (NEWTON_START.bit_length() - 1))) >> 1
        for _ in range(NEWTON_STEPS - 1):
            # no step falls below floor(sqrt(squares)), nor ten of them below 2**6 from 2**16
            root = ns.assume((root + ns.floor_div(squares, root)) >> 1, 1, 2**46)
        scaled = ns.assume(y * ns.floor_div(SUM_MAX, root), -SUM_MAX, SUM_MAX)  # as |y| <= root
        return (scaled >> 1) + b


OPS = (IvitShiftmax, IvitShiftGelu, IvitLayerNorm)
