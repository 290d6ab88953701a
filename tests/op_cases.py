"""One example of every operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

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
    logic,
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
    *(Case(op(), (X8, X8)) for op in (logic.Equal, logic.Less, logic.LessOrEqual)),
    *(Case(op(), (BOOL, BOOL)) for op in (logic.And, logic.Or)),
    Case(logic.Not(), (BOOL,)),
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
    Case(
        division.Divide(0, 2**30),
        (t("int64", 2, 3, lo=-(2**58), hi=2**58), t("int32", 3, lo=2**29, hi=2**30)),
    ),
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
    Case(im2col.Im2col((2, 2), (1, 1), (1, 1, 0, 1), (1, 1), True, -99), (t("int8", 2, 4, 5, 3),)),
    Case(reduce.ReduceSum((0, 2), False), (X16,)),
    Case(im2col.Im2col((3, 2), (2, 1), (1, 0, 1, 2), (1, 2)), (t("uint8", 2, 3, 7, 8, lo=3),)),
    Case(im2col.Im2col((2, 3), (1, 2), (1, 0, 1, 2), fill=7), (t("int16", 2, 3, 5, 6),)),
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
