"""Chains of elementwise operators: one stage, and the same integers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from intc.codegen.cpu.isa import ISAS
from intc.codegen.targets import TARGETS, Target, host_features
from intc.ir.bound import bound
from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.elementwise import Add, Max, Min, Mul, Sub
from intc.ops.movement import Pad, Reshape, Transpose
from intc.ops.poly import PolyGelu
from intc.ops.reduce import ReduceMax, ReduceSum
from intc.ops.requantize import Clip, Requantize
from intc.ops.shift import ShiftGelu
from intc.ops.window import GroupedConv
from tests.kernel_cases import ints
from tests.native import check_graph
from tests.test_c_kernels import check as check_c

B = symbol("batch")
NATIVE = [t for t in TARGETS if t.native and host_features().issuperset(t.features)]


def int16(b: Builder, name: str, *shape: object) -> str:
    return b.input(b.fresh(name), TensorType(shape, "int16", -32767, 32767))  # type: ignore[arg-type]


def requantized(b: Builder, x: str, op: Requantize, m: Sequence[int], e: Sequence[int]) -> str:
    return b.emit(op, x, b.constant("m", np.array(m, np.int32)), b.constant("e", np.array(e, np.int32)))


def activation(b: Builder, channels: int) -> str:
    """``requantize(gelu(reshape(requantize(x + bias))) - centre)``, factors per channel."""
    x = b.input("x", TensorType((B, 2, 3, channels), "int32", -(2**24), 2**24))
    y = b.emit(Add(), x, b.constant("bias", ints(-(2**20), 2**20, channels, np.int32)))
    m, e = ints(2**30, 2**31 - 1, channels, np.int32), ints(38, 41, channels, np.int32)
    y = requantized(b, y, Requantize(-32767, 32767, "int16"), m, e)
    y = b.emit(Reshape((B, 6, channels)), y)
    y = b.emit(PolyGelu(11), y, b.constant("centre", ints(0, 9000, channels, np.int16)))
    return requantized(b, y, Requantize(-127, 127, "int8"), m, e - 15)


def residual(b: Builder, channels: int) -> str:
    """``requantize(relu(clip(requantize(a) + requantize(c))))``, one factor each, into unsigned codes."""
    wide = Requantize(-(2**30) + 1, 2**30 - 1, "int32")
    a, c = int16(b, "a", B, 4, channels), int16(b, "c", B, 4, channels)
    total = b.emit(
        Add(), requantized(b, a, wide, [2**30 + 5], [31]), requantized(b, c, wide, [-(2**30)], [29])
    )
    y = b.emit(Clip(0, 32767, "int16"), b.emit(Clip(-32767, 32767, "int16"), total))
    return requantized(b, y, Requantize(0, 255, "uint8"), [2**20 * 131], [35])


def gate(b: Builder, channels: int) -> str:
    """A product of rows with a row that every position shares, a narrow requantisation, and bounds."""
    a, c = int16(b, "a", B, 4, channels), int16(b, "c", B, 1, channels)
    y = requantized(b, b.emit(Mul(), a, c), Requantize(-32767, 32767, "int16"), [2**30 + 1], [46])
    y = b.emit(Min(), b.emit(Max(), y, b.constant("low", np.int16([-999]))), a)
    y = b.emit(
        Sub(), b.emit(ShiftGelu(10), requantized(b, y, Requantize(-2047, 2047, "int16"), [77 << 3], [18])), c
    )
    return requantized(b, y, Requantize(-127, 127, "int8"), [3], [11])  # few bits: the general form


def convolution(
    b: Builder,
    dtype: str = "int16",
    size: int = 9,
    stride: int = 1,
    kernel: int = 3,
    symbolic: bool = False,
    channels: int = 64,
) -> str:
    """A filter for each channel, then what follows it in SegFormer's layers."""
    height, width = (symbol("height"), symbol("width")) if symbolic else (size, size)
    x = b.input(b.fresh("x"), TensorType((B, height, width, channels), dtype))  # type: ignore[arg-type]
    if symbolic:
        x = b.emit(Pad((0, 1, 1, 0), (0, 1, 1, 0)), x)
    w = b.constant(b.fresh("w"), ints(-127, 127, (kernel, kernel, 1, channels), np.int8))
    y = b.emit(GroupedConv((stride, stride), (1, 2 if kernel == 2 else 1), channels), x, w)
    y = b.emit(Add(), y, b.constant(b.fresh("bias"), ints(-(2**20), 2**20, channels, np.int32)))
    m, e = ints(2**30, 2**31 - 1, channels, np.int32), ints(40, 42, channels, np.int32)
    y = requantized(b, y, Requantize(-32767, 32767, "int16"), m, e)
    _, rows, columns, _ = b.graph.type(y).shape
    y = b.emit(PolyGelu(11), b.emit(Reshape((B, rows * columns, channels)), y))
    y = b.emit(Max(), y, int16(b, "other", B, rows * columns, channels))
    return requantized(b, y, Requantize(-127, 127, "int8"), m, e - 17)


def energy(b: Builder, channels: int, axes: tuple[int, ...] = (1, 2), m: int = 2**30 + 1, e: int = 46) -> str:
    """The sum of squares over an image, scaled by a row that all positions share."""
    x, row = int16(b, "x", B, 4, 5, channels), int16(b, "row", B, 1, 1, channels)
    y = b.emit(Mul(), requantized(b, b.emit(Mul(), x, row), Requantize(-32767, 32767, "int16"), [m], [e]), x)
    y = requantized(b, y, Requantize(-32767, 32767, "int16"), [2**30 + 1], [45])
    return b.emit(ReduceSum(axes, True), y)


def largest(b: Builder, channels: int) -> str:
    """The largest of a row, shared by no other."""
    x = int16(b, "x", B, 4, channels)
    return b.emit(ReduceMax((2,), False), requantized(b, x, Requantize(-127, 127, "int8"), [2**30 + 1], [38]))


def made(chain: Callable[[Builder, int], str], channels: int) -> Graph:
    b = Builder("chain")
    b.output(chain(b, channels))
    return b.finish()


@pytest.mark.parametrize("target", NATIVE, ids=lambda t: t.name)
@pytest.mark.parametrize("chain", [activation, residual, gate])
def test_a_chain_is_one_stage(chain: Callable[[Builder, int], str], target: object) -> None:
    for channels in (64, 5):  # whole vectors, and none
        lowered = check_graph(made(chain, channels), {"batch": 3}, target)
        assert len(lowered.stages) == 1, [s[0] for s in lowered.stages]


@pytest.mark.parametrize("target", NATIVE, ids=lambda t: t.name)
def test_a_chain_that_ends_in_a_reduction(target: Target) -> None:
    whole = ISAS[target.level].even_odd
    chains: tuple[Callable[[Builder, int], str], ...] = (
        energy, largest, lambda b, c: energy(b, c, (3,)), lambda b, c: energy(b, c, (1, 3))
    )  # fmt: skip
    for chain in chains:
        for channels, stages in ((64, 1), (24, 1), (5, 2)):
            lowered = check_graph(made(chain, channels), {"batch": 3}, target)
            assert len(lowered.stages) == (stages if whole else 2), [s[0] for s in lowered.stages]
    few_bits = check_graph(made(lambda b, c: energy(b, c, m=9, e=19), 64), {"batch": 3}, target)
    assert len(few_bits.stages) == 2  # such a requantisation has no form on vectors


def test_a_convolution_in_front_of_a_reduction() -> None:
    """Its chain is stored: sums come in an order of their own."""
    b = Builder("pooled")
    b.output(b.emit(ReduceSum((1,), True), convolution(b)))
    assert len(check_graph(b.finish(), {"batch": 2}).stages) == 2


def test_what_two_reductions_read_is_stored() -> None:
    b = Builder("two")
    y = requantized(b, int16(b, "x", B, 9, 64), Requantize(-127, 127, "int8"), [2**30 + 1], [38])
    b.output(b.emit(ReduceSum((1,), False), y))
    b.output(b.emit(ReduceMax((1,), False), y))
    assert len(check_graph(b.finish(), {"batch": 2}).stages) == 3


@pytest.mark.parametrize("target", {NATIVE[0], NATIVE[-1]}, ids=lambda t: t.name)
def test_a_convolution_with_what_follows(target: object) -> None:
    b = Builder("convolution")
    for options in (
        {}, {"dtype": "uint8", "size": 12, "stride": 2}, {"dtype": "int8", "size": 3}, {"kernel": 2},
        {"kernel": 5, "size": 11}, {"symbolic": True}, {"channels": 8}, {"channels": 120, "size": 4},
    ):  # fmt: skip
        b.output(convolution(b, **options))  # type: ignore[arg-type]
    lowered = check_graph(b.finish(), {"batch": 2, "height": 5, "width": 6}, target)
    assert len(lowered.stages) == 8 + 1, lowered.stages  # one for the padding


def test_a_convolution_alone_and_two_that_are_added() -> None:
    """Sums that are stored, and a row repeated over them, which no channel has for itself."""
    b = Builder("sums")
    x = b.input("x", TensorType((B, 6, 6, 64), "int8"))
    first, second = (
        b.emit(GroupedConv((1, 1), (1, 1), 64), x, b.constant("w", ints(-9, 9, (3, 3, 1, 64), np.int8)))
        for _ in range(2)
    )
    b.output(b.emit(Add(), first, second))
    third = b.emit(GroupedConv((1, 1), (1, 1), 64), x, b.constant("w", ints(-9, 9, (3, 3, 1, 64), np.int8)))
    b.output(b.emit(Add(), third, b.input("row", TensorType((4, 1), "int32", -9, 9))))
    assert len(check_graph(b.finish(), {"batch": 2}).stages) == 4


@pytest.mark.parametrize("chain", [activation, residual, gate, energy, largest])
def test_a_chain_in_c(chain: Callable[[Builder, int], str], tmp_path: Path) -> None:
    check_c(bound(made(chain, 5), {"batch": 2}), tmp_path)


def test_what_others_read_is_stored() -> None:
    """Values with two readers, outputs, and those whose reader has more elements or another order."""
    b = Builder("stored")
    x, narrow = int16(b, "x", B, 1, 32), Clip(-99, 99, "int16")
    twice = b.emit(narrow, x)
    shown = b.emit(Add(), twice, twice)
    repeated = b.emit(Clip(-9, 9, "int8"), shown)
    b.output(shown)
    b.output(b.emit(Add(), repeated, int16(b, "y", B, 4, 32)))
    turned = b.emit(
        Transpose((0, 2, 1)), b.emit(narrow, b.input("z", TensorType((B, 3, 32), "int16", -999, 999)))
    )
    b.output(b.emit(Clip(-5, 5, "int16"), turned))
    assert len(check_graph(b.finish(), {"batch": 2}).stages) == 7


def test_a_leaf_read_in_two_ways() -> None:
    """Before the reshape a row for each sample, behind it the whole."""
    b = Builder("twice")
    x = b.input("x", TensorType((6, 32), "int16", -999, 999))
    y = b.emit(Clip(-500, 500, "int16"), b.emit(Add(), x, b.constant("row", ints(-99, 99, 32, np.int16))))
    y = b.emit(Reshape((2, 3, 32)), y)
    b.output(b.emit(Sub(), y, b.emit(Reshape((2, 3, 32)), x)))
    assert len(check_graph(b.finish(), {}).stages) == 1


def test_kernels_are_shared_where_the_code_is_the_same() -> None:
    """The usual form, 16-bit lanes, and one element after the other."""
    b = Builder("forms")
    x = int16(b, "x", B, 64)
    op = Requantize(-127, 127, "int8")
    for m, e in (([2**30 + 1], [39]), ([2**30 + 3], [39]), ([5 << 3], [18]), ([3], [9])):
        b.output(b.emit(Clip(-99, 99, "int8"), requantized(b, x, op, m, e)))
    lowered = check_graph(b.finish(), {"batch": 2})
    assert len({kernel for kernel, _, _ in lowered.stages}) == 3
