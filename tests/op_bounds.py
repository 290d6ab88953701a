"""A measurement of every declared error bound."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from scipy.special import erf

from intc.ir.op import Array, Op
from intc.ops import division, gelu, ibert, ivit, lut, poly, requantize, row_softmax, shift
from intc.ops.dyadic import dyadic, dyadic_array

LOG2_E = Fraction(1.4426950408889634)


def softmax_of(x: Array, keep: Array | None = None) -> Array:
    kept = np.where(True if keep is None else keep, x, -np.inf)
    weights = np.exp(kept - kept.max(axis=-1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def gelu_of(x: Array) -> Array:
    return np.asarray(0.5 * x * (1.0 + erf(x / np.sqrt(2.0))))


def standardised(x: Array) -> Array:
    return np.asarray((x - x.mean(axis=-1, keepdims=True)) / x.std(axis=-1, keepdims=True))


def scores(rng: np.random.Generator, limit: int) -> list[Array]:
    """Rows of many lengths and spreads."""
    return [
        np.clip(np.rint(rng.normal(0, limit * spread, (60, n))), -limit, limit).astype(np.int64)
        for n in (1, 2, 3, 8, 50, 197, 512)
        for spread in (0.01, 0.1, 0.5, 3.0)
    ]


def worst_softmax(
    build: Callable[[float], Callable[[Array], Array]], scales: tuple[float, ...], limit: int
) -> float:
    rng = np.random.default_rng(3)
    return max(
        float(np.abs(run(x) - softmax_of(x * s)).max())
        for s in scales
        for run in [build(s)]
        for x in scores(rng, limit)
    )


def shiftmax_error() -> float:
    def build(s: float) -> Callable[[Array], Array]:
        op = shift.Shiftmax(*dyadic(Fraction(s) * LOG2_E * 2**15), 8)
        return lambda x: op.evaluate(x, sizes={}) / 256.0

    return worst_softmax(build, (2.0**-12, 3e-3, 0.05, 1.0), 32767)


def shift_weights_error() -> float:
    """Relative to the largest weight; the row maximum is exact."""
    rng, worst = np.random.default_rng(3), 0.0
    for s in (2.0**-24, 2.0**-12, 3e-3, 0.05, 1.0, 40.0):
        op = row_softmax.ShiftWeights(*row_softmax.octave_factor(Fraction(s)))
        for x in scores(rng, 32767):
            exact = 2.0 ** ((x - x.max(axis=-1, keepdims=True)) * s)
            worst = max(worst, float(np.abs(op.evaluate(x, sizes={}) / 255.0 - exact).max()))
    return worst


def normalise_rows_error() -> float:
    rng, worst = np.random.default_rng(4), 0.0
    for length in (1, 2, 197, 30000):
        weights = rng.integers(0, 256, (40, length)).astype(np.uint8)
        weights[:, 0] = 255
        values = rng.integers(-127, 128, (length, 16))
        context = (weights.astype(np.int64) @ values).astype(np.int32)
        z = row_softmax.NormaliseRows().evaluate(context, weights, sizes={})
        exact = context / weights.sum(axis=-1, keepdims=True, dtype=np.int64) * 256
        worst = max(worst, float(np.abs(z - exact).max()))
    return worst


def ivit_softmax_error() -> float:
    def build(s: float) -> Callable[[Array], Array]:
        op = ivit.IvitShiftmax.from_scale(s)
        return lambda x: op.evaluate(x, sizes={}) * op.output_scale

    return worst_softmax(build, (1 / 16, 0.05, 1 / 64, 0.003), 127)


def ibert_softmax_error() -> float:
    def build(s: float) -> Callable[[Array], Array]:
        op = ibert.IbertSoftmax.from_scale(s)
        return lambda x: op.evaluate(x, sizes={}) * op.output_scale

    return worst_softmax(build, (1 / 256, 1e-3, 1e-4), 32767)


def lut_softmax_error() -> float:
    def build(s: float) -> Callable[[Array], Array]:
        weights = lut.LutSoftmax.table(s)
        return lambda x: lut.LutSoftmax(8).evaluate(x.astype(np.int8), weights, sizes={}) / 256.0

    return worst_softmax(build, (0.5, 0.05, 0.003), 127)


def pointwise_error(make: Callable[[int], Op], fracs: range, function: Callable[[Array], Array]) -> float:
    """Over every int16 value but the lowest, for each number of fraction bits."""
    x, worst = np.arange(-32767, 32768), 0.0
    for f in fracs:
        scale = 2.0 ** -(f + 15) if make is shift.ShiftGelu else 2.0**-15
        worst = max(worst, float(np.abs(make(f).evaluate(x, sizes={}) * scale - function(x / 2.0**f)).max()))
    return worst


def poly_gelu_error() -> float:
    x, worst = np.arange(-32767, 32768), 0.0
    for frac in (11, 12):
        for kind in ("none", "tanh"):
            want = gelu.Gelu(kind).evaluate((x / 2.0**frac).astype(np.float32), sizes={})
            got = poly.PolyGelu(frac, kind).evaluate(x, sizes={}) / 2.0**frac
            worst = max(worst, float(np.abs(got - want).max()))
    return worst


def logistic(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(x / 2.0)))


def ivit_gelu_error() -> float:
    rng, worst = np.random.default_rng(5), 0.0
    for s in (1 / 64, 1 / 48, 1 / 32):
        op = ivit.IvitShiftGelu.from_scale(s)
        x = rng.integers(-127, 128, (400, 64))
        worst = max(worst, float(np.abs(op.evaluate(x, sizes={}) * op.output_scale - gelu_of(x * s)).max()))
    return worst


def ibert_gelu_error() -> float:
    x, worst = np.arange(-32768, 32768), 0.0
    for s in (2.0**-8, 1e-3, 3e-4, 1e-5):
        op = ibert.IbertGelu.from_scale(s)
        worst = max(worst, float(np.abs(op.evaluate(x, sizes={}) * op.output_scale - gelu_of(x * s)).max()))
    return worst


def published_norm_error(cls: Any) -> float:
    rng, worst = np.random.default_rng(7), 0.0
    for channels in (64, 384, 1000):
        op, bias, scale = cls.from_affine(np.ones(channels), np.zeros(channels))
        for deviation in (150, 1000, 8000):
            x = np.rint(rng.normal(rng.normal(0, 500), deviation, (100, channels))).clip(-32767, 32767)
            y = op.evaluate(x.astype(np.int16), bias, sizes={}) * scale
            worst = max(worst, float(np.abs(y - standardised(x)).max()))
    return worst


def shift_norm_error() -> float:
    """Output steps, over small and large deviations, with gamma and beta folded at 2**-e."""
    rng, worst = np.random.default_rng(11), 0.0
    for channels in (2, 3, 64, 768):
        gamma, beta, step, e = rng.normal(0, 1, channels), rng.normal(0, 1, channels), 1 / 30, 42
        g = np.rint(gamma / step * 2.0 ** (e - 20)).astype(np.int32)
        b = np.rint(beta / step * 2.0**e).astype(np.int64) + 2 ** (e - 1)
        for deviation in (1, 30, 9000):
            x = np.rint(rng.normal(rng.normal(0, 500), deviation, (100, channels))).clip(-32767, 32767)
            eps = 1e-3 * deviation**2
            eps_q = max(1, round(eps * channels**2))
            centred = x - x.mean(axis=-1, keepdims=True)
            z = centred / np.sqrt(x.var(axis=-1, keepdims=True) + eps_q / channels**2)
            want = (z * gamma + beta) / step
            op = shift.ShiftLayerNorm(eps_q, e, -32767, 32767, "int16")
            got = op.evaluate(x.astype(np.int16), g, b, sizes={})
            # The root is an integer: rows below the documented C * deviation feel its step.
            fine = np.broadcast_to(channels * np.sqrt(x.var(axis=-1, keepdims=True)) > 2**12, x.shape)
            worst = max(worst, float(np.abs(got - want)[fine].max(initial=0.0)))
    return worst


def requantize_error() -> float:
    rng, worst = np.random.default_rng(13), 0.0
    for ratio in (3.7e-6, 1e-3, 0.77, -0.77, 129.1):
        m, e = dyadic_array(np.array([ratio]))
        limit = min(2**31 - 1, int(2**15 / abs(ratio)))
        x = rng.integers(-limit, limit, 20000)
        y = requantize.Requantize(-(2**15), 2**15 - 1, "int16").evaluate(x, m, e, sizes={})
        worst = max(worst, float(np.abs(y - np.clip(x * ratio, -(2**15), 2**15 - 1)).max()))
    return worst


def divide_error() -> float:
    rng = np.random.default_rng(17)
    a, b = rng.integers(-(2**20), 2**20, 20000), rng.integers(-900, 900, 20000)
    a, b = a[b != 0], b[b != 0]
    q = division.Divide(7, 2**30 - 1).evaluate(a, b, sizes={})
    return float(np.abs(q - a * 2.0**7 / b).max())


def root_error() -> float:
    x = np.random.default_rng(19).integers(0, 2**31, 20000)
    return float(np.abs(division.Root(30).evaluate(x, sizes={}) - np.sqrt(x * 2.0**30)).max())


BOUNDS: dict[str, Callable[[], float]] = {
    "requantize": requantize_error,
    "shiftmax": shiftmax_error,
    "shift_weights": shift_weights_error,
    "normalise_rows": normalise_rows_error,
    "shift_layer_norm": shift_norm_error,
    "shift_gelu": lambda: pointwise_error(shift.ShiftGelu, range(11, 15), gelu_of),
    "poly_gelu": poly_gelu_error,
    "shift_tanh": lambda: pointwise_error(shift.ShiftTanh, range(5, 16), np.tanh),
    "shift_sigmoid": lambda: pointwise_error(shift.ShiftSigmoid, range(4, 16), logistic),
    "divide": divide_error,
    "root": root_error,
    "ivit_shiftmax": ivit_softmax_error,
    "ivit_shift_gelu": ivit_gelu_error,
    "ivit_layer_norm": lambda: published_norm_error(ivit.IvitLayerNorm),
    "ibert_softmax": ibert_softmax_error,
    "ibert_gelu": ibert_gelu_error,
    "ibert_layer_norm": lambda: published_norm_error(ibert.IbertLayerNorm),
    "lut_softmax": lut_softmax_error,
}
"""The largest error seen of each operator that declares ``error_bound``, in the unit of its docstring."""
