"""Vectors of int32 in TIR: loads, stores, the algebra of :mod:`intc.ops.scalar` and 64-bit requantisation.

Every operator binds its result to a fresh variable, so that a formula that uses a value twice computes it
once.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T


def const(value: int, lanes: int, dtype: str = "int32") -> Any:
    """``value`` in every lane."""
    return spread(tir.IntImm(dtype, value), lanes)


def spread(value: Any, lanes: int) -> Any:
    """The expression ``value`` in every lane."""
    return value if lanes == 1 else tir.Broadcast(value, lanes)


def ramp(base: Any, lanes: int) -> Any:
    """Index of ``lanes`` consecutive elements from ``base``."""
    return base if lanes == 1 else tir.Ramp(base, 1, lanes)


def first_lanes(count: Any, lanes: int) -> Any:
    """Which lanes are among the first ``count``: bool x lanes."""
    return tir.LT(ramp(tir.IntImm("int32", 0), lanes), tir.Broadcast(count, lanes))


def typed(dtype: str, lanes: int) -> str:
    """Name of the vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def buffer(pointer: Any, dtype: str) -> Any:
    """A flat view of the memory at ``pointer`` with elements of ``dtype``; views of one pointer may alias."""
    return T.decl_buffer((1 << 30,), dtype, data=pointer, layout=None)


def stack(elements: int, dtype: str) -> Any:
    """A buffer on the stack, of less than 1 KiB (beyond that TVM would allocate it on the heap)."""
    return T.alloc_buffer((elements,), dtype, scope="global", layout=None)


def register(lanes: int, dtype: str = "int32") -> Any:
    """One vector on the stack, element 0 of its buffer, which LLVM keeps in a register."""
    return stack(1, typed(dtype, lanes))


def pointer(name: str, dtype: str) -> Any:
    """A kernel parameter: address of elements of ``dtype``."""
    return T.arg(name, T.handle(dtype))


def prefetch(buf: Any, index: Any) -> None:
    """Bring the cache line of ``buf[index]`` into the second-level cache; any address is safe."""
    read, second_level, data = (tir.IntImm("int32", v) for v in (0, 2, 1))
    address = T.address_of(buf[index])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, read, second_level, data))


class Vec:
    """A vector of int64, int32, int16 or int8 (a scalar: one lane) with the operators of formulas."""

    __slots__ = ("dtype", "expr", "lanes")

    def __init__(self, expr: Any, lanes: int, dtype: str = "int32") -> None:
        self.expr = T.Bind(expr)
        self.lanes = lanes
        self.dtype = dtype

    def _of(self, other: Any) -> Any:
        if isinstance(other, Vec):
            return other.expr
        return const(int(other), self.lanes, self.dtype)

    def _make(self, expr: Any) -> Vec:
        return Vec(expr, self.lanes, self.dtype)

    def __add__(self, other: Any) -> Vec:
        return self._make(self.expr + self._of(other))

    def __radd__(self, other: Any) -> Vec:
        return self._make(self._of(other) + self.expr)

    def __sub__(self, other: Any) -> Vec:
        return self._make(self.expr - self._of(other))

    def __rsub__(self, other: Any) -> Vec:
        return self._make(self._of(other) - self.expr)

    def __mul__(self, other: Any) -> Vec:
        return self._make(self.expr * self._of(other))

    def __rmul__(self, other: Any) -> Vec:
        return self._make(self._of(other) * self.expr)

    def __lshift__(self, other: Any) -> Vec:
        return self._make(T.shift_left(self.expr, self._of(other)))

    def __rshift__(self, other: Any) -> Vec:
        return self._make(T.shift_right(self.expr, self._of(other)))

    def __and__(self, other: Any) -> Vec:
        return self._make(T.bitwise_and(self.expr, self._of(other)))

    def __or__(self, other: Any) -> Vec:
        return self._make(T.bitwise_or(self.expr, self._of(other)))

    def __ge__(self, other: Any) -> Any:
        return tir.GE(self.expr, self._of(other))

    def __gt__(self, other: Any) -> Any:
        return tir.GT(self.expr, self._of(other))

    def clip(self, lo: int, hi: int) -> Vec:
        """The value limited to [lo, hi]."""
        return TIR.minimum(TIR.maximum(self, lo), hi)

    def cast(self, dtype: str) -> Vec:
        """The same numbers as elements of ``dtype``, which must hold them."""
        if dtype == self.dtype:
            return self
        return Vec(T.cast(self.expr, typed(dtype, self.lanes)), self.lanes, dtype)

    def saturated(self, lo: int, hi: int, dtype: str) -> Vec:
        """The value limited to [lo, hi], as ``dtype``.

        Limited to all of ``dtype`` first, which LLVM turns into saturating packs; the rest is narrow work.
        """
        if dtype not in ("int8", "int16") or dtype == self.dtype:
            return self.clip(lo, hi).cast(dtype)
        end = 127 if dtype == "int8" else 32767
        value = self.clip(-end - 1, end).cast(dtype)
        value = TIR.maximum(value, lo) if lo > -end - 1 else value
        return TIR.minimum(value, hi) if hi < end else value


class TirAlgebra:
    """The algebra of :mod:`intc.ops.scalar` over :class:`Vec`: the life of a formula as kernel code."""

    def where(self, condition: Any, a: Any, b: Any) -> Vec:
        some = a if isinstance(a, Vec) else b
        return some._make(tir.Select(condition, some._of(a), some._of(b)))

    def minimum(self, a: Any, b: Any) -> Vec:
        some = a if isinstance(a, Vec) else b
        return some._make(tir.Min(some._of(a), some._of(b)))

    def maximum(self, a: Any, b: Any) -> Vec:
        some = a if isinstance(a, Vec) else b
        return some._make(tir.Max(some._of(a), some._of(b)))

    def mulhrs(self, a: Vec, b: Any) -> Vec:
        wide = typed("int32", a.lanes)
        product = T.cast(a.expr, wide) * T.cast(a._of(b), wide) + const(16384, a.lanes)
        return a._make(T.cast(T.shift_right(product, const(15, a.lanes)), typed(a.dtype, a.lanes)))

    def assume(self, value: Vec, lo: int, hi: int) -> Vec:
        return value


class X86Algebra(TirAlgebra):
    """The same with the instruction for rounded products of int16 lanes (SSSE3, AVX2, AVX-512BW)."""

    def mulhrs(self, a: Vec, b: Any) -> Vec:
        if a.dtype != "int16" or a.lanes not in _MULHRS:
            return super().mulhrs(a, b)
        return a._make(T.call_llvm_pure_intrin(typed("int16", a.lanes), _MULHRS[a.lanes], a.expr, a._of(b)))


_MULHRS = {
    8: "llvm.x86.ssse3.pmul.hr.sw.128",
    16: "llvm.x86.avx2.pmul.hr.sw",
    32: "llvm.x86.avx512.pmul.hr.sw.512",
}
X86 = X86Algebra()
TIR = TirAlgebra()


def load(buf: Any, base: Any, lanes: int, dtype: str) -> Vec:
    """``lanes`` elements of ``buf`` (of ``dtype``) from ``base``, widened to int32."""
    value = buf[ramp(base, lanes)]
    return Vec(value if dtype == "int32" else T.cast(value, typed("int32", lanes)), lanes)


def load_some(buf: Any, base: Any, lanes: int, inside: Any) -> Vec:
    """The int32 elements of ``buf`` from ``base`` where ``inside`` (bool x lanes) holds, 0 elsewhere; no
    other memory is read.
    """
    name, kind = f"llvm.masked.load.v{lanes}i32.p0", typed("int32", lanes)
    return Vec(T.call_llvm_intrin(kind, name, T.address_of(buf[base]), inside, const(0, lanes)), lanes)


def load_broadcast(buf: Any, index: Any, lanes: int) -> Vec:
    """The int32 element at ``index`` in every lane."""
    return Vec(spread(buf[index], lanes), lanes)


def store(buf: Any, base: Any, value: Vec, dtype: str) -> None:
    """Narrow ``value`` to ``dtype`` (it must fit) and store it at ``base``."""
    T.buffer_store(buf, value.cast(dtype).expr, [ramp(base, value.lanes)])


def shuffle(vectors: list[Any], indices: list[int]) -> Any:
    """The lanes ``indices`` of the concatenation of ``vectors`` (expressions of one type)."""
    return T.Bind(tir.Shuffle(vectors, [tir.IntImm("int32", i) for i in indices]))


def transposed(rows: list[Any], lanes: int) -> list[Any]:
    """``lanes`` vectors of ``lanes`` elements, rows and columns exchanged (Eklundh: blocks of 1, 2, 4 ...
    swapped).
    """
    step = 1
    while step < lanes:
        low = [i if not i & step else lanes + i - step for i in range(lanes)]
        high = [i + step if not i & step else lanes + i for i in range(lanes)]
        new = list(rows)
        for i in (i for i in range(lanes) if not i & step):
            new[i] = shuffle([rows[i], rows[i + step]], low)
            new[i + step] = shuffle([rows[i], rows[i + step]], high)
        rows, step = new, 2 * step
    return rows


def woven(parts: list[Any], lanes: int) -> Any:
    """2 or 4 vectors of 8 or 16 bits as one of int32, each part in its own 16 or 8 bits, the first lowest."""
    bits = 32 // len(parts)
    wide = [T.Bind(T.cast(p, "int32" if lanes == 1 else f"int32x{lanes}")) for p in parts]
    word = Vec(wide[0], lanes) & ((1 << bits) - 1)
    for i, part in enumerate(wide[1:], 1):
        kept = Vec(part, lanes) if i == len(wide) - 1 else Vec(part, lanes) & ((1 << bits) - 1)
        word = word | (kept << (i * bits))
    return word.expr


def reduce_lanes(value: Any, lanes: int, combine: Callable[[Any, Any], Any] = operator.add) -> Any:
    """All lanes of ``value`` combined, halves with halves, as a scalar."""
    value = T.Bind(value)
    while lanes > 1:
        lanes //= 2
        halves = (shuffle([value], list(range(at, at + lanes))) for at in (0, lanes))
        value = T.Bind(combine(*halves))
    return value


class Multiplier:
    """int32 multipliers, prepared once for the high half of 64-bit products with many vectors."""

    def __init__(self, m: Vec, even_odd: bool) -> None:
        self.m, self.even_odd, self.lanes = m, even_odd, m.lanes
        if even_odd:
            self.half = f"int64x{m.lanes // 2}"
            # ashr(shl(_, 32), 32) is what LLVM moves next to the product, to see that 32 bits suffice
            high = [i | 1 for i in range(m.lanes)]
            self.even = self._split(m)[0]
            self.odd = self._split(Vec(shuffle([m.expr], high), m.lanes))[0]

    def _shift(self, value: Any, bits: int, left: bool) -> Any:
        by = const(bits, self.lanes // 2, "int64")
        return T.Bind(T.shift_left(value, by) if left else T.shift_right(value, by))

    def _split(self, x: Vec) -> tuple[Any, Any]:
        wide = T.Bind(T.reinterpret(self.half, x.expr))
        return self._shift(self._shift(wide, 32, True), 32, False), self._shift(wide, 32, False)

    def high(self, x: Vec) -> Vec:
        """``(x * m) >> 32``, exact in 64 bits."""
        if not self.even_odd:
            kind = typed("int64", self.lanes)
            product = T.cast(x.expr, kind) * T.cast(self.m.expr, kind)
            shifted = T.shift_right(product, const(32, self.lanes, "int64"))
            return Vec(T.cast(shifted, typed("int32", self.lanes)), self.lanes)
        even, odd = self._split(x)
        low_mask = const(0xFFFFFFFF, self.lanes // 2, "int64")
        high_mask = const(-(1 << 32), self.lanes // 2, "int64")
        low = T.bitwise_and(self._shift(T.Bind(even * self.even), 32, False), low_mask)
        high = T.bitwise_and(T.Bind(odd * self.odd), high_mask)
        return Vec(T.reinterpret(typed("int32", self.lanes), T.bitwise_or(low, high)), self.lanes)
