"""Vectors of int32 in TIR: loads, stores, the algebra of :mod:`intc.ops.scalar` and 64-bit requantisation.

Every operator binds its result to a fresh variable, so that a formula that uses a value twice computes it
once.
"""

from __future__ import annotations

from typing import Any

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T


def const(value: int, lanes: int, dtype: str = "int32") -> Any:
    """``value`` in every lane."""
    scalar = tir.IntImm(dtype, value)
    return scalar if lanes == 1 else tir.Broadcast(scalar, lanes)


def ramp(base: Any, lanes: int) -> Any:
    """Index of ``lanes`` consecutive elements from ``base``."""
    return base if lanes == 1 else tir.Ramp(base, 1, lanes)


def typed(dtype: str, lanes: int) -> str:
    """Name of the vector type."""
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def buffer(pointer: Any, dtype: str) -> Any:
    """A flat view of the memory at ``pointer`` with elements of ``dtype``; views of one pointer may alias."""
    return T.decl_buffer((1 << 30,), dtype, data=pointer, layout=None)


def stack(elements: int, dtype: str) -> Any:
    """A buffer on the stack, of less than 1 KiB (beyond that TVM would allocate it on the heap)."""
    return T.alloc_buffer((elements,), dtype, scope="global", layout=None)


def register(lanes: int) -> Any:
    """One int32 vector on the stack, element 0 of its buffer, which LLVM keeps in a register."""
    return stack(1, typed("int32", lanes))


def pointer(name: str, dtype: str) -> Any:
    """A kernel parameter: address of elements of ``dtype``."""
    return T.arg(name, T.handle(dtype))


def prefetch(buf: Any, index: Any) -> None:
    """Bring the cache line of ``buf[index]`` into the second-level cache; any address is safe."""
    read, second_level, data = (tir.IntImm("int32", v) for v in (0, 2, 1))
    address = T.address_of(buf[index])
    T.evaluate(T.call_llvm_intrin("void", "llvm.prefetch", address, read, second_level, data))


class Vec:
    """An int32 vector (or scalar, ``lanes`` 1) with the operators that scalar formulas use."""

    __slots__ = ("expr", "lanes")

    def __init__(self, expr: Any, lanes: int) -> None:
        self.expr = T.Bind(expr)
        self.lanes = lanes

    def _of(self, other: Any) -> Any:
        if isinstance(other, Vec):
            return other.expr
        return const(int(other), self.lanes)

    def __add__(self, other: Any) -> Vec:
        return Vec(self.expr + self._of(other), self.lanes)

    def __radd__(self, other: Any) -> Vec:
        return Vec(self._of(other) + self.expr, self.lanes)

    def __sub__(self, other: Any) -> Vec:
        return Vec(self.expr - self._of(other), self.lanes)

    def __rsub__(self, other: Any) -> Vec:
        return Vec(self._of(other) - self.expr, self.lanes)

    def __mul__(self, other: Any) -> Vec:
        return Vec(self.expr * self._of(other), self.lanes)

    def __rmul__(self, other: Any) -> Vec:
        return Vec(self._of(other) * self.expr, self.lanes)

    def __lshift__(self, other: Any) -> Vec:
        return Vec(T.shift_left(self.expr, self._of(other)), self.lanes)

    def __rshift__(self, other: Any) -> Vec:
        return Vec(T.shift_right(self.expr, self._of(other)), self.lanes)

    def __and__(self, other: Any) -> Vec:
        return Vec(T.bitwise_and(self.expr, self._of(other)), self.lanes)

    def __or__(self, other: Any) -> Vec:
        return Vec(T.bitwise_or(self.expr, self._of(other)), self.lanes)

    def __ge__(self, other: Any) -> Any:
        return tir.GE(self.expr, self._of(other))

    def clip(self, lo: int, hi: int) -> Vec:
        """The value limited to [lo, hi]."""
        return TIR.minimum(TIR.maximum(self, lo), hi)


class TirAlgebra:
    """The algebra of :mod:`intc.ops.scalar` over :class:`Vec`: the life of a formula as kernel code."""

    def where(self, condition: Any, a: Any, b: Any) -> Vec:
        some = a if isinstance(a, Vec) else b
        return Vec(tir.Select(condition, some._of(a), some._of(b)), some.lanes)

    def minimum(self, a: Any, b: Any) -> Vec:
        some = a if isinstance(a, Vec) else b
        return Vec(tir.Min(some._of(a), some._of(b)), some.lanes)

    def maximum(self, a: Any, b: Any) -> Vec:
        some = a if isinstance(a, Vec) else b
        return Vec(tir.Max(some._of(a), some._of(b)), some.lanes)

    def assume(self, value: Vec, lo: int, hi: int) -> Vec:
        return value


TIR = TirAlgebra()


def load(buf: Any, base: Any, lanes: int, dtype: str) -> Vec:
    """``lanes`` elements of ``buf`` (of ``dtype``) from ``base``, widened to int32."""
    value = buf[ramp(base, lanes)]
    return Vec(value if dtype == "int32" else T.cast(value, typed("int32", lanes)), lanes)


def load_broadcast(buf: Any, index: Any, lanes: int) -> Vec:
    """The int32 element at ``index`` in every lane."""
    return Vec(tir.Broadcast(buf[index], lanes), lanes)


def store(buf: Any, base: Any, value: Vec, dtype: str) -> None:
    """Narrow ``value`` to ``dtype`` (it must fit) and store it at ``base``."""
    expr = value.expr if dtype == "int32" else T.cast(value.expr, typed(dtype, value.lanes))
    T.buffer_store(buf, expr, [ramp(base, value.lanes)])


def shuffle(vectors: list[Any], indices: list[int]) -> Any:
    """The lanes ``indices`` of the concatenation of ``vectors`` (expressions of one type)."""
    return T.Bind(tir.Shuffle(vectors, [tir.IntImm("int32", i) for i in indices]))


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
