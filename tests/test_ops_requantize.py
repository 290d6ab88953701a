"""Dyadic multipliers are exact roundings; requantisation, tables, windows and sums mean what they say."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import symbol
from intc.ir.types import TensorType
from intc.ops.dyadic import dyadic, dyadic_array
from intc.ops.im2col import Im2col
from intc.ops.reduce import ReduceSum
from intc.ops.requantize import Clip, Requantize
from intc.ops.table import Table

ratios = st.fractions(min_value=Fraction(1, 10**15), max_value=2**29).flatmap(
    lambda r: st.sampled_from([r, -r])
)
int32 = st.integers(-(2**31) + 1, 2**31 - 1)


@given(ratios)
@settings(deadline=None, max_examples=300)
def test_dyadic_is_the_nearest(ratio: Fraction) -> None:
    m, e = dyadic(ratio)
    assert 1 <= e <= 62
    assert abs(m) < 2**31
    assert abs(m) >= 2**30 or e == 62
    assert abs(ratio - Fraction(m, 2**e)) <= Fraction(1, 2 ** (e + 1))


@given(st.lists(st.floats(-(2.0**29), 2.0**29), min_size=1, max_size=30))
@settings(deadline=None, max_examples=200)
def test_dyadic_array_equals_dyadic(values: list[float]) -> None:
    m, e = dyadic_array(np.array(values))
    assert m.dtype == e.dtype == np.int32
    assert list(zip(m.tolist(), e.tolist(), strict=True)) == [dyadic(Fraction(v)) for v in values]


def test_dyadic_ties_and_carries() -> None:
    assert dyadic(Fraction(2**31 - 1, 2**31) + Fraction(1, 2**32)) == (
        2**30,
        30,
    )  # rounds up into the next power
    assert dyadic(Fraction(2**31 + 1, 2**32)) == (2**30 + 1, 31)  # a tie goes away from zero
    assert dyadic(Fraction(-(2**31) - 1, 2**32)) == (-(2**30) - 1, 31)
    assert dyadic(Fraction(1, 2**62)) == (1, 62)
    assert dyadic(Fraction(1, 2**64)) == (0, 62)
    assert dyadic(Fraction(2**30) - Fraction(1, 2)) == (2**31 - 1, 1)


@pytest.mark.parametrize("ratio", [Fraction(2**30), Fraction(-(2**31)), Fraction(2**30) - Fraction(1, 2**20)])
def test_a_ratio_without_a_dyadic_form_is_refused(ratio: Fraction) -> None:
    with pytest.raises(QuantizationError, match=r"2\^30"):
        dyadic(ratio)
    with pytest.raises(QuantizationError, match=r"2\^30"):
        dyadic_array(np.array([1.0, float(ratio)]))


@given(st.lists(st.tuples(int32, int32, st.integers(1, 62)), min_size=1, max_size=40))
@settings(deadline=None, max_examples=200)
def test_requantize_rounds_half_up_exactly(rows: list[tuple[int, int, int]]) -> None:
    x, m, e = (np.array(column) for column in zip(*rows, strict=True))
    op = Requantize(-(2**31), 2**31 - 1, "int32")
    want = [max(-(2**31), min(2**31 - 1, floor(Fraction(a * b, 2**c) + Fraction(1, 2)))) for a, b, c in rows]
    assert op.evaluate(x, m.astype(np.int32), e.astype(np.int32), sizes={}).tolist() == want


def test_requantize_ties_go_up_on_both_sides() -> None:
    x = np.arange(-5, 6)
    got = Requantize(-128, 127, "int8").evaluate(x, np.array([2**30]), np.array([31]), sizes={})
    assert got.tolist() == [-2, -2, -1, -1, 0, 0, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(
    ("x", "m", "e", "error"),
    [
        (
            TensorType((2, 4), "int32"),
            TensorType((1,), "int32", 1, 9),
            TensorType((1,), "int32", 1, 62),
            QuantizationError,
        ),
        (
            TensorType((2, 4), "int8"),
            TensorType((1,), "int32", 1, 9),
            TensorType((1,), "int32", 0, 62),
            QuantizationError,
        ),
        (
            TensorType((2, 4), "int8"),
            TensorType((1,), "int32", 1, 9),
            TensorType((1,), "int32", 1, 63),
            QuantizationError,
        ),
        (
            TensorType((2, 4), "int8"),
            TensorType((3,), "int32", 1, 9),
            TensorType((3,), "int32", 1, 62),
            GraphError,
        ),
    ],
)
def test_requantize_refuses(x: TensorType, m: TensorType, e: TensorType, error: type[Exception]) -> None:
    with pytest.raises(error):
        Requantize(-128, 127, "int8").infer(x, m, e)


def test_clip_narrows_the_interval() -> None:
    op = Clip(-10, 10, "int8")
    assert op.infer(TensorType((3,), "int16", -4, 400)).interval == (-4, 10)
    assert op.infer(TensorType((3,), "int16", 50, 60)).interval == (10, 10)
    assert op.evaluate(np.array([-400, 3, 55], np.int16), sizes={}).tolist() == [-10, 3, 10]


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_table_covers_every_value(dtype: str) -> None:
    lowest = np.iinfo(dtype).min
    x = np.arange(lowest, lowest + 256).astype(dtype)
    table = np.random.default_rng(0).permutation(256).astype(np.int16)
    assert np.array_equal(Table("int16").evaluate(x, table, sizes={}), table)


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(0, 2)] * 4),
    st.tuples(st.integers(1, 2), st.integers(1, 2)),
)
@settings(deadline=None, max_examples=60)
def test_im2col_takes_the_windows_of_a_convolution(
    kernel: tuple[int, int],
    strides: tuple[int, int],
    pads: tuple[int, int, int, int],
    dilations: tuple[int, int],
) -> None:
    x = np.random.default_rng(1).integers(-128, 128, (2, 3, 7, 6)).astype(np.int8)
    op = Im2col(kernel, strides, pads, dilations)
    windows = op.evaluate(x, sizes={})
    type_ = op.infer(TensorType((symbol("batch"), 3, 7, 6), "int8", 5, 90))
    assert type_.interval == ((0, 90) if any(pads) else (5, 90))
    assert windows.shape[1:] == type_.shape[1:]
    oh, ow = op.output_size(TensorType((2, 3, 7, 6), "int8"))
    for b, i, j, c, u, v in np.random.default_rng(2).integers(0, (2, oh, ow, 3, *kernel), (40, 6)):
        y = i * strides[0] + u * dilations[0] - pads[0]
        z = j * strides[1] + v * dilations[1] - pads[1]
        want = x[b, c, y, z] if 0 <= y < 7 and 0 <= z < 6 else 0
        assert windows[b, i, j, (c * kernel[0] + u) * kernel[1] + v] == want


def test_reduce_sum_proves_its_interval() -> None:
    op = ReduceSum((1,), False)
    assert op.infer(TensorType((2, 100), "int8", -3, 9)).interval == (-300, 900)
    assert op.evaluate(np.full((2, 100), 127, np.int8), sizes={}).tolist() == [12700, 12700]
    with pytest.raises(QuantizationError, match="32 bits"):
        op.infer(TensorType((2, 70000), "int16"))
    assert op.infer(TensorType((2, symbol("seq")), "int8", 0, 9)).interval == (0, 9 * 65535)
    with pytest.raises(QuantizationError, match="32 bits"):
        ReduceSum((0, 1), False).infer(TensorType((symbol("batch"), symbol("seq")), "int8"))
