"""Dyadic numbers m / 2**e: how a real rescaling becomes integers, exactly and without logarithms."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from intc.errors import QuantizationError
from intc.ir.op import Array

MANTISSA_BITS = 31
MAX_SHIFT = 62


def dyadic(ratio: Fraction) -> tuple[int, int]:
    """The nearest ``(m, e)`` with ratio ~ m / 2**e, 2**30 <= |m| < 2**31 and 1 <= e <= 62; ties away from
    zero.

    Ratios below 2**-32 keep e = 62 and a shorter mantissa. QuantizationError for |ratio| >= 2**30.

    >>> dyadic(Fraction(1, 2))
    (1073741824, 31)
    >>> dyadic(Fraction(0))
    (0, 62)
    """
    if ratio == 0:
        return 0, MAX_SHIFT
    if abs(ratio) >= 2**30:
        raise QuantizationError(f"a rescaling by {float(ratio):.4g} is beyond 2^30")
    sign, size = (-1, -ratio) if ratio < 0 else (1, ratio)
    # 2**(b-1) <= n/d < 2**(b+1) for b = bits(n) - bits(d)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if size < Fraction(2) ** exponent:
        exponent -= 1
    e = min(MANTISSA_BITS - 1 - exponent, MAX_SHIFT)
    m = int(size * 2**e + Fraction(1, 2))
    if m == 2**MANTISSA_BITS:
        m, e = m // 2, e - 1
    if e < 1:
        raise QuantizationError(f"a rescaling by {float(ratio):.12g} rounds to 2^30")
    return sign * m, e


def dyadic_array(ratios: Array | float) -> tuple[Array, Array]:
    """``dyadic`` of every float64 ratio: int32 mantissas and int32 shifts of the same shape.

    A float64 is itself dyadic, so its 53-bit mantissa is rounded to 31 bits exactly.
    """
    values = np.asarray(ratios, np.float64)
    if not np.isfinite(values).all() or np.abs(values).max(initial=0.0) >= 2.0**30:
        raise QuantizationError(
            f"a rescaling by {float(np.abs(values).max())} is not below 2^30: values vanish beside others"
            " (a mask that is not seen as one, or untrained weights?)"
        )
    fraction, exponent = np.frexp(np.abs(values))  # |v| = fraction * 2**exponent, 0.5 <= fraction < 1: exact
    wide = np.ldexp(fraction, 53).astype(np.int64)
    e = np.minimum(MANTISSA_BITS - exponent.astype(np.int64), MAX_SHIFT)
    drop = 53 - exponent.astype(np.int64) - e  # m = wide / 2**drop
    drop = np.clip(drop, 22, 62)
    m = (wide + (np.int64(1) << (drop - 1))) >> drop
    full = m == 2**MANTISSA_BITS
    m, e = np.where(full, m >> 1, m), np.where(full, e - 1, e)
    if (e < 1).any():
        raise QuantizationError(f"a rescaling by {float(np.abs(values).max()):.12g} rounds to 2^30")
    m, e = (
        np.where(values == 0, 0, np.copysign(1, values).astype(np.int64) * m),
        np.where(values == 0, MAX_SHIFT, e),
    )
    return m.astype(np.int32), e.astype(np.int32)
