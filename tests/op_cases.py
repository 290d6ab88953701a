"""One example of every operator, and a measurement of every declared error bound."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from scipy.special import erf

from intc.ir.op import Array, Op
from intc.ir.types import TensorType
from intc.ops import (
    circular,
    conv,
    curve,
    division,
    elementwise,
    fake_quantize,
    fused,
    gelu,
    ibert,
    im2col,
    ivit,
    layer_norm,
    lut,
    matmul,
    movement,
    pointwise,
    poly,
    positions,
    reduce,
    requantize,
    row_softmax,
    shift,
    softmax,
    table,
    window,
)
from intc.ops.dyadic import dyadic, dyadic_array

LOG2_E = Fraction(1.4426950408889634)


@dataclass(frozen=True)
class Case:
    op: Op
    inputs: tuple[TensorType, ...]


def t(dtype: Any, *shape: int, lo: int | None = None, hi: int | None = None) -> TensorType:
    return TensorType(shape, dtype, lo, hi)


def sample(type_: TensorType, rng: np.random.Generator, how: str = "random") -> Array:
    """An array of the type: random with both ends present, or all at one end."""
    shape = tuple(int(d) for d in type_.shape)  # type: ignore[call-overload]
    if type_.is_float:
        return rng.uniform(0.1, 2.0, shape).astype(np.float32)
    lo, hi = type_.interval
    if how != "random":
        return np.full(shape, lo if how == "lowest" else hi, type_.dtype)
    out = rng.integers(lo, hi, shape, np.int64, endpoint=True)
    if out.size > 1:
        out.reshape(-1)[0], out.reshape(-1)[-1] = lo, hi
    return out.astype(type_.dtype)


F, G = t("float32", 2, 3, 4), t("float32", 4)
BOOL = t("bool", 2, 3, 4)
M, E = t("int32", 4, lo=-(2**31) + 1, hi=2**31 - 1), t("int32", 4, lo=1, hi=62)
X16, X8 = t("int16", 2, 3, 4, lo=-32767), t("int8", 2, 3, 4)
SCORES = t("int32", 2, 3, 4, lo=-(2**30), hi=2**30 - 1)
BIAS = t("int32", 4, lo=-(2**29), hi=2**29)
QKV = t("int8", 2, 5, 24, lo=-127)
CASES: tuple[Case, ...] = (
    Case(movement.Reshape((6, 4)), (X8,)),
    Case(movement.Transpose((0, 2, 1)), (X8,)),
    Case(movement.Slice(1, 0, 2, 1), (X8,)),
    Case(movement.Concat(1), (X8, t("int8", 2, 1, 4, lo=-3, hi=5))),
    Case(movement.Gather(0), (X8, t("int64", 5, lo=0, hi=1))),
    Case(movement.Expand((2, 3, 4)), (t("int8", 1, 3, 1),)),
    Case(movement.GatherElements(1), (X8, t("int64", 2, 5, 4, lo=-3, hi=2))),
    Case(movement.Lookup((3, 2), (1, -2), 3), (t("int8", 6, 2, lo=-9),)),
    Case(positions.Positions((2, 3, 4), (-5, 0, 2), 7), ()),
    Case(elementwise.Add(), (X16, X16)),
    Case(elementwise.Sub(), (X16, X8)),
    Case(elementwise.Mul(), (X16, X8)),
    *(Case(op(), (X16, X8)) for op in (elementwise.Max, elementwise.Min)),
    *(Case(op(), (F, F)) for op in (elementwise.Div, elementwise.Pow)),
    *(Case(op(), (F,)) for op in (elementwise.Sqrt, elementwise.Erf, elementwise.Exp)),
    *(Case(op(), (F,)) for op in (elementwise.Log, elementwise.Abs, elementwise.Floor, elementwise.Round)),
    *(Case(op(), (F,)) for op in (elementwise.Sin, elementwise.Cos, *circular.OPS)),
    *(Case(op(), (F,)) for op in (elementwise.Tanh, elementwise.Sigmoid, elementwise.Relu)),
    *(Case(op(), (X8, X8)) for op in (elementwise.Equal, elementwise.Less, elementwise.LessOrEqual)),
    *(Case(op(), (BOOL, BOOL)) for op in (elementwise.And, elementwise.Or)),
    Case(elementwise.Not(), (BOOL,)),
    Case(elementwise.Cast("int32"), (X8,)),
    Case(elementwise.Where(), (BOOL, X8, X8)),
    Case(matmul.MatMul(), (X8, t("int8", 4, 5))),
    Case(conv.Conv((2, 2), (1, 1, 1, 1), (1, 1), 1), (t("float32", 1, 2, 6, 6), t("float32", 3, 2, 3, 3))),
    Case(softmax.Softmax(-1), (F, BOOL)),
    Case(softmax.Softmax(-1, True), (F, BOOL)),
    Case(gelu.Gelu("none"), (F,)),
    Case(layer_norm.LayerNorm(-1, 1e-5), (F, G, G)),
    Case(fake_quantize.FakeQuantize(0.1, 3, -8, 7), (F,)),
    Case(pointwise.Pointwise("(mul x (max (exp x) 0.5))"), (F,)),
    Case(curve.Curve(), (X16, t("int16", 33, lo=-32767))),
    Case(curve.Curve(), (t("int8", 2, 3, 4), t("int16", 1025, lo=-5, hi=32767))),
    Case(division.Divide(13, 2**30 - 1), (t("int32", 2, 3, 4, lo=-(2**31) + 1), t("int16", 2, 3, 1))),
    Case(division.Divide(0, 9), (X8, t("uint8", 4))),
    Case(division.Root(30), (t("int32", 2, 3, 4, lo=-5),)),
    Case(reduce.ReduceMean((1,), True), (F,)),
    *(Case(reduce.CumSum(1, *f), (X8,)) for f in ((False, False), (True, True))),
    Case(reduce.CumSum(2), (t("int64", 2, 3, 4, lo=0, hi=1),)),
    Case(reduce.ReduceMax((0, 2), False), (X16,)),
    Case(reduce.ArgMax(1, True), (X8,)),
    Case(movement.Pad((0, 1, 0), (2, 0, 1)), (t("int8", 2, 3, 4, lo=3),)),
    Case(window.MaxPool((3, 2), (2, 1), (1, 0, 1, 1), (1, 2)), (t("int16", 2, 7, 8, 3),)),
    Case(window.GroupedConv((2, 1), (1, 1), 2), (t("int8", 2, 7, 8, 4), t("int8", 3, 3, 2, 6, lo=-127))),
    Case(window.GroupedConv((1, 1), (1, 2), 4), (t("int16", 2, 7, 8, 4), t("int8", 3, 3, 1, 4, lo=-127))),
    Case(im2col.Im2col((3, 2), (2, 1), (1, 0, 1, 2), (1, 2), True), (t("uint8", 2, 7, 8, 3, lo=3),)),
    Case(reduce.ReduceSum((0, 2), False), (X16,)),
    Case(im2col.Im2col((3, 2), (2, 1), (1, 0, 1, 2), (1, 2)), (t("uint8", 2, 3, 7, 8, lo=3),)),
    Case(requantize.Requantize(-127, 127, "int8"), (t("int32", 2, 3, 4, lo=-(2**31) + 1), M, E)),
    Case(requantize.Clip(-100, 90, "int8"), (X16,)),
    Case(shift.Shiftmax(2**31 - 1, 20, 8), (SCORES, BOOL)),
    Case(row_softmax.ShiftWeights(2**15 - 1, 9), (SCORES, BOOL)),
    Case(row_softmax.ShiftWeights(20000, -3), (SCORES,)),
    Case(row_softmax.ShiftWeights(20000, 3, True), (SCORES, BOOL)),
    Case(row_softmax.NormaliseRows(), (t("int32", 2, 3, 5, lo=-2295, hi=2295), t("uint8", 2, 3, 9, lo=1))),
    Case(shift.Shiftmax(2**30, 35, 16), (SCORES,)),
    Case(
        shift.ShiftLayerNorm(9, 46, -127, 127, "int8"),
        (X16, t("int32", 4), t("int64", 4, lo=-(2**61), hi=2**61)),
    ),
    Case(
        shift.ShiftLayerNorm(9, 46, -127, 127, "int8", False),
        (X16, t("int32", 4), t("int64", 4, lo=-(2**61), hi=2**61)),
    ),
    Case(shift.ShiftGelu(10), (X16,)),
    Case(poly.PolyGelu(11), (X16, t("int16", 4, lo=0, hi=9000))),
    *(Case(poly.PolyGelu(f, kind), (X16,)) for f, kind in ((4, "none"), (11, "tanh"), (12, "quick"))),
    Case(shift.ShiftTanh(11), (X16,)),
    Case(shift.ShiftSigmoid(11), (X16,)),
    Case(table.Table("int16"), (X8, t("int16", 256, lo=-5, hi=999))),
    Case(ivit.IvitShiftmax(-40), (SCORES, BOOL)),
    Case(ivit.IvitShiftmax(-1, 16), (X16,)),
    Case(ivit.IvitShiftGelu.from_scale(0.15), (X8,)),
    Case(ivit.IvitShiftGelu.from_scale(2.0**-12), (X16,)),
    Case(ivit.IvitLayerNorm(), (X16, BIAS)),
    Case(ibert.IbertSoftmax.from_scale(2.0**-9), (X16, BOOL)),
    Case(ibert.IbertGelu.from_scale(2.0**-10), (X16,)),
    Case(ibert.IbertLayerNorm(), (X16, BIAS)),
    Case(ibert.IbertLayerNorm(3), (X16, BIAS)),
    Case(lut.LutSoftmax(8), (X8, t("int32", 256, lo=0, hi=2**15), BOOL)),
    Case(
        fused.Linear(-127, 127, "int8"),
        (X8, t("int8", 4, 5), t("int32", 5, lo=-9, hi=9), *(2 * (t("int32", 5, lo=1, hi=62),))),
    ),
    Case(
        fused.Attention(2, 2, 4, 0, 8, 16, 20000, 2, -127, 127),
        (QKV, QKV, QKV, t("int32", 1, lo=2**30), t("int32", 1, lo=30, hi=40)),
    ),
    Case(
        fused.Attention(4, 2, 8, 0, 0, 0, 20000, 2, -127, 127, biased=True, heads_first=True),
        (
            *(t("int8", 1, heads, 3, 8) for heads in (4, 2, 2)),
            t("int32", 1, lo=2**30),
            t("int32", 1, lo=30, hi=40),
            t("int32", 4, 3, 3, lo=-(2**20), hi=2**20),
        ),
    ),
    Case(
        fused.Attention(2, 2, 8, 0, 16, 0, 20000, 9, -127, 127),
        (
            *(2 * (t("int16", 1, 3, 32, lo=-4095, hi=4095),)),
            t("int8", 1, 3, 16),
            t("int32", 1, lo=2**30),
            t("int32", 1, lo=30, hi=40),
        ),
    ),
    Case(
        fused.Attention(4, 2, 8, 0, 0, 0, 20000, 2, -127, 127, masked=True, uniform=True),
        (
            *(t("int8", 1, heads, 3, 8) for heads in (4, 2, 2)),
            t("int32", 1, lo=2**30),
            t("int32", 1, lo=30, hi=40),
            t("bool", 1, 4, 3, 3),
        ),
    ),
)
"""At least one case of every operator."""


# ---------------------------------------------------------------- error bounds


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
EXACT = {
    *(
        "reshape",
        "transpose",
        "slice",
        "concat",
        "gather",
        "expand",
        "positions",
        "where",
        "cast",
        "table",
        "im2col",
        "clip",
        "curve",
        "lookup",
    ),
    *(
        "add",
        "sub",
        "mul",
        "max",
        "min",
        "matmul",
        "reduce_max",
        "arg_max",
        "pad",
        "max_pool",
        "grouped_conv",
        "cum_sum",
        "gather_elements",
        "reduce_sum",
        "equal",
        "less",
        "less_or_equal",
        "and",
        "or",
        "not",
    ),
}
"""Operators whose integer meaning is the mathematical one."""
FLOAT_ONLY = {
    *("div", "pow", "sqrt", "erf", "exp", "tanh", "sigmoid", "relu", "conv", "softmax", "gelu", "layer_norm"),
    *("log", "abs", "sin", "cos", "floor", "round", "pointwise", "fake_quantize"),
    "reduce_mean",
    *(op.name for op in circular.OPS),
}
"""Operators of float graphs only."""
COMPOSED = {"linear", "attention"}
"""Compositions of other operators, equal to them bit for bit."""
