"""The I-BERT operators (Kim et al., ICML 2021): second-order polynomials in exact integers.

i-poly ``a(x+b)^2 + c`` of x = q*s is ``(q + qb)^2 + qc``; qb = fl(b/s), qc = fl(c / (a s^2)), scale a s^2.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, Final

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.op import Array, FormulaOp, Sizes
from intc.ir.types import TensorType
from intc.ops.dyadic import MAX_SHIFT, dyadic
from intc.ops.rows import (
    check_layer_norm,
    check_scores,
    exact_scale,
    normalised_bias,
    normalised_type,
    round_mean,
)
from intc.ops.scalar import EXACT

LN2: Final = Fraction(6931, 10000)
EXP_A, EXP_B, EXP_C = Fraction(3585, 10000), Fraction(1353, 1000), Fraction(344, 1000)
ERF_A, ERF_B = Fraction(-2888, 10000), Fraction(-1769, 1000)  # erf(x) ~ sgn(x) (a (min(|x|, -b) + b)^2 + 1)
ROOT2: Final = Fraction(14142, 10000)
WEIGHT_MAX: Final = 32767
POLY_BITS: Final = 45  # widest exponential polynomial: leaves 16 bits of multiplier within 62


@dataclass(frozen=True)
class IbertSoftmax(FormulaOp):
    """I-BERT softmax over the last axis: i-exp, its weights requantised to 16 bits, one division a row.

    Inputs: x integer [.., L] of scale s; optionally a bool mask broadcastable to it, True = keep (a row
    without a kept element is all zero). With d = x - max: ``z = fl(-d / q_ln2)``, ``poly = (d + z*q_ln2 +
    qb)**2 + qc``, ``E = poly * m / 2**(e+z)`` (ties up, about 32767 at d = 0), ``P = (E * fl(2**32 / sum E))
    >> 24``: uint8, scale 2**-8.
    ``error_bound``: absolute, on a probability, for s <= 1/256 and L <= 512.
    """

    q_ln2: int
    qb: int
    qc: int
    m: int
    e: int
    name: ClassVar[str] = "ibert_softmax"
    arity: ClassVar[tuple[int, ...]] = (1, 2)
    error_bound: ClassVar[float] = 0.006

    @classmethod
    def from_scale(cls, scale: float | Fraction) -> IbertSoftmax:
        """The operator for scores of ``scale``; QuantizationError outside about 2**-21 .. 0.69."""
        s = exact_scale(scale)
        q_ln2, qb, qc = (v.numerator // v.denominator for v in (LN2 / s, EXP_B / s, EXP_C / (EXP_A * s * s)))
        top = qb * qb + qc
        if q_ln2 < 1 or top.bit_length() > POLY_BITS:
            raise QuantizationError(f"scale {float(s):.4g} does not suit the I-BERT exponential")
        m, e = dyadic(Fraction(WEIGHT_MAX, top))
        drop = max(0, min(top.bit_length() + m.bit_length() - MAX_SHIFT, e - 1))
        return cls(q_ln2, qb, qc, m >> drop, e - drop)

    @property
    def output_scale(self) -> float:
        return 2.0**-8

    def infer(self, *types: TensorType) -> TensorType:
        x = check_scores(self.name, types)
        if not 1 <= self.q_ln2 <= self.qb or self.qc < 0 or self.m < 0 or not 1 <= self.e <= MAX_SHIFT:
            raise GraphError(f"{self.name} cannot use {self}")
        bound = (self.qb * self.qb + self.qc) * self.m
        if bound >= 2**62:
            raise QuantizationError(f"{self.name}: the product can reach {bound}, beyond 62 bits")
        return TensorType(x.shape, "uint8", 0, 255)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(EXACT, arrays[0].astype(np.int64), *arrays[1:]), np.uint8)

    def formula(self, ns: Any, *operands: Any) -> Any:
        distance = ns.distance(*operands)
        z = ns.floor_div(distance, self.q_ln2)
        inner = ns.assume(z * self.q_ln2 - distance, 1 - self.q_ln2, 0) + self.qb  # less a remainder
        poly = inner * inner + self.qc
        shift = ns.minimum(self.e + z, MAX_SHIFT)
        e = ns.minimum((poly * self.m + (1 << (shift - 1))) >> shift, WEIGHT_MAX)
        e = ns.where(operands[1], e, 0) if len(operands) == 2 else e
        total = ns.row_sum(e)
        factor = ns.where(total > 0, ns.floor_div(2**32, ns.maximum(total, 1)), 0)
        return ns.minimum((e * factor) >> 24, 255)


@dataclass(frozen=True)
class IbertGelu(FormulaOp):
    """I-BERT i-GELU ``x/2 * (1 + erf(x / sqrt 2))`` with i-erf; the input scale is ``s = num / den``.

    With s' = s / 1.4142: ``L = sgn(x) * ((min(|x|, -qb) + qb)**2 + qc) >> n``, ``y = x * (L + one)``,
    ``one = fl(1 / s_L)``, ``s_L = a s'**2 2**n`` (negative, as published: a = -0.2888). Output int32 of scale
    ``s * s_L / 2``, which is negative. ``n`` keeps 32 bits (the authors' code has 14).
    ``error_bound``: absolute, for s <= 2**-8; the polynomial itself errs by 0.0182.
    """

    num: int
    den: int
    n: int
    name: ClassVar[str] = "ibert_gelu"
    error_bound: ClassVar[float] = 0.0185

    @classmethod
    def from_scale(cls, scale: float | Fraction, magnitude: int = 32768) -> IbertGelu:
        """The operator for inputs of ``scale`` up to ``magnitude``; the smallest ``n`` that fits 32 bits."""
        s = exact_scale(scale)
        n = 0
        while magnitude * cls(s.numerator, s.denominator, n).gate_bound() >= 2**31:
            n += 1
        op = cls(s.numerator, s.denominator, n)
        if op.qc <= -(2**60):
            raise QuantizationError(f"scale {float(s):.4g} is too fine for I-BERT's erf (at least 2^-28)")
        return op

    @property
    def qb(self) -> int:
        """``fl(b / s')``."""
        v = ERF_B * ROOT2 * self.den / self.num
        return v.numerator // v.denominator

    @property
    def qc(self) -> int:
        """``fl(1 / (a s'**2))``."""
        v = (ROOT2 * self.den / self.num) ** 2 / ERF_A
        return v.numerator // v.denominator

    @property
    def one(self) -> int:
        """``fl(1 / s_L)``."""
        v = 1 / self._erf_scale()
        return v.numerator // v.denominator

    @property
    def output_scale(self) -> float:
        return float(Fraction(self.num, self.den) * self._erf_scale() / 2)

    def gate_bound(self) -> int:
        """The largest ``|L + one|``."""
        return -(self.qc >> self.n) - self.one + 1

    def infer(self, *types: TensorType) -> TensorType:
        (x,) = types
        if self.num < 1 or self.den < 1 or not 0 <= self.n <= 62 or self.qc <= -(2**60):
            raise GraphError(f"{self.name} cannot use scale {self.num}/{self.den}, n={self.n}")
        bound = x.magnitude * self.gate_bound()
        if bound >= 2**31:
            raise QuantizationError(f"{self.name}: the result can reach {bound}, beyond 32 bits; raise n")
        return TensorType(x.shape, "int32", -bound, bound)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(EXACT, arrays[0].astype(np.int64)), np.int32)

    def formula(self, ns: Any, *operands: Any) -> Any:
        x = operands[0]
        magnitude = ns.maximum(x, 0 - x)
        inner = ns.minimum(magnitude, -self.qb) + self.qb
        erf = inner * inner + self.qc
        erf = ns.where(magnitude > 0, ns.where(x >= 0, erf, 0 - erf), 0)
        return x * ((erf >> self.n) + self.one)

    def _erf_scale(self) -> Fraction:
        s = Fraction(self.num, self.den) / ROOT2
        return ERF_A * s * s * (1 << self.n)


@dataclass(frozen=True)
class IbertLayerNorm(FormulaOp):
    """I-BERT layer norm over the last axis, with an exact integer square root.

    Inputs: x [.., C] of at most 16 bits; b int32 [C] = ``fl((beta/gamma) * 2**30 / sqrt(C))``. ``y = x -
    rhe(mean)``, ``k = isqrt(sum (y >> shift)**2) << shift`` (at least ``1 << shift``: constant rows give b),
    output int32 ``min(fl(y * fl(2**31 / k) / 2), 2**30) + b``, of scale ``gamma * sqrt(C) / 2**30`` per
    channel, sign included. The authors raise ``shift`` until the sum of squares fits 32 bits; it is 64 bits
    wide here, so 0 is always right.
    ``error_bound``: absolute, in standard deviations, for C >= 64 and rows whose standard deviation is at
    least 128 steps.
    """

    shift: int = 0
    name: ClassVar[str] = "ibert_layer_norm"
    arity: ClassVar[tuple[int, ...]] = (2,)
    error_bound: ClassVar[float] = 0.01

    @classmethod
    def from_affine(cls, gamma: Array, beta: Array, shift: int = 0) -> tuple[IbertLayerNorm, Array, Array]:
        """The operator, its bias (int32 [C]) and the output scales (float64 [C], signed)."""
        return cls(shift), *normalised_bias(gamma, beta)

    def infer(self, *types: TensorType) -> TensorType:
        x, b = types
        check_layer_norm(self.name, x, b)
        if not 0 <= self.shift <= 15:
            raise GraphError(f"{self.name} cannot shift by {self.shift}; 0 to 15 bits")
        return normalised_type(self.name, x, b, 2**30)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(EXACT, *(a.astype(np.int64) for a in arrays)), np.int32)

    def formula(self, ns: Any, *operands: Any) -> Any:
        x, b = operands
        y = x - round_mean(ns, ns.row_sum(x), ns.size(b))
        moved = y >> self.shift
        root = ns.maximum(ns.isqrt(ns.row_sum(moved * moved)), 1) << self.shift
        scaled = (y * ns.floor_div(2**31, root)) >> 1
        return ns.minimum(ns.assume(scaled, -(2**30), 2**31), 2**30) + b  # -root <= y < 2 * root


OPS = (IbertSoftmax, IbertGelu, IbertLayerNorm)
