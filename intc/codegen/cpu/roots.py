"""Square roots and quotients of several int64 at once, by multiplications: Newton steps in 32-bit fixed point
come within a few units, and comparing exact products settles the rest.
"""

from __future__ import annotations

from typing import Any, Final

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.vector import TIR, Vec, const, typed
from intc.codegen.kernel import opaque

WORD: Final = 0xFFFFFFFF
STEPS: Final = 3
# 1/sqrt(x) ~ A - x*(B - C*x) in Q29 on [1/4, 1), within 2.5 % of it; three steps leave 2**-29 of it.
ROOT_A_Q29, ROOT_B_Q29, ROOT_C_Q29 = 1433893831, 1763812389, 879699408
# 1/x ~ 48/17 - 32/17 x in Q30 on [1/2, 1), within 1/17 of it; three steps from there, rounded down, leave at
# most 3 units too little (all x in Q31 were tried).
QUOTIENT_A_Q30, QUOTIENT_B_Q30 = 3031741621, 2021161080
QUOTIENT_SHORT: Final = 3


def _int64(value: Any, lanes: int) -> Vec:
    return Vec(opaque(value, typed("int64", lanes)), lanes, "int64")


def _times(a: Vec, b: Vec | int) -> Vec:
    """The product of numbers in [0, 2**32), each in 64 bits, for which x86 has an instruction."""
    return _int64(((a & WORD) * (b & WORD)).expr, a.lanes)


def square_root(v: Vec) -> tuple[Vec, Vec]:
    """``floor(sqrt(v))`` of int64 in [1, 2**62) and its bit length."""
    zeros = T.call_llvm_pure_intrin(typed("int64", v.lanes), "llvm.ctlz", v.expr, tir.IntImm("bool", 1))
    bits = 64 - _int64(zeros, v.lanes)
    even = (62 - bits) & ~1
    u = v << even  # in [2**60, 2**62)
    x = u >> 30  # in [1/4, 1) as Q32
    y = ROOT_A_Q29 - (_times(x, ROOT_B_Q29 - (_times(x, ROOT_C_Q29) >> 32)) >> 32)
    for _ in range(STEPS):
        y = _times(y, 3 * 2**29 - (_times(x, _times(y, y) >> 29) >> 32)) >> 30
    near = (_times(x, y) >> 30) - 8  # less than the root of u, by less than 16
    near = near + (_times((u - _times(near, near)) >> 8, y) >> 53)
    root = near >> (even >> 1)
    root = TIR.where(_times(root, root) > v, root - 1, root)
    above = root + 1
    return TIR.where(_times(above, above) > v, root, above), (bits + 1) >> 1


def normalised_quotient(d: Vec, bits: Vec) -> Vec:
    """``(2**(30 + bits) - 1) // d`` of int64 in [1, 2**31) with their bit lengths: in [2**30, 2**31)."""
    x = d << (31 - bits)
    q = QUOTIENT_A_Q30 - (_times(x, QUOTIENT_B_Q30) >> 31)
    for _ in range(STEPS):
        q = _times(q, 2**31 - 1 - (_times(x, q) >> 31)) >> 30
    one = _int64(const(1, d.lanes, "int64"), d.lanes)
    rest = (one << (30 + bits)) - 1 - _times(q, d)
    for _ in range(QUOTIENT_SHORT):
        more = rest >= d
        q, rest = (_int64(TIR.where(more, a, b).expr, d.lanes) for a, b in ((q + 1, q), (rest - d, rest)))
    return q
