"""The two kernels of every artifact that take feeds from, and give results to, arrays on the device.

They stand outside the network, and are free of floating point like everything else. The runtime knows their
names and parameters (:mod:`intc.runtime.cuda.boundary`).
"""

from __future__ import annotations

from typing import Final

TAKE: Final = """extern "C" __global__ void take_feed(
    const u8* from, u8* to, i64 count, i32 given, i32 wanted, u32 factor, i64 lo, i64 hi, u32* problems) {
  take(from, to, count, given, wanted, factor, lo, hi, problems);
}"""
GIVE: Final = """extern "C" __global__ void give_reals(
    const u8* from, u32* to, i64 rows, i64 columns, i32 given, const u64* scales, i32 stride, i64 least,
    u32 lowest) {
  give(from, to, rows, columns, given, scales, stride, least, lowest);
}"""
KERNELS: Final = {"take_feed": TAKE, "give_reals": GIVE}
