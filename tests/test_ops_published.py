"""The ``ivit``, ``ibert`` and ``lut`` operators against a direct transcription of the published formulas.

The transcription works on one Python integer or :class:`Fraction` at a time, with real divisions and floors
as the papers write them; it shares no code with the operators.
"""

from __future__ import annotations

from decimal import Decimal, getcontext
from fractions import Fraction
from math import exp, floor, isqrt

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from intc.errors import QuantizationError
from intc.ir.types import TensorType
from intc.ops.ibert import IbertGelu, IbertLayerNorm, IbertSoftmax
from intc.ops.ivit import IvitLayerNorm, IvitShiftGelu, IvitShiftmax
from intc.ops.lut import LutSoftmax

RNG = np.random.default_rng(20261123)
TOP = 2**31 - 1
ELEMENTS = 100_000


def over(a: int, b: int) -> int:
    """floor(a / b)."""
    return floor(Fraction(a, b))


def rows(lo: int, hi: int, length: int, count: int) -> list[list[int]]:
    """Rows of many positions and spreads within [lo, hi], some constant, some at the ends."""
    centre = RNG.integers(lo, hi + 1, (count, 1))
    spread = np.exp(RNG.uniform(0, np.log(hi - lo), (count, 1)))
    data = np.clip(np.rint(centre + RNG.normal(0, 1, (count, length)) * spread), lo, hi).astype(np.int64)
    data[0], data[1], data[2] = lo, hi, 0
    data[3, ::2], data[3, 1::2] = lo, hi
    return data.tolist()


# ---------------------------------------------------------------- I-ViT


def shift_exp(x: int, x0: int, n: int) -> int:
    x = x + over(x, 2) - over(x, 16)
    x = max(x, n * x0)
    q = over(x, x0)
    r = x - q * x0
    scaled = (Fraction(r, 2) - x0) * Fraction(2) ** (n - q)
    return max(floor(scaled), 0)


def shiftmax_row(row: list[int], scale: Fraction, bits: int) -> list[int]:
    x0 = floor(-1 / scale)
    top = max(row)
    e = [shift_exp(x - top, x0, 15) for x in row]
    factor = floor(Fraction(TOP, min(sum(e), TOP)))
    return [over(v * factor, 2 ** (31 - bits + 1)) for v in e]


def shift_gelu_row(row: list[int], scale: Fraction) -> list[int]:
    x0 = floor(-1 / (scale * Fraction(1702, 1000)))
    top, out = max(row), []
    base = shift_exp(-top, x0, 23)
    for x in row:
        e = shift_exp(x - top, x0, 23)
        factor = floor(Fraction(TOP, min(e + base, TOP)))
        out.append(x * over(e * factor, 2**24))
    return out


def ivit_norm_row(row: list[int], bias: list[int]) -> list[int]:
    mean = round(Fraction(sum(row), len(row)))  # ties to even
    y = [x - mean for x in row]
    variance, k = sum(v * v for v in y), 2**16
    for _ in range(10):
        k = over(k + over(variance, k), 2)
    factor = over(TOP, k)
    return [over(v * factor, 2) + b for v, b in zip(y, bias, strict=True)]


@pytest.mark.parametrize(
    ("scale", "bits", "limit"),
    [(0.05, 8, 127), (1 / 16, 8, 127), (1.5, 8, 127), (0.0003, 16, 32767), (0.3, 16, 127)],
)
def test_ivit_shiftmax(scale: float, bits: int, limit: int) -> None:
    data = rows(-limit - 1, limit, 50, ELEMENTS // 5 // 50)
    got = IvitShiftmax.from_scale(scale, bits).evaluate(np.array(data), sizes={})
    assert got.tolist() == [shiftmax_row(r, Fraction(scale), bits) for r in data]


@pytest.mark.parametrize(
    ("scale", "limit"),
    [(0.15, 127), (0.6, 127), (1 / 32, 127), (0.01, 127), (0.0004, 32767), (0.00003, 2000)],
)
def test_ivit_shift_gelu(scale: float, limit: int) -> None:
    data = rows(-limit - 1, limit, 40, ELEMENTS // 6 // 40 + 1)
    below = rows(-limit - 1, -1 - limit // 3, 40, 40)  # rows without a positive value: exponentials of x > 0
    got = IvitShiftGelu.from_scale(scale).evaluate(np.array(data + below), sizes={})
    assert got.tolist() == [shift_gelu_row(r, Fraction(scale)) for r in data + below]


@pytest.mark.parametrize("channels", [4, 6, 16, 64])
def test_ivit_layer_norm(channels: int) -> None:
    data = rows(-32767, 32767, channels, ELEMENTS // 4 // channels)
    bias = RNG.integers(-(2**29), 2**29, channels)
    got = IvitLayerNorm().evaluate(np.array(data, np.int16), bias.astype(np.int32), sizes={})
    assert got.tolist() == [ivit_norm_row(r, bias.tolist()) for r in data]


def test_the_mean_is_rounded_half_to_even() -> None:
    data = np.array([[0, 1], [1, 2], [-1, 0], [-2, -1], [2, 3]], np.int16)  # means 0.5 1.5 -0.5 -1.5 2.5
    y = IvitLayerNorm().evaluate(data, np.zeros(2, np.int32), sizes={})
    assert (y[:, 0] == 0).tolist() == [True, False, False, True, True]


# ---------------------------------------------------------------- I-BERT


def ibert_softmax_row(row: list[int], scale: Fraction, m: int, e: int) -> list[int]:
    a, b, c = Fraction("0.3585"), Fraction("1.353"), Fraction("0.344")
    ln2, top, weights = floor(Fraction("0.6931") / scale), max(row), []
    qb, qc = floor(b / scale), floor(c / (a * scale * scale))
    for x in row:
        z = over(-(x - top), ln2)
        p = (x - top) + z * ln2
        assert -ln2 < p <= 0
        exponent = min(e + z, 62)
        weights.append(min(floor(Fraction(((p + qb) ** 2 + qc) * m, 2**exponent) + Fraction(1, 2)), 32767))
    factor = floor(Fraction(2**32, sum(weights)))
    return [min(over(w * factor, 2**24), 255) for w in weights]


def ibert_gelu_one(x: int, scale: Fraction, n: int) -> int:
    a, b, erf_scale = Fraction("-0.2888"), Fraction("-1.769"), scale / Fraction("1.4142")
    qb, qc = floor(b / erf_scale), floor(1 / (a * erf_scale**2))
    sign = (x > 0) - (x < 0)
    value = sign * ((min(abs(x), -qb) + qb) ** 2 + qc)
    value = over(value, 2**n)
    return x * (value + floor(1 / (a * erf_scale**2 * 2**n)))


def ibert_norm_row(row: list[int], bias: list[int], shift: int) -> list[int]:
    y = [x - round(Fraction(sum(row), len(row))) for x in row]
    root = isqrt(sum(over(v, 2**shift) ** 2 for v in y)) * 2**shift
    factor = over(2**31, root) if root else over(2**31, 2**shift)
    return [min(over(v * factor, 2), 2**30) + b for v, b in zip(y, bias, strict=True)]


@pytest.mark.parametrize(
    ("scale", "limit"), [(0.05, 127), (0.002, 32767), (0.0001, 32767), (1e-6, 32767), (0.6, 127)]
)
def test_ibert_softmax(scale: float, limit: int) -> None:
    data = rows(-limit - 1, limit, 50, ELEMENTS // 5 // 50)
    op = IbertSoftmax.from_scale(scale)
    got = op.evaluate(np.array(data), sizes={})
    assert got.tolist() == [ibert_softmax_row(r, Fraction(scale), op.m, op.e) for r in data]
    assert abs(Fraction(op.m, 2**op.e) * (op.qb**2 + op.qc) - 32767) < 2
    op.infer(TensorType((50,), "int16"))


@pytest.mark.parametrize("scale", [0.05, 2.0**-8, 0.0003, 1e-5])
def test_ibert_gelu(scale: float) -> None:
    x = RNG.integers(-32768, 32768, ELEMENTS // 4)
    x[:5] = -32768, -1, 0, 1, 32767
    op = IbertGelu.from_scale(scale)
    s = Fraction(scale)
    assert op.evaluate(x, sizes={}).tolist() == [ibert_gelu_one(v, s, op.n) for v in x.tolist()]
    assert op.output_scale < 0
    assert op.n == 0 or IbertGelu(op.num, op.den, op.n - 1).gate_bound() * 32768 >= 2**31


@pytest.mark.parametrize("channels", [4, 6, 16, 64])
@pytest.mark.parametrize("shift", [0, 4])
def test_ibert_layer_norm(channels: int, shift: int) -> None:
    data = rows(-32767, 32767, channels, ELEMENTS // 8 // channels)
    bias = RNG.integers(-(2**29), 2**29, channels)
    got = IbertLayerNorm(shift).evaluate(np.array(data, np.int16), bias.astype(np.int32), sizes={})
    assert got.tolist() == [ibert_norm_row(r, bias.tolist(), shift) for r in data]


# ---------------------------------------------------------------- affine parameters, tables, masks


@given(
    st.lists(st.tuples(st.floats(0.1, 4.0), st.floats(-0.3, 0.3), st.booleans()), min_size=12, max_size=12)
)
@settings(deadline=None, max_examples=60)
def test_bias_of_the_published_layer_norms(rows_: list[tuple[float, float, bool]]) -> None:
    getcontext().prec = 60
    gamma = np.array([-g if negative else g for g, _, negative in rows_])
    beta = np.array([b for _, b, _ in rows_])
    for cls in (IvitLayerNorm, IbertLayerNorm):
        _, bias, scale = cls.from_affine(gamma, beta)
        unit = Decimal(12).sqrt() / 2**30
        assert bias.tolist() == [
            floor(Decimal(b) / Decimal(g) / unit) for g, b in zip(gamma, beta, strict=True)
        ]
        assert np.allclose(scale, gamma * np.sqrt(12) / 2**30, rtol=1e-15)


@pytest.mark.parametrize(("gamma", "beta"), [(0.0, 1.0), (0.1, 0.5), (np.nan, 0.0)])
def test_a_gamma_too_small_for_its_beta_is_refused(gamma: float, beta: float) -> None:
    with pytest.raises(QuantizationError, match=r"channel 1|not finite"):
        IvitLayerNorm.from_affine(np.array([1.0, gamma, 1.0, 1.0]), np.array([0.0, beta, 0.0, 0.0]))


@pytest.mark.parametrize("scale", [0.0, -1.0, np.inf, np.nan, 1e-30])
@pytest.mark.parametrize("op", [IvitShiftmax, IvitShiftGelu, IbertSoftmax, IbertGelu])
def test_a_scale_out_of_range_is_refused(op: type[IvitShiftmax], scale: float) -> None:
    with pytest.raises(QuantizationError, match="scale"):
        op.from_scale(scale)


def test_lut_table_is_the_rounded_exponential() -> None:
    table = LutSoftmax.table(0.07)
    assert table[0] == 2**15
    assert all(abs(int(v) - exp(-0.07 * i) * 2**15) <= 0.5 for i, v in enumerate(table))


@pytest.mark.parametrize("name", ["ivit", "ibert", "lut"])
def test_a_mask_leaves_the_rows_of_the_kept_scores(name: str) -> None:
    x = RNG.integers(-128, 128, (40, 30)).astype(np.int8)
    keep = RNG.random((40, 30)) < 0.5
    keep[0], keep[1] = False, True

    def run(scores: np.ndarray, *mask: np.ndarray) -> np.ndarray:
        if name == "lut":
            return LutSoftmax(8).evaluate(scores, LutSoftmax.table(0.04), *mask, sizes={})
        op = IvitShiftmax.from_scale(0.04) if name == "ivit" else IbertSoftmax.from_scale(0.04)
        return op.evaluate(scores, *mask, sizes={})

    got = run(x, keep)
    assert not got[~keep].any()
    for row, kept, result in zip(x, keep, got, strict=True):
        if kept.any():
            assert np.array_equal(result[kept], run(row[kept]))
