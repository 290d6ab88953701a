"""Quantisation and reals on the device, by integer operations alone: the bits of the host's float32."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest

from intc.artifact.schema import Port
from intc.runtime import feeds
from tests.emulated import build, host_source

SEED = 11

WRAPPER = """
extern "C" void quantise(const u8* x, i64* out, u8* bad, i64 n, i32 kind, u32 factor, i64 lo, i64 hi) {
  for (i64 i = 0; i < n; ++i) {
    bool finite;
    out[i] = quantised(real_at(x, i, kind), factor, lo, hi, finite);
    bad[i] = !finite;
  }
}
extern "C" void reals(const i32* x, u32* out, i64 n, const u64* scales) {
  for (i64 i = 0; i < n; ++i) out[i] = real_of(x[i], scales[i]);
}
"""


@pytest.fixture(scope="module")
def arithmetic() -> ctypes.CDLL:
    return ctypes.CDLL(str(build(host_source({}) + WRAPPER)))


@pytest.mark.parametrize("bits", [16, 32])
def test_quantisation_by_bits_is_that_of_the_host(arithmetic: ctypes.CDLL, bits: int) -> None:
    """All float16, and float32 of every exponent, ties of both roundings among them."""
    rng = np.random.default_rng(SEED)
    ties = np.ldexp(rng.integers(-(2**9), 2**9, 20_000) + 0.5, rng.integers(-3, 3, 20_000))
    drawn = rng.integers(0, 2**32, 200_000).astype(np.uint32).view(np.float32)
    near = rng.normal(0, 50, 200_000).astype(np.float32)
    x = np.concatenate([drawn, near, ties.astype(np.float32)])
    if bits == 16:
        x = np.arange(2**16).astype(np.uint16).view(np.float16)
    scales = [
        1.0,
        0.05,
        2.0**-126,
        2.0**126,
        1 / 3,
        1 - 2**-24,
        *np.ldexp(rng.uniform(1, 2, 8), range(-8, 8, 2)),
    ]
    for scale in map(float, scales):
        for lo, hi, dtype in ((-127, 127, "int8"), (0, 255, "uint8"), (-32768, 32767, "int16")):
            factor = np.float32(1.0 / scale)
            got, bad = np.zeros(x.size, np.int64), np.zeros(x.size, bool)
            args = (
                x.ctypes.data,
                got.ctypes.data,
                bad.ctypes.data,
                ctypes.c_int64(x.size),
                5 + 2 * (bits == 32),
            )
            edges = int(factor.view(np.uint32)), ctypes.c_int64(lo), ctypes.c_int64(hi)
            arithmetic.quantise(*(ctypes.c_void_p(a) for a in args[:3]), *args[3:], *edges)
            with np.errstate(over="ignore", invalid="ignore"):
                scaled = x.astype(np.float32) * factor
            np.testing.assert_array_equal(bad, ~np.isfinite(scaled))
            want = np.zeros(int((~bad).sum()), dtype)
            feeds.write(Port("x", (), dtype, scale, lo, hi), x[~bad], want)
            np.testing.assert_array_equal(got[~bad], want)


def test_reals_by_bits_are_those_of_the_host(arithmetic: ctypes.CDLL) -> None:
    rng = np.random.default_rng(SEED)
    n = 400_000
    x = (rng.integers(-(2**31), 2**31, n) >> rng.integers(0, 31, n)).astype(np.int32)
    scales = np.ldexp(rng.uniform(1, 2, n), rng.integers(-126, 126, n))
    scales[: n // 2] = scales[: n // 2].astype(np.float32)  # products that lie between two float32
    out = np.zeros(n, np.float32)
    at_x, at_out, at_scales = (ctypes.c_void_p(a.ctypes.data) for a in (x, out, scales))
    arithmetic.reals(at_x, at_out, ctypes.c_int64(n), at_scales)
    with np.errstate(over="ignore"):
        want = (x.astype(np.float64) * scales).astype(np.float32)
    np.testing.assert_array_equal(out.view(np.uint32), want.view(np.uint32))
