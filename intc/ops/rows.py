"""What the operators that work row by row (over the last axis) share."""

from __future__ import annotations

from fractions import Fraction
from math import isqrt
from typing import Any, Final

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import broadcast
from intc.ir.op import Array
from intc.ir.types import TensorType
from intc.ops.scalar import RowAlgebra

ROW_MAX: Final = 65535  # longest row of a softmax


def check_scores(name: str, types: tuple[TensorType, ...], mask_at: int = 1) -> TensorType:
    """The scores, after the checks every softmax makes: row length, and a mask that broadcasts to them."""
    x = types[0]
    if x.is_float or not x.rank:
        raise GraphError(f"{name} takes integer scores of at least one axis, not {x}")
    length = x.shape[-1]
    if isinstance(length, int) and length > ROW_MAX:
        raise QuantizationError(f"a softmax row of {length} elements exceeds {ROW_MAX}")
    if x.interval[1] - x.interval[0] >= 2**31:
        raise QuantizationError(f"{name}: the distance to the row maximum of {x} can exceed 31 bits")
    if len(types) > mask_at:
        mask = types[mask_at]
        if mask.dtype != "bool" or broadcast(x.shape, mask.shape) != x.shape:
            raise GraphError(f"mask {mask} does not broadcast to {x}")
    return x


def round_mean(ns: RowAlgebra, total: Any, count: int) -> Any:
    """``total / count`` rounded to the nearest integer, ties to even."""
    q = ns.floor_div(total, count)
    twice = ns.assume(2 * (total - q * count), 0, 2 * (count - 1))  # a remainder
    return q + ns.where(twice + (q & 1) > count, 1, 0)


def exact_scale(scale: float | Fraction) -> Fraction:
    """``scale`` as the rational that it is; QuantizationError unless positive and finite."""
    try:
        value = Fraction(scale)
    except (OverflowError, ValueError):
        raise QuantizationError(f"a scale of {scale}; calibrate with finite data") from None
    if value <= 0:
        raise QuantizationError(f"a scale of {scale} is not positive; calibrate with other data")
    return value


def check_layer_norm(name: str, x: TensorType, b: TensorType) -> int:
    """The number of channels; refuses inputs wider than 16 bits and sums beyond 32 bits."""
    channels = x.shape[-1] if x.rank else None
    if not isinstance(channels, int) or channels < 1 or b.shape != (channels,):
        raise GraphError(f"{name} needs a fixed number of channels and a bias for each, not {x} and {b}")
    if x.magnitude > 2**15 or channels * x.magnitude >= 2**31:
        raise QuantizationError(f"{name}: the sum of {channels} values of {x} overflows 32 bits")
    return channels


def normalised_type(name: str, x: TensorType, b: TensorType, highest: int) -> TensorType:
    """int32 rows of a value in [-2**30, highest] plus the bias; QuantizationError beyond 32 bits."""
    lo, hi = -(2**30) + b.interval[0], highest + b.interval[1]
    if lo < -(2**31) or hi >= 2**31:
        raise QuantizationError(f"{name}: the result can reach [{lo}, {hi}], beyond 32 bits")
    return TensorType(x.shape, "int32", lo, hi)


def normalised_bias(gamma: Array, beta: Array) -> tuple[Array, Array]:
    """``fl((beta/gamma) * 2**30 / sqrt(C))`` as int32 [C]; scales ``gamma * sqrt(C) / 2**30``, signed.

    QuantizationError names the first channel whose gamma is too small for its beta to stay within 30 bits.
    """
    channels = len(gamma)
    if not (np.isfinite(gamma).all() and np.isfinite(beta).all()):
        raise QuantizationError("gamma or beta is not finite")
    biases = []
    for c, (g, b) in enumerate(zip(gamma.tolist(), beta.tolist(), strict=True)):
        ratio = Fraction(b) / Fraction(g) if g else None
        if ratio is None or ratio * ratio >= channels:
            raise QuantizationError(
                f"channel {c}: beta / gamma = {b:.4g} / {g:.4g} exceeds sqrt({channels}); use family shift"
            )
        biases.append(_floor_over_root(ratio * 2**30, channels))
    return np.asarray(biases, np.int32), np.asarray(gamma, np.float64) * np.sqrt(channels) / 2.0**30


def _floor_over_root(ratio: Fraction, n: int) -> int:
    """``floor(ratio / sqrt(n))``, exactly."""
    square = ratio * ratio / n
    root = isqrt(square.numerator // square.denominator)  # floor of |ratio| / sqrt(n)
    return root if ratio >= 0 else -root - (root * root != square)
