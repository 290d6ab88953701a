"""The scalar formulas, exhaustively; and the proof by intervals that their intermediates fit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intc.errors import QuantizationError
from intc.ops import scalar
from intc.ops.gelu import Gelu
from intc.ops.integer_math import bit_length, isqrt
from intc.ops.intervals import Interval, Intervals
from intc.ops.scalar import EXACT

INT16 = np.arange(-32768, 32768)
BITS32 = Intervals(32)
GELU_FRACS, SIGMOID_FRACS, TANH_FRACS = range(4, 15), range(4, 16), range(5, 16)


# ---------------------------------------------------------------- exhaustive


def test_reciprocal_over_its_whole_domain() -> None:
    d = np.arange(2**15, 2**16 + 1)
    r = scalar.reciprocal_1_2(EXACT, d)  # the assumed ranges are asserted inside
    assert np.abs(r - 2**30 / d).max() < 2.0
    assert r.min() >= 2**14 - 2
    assert r.max() <= 2**15


def test_exp2_over_its_whole_domain() -> None:
    t = np.arange(0, 2**20)
    y = scalar.exp2_neg(EXACT, t)
    assert np.abs(y / 2**15 - 2.0 ** (-t / 2**15)).max() < 0.0024
    assert np.abs(y[: 2**15] / 2**15 / 2.0 ** (-t[: 2**15] / 2**15) - 1).max() < 0.003
    assert np.diff(y).max() <= 1, "never rises by more than the last bit"
    whole = np.arange(0, 32)
    assert np.array_equal(scalar.exp2_neg(EXACT, whole << 15), 2**15 >> whole)


@pytest.mark.parametrize("frac", GELU_FRACS)
def test_gelu_over_all_int16(frac: int) -> None:
    y = scalar.gelu(EXACT, INT16, frac) / 2.0 ** (frac + 15)
    x = INT16 / 2.0**frac
    want = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x.tolist()])
    assert np.abs(y - want).max() <= max(7e-4, 2.0**-frac)
    assert y[INT16 == 0] == 0


@pytest.mark.parametrize("frac", SIGMOID_FRACS)
def test_sigmoid_over_all_int16(frac: int) -> None:
    y = scalar.sigmoid(EXACT, INT16, frac)
    assert np.abs(y / 2**15 - 0.5 * (1 + np.tanh(INT16 / 2.0 ** (frac + 1)))).max() <= 8e-4
    assert np.array_equal(y[INT16 > 0], 2**15 - y[1:][INT16[1:] < 0][::-1]), "mirrored exactly"


@pytest.mark.parametrize("frac", TANH_FRACS)
def test_tanh_over_all_int16(frac: int) -> None:
    y = scalar.tanh(EXACT, INT16, frac)
    assert np.abs(y / 2**15 - np.tanh(INT16 / 2.0**frac)).max() <= 1.5e-3


@pytest.mark.parametrize("kind", scalar.GELU_UNITS)
@pytest.mark.parametrize("frac", range(4, 13))
def test_poly_gelu_over_all_int16(kind: str, frac: int) -> None:
    unit = scalar.GELU_UNITS[kind] * 2.0**-frac
    y = scalar.poly_gelu(EXACT, INT16, frac, kind) * unit  # the assumed ranges are asserted inside
    want = Gelu(kind).evaluate((INT16 * unit).astype(np.float32), sizes={})
    bound = {"quick": 14e-4, "silu": 6e-4, "hard": 0.0}.get(kind, 2.2e-4)
    assert np.abs(y - want).max() <= bound + 0.51 * unit


# ---------------------------------------------------------------- proofs


@pytest.mark.parametrize("kind", scalar.GELU_UNITS)
@pytest.mark.parametrize("frac", range(4, 13))
def test_poly_gelu_stays_within_16_bits(kind: str, frac: int) -> None:
    proven = scalar.poly_gelu(Intervals(16), Interval(-32767, 24000, 16), frac, kind)
    actual = scalar.poly_gelu(EXACT, np.arange(-32767, 24001), frac, kind)
    assert proven.lo <= actual.min() <= actual.max() <= proven.hi


@pytest.mark.parametrize("frac", GELU_FRACS)
def test_gelu_stays_within_32_bits(frac: int) -> None:
    proven = scalar.gelu(BITS32, Interval(-32768, 32767), frac)
    actual = scalar.gelu(EXACT, INT16, frac)
    assert proven.lo <= actual.min() <= actual.max() <= proven.hi


@pytest.mark.parametrize("formula", ["sigmoid", "tanh"])
def test_sigmoid_and_tanh_stay_within_32_bits(formula: str) -> None:
    for frac in SIGMOID_FRACS if formula == "sigmoid" else TANH_FRACS:
        proven = getattr(scalar, formula)(BITS32, Interval(-32768, 32767), frac)
        actual = getattr(scalar, formula)(EXACT, INT16, frac)
        assert proven.lo <= actual.min() <= actual.max() <= proven.hi


def test_exp2_and_reciprocal_stay_within_32_bits() -> None:
    assert scalar.exp2_neg(BITS32, Interval(0, 2**31 - 1)) == Interval(0, 32768)
    proven = scalar.reciprocal_1_2(BITS32, Interval(2**15, 2**16))
    assert proven.lo <= 16382
    assert proven.hi == 32768


def test_requantize_stays_within_64_bits_for_every_multiplier() -> None:
    top = 2**31 - 1
    x, m, e = Interval(-top, top, 64), Interval(-top, top, 64), Interval(1, 62, 64)
    assert scalar.requantize(Intervals(64), x, m, e, -128, 127) == Interval(-128, 127, 64)


def test_an_overflow_is_refused_with_its_bound() -> None:
    with pytest.raises(QuantizationError, match="4294836225"):
        Interval(0, 65535) * Interval(0, 65535)
    with pytest.raises(QuantizationError, match="beyond 32 bits"):
        scalar.sigmoid(BITS32, Interval(0, 2**18), 11)
    with pytest.raises(QuantizationError, match="shift"):
        Interval(0, 1) << Interval(0, 32)


# ---------------------------------------------------------------- the interval algebra itself

bounds = st.tuples(st.integers(-5000, 5000), st.integers(-5000, 5000)).map(sorted)


@given(bounds, bounds, st.integers(0, 12), st.data())
@settings(deadline=None, max_examples=150)
def test_every_operator_contains_its_results(a: list[int], b: list[int], n: int, data: st.DataObject) -> None:
    x, y = data.draw(st.integers(*a)), data.draw(st.integers(*b))
    left, right = Interval(*a), Interval(*b)
    mask = (1 << n) - 1

    def holds(result: Any, value: int) -> None:
        assert result.lo <= value <= result.hi

    holds(left + right, x + y)
    holds(left - right, x - y)
    holds(7 - left, 7 - x)
    holds(left * right, x * y)
    holds(left * left, x * x)
    holds(left >> n, x >> n)
    holds(left << n, x << n)
    holds(left >> Interval(0, n), x >> data.draw(st.integers(0, n)))
    holds(left & mask, x & mask)
    holds(BITS32.minimum(left, right), min(x, y))
    holds(BITS32.maximum(left, right), max(x, y))
    holds(BITS32.maximum(left, 0 - left), abs(x))
    holds(BITS32.where(left >= right, left, right), x if x >= y else y)
    holds(BITS32.where(left < right, left, right), x if x < y else y)
    for condition, truth in (
        (left < right, x < y),
        (left <= right, x <= y),
        (left > right, x > y),
        (left >= right, x >= y),
    ):
        assert condition.may_hold if truth else condition.may_fail


# ---------------------------------------------------------------- roots and lengths


@given(st.lists(st.integers(0, 2**62 - 1), min_size=1, max_size=40))
@settings(deadline=None, max_examples=100)
def test_isqrt_and_bit_length_are_exact(values: list[int]) -> None:
    near = [
        v
        for r in values
        for k in [math.isqrt(r)]
        for v in (k * k, max(k * k - 1, 0), k * k + 2 * k)
        if v < 2**62
    ]
    array = np.array(values + near, np.int64)
    assert isqrt(array).tolist() == [math.isqrt(v) for v in array.tolist()]
    assert bit_length(array).tolist() == [v.bit_length() for v in array.tolist()]


def test_isqrt_of_small_and_extreme_values() -> None:
    array = np.array([*range(70000), 2**62 - 1, (2**31 - 1) ** 2, (2**31 - 1) ** 2 - 1, 2**60], np.int64)
    assert isqrt(array).tolist() == [math.isqrt(v) for v in array.tolist()]
