"""The scalar integer formulas, each written once over an algebra.

An algebra supplies ``where, minimum, maximum`` beside Python's ``+ - * >> <<``. Its instances give a formula
its lives: :class:`Exact` (int64 numpy: the meaning), :class:`Intervals` (the proof that nothing overflows),
the code generator's expressions (the kernel), and nodes of an ONNX file. Operators that also sum and compare
along rows are written over a :class:`RowAlgebra`. Fixed point is named ``Qn``: n fraction bits.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import numpy as np

from intc.errors import QuantizationError
from intc.ops import integer_math

# 2**-r ~ 1 - r*(A - B*r) on [0, 1], B = A - 1/2 so that the ends are exact; A minimises the worst relative
# error.
EXP2_A_Q15: Final = 21951
EXP2_B_Q15: Final = EXP2_A_Q15 - 16384
OCTAVES_MAX: Final = 31
WEIGHT_ONE: Final = 255 << 7  # the largest softmax weight: rounded to 8 bits it is 255
WEIGHT_A_Q15: Final = 21865  # EXP2_A_Q15 * 255 / 256
# gelu(x) ~ x * sigmoid(2*sqrt(2/pi) * (x + 0.044715 x^3)); times log2(e), since the exponential is base 2.
GELU_LINEAR_Q11: Final = 4715  # 2*sqrt(2/pi)*log2(e) * 2**11
GELU_CUBIC_Q15: Final = 3373  # 0.044715 * 2*sqrt(2/pi)*log2(e) * 2**15
# 1/d on [1, 2] ~ 24/17 - 8/17 d (worst relative error 1/17), then two Newton steps.
RECIPROCAL_SEED_Q15: Final = 47745  # 1.45706 * 2**15: the minimax intercept for slope -1/2


# gelu(x) = max(x, 0) - g(|x|): minimax polynomials of 2**scale * g(t) in Q15 over v = 2t / 2**span - 1 as
# (span, scale, coefficients from the highest power); worst errors 0.00020, 0.00019, 0.0012 and 0.0004.
POLY_GELU: Final[dict[str, tuple[int, int, tuple[int, ...]]]] = {
    "none": (2, 1, (-5352, 3830, 15666, -21351, 935, 14540, -11245, 2972)),
    "tanh": (2, 1, (-5178, 3813, 15238, -21314, 1291, 14525, -11348, 2966)),
    "quick": (3, -1, (-5868, -1754, 19301, -4663, -13269, 5585, 413, 731, -577, 82)),
    "silu": (3, 0, (-8793, 5484, 21117, -20355, -3068, 8205, -5717, 5769, -3533, 889)),
}
# The unit of x and the result: SiLU, ``x * sigmoid(x)``, ends within a span of 8; the gate of hard-swish,
# ``x * min(max(x + 3, 0), 6) / 6``, rises from 0 to 1 over 8.
GELU_UNITS: Final[dict[str, float]] = {**dict.fromkeys(POLY_GELU, 1.0), "silu": 1.25, "hard": 0.75}


class Algebra(Protocol):
    """What a formula may use beside integer operators."""

    def where(self, condition: Any, a: Any, b: Any) -> Any: ...
    def minimum(self, a: Any, b: Any) -> Any: ...
    def maximum(self, a: Any, b: Any) -> Any: ...
    def mulhrs(self, a: Any, b: Any) -> Any:
        """``(a*b + 2**14) >> 15``: the rounded product of two 16-bit values, one in Q15."""

    def assume(self, value: Any, lo: int, hi: int) -> Any:
        """``value``, in [lo, hi] for a reason that intervals do not see; else QuantizationError."""


class RowAlgebra(Algebra, Protocol):
    """What an operator's formula may use beside: quotients, roots, tables, and rows along the last axis."""

    def product(self, a: Any, b: Any, lo: int, hi: int) -> Any:
        """``a * b``, which lies in [lo, hi] for a reason that intervals do not see."""

    def floor_div(self, a: Any, b: Any) -> Any:
        """``a // b`` for b != 0."""

    def bit_length(self, x: Any) -> Any:
        """The number of bits of x >= 0; 0 for 0."""

    def isqrt(self, x: Any) -> Any:
        """``floor(sqrt(x))`` for 0 <= x < 2**62."""

    def take(self, table: Any, index: Any) -> Any:
        """The entries of a table of one axis at ``index``."""

    def size(self, x: Any) -> int:
        """The length of the last axis, where it is a number."""

    def row_sum(self, x: Any) -> Any:
        """The sum of every row, which keeps its axis as one of size 1."""

    def row_max(self, x: Any) -> Any:
        """The largest element of every row, which keeps its axis as one of size 1."""

    def distance(self, x: Any, keep: Any = None) -> Any:
        """``max of the kept elements of the row - x``; 0 where not kept."""


class Exact:
    """Numpy int64: the meaning of every formula."""

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return np.where(condition, a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        return np.minimum(a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        return np.maximum(a, b)

    def mulhrs(self, a: Any, b: Any) -> Any:
        return (a * b + 16384) >> 15

    def assume(self, value: Any, lo: int, hi: int) -> Any:
        if not np.all((value >= lo) & (value <= hi)):
            raise QuantizationError(
                f"an intermediate leaves [{lo}, {hi}]: the operands are not what it assumes"
            )
        return value

    def product(self, a: Any, b: Any, lo: int, hi: int) -> Any:
        return self.assume(a * b, lo, hi)

    def floor_div(self, a: Any, b: Any) -> Any:
        return a // b

    def bit_length(self, x: Any) -> Any:
        return integer_math.bit_length(x)

    def isqrt(self, x: Any) -> Any:
        return integer_math.isqrt(x)

    def take(self, table: Any, index: Any) -> Any:
        return table[index]

    def size(self, x: Any) -> int:
        return int(x.shape[-1])

    def row_sum(self, x: Any) -> Any:
        return x.sum(axis=-1, keepdims=True, dtype=np.int64)

    def row_max(self, x: Any) -> Any:
        return x.max(axis=-1, keepdims=True, initial=-(2**31))

    def distance(self, x: Any, keep: Any = None) -> Any:
        if keep is None:
            return x.max(axis=-1, keepdims=True, initial=-(2**31)) - x
        keep = np.broadcast_to(keep, x.shape)
        top = np.where(keep, x, -(2**31)).max(axis=-1, keepdims=True, initial=-(2**31))
        return np.where(keep, top - x, 0)


EXACT: Final = Exact()


def requantize(ns: Algebra, x: Any, m: Any, e: Any, lo: int, hi: int) -> Any:
    """``clip((x*m + 2**(e-1)) >> e, lo, hi)``: the dyadic rescaling by m / 2**e, ties toward +infinity.

    Needs 64-bit products (|x|, |m| < 2**31, 1 <= e <= 62).
    """
    one = np.int64(1) if ns is EXACT else 1
    return ns.minimum(ns.maximum((x * m + (one << (e - 1))) >> e, lo), hi)


def exp2_neg(ns: Algebra, t: Any) -> Any:
    """2**-t in Q15 for t >= 0 in Q15; worst relative error 0.3 % before truncation, exact at integers."""
    r = t & 32767
    p = 32768 - ((r * (EXP2_A_Q15 - ((EXP2_B_Q15 * r) >> 15))) >> 15)
    return ns.assume(p, 16384, 32768) >> ns.minimum(t >> 15, OCTAVES_MAX)


def bounded_distance(ns: Algebra, distance: Any, shift: Any) -> Any:
    """``distance >> shift`` for an int32 >= 0, at most 32767; a negative shift goes left."""
    if shift < 0:
        return ns.minimum(distance, 32767 >> -shift) << -shift
    return ns.minimum(distance >> shift, 32767)


def exp2_weight(ns: Algebra, distance: Any, m: Any) -> Any:
    """``32640 * 2**-t`` with ``t = min(distance * m / 2**15, 2**14 - 1)`` Q10 octaves: 255 in Q7 at t = 0.

    0 <= distance, m < 2**15; every intermediate fits 16 bits. A shift, and the parabola of :func:`exp2_neg`.
    """
    t = ns.minimum(ns.mulhrs(distance, m), 16383)
    r = (t & 1023) << 5  # Q15
    p = WEIGHT_ONE - ns.mulhrs(r, WEIGHT_A_Q15 - ns.mulhrs(r, WEIGHT_A_Q15 - WEIGHT_ONE // 2))
    return ns.assume(p, 0, WEIGHT_ONE) >> (t >> 10)


def reciprocal_1_2(ns: Algebra, d: Any) -> Any:
    """2**30 / d in Q15 for d in [2**15, 2**16]: linear seed, two Newton steps; error at most 4 units of
    2**-15.
    """
    r = RECIPROCAL_SEED_Q15 - (d >> 1)
    for _ in range(2):
        r = ns.assume(r, 14000, 33000)
        r = (r * (65536 - ns.assume((d * (r >> 1)) >> 14, 29000, 36000))) >> 15
    return ns.minimum(ns.assume(r, 16380, 32772), 32768)


def sigmoid_neg_exponent(ns: Algebra, u: Any) -> Any:
    """1 / (1 + 2**-u) in Q15, in [2**14 - 1, 2**15], for u >= 0 in Q15."""
    return reciprocal_1_2(ns, 32768 + exp2_neg(ns, u))


def gelu(ns: Algebra, x: Any, frac: int) -> Any:
    """GELU of x in Q``frac`` (int16, 4 <= frac <= 14), in Q(frac + 15).

    The sigmoid pivots on each element: sigma(|x|) from a base-2 shift exponential, mirrored for x < 0. The
    cubic argument is evaluated on min(|x|, 8 - 2**-12), beyond which sigma is 1 within half a unit.
    """
    magnitude = ns.maximum(x, 0 - x)
    if frac <= 12:
        a = ns.minimum(magnitude, 32767 >> (12 - frac)) << (12 - frac)  # Q12
    else:
        a = magnitude >> (frac - 12)
    square = (a * a) >> 15  # Q9
    inner = GELU_LINEAR_Q11 + ((square * GELU_CUBIC_Q15) >> 13)  # Q11
    sigma = sigmoid_neg_exponent(ns, (a * inner) >> 8)
    return x * ns.where(x >= 0, sigma, 32768 - sigma)


def poly_gelu(ns: Algebra, x: Any, frac: int, kind: str) -> Any:
    """GELU of x in Q``frac`` (int16, 4 <= frac <= 12), in Q``frac``; ``kind`` is a key of ``GELU_UNITS``.

    ``max(x, 0) - g(|x|)`` with g = t * (1 - sigma(t)), which is bounded, and tiny beyond 2**span, where it is
    cut. Every intermediate fits 16 bits, so that a vector register holds twice as many lanes as in 32.
    """
    if kind == "hard":
        return hard_swish(ns, x, frac)
    span, scale, coefficients = POLY_GELU[kind]
    limit = (1 << (frac + span)) - 1
    bounded = ns.minimum(ns.maximum(x, -limit), limit)
    magnitude = ns.maximum(bounded, 0 - bounded)
    v = (magnitude - (1 << (frac + span - 1))) << (16 - span - frac)  # Q15
    g = ns.mulhrs(v, coefficients[0]) + coefficients[1]
    for c in coefficients[2:]:
        g = ns.assume(ns.mulhrs(g, v), -32767 - min(c, 0), 32767 - max(c, 0)) + c
    return ns.maximum(x, 0) - ns.maximum(ns.mulhrs(g, 1 << (frac - scale)), 0)


def hard_swish(ns: Algebra, x: Any, frac: int) -> Any:
    """``x * min(max(x + 4, 0), 8) / 8`` of x in Q``frac`` (int16, 4 <= frac <= 12), in Q``frac``."""
    end = 4 << frac
    gate = (ns.minimum(ns.maximum(x, -end), end - 1) + end) << (12 - frac)  # Q15
    return ns.where(x >= end, x, ns.mulhrs(x, gate))


def sigmoid(ns: Algebra, x: Any, frac: int) -> Any:
    """Logistic function of x in Q``frac`` (int16, 4 <= frac <= 15), in Q15, in [0, 32768]."""
    # |x| < 2**15, log2(e) in Q13 = 11819: the product stays below 2**29.
    octaves = (ns.maximum(x, 0 - x) * 11819) >> 2  # Q(frac + 11)
    u = ns.minimum(octaves, (1 << (frac + 11 + 5)) - 1) if frac + 16 < 31 else octaves
    shift = frac + 11 - 15
    sigma = sigmoid_neg_exponent(ns, u >> shift if shift >= 0 else u << -shift)
    return ns.where(x >= 0, sigma, 32768 - sigma)


def tanh(ns: Algebra, x: Any, frac: int) -> Any:
    """tanh of x in Q``frac`` (int16, 5 <= frac <= 15), in Q15, in [-32768, 32768]: 2*sigmoid(2x) - 1."""
    return 2 * sigmoid(ns, x, frac - 1) - 32768
