"""The attention kernel's own forms of formulas, over their whole domains."""

from __future__ import annotations

import ctypes

import numpy as np

from intc.ops import scalar
from tests.emulated import build, host_source

SOURCE = """
extern "C" void weigh(const u32* distances, u8* out, i32 count, i32 m, i32 shift) {
  const auto all = [&](const auto& weights) {
    for (i32 i = 0; i < count; i += 4) {
      u32 four[4];
      for (int j = 0; j < 4; ++j) four[j] = weights(distances[least(i + j, count - 1)]);
      const u32 bytes = round_weights(four);
      for (int j = 0; j < 4 && i + j < count; ++j) out[i + j] = (u8)(bytes >> j * 8);
    }
  };
  if (shift < -10) all(Weights<true>(m, shift));
  else all(Weights<false>(m, shift));
}
extern "C" i32 first_wrong_reciprocal() {
  for (i32 total = 1; total < 1 << 24; ++total)
    if (reciprocal(total) != (i32)(((1ll << (62 - __clz(total))) - 1) / total)) return total;
  return 0;
}
"""


def library() -> ctypes.CDLL:
    return ctypes.CDLL(str(build(host_source({"checks": SOURCE}))))


def test_weights_of_every_distance() -> None:
    """m and shift at their ends and between; distances up to the largest, and all where the bound lies."""
    code = library()
    for m in (0, 1, 9000, 16384, 20077, 32767):
        for shift in (-14, -11, -10, -3, 0, 1, 5, 16, 31):
            reach = np.arange(1 << 16, dtype=np.int64)
            ends = np.concatenate([reach << max(shift, 0), (reach << max(shift, 0)) - 1, 2**32 - 1 - reach])
            distances = np.unique(ends[(ends >= 0) & (ends < 2**32)])
            bounded = scalar.bounded_distance(scalar.EXACT, distances, shift)
            want = (scalar.exp2_weight(scalar.EXACT, bounded, m) + 64) >> 7
            given, got = distances.astype(np.uint32), np.empty(distances.size, np.uint8)
            code.weigh(
                given.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p), got.size, m, shift
            )
            assert np.array_equal(got, want), (m, shift)


def test_reciprocal_of_every_total() -> None:
    assert library().first_wrong_reciprocal() == 0
