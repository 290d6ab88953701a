"""The polynomial GELUs for registers of 32 bits: every rounding joined with the constants around it."""

from __future__ import annotations

from typing import Any

from intc.ops.scalar import POLY_GELU, Algebra


def short_poly_gelu(ns: Algebra, x: Any, frac: int, kind: str) -> Any:
    """``scalar.poly_gelu`` of ``x`` clipped to [-32767, 32767], for any ``x`` within 2**31 of 0.

    A step is one multiplication with addition and one shift, because ``(g*v + 2**14) >> 15`` plus a number is
    ``(g*v + 2**14 + 2**15 * number) >> 15``; so the last one takes in the scaling behind it.
    """
    span, scale, (g, *coefficients) = POLY_GELU[kind]
    magnitude = ns.minimum(ns.maximum(x, 0 - x), (1 << frac + span) - 1)
    v = ns.assume(magnitude * (1 << 16 - span - frac) - 32768, -32768, 32767)  # Q15
    for c in coefficients[:-1]:
        g = ns.assume((g * v + (16384 + (c << 15))) >> 15, -32768, 32767)
    down = 15 - (frac - scale)
    last = (g * v + (16384 + (coefficients[-1] << 15) + (1 << 14 + down))) >> 15 + down
    return ns.maximum(ns.minimum(x, 32767), 0) - ns.maximum(last, 0)
