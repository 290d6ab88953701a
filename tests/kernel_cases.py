"""Integer operators on inputs that their kernels are tested with, by group; products are in product_cases."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from intc.ir.dims import Dim, symbol
from intc.ir.op import Array, Op
from intc.ir.types import TensorType
from intc.ops.curve import Curve
from intc.ops.division import Divide, Root
from intc.ops.elementwise import Add, Cast, Max, Min, Mul, Sub, Where
from intc.ops.ibert import IbertGelu, IbertLayerNorm, IbertSoftmax
from intc.ops.im2col import Im2col
from intc.ops.ivit import IvitLayerNorm, IvitShiftGelu, IvitShiftmax
from intc.ops.logic import And, Equal, Less, LessOrEqual, Not, Or
from intc.ops.lut import LutSoftmax
from intc.ops.movement import Concat, Expand, Gather, GatherElements, Lookup, Pad, Reshape, Slice, Transpose
from intc.ops.poly import PolyGelu
from intc.ops.positions import Positions
from intc.ops.reduce import ArgMax, CumSum, ReduceMax, ReduceSum
from intc.ops.requantize import Clip, Requantize
from intc.ops.row_softmax import NormaliseRows, ShiftWeights
from intc.ops.shift import ShiftGelu, ShiftLayerNorm, Shiftmax, ShiftSigmoid, ShiftTanh
from intc.ops.table import Table
from intc.ops.window import GroupedConv, MaxPool

B, S = symbol("batch"), symbol("seq")
RNG = np.random.default_rng(20260801)


@dataclass(frozen=True)
class Case:
    """An operator on inputs: a type is fed at random (extremes included), an array is a constant."""

    op: Op
    inputs: tuple[TensorType | Array, ...]
    sizes: dict[str, int] = field(default_factory=lambda: {"batch": 3, "seq": 7})


POLY = ((4, "none"), (8, "tanh"), (12, "none"), (12, "quick"))


def t(shape: tuple[Dim, ...], dtype: Any, lo: int | None = None, hi: int | None = None) -> TensorType:
    return TensorType(shape, dtype, lo, hi)


def ints(lo: int, hi: int, shape: Any, dtype: Any) -> Array:
    """Random integers in [lo, hi], both ends present."""
    out = RNG.integers(lo, hi, shape, np.int64, endpoint=True)
    flat = out.reshape(-1)
    if flat.size > 1:
        flat[0], flat[-1] = lo, hi
    return out.astype(dtype)


def multipliers(channels: int | tuple[int, ...]) -> tuple[Array, Array]:
    m = ints(-(2**31) + 1, 2**31 - 1, channels, np.int32)
    return m, ints(1, 62, channels, np.int32)


def requantize_cases() -> list[Case]:
    cases = []
    for x in (
        t((B, S, 5), "int32", -(2**31) + 1),
        t((5,), "int16"),
        t((B, 5), "uint8"),
        t((2, 5), "int64", -9, 2**31 - 1),
    ):
        for shape in ((), (1,), (5,)):
            m, e = multipliers(shape)
            cases.append(Case(Requantize(-128, 127, "int8"), (x, np.asarray(m), np.asarray(e))))
    m, e = multipliers((5,))
    cases.append(Case(Requantize(-(2**30), 2**30, "int32"), (t((B, 5), "int32", -(2**31) + 1), m, e)))
    cases.append(Case(Requantize(0, 255, "uint8"), (t((B, 5), "int32", -(2**31) + 1), m, e)))
    return cases


def shiftmax_cases() -> list[Case]:
    cases = []
    masks: list[tuple[Dim, ...]] = [(B, 1, 1, S), (1, 1, S, S), (B, 2, S, S), (S,), (B, 1, S, 1)]
    for bits in (8, 16):
        for m, e in ((2**30 + 12345, 30), (2**31 - 1, 40), (2**30, 1), (7, 62), (0, 5)):
            cases.append(Case(Shiftmax(m, e, bits), (t((B, 2, S, S), "int32", -(2**30), 2**30 - 1),)))
        for mask in masks:
            scores = t((B, 2, S, S), "int32", -300000, 300000)
            cases.append(Case(Shiftmax(2**30 + 999, 33, bits), (scores, t(mask, "bool"))))
        cases.append(Case(Shiftmax(2**30 + 1, 35, bits), (t((2, 197), "int32", -90000, 90000),)))
    return cases


def row_softmax_cases() -> list[Case]:
    masks: list[tuple[Dim, ...]] = [(B, 1, 1, S), (1, 1, S, S), (B, 2, S, S), (S,), (B, 1, S, 1)]
    wide, scores = (t((B, 2, S, S), "int32", -r, r - 1) for r in (2**30, 300000))
    cases = [Case(ShiftWeights(m, s), (wide,)) for m, s in ((0, 0), (2**15 - 1, 20), (16384, -14), (3, 31))]
    cases += [Case(ShiftWeights(30000, 5), (scores, t(mask, "bool"))) for mask in masks]
    cases += [Case(ShiftWeights(30000, 5, True), (scores, t(mask, "bool"))) for mask in masks]
    context = t((B, 2, S, 16), "int32", -255 * 900, 255 * 900)  # 255 times the least sum of nine weights
    cases.append(Case(NormaliseRows(), (context, t((B, 2, S, 9), "uint8", 100))))
    cases.append(Case(NormaliseRows(), (t((B, 7), "int32", -255, 255), t((B, S), "uint8", 0, 1))))
    return cases


def layer_norm_cases() -> list[Case]:
    cases = []
    for channels in (1, 5, 48, 100, 768):
        for x_hi in (1, 300, 32767):
            if channels * 2 * x_hi >= 2**31:
                continue
            for e, bits in ((32, 11), (40, 19), (62, 30)):
                g = ints(-(2**bits), 2**bits, (channels,), np.int32)
                b = ints(-(2 ** (e + 6)) if e < 57 else -(2**61), 2 ** min(e + 6, 61), (channels,), np.int64)
                op = ShiftLayerNorm(1 if x_hi == 1 else 12345, e, -127, 127, "int8")
                cases.append(Case(op, (t((B, S, channels), "int16", -x_hi, x_hi), g, b)))
    g, b = ints(-(2**20), 2**20, (24,), np.int32), ints(-(2**50), 2**50, (24,), np.int64)
    cases.append(
        Case(ShiftLayerNorm(1, 36, -32767, 32767, "int16"), (t((B, 24), "int16", -32767, 32767), g, b))
    )
    cases.append(
        Case(ShiftLayerNorm(1, 36, -127, 127, "int8", False), (t((B, 24), "int16", -32767, 32767), g, b))
    )
    cases.append(Case(ShiftLayerNorm(2**60, 36, 0, 255, "uint8"), (t((B, 24), "int16", -9, 9), g, b)))
    wide, beta = ints(-(2**20), 2**20, (64,), np.int32), ints(-(2**40), 2**40, (64,), np.int64)
    for dtype in ("int8", "int16", "int32"):  # values of 16 bits in any type
        rows = t((B, S, 64), dtype, *((-128, 127) if dtype == "int8" else (-32767, 32767)))
        cases.append(Case(ShiftLayerNorm(99, 40, -127, 127, "int8"), (rows, wide, beta)))
    # a row whose sums of squares fit no 32 bits
    length = 2**16 + 64
    long = ints(-(2**20), 2**20, (length,), np.int32), ints(-(2**40), 2**40, (length,), np.int64)
    cases.append(
        Case(ShiftLayerNorm(99, 40, -127, 127, "int8"), (t((2, length), "int16", -8191, 8191), *long))
    )
    return cases


def elementwise_cases() -> list[Case]:
    a, b = t((B, S, 4), "int32", -(2**29), 2**29), t((S, 1), "int16")
    wide = t((B, S, 4), "int64", -(2**40), 2**40)
    flags, row = t((B, S, 4), "bool"), t((B, 1, 1), "bool")
    return [
        Case(Add(), (a, b)),
        Case(Add(), (a, b)),
        Case(Sub(), (a, a)),
        Case(Add(), (t((B, S), "int8"), t((B, S), "uint8"))),
        Case(Sub(), (wide, b)),
        Case(Sub(), (a, t((), "int8"))),
        Case(Mul(), (t((B, 4), "int16"), t((1, 4), "int8"))),
        Case(Mul(), (t((B, S, 4), "int32", -(2**23), 2**23), ints(-127, 127, (4,), np.int8))),
        *(
            Case(op, (t((B, S), "int16", -2, 2), t((S,), "int64", -2, 2)))
            for op in (Equal(), Less(), LessOrEqual())
        ),
        *(Case(op, (flags, row)) for op in (And(), Or(), Equal())),
        Case(Not(), (flags,)),
        *(Case(Cast(d), (t((B, S), "int32", -100, 100),)) for d in ("int8", "int16", "int64", "bool")),
        Case(Cast("int32"), (flags,)),
        Case(Where(), (row, a, t((4,), "int32"))),
        Case(Where(), (flags, t((), "bool"), row)),
        Case(Clip(-128, 127, "int8"), (a,)),
        Case(Clip(0, 200, "uint8"), (t((B,), "int16"),)),
        Case(Clip(-5, 2**31 - 1, "int32"), (wide,)),
        Case(PolyGelu(11), (t((B, S, 40), "int16", -32767, 32767), ints(0, 16383, (40,), np.int16))),
        *(Case(PolyGelu(f, k), (t((B, S, 4096), "int16", -32767, 32767),)) for f, k in POLY),
        *(Case(ShiftGelu(f), (t((B, S, 4096), "int16", -32767, 32767),)) for f in (4, 8, 10, 11, 12, 13, 14)),
        *(Case(ShiftTanh(f), (t((B, S, 4096), "int16", -32767, 32767),)) for f in (5, 9, 12, 15)),
        *(Case(ShiftSigmoid(f), (t((B, S, 4096), "int16", -32767, 32767),)) for f in (4, 9, 12, 15)),
        Case(Max(), (t((B, S), "int16"), t((S,), "int32", -9, 2**31 - 1))),
        Case(Min(), (row, t((1,), "int8"))),
        Case(Curve(), (t((B, 4096), "int16"), ints(-32767, 32767, (1025,), np.int16))),
        Case(Curve(), (t((B, 300), "int8"), ints(-(2**15), 2**15 - 1, (3,), np.int16))),
        Case(Divide(30, 2**30 - 1), (t((B, 300), "int32", -(2**31) + 1), t((300,), "int16"))),
        Case(Divide(0, 2**30 - 1), (t((B, 40), "int64", -(2**58), 2**58), t((1,), "int32", 2**29, 2**30))),
        Case(Divide(0, 7), (t((B, S), "int8"), t((B, 1), "int8", -1, 1))),
        Case(Root(30), (t((B, 300), "int32", -9),)),
        Case(Root(0), (t((B, 300), "int32", -9, 99),)),
        Case(Table("int16"), (t((B, 300), "int8"), ints(-(2**15), 2**15 - 1, (256,), np.int16))),
        Case(Table("uint8"), (t((B, 300), "uint8"), ints(0, 255, (256,), np.uint8))),
    ]


def grouped_case(channels: int, outputs: int, kernel: int, stride: int, depth: int, width: int) -> Case:
    groups = channels // depth
    op = GroupedConv((stride, stride), (1, 1), groups)
    w = ints(-127, 127, (kernel, kernel, depth, outputs), np.int8)
    return Case(op, (t((B, kernel + 2, width, channels), "int8" if depth > 1 else "int16"), w))


def movement_cases() -> list[Case]:
    x = t((B, S, 6), "int8")
    picks = t((B, S), "int64", -11, 10)
    return [
        Case(Reshape((B * S, 2, 3)), (x,)),
        Case(Reshape((3, 2)), (ints(-5, 5, (1, 1, 6), np.int8),)),
        *(
            Case(Transpose(p), (t((B, S, 2, 3), "int16"),))
            for p in ((0, 2, 1, 3), (3, 2, 1, 0), (0, 1, 2, 3), (1, 0, 3, 2))
        ),
        Case(Slice(2, 1, 4), (x,)),
        Case(Slice(1, 0, 1), (x,)),
        Case(Slice(1, 1, S), (x,)),
        Case(Slice(1, 0, S - 2), (x,)),
        Case(Slice(2, 5, -1, -2), (x,)),
        Case(Slice(0, B - 1, -1, -1), (x,)),
        Case(Concat(1), (x, t((B, 1, 6), "int8"), x)),
        Case(Concat(0), (t((1, 4), "int64"), ints(-9, 9, (2, 4), np.int64))),
        Case(Concat(2), (t((B, S, 2), "bool"), t((B, S, 5), "bool"))),
        Case(Gather(0), (ints(-128, 127, (11, 6), np.int8), picks)),
        Case(Gather(1), (ints(-(2**31), 2**31 - 1, (2, 11, 5), np.int32), picks)),
        Case(Gather(1), (x, np.asarray(0, np.int64))),
        Case(Gather(2), (x, t((), "int32", -6, 5))),
        Case(GatherElements(1), (x, t((B, 9, 6), "int32", -3, 2))),
        Case(GatherElements(2), (t((B, S, 5), "int32"), t((B, S, S), "int64", -5, 4))),
        Case(Lookup((S,), (1,), 2), (ints(-9, 9, (11, 5), np.int8),)),
        Case(Lookup((S, S), (1, -1), 6), (ints(-9, 9, (13, 2, 3), np.int16),)),
        Case(Lookup((2 * S - 1,), (-1,), S + 5), (ints(-9, 9, (13, 2), np.int8),)),  # down from the last
        Case(CumSum(1), (t((B, S, 3), "int16"),)),
        Case(CumSum(1, True, True), (t((B, S), "int64", 0, 1),)),
        Case(CumSum(0, False, True), (t((B, S), "bool"),)),
        Case(Expand((B, S, 6)), (t((S, 1), "int16"),)),
        Case(Expand((B, S)), (t((), "bool"),)),
        Case(Positions((S, 1), (1, 0), B), ()),
        Case(Positions((B, 3, S), (S, -1, 2), 5), ()),
        Case(Im2col((4, 4), (4, 4)), (t((B, 3, 8, 12), "int8"),)),
        Case(Im2col((3, 2), (2, 1), (1, 0, 2, 1), (1, 2)), (t((B, 2, 7, 6), "uint8", 1, 255),)),
        Case(Pad((0, 2, 1), (1, 0, 3)), (x,)),
        Case(MaxPool((3, 3), (2, 2), (1, 1, 1, 1), (1, 1)), (t((B, 9, 13, 3), "int16"),)),
        Case(MaxPool((1, 2), (1, 3), (0, 1, 0, 0), (1, 2)), (t((B, 2, 13, 3), "uint8"),)),
        *(grouped_case(*c) for c in ((4, 4, 3, 1, 1, 130), (8, 12, 3, 2, 2, 20), (6, 6, 5, 1, 3, 70))),
        Case(ReduceMax((1, 2), True), (t((B, 9, S), "int16"),)),
        Case(ReduceMax((0,), False), (t((B, S), "bool"),)),
        Case(ArgMax(1, False), (t((B, S, 5), "int8", -2, 2),)),
        Case(ArgMax(2, True, True), (t((B, S, 5), "int32", -2, 2),)),
        Case(Im2col((3, 2), (2, 1), (1, 0, 2, 1), (1, 2), True), (t((B, 7, 6, 5), "uint8", 1, 255),)),
        Case(ReduceSum((1,), False), (t((B, 9, S), "int16"),)),
        Case(ReduceSum((-1, 1), True), (t((B, 9, S, 5), "int8"),)),
        Case(ReduceSum((0,), False), (t((9,), "int32", -1000, 1000),)),
        Case(ReduceSum((1, 2), True), (t((B, 5, S, 64), "uint8"),)),  # in vectors from here on
        Case(ReduceSum((-1,), False), (t((B, S, 96), "int16"),)),
        Case(ReduceSum((0, 2), False), (t((B, 3, 9, 8), "int32", -1000, 1000),)),
        Case(ReduceSum((1, 3), True), (t((B, 3, S, 2, 16), "int8"),)),
        Case(ReduceSum((1,), False), (t((B, 3, 32 * S), "int16"),)),
        Case(ReduceSum((0, 1, 2), False), (t((7, 5, 128), "int8"),)),
        Case(ReduceMax((1,), False), (t((B, S, 40), "int8"),)),
        Case(ReduceMax((2,), True), (t((B, S, 32), "uint8"),)),
        Case(ReduceMax((0, 2), True), (t((B, S, 256), "int32", -(2**31), -5),)),
    ]


def family_cases() -> list[Case]:
    scores, small, key_mask = (
        t((B, 2, S, S), "int32", -90000, 90000),
        t((B, 2, S, S), "int8"),
        t((B, 1, 1, S), "bool"),
    )
    table = LutSoftmax.table(1 / 20)
    bias = ints(-(2**29), 2**29, (48,), np.int32)
    rows = t((B, S, 48), "int16", -32768, 32767)
    cases = []
    for bits in (8, 16):
        for scale in (0.02, 0.3, 0.0004):
            cases.append(Case(IvitShiftmax.from_scale(scale, bits), (scores,)))
            cases.append(Case(IvitShiftmax.from_scale(scale, bits), (scores, key_mask)))
        cases.append(Case(LutSoftmax(bits), (small, table)))
        cases.append(Case(LutSoftmax(bits), (small, table, key_mask)))
    for scale in (1 / 256, 0.1, 0.0007):
        cases.append(Case(IbertSoftmax.from_scale(scale), (scores,)))
        cases.append(Case(IbertSoftmax.from_scale(scale), (scores, key_mask)))
    for scale in (1 / 64, 0.11, 0.004):
        cases.append(Case(IvitShiftGelu.from_scale(scale), (t((B, S, 300), "int8"),)))
        cases.append(Case(IbertGelu.from_scale(scale), (t((B, S, 4096), "int16"),)))
        cases.append(Case(IbertGelu.from_scale(scale, 128), (t((B, S, 256), "int8"),)))
    cases.append(Case(IvitLayerNorm(), (rows, bias)))
    cases.append(Case(IvitLayerNorm(), (t((B, S, 48), "int16", -1, 1), bias)))
    cases += [Case(IbertLayerNorm(shift), (rows, bias)) for shift in (0, 1, 15)]
    cases.append(Case(IbertLayerNorm(0), (t((B, S, 48), "int8", 0, 1), bias)))
    return cases
