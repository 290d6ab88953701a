"""The ``shift`` operators in exact rational terms, their masks, ties and refusals."""

from __future__ import annotations

from fractions import Fraction
from math import floor, isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import symbol
from intc.ir.types import TensorType
from intc.ops import scalar
from intc.ops.intervals import Interval, Intervals
from intc.ops.shift import ShiftGelu, ShiftLayerNorm, Shiftmax, ShiftSigmoid, ShiftTanh

RNG = np.random.default_rng(4)


def exp2_one(t: int) -> int:
    r = t % 32768
    p = 32768 - floor(
        Fraction(r * (scalar.EXP2_A_Q15 - floor(Fraction(scalar.EXP2_B_Q15 * r, 32768))), 32768)
    )
    return p >> min(t // 32768, 31)


def shiftmax_row(row: list[int], keep: list[bool], m: int, e: int, bits: int) -> list[int]:
    if not any(keep):
        return [0] * len(row)
    top = max(x for x, k in zip(row, keep, strict=True) if k)
    octaves = [min(floor(Fraction((top - x) * m, 2**e) + Fraction(1, 2)), 2**20 - 1) for x in row]
    weights = [exp2_one(t) if k else 0 for t, k in zip(octaves, keep, strict=True)]
    total = sum(weights)
    nb = total.bit_length()
    factor = floor(Fraction(2 ** (15 + nb) - 1, total))
    assert 16 <= nb <= 31
    assert factor < 2**16
    shift, limit = (7 + nb, 255) if bits == 8 else (nb, 32767)
    assert all(w * factor < 2**31 for w in weights)
    return [min(floor(Fraction(w * factor, 2**shift) + Fraction(1, 2)), limit) for w in weights]


@given(
    st.lists(st.tuples(st.integers(-(2**30), 2**30 - 1), st.booleans()), min_size=1, max_size=30),
    st.integers(0, 2**31 - 1),
    st.integers(1, 62),
    st.sampled_from([8, 16]),
    st.integers(0, 30),
)
@settings(deadline=None, max_examples=150)
def test_shiftmax_is_its_definition(
    row: list[tuple[int, bool]], m: int, e: int, bits: int, narrow: int
) -> None:
    x, keep = [v >> narrow for v, _ in row], [k for _, k in row]
    op = Shiftmax(m, e, bits)
    got = op.evaluate(np.array(x, np.int32), np.array(keep), sizes={})
    assert got.dtype == (np.uint8 if bits == 8 else np.int16)
    assert got.tolist() == shiftmax_row(x, keep, m, e, bits)
    assert op.evaluate(np.array(x, np.int32), sizes={}).tolist() == shiftmax_row(
        x, [True] * len(x), m, e, bits
    )


@pytest.mark.parametrize("length", [1, 2, 255, 65535])
@pytest.mark.parametrize("bits", [8, 16])
def test_equal_scores_share_the_row(length: int, bits: int) -> None:
    p = Shiftmax(2**30, 20, bits).evaluate(np.full((1, length), -9, np.int32), sizes={})
    steps, limit = (256, 255) if bits == 8 else (32768, 32767)
    assert abs(int(p[0, 0]) - min(steps / length, limit)) <= 0.51
    assert np.all(p == p[0, 0])


def test_the_widest_rows_normalise_within_32_bits() -> None:
    """The kernel's products: unsigned 32 bits hold E*F plus the rounding half for every length of the sum."""
    for nb in range(16, 32):
        factor = (2 ** (15 + nb) - 1) // 2 ** (nb - 1)
        assert factor < 2**16
        assert 2**15 * factor < 2**31
        assert 2**15 * factor + 2 ** (nb - 1) < 2**32
        assert 7 + nb >= 32 or 2**15 * factor + 2 ** (6 + nb) < 2**32


def test_shiftmax_proofs() -> None:
    distance = Interval(0, 2**31 - 1, 64)
    octaves = scalar.requantize(
        Intervals(64), distance, Interval(0, 2**31 - 1, 64), Interval(1, 62, 64), 0, 2**20 - 1
    )
    weights = scalar.exp2_neg(Intervals(32), Interval(octaves.lo, octaves.hi))
    assert weights == Interval(0, 32768)
    assert 65535 * weights.hi < 2**31


def test_shiftmax_refuses() -> None:
    x = TensorType((2, symbol("seq")), "int32", -(2**20), 2**20)
    assert Shiftmax(1, 1, 16).infer(x).interval == (0, 32767)
    with pytest.raises(QuantizationError, match="65535"):
        Shiftmax(1, 1, 8).infer(TensorType((65536,), "int8"))
    with pytest.raises(QuantizationError, match="31 bits"):
        Shiftmax(1, 1, 8).infer(TensorType((4,), "int32"))
    with pytest.raises(GraphError, match="mask"):
        Shiftmax(1, 1, 8).infer(TensorType((2, 4), "int32", 0, 9), TensorType((3, 2, 4), "bool"))


# ---------------------------------------------------------------- layer norm


def norm_row(row: list[int], g: list[int], b: list[int], eps_q: int, e: int) -> list[int]:
    channels = len(row)
    total = sum(row)
    sd = isqrt(channels * sum(x * x for x in row) - total * total + eps_q)
    nb = sd.bit_length()
    factor = floor(Fraction(2 ** (30 + nb) - 1, sd))
    assert 2**30 <= factor < 2**31
    out = []
    for x, gain, offset in zip(row, g, b, strict=True):
        d = channels * x - total
        assert abs(d) < 2**31
        z = floor(Fraction(d * factor, 2 ** (10 + nb)) + Fraction(1, 2))
        assert abs(z) <= 2**20 * (isqrt(channels) + 3)
        out.append(max(-32767, min(32767, floor(Fraction(z * gain + offset, 2**e)))))
    return out


@given(
    st.integers(1, 24).flatmap(
        lambda c: st.tuples(
            st.lists(st.integers(-32767, 32767), min_size=c, max_size=c),
            st.lists(st.integers(-(2**31) + 1, 2**31 - 1), min_size=c, max_size=c),
            st.lists(st.integers(-(2**61), 2**61), min_size=c, max_size=c),
        )
    ),
    st.one_of(st.integers(1, 9), st.integers(1, 2**60)),
    st.integers(32, 62),
    st.integers(0, 15),
)
@settings(deadline=None, max_examples=200)
def test_shift_layer_norm_is_its_definition(
    rows: tuple[list[int], list[int], list[int]], eps_q: int, e: int, narrow: int
) -> None:
    x, g, b = [v >> narrow for v in rows[0]], rows[1], rows[2]
    op = ShiftLayerNorm(eps_q, e, -32767, 32767, "int16")
    arrays = np.array(x, np.int16), np.array(g, np.int32), np.array(b, np.int64)
    op.infer(*(TensorType(a.shape, a.dtype.name, int(a.min()), int(a.max())) for a in arrays))
    assert op.evaluate(*arrays, sizes={}).tolist() == norm_row(x, g, b, eps_q, e)


@pytest.mark.parametrize("channels", [2, 3, 5, 64, 1024])
def test_one_outlier_is_the_widest_deviation(channels: int) -> None:
    """Rows with a single odd element reach sqrt(C - 1) deviations; the proof leaves room for them."""
    x = np.zeros((3, channels), np.int16)
    x[0, 0], x[1, 0], x[2, 0] = 1, 32767, -32767
    g, b = np.full(channels, 2**20, np.int32), np.full(channels, 2**39, np.int64)
    got = ShiftLayerNorm(1, 40, -32767, 32767, "int16").evaluate(x, g, b, sizes={})
    assert abs(int(got[1, 0]) - (channels - 1) ** 0.5) <= 0.51
    assert got.tolist() == [norm_row(r, g.tolist(), b.tolist(), 1, 40) for r in x.tolist()]


def test_a_constant_row_gives_beta() -> None:
    b = np.array([7 << 40, -(3 << 40), 0, 1 << 40])
    got = ShiftLayerNorm(1, 40, -128, 127, "int8").evaluate(
        np.full(4, 999, np.int16), np.full(4, 5), b, sizes={}
    )
    assert got.tolist() == [7, -3, 0, 1]


@pytest.mark.parametrize(
    ("x", "g", "eps_q", "e"),
    [
        (TensorType((2, 40000), "int16", -32767, 32767), 1, 1, 40),
        (TensorType((2, 8), "int16"), 1, 1, 40),
        (TensorType((2, 8), "int8"), 1, 0, 40),
        (TensorType((2, 8), "int8"), 1, 1, 31),
        (TensorType((2, 8), "int8"), 1, 2**61, 40),
    ],
)
def test_shift_layer_norm_refuses(x: TensorType, g: int, eps_q: int, e: int) -> None:
    channels = x.shape[-1]
    affine = TensorType((channels,), "int32", -g, g), TensorType((channels,), "int64", 0, 1)
    with pytest.raises(QuantizationError):
        ShiftLayerNorm(eps_q, e, -128, 127, "int8").infer(x, *affine)


# ---------------------------------------------------------------- pointwise


@pytest.mark.parametrize("op", [ShiftGelu, ShiftTanh, ShiftSigmoid])
def test_pointwise_refuses(op: type[ShiftGelu]) -> None:
    with pytest.raises(QuantizationError, match="32767"):
        op(10).infer(TensorType((2,), "int16"))
    with pytest.raises(GraphError, match="fraction bits"):
        op(40).infer(TensorType((2,), "int8"))
