"""Interval arithmetic: the third life of the scalar formulas, which proves that no intermediate overflows.

:class:`Intervals` is an :class:`intc.ops.scalar.Algebra` whose values are :class:`Interval`; every operator
yields an interval that contains all results of the integer operator and refuses one that leaves ``bits``
signed bits.

>>> from intc.ops import scalar
>>> scalar.gelu(Intervals(32), Interval(-32768, 32767), 10)
Interval(-1073741824, 1073709056)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from math import isqrt
from typing import Any, TypeAlias, Union

from intc.errors import QuantizationError

Operand: TypeAlias = Union["Interval", int]


def signed_bits(lo: int, hi: int) -> int:
    """The bits of the narrowest signed register that holds ``[lo, hi]``.

    >>> signed_bits(-128, 127), signed_bits(0, 128)
    (8, 9)
    """
    return max(hi.bit_length(), (-lo - 1).bit_length() if lo < 0 else 0) + 1


@dataclass(frozen=True)
class Condition:
    """What a comparison can come out as."""

    may_hold: bool
    may_fail: bool


@dataclass(frozen=True)
class Interval:
    """The integers ``lo .. hi``; ``bits`` is the signed width that every result derived from it must fit."""

    lo: int
    hi: int
    bits: int = 32
    negated: Interval | None = field(default=None, compare=False)  # the x that this is ``0 - x`` of
    seen: list[tuple[int, int]] | None = field(default=None, compare=False)  # where every result is noted

    def __post_init__(self) -> None:
        limit = 1 << (self.bits - 1)
        if self.lo > self.hi:
            raise QuantizationError(f"interval [{self.lo}, {self.hi}] is empty")
        if self.lo < -limit or self.hi >= limit:
            raise QuantizationError(
                f"an intermediate reaches [{self.lo}, {self.hi}], beyond {self.bits} bits"
            )
        if self.seen is not None:
            self.seen.append((self.lo, self.hi))

    def __repr__(self) -> str:
        return f"Interval({self.lo}, {self.hi})"

    def __add__(self, other: Operand) -> Interval:
        b = self._lift(other)
        return self._make(self.lo + b.lo, self.hi + b.hi)

    __radd__ = __add__

    def __neg__(self) -> Interval:
        return self._make(-self.hi, -self.lo)

    def __sub__(self, other: Operand) -> Interval:
        b = self._lift(other)
        return self._make(self.lo - b.hi, self.hi - b.lo)

    def __rsub__(self, other: Operand) -> Interval:
        if other == 0:
            return Interval(-self.hi, -self.lo, self.bits, self, self.seen)
        return self._lift(other) - self

    def __mul__(self, other: Operand) -> Interval:
        b = self._lift(other)
        # A value times itself is a square: the two factors are never of opposite sign.
        ends = [self.lo * self.lo, self.hi * self.hi] if b is self else self._corners(b, lambda x, y: x * y)
        if b is self and self.lo <= 0 <= self.hi:
            ends.append(0)
        return self._make(min(ends), max(ends))

    __rmul__ = __mul__

    def __rshift__(self, other: Operand) -> Interval:
        ends = self._corners(self._shift(other), lambda x, n: x >> n)
        return self._make(min(ends), max(ends))

    def __lshift__(self, other: Operand) -> Interval:
        ends = self._corners(self._shift(other), lambda x, n: x << n)
        return self._make(min(ends), max(ends))

    def __rrshift__(self, other: int) -> Interval:
        return self._lift(other) >> self

    def __rlshift__(self, other: int) -> Interval:
        return self._lift(other) << self

    def __and__(self, mask: int) -> Interval:
        """``mask`` is non-negative."""
        if (mask & (mask + 1)) == 0 and self.lo >= 0 and self.hi <= mask:
            return self
        return self._make(0, min(self.hi, mask) if self.lo >= 0 else mask)

    __rand__ = __and__

    def __lt__(self, other: Operand) -> Condition:
        b = self._lift(other)
        return Condition(self.lo < b.hi, self.hi >= b.lo)

    def __gt__(self, other: Operand) -> Condition:
        return self._lift(other) < self

    def __ge__(self, other: Operand) -> Condition:
        less = self < other
        return Condition(less.may_fail, less.may_hold)

    def __le__(self, other: Operand) -> Condition:
        return self._lift(other) >= self

    def join(self, other: Operand) -> Interval:
        """The smallest interval that contains both."""
        b = self._lift(other)
        return self._make(min(self.lo, b.lo), max(self.hi, b.hi))

    def _lift(self, value: Operand) -> Interval:
        if isinstance(value, Interval):
            return value
        return Interval(int(value), int(value), self.bits, seen=self.seen)

    def _make(self, lo: int, hi: int) -> Interval:
        return Interval(lo, hi, self.bits, seen=self.seen)

    def _shift(self, other: Operand) -> Interval:
        count = self._lift(other)
        if count.lo < 0 or count.hi >= self.bits:
            raise QuantizationError(f"a shift by [{count.lo}, {count.hi}] is outside 0..{self.bits - 1}")
        return count

    def _corners(self, other: Interval, apply: Any) -> list[int]:
        return [apply(x, y) for x, y in product((self.lo, self.hi), (other.lo, other.hi))]


class Intervals:
    """The algebra over :class:`Interval`; ``bits`` is the width that every intermediate must fit.

    ``row`` is the largest length of the rows that a formula sums, ``seen`` collects every intermediate.
    """

    def __init__(self, bits: int = 32, row: int = 1) -> None:
        self.bits, self.row = bits, row
        self.seen: list[tuple[int, int]] = []

    def interval(self, lo: int, hi: int) -> Interval:
        """``[lo, hi]``; QuantizationError where it does not fit the width."""
        return Interval(lo, hi, self.bits, seen=self.seen)

    def where(self, condition: Any, a: Operand, b: Operand) -> Interval:
        """Both branches joined, or the only one that can be taken."""
        left, right = self._lift(a), self._lift(b)
        if isinstance(condition, Condition) and not (condition.may_hold and condition.may_fail):
            return left if condition.may_hold else right
        return left.join(right)

    def minimum(self, a: Operand, b: Operand) -> Interval:
        left, right = self._lift(a), self._lift(b)
        return self.interval(min(left.lo, right.lo), min(left.hi, right.hi))

    def maximum(self, a: Operand, b: Operand) -> Interval:
        left, right = self._lift(a), self._lift(b)
        low = max(left.lo, right.lo)
        if left.negated is right or right.negated is left:  # max(x, 0 - x) is |x|
            low = max(low, 0)
        return self.interval(low, max(left.hi, right.hi))

    def mulhrs(self, a: Operand, b: Operand) -> Interval:
        """The product itself may take 32 bits: the instruction keeps it."""
        x, y = self._lift(a), self._lift(b)
        ends = [(i * j + 16384) >> 15 for i, j in product((x.lo, x.hi), (y.lo, y.hi))]
        return self.interval(min(ends), max(ends))

    def assume(self, value: Operand, lo: int, hi: int) -> Interval:
        """``value`` cut to ``[lo, hi]``: what the formula's author proved by an exhaustive test."""
        v = self._lift(value)
        return self.interval(max(v.lo, lo), min(v.hi, hi))

    def product(self, a: Operand, b: Operand, lo: int, hi: int) -> Interval:
        """``a * b`` cut to ``[lo, hi]``."""
        x, y = self._lift(a), self._lift(b)
        ends = [i * j for i, j in product((x.lo, x.hi), (y.lo, y.hi))]
        return self.interval(max(min(ends), lo), min(max(ends), hi))

    def floor_div(self, a: Operand, b: Operand) -> Interval:
        """``a // b``; QuantizationError where b may be 0."""
        x, y = self._lift(a), self._lift(b)
        if y.lo <= 0 <= y.hi:
            raise QuantizationError(f"a division by [{y.lo}, {y.hi}]")
        ends = [i // j for i, j in product((x.lo, x.hi), (y.lo, y.hi))]
        return self.interval(min(ends), max(ends))

    def bit_length(self, x: Operand) -> Interval:
        """The number of bits of x >= 0."""
        v = self._not_negative(x)
        return self.interval(v.lo.bit_length(), v.hi.bit_length())

    def isqrt(self, x: Operand) -> Interval:
        """The floor of the root of x >= 0, found by Newton steps from at most twice the root."""
        v = self._not_negative(x)
        self.interval(0, 2 << ((v.hi.bit_length() + 1) >> 1))
        return self.interval(isqrt(v.lo), isqrt(v.hi))

    def take(self, table: Operand, index: Operand) -> Interval:
        """Any entry of the table."""
        return self._lift(table)

    def size(self, x: Operand) -> int:
        """The length of the rows."""
        return self.row

    def row_sum(self, x: Operand) -> Interval:
        """The sum of up to ``row`` elements; all partial sums, in any order, lie in what is noted."""
        v = self._lift(x)
        self.interval(self.row * min(v.lo, 0), self.row * max(v.hi, 0))
        return self.interval(min(v.lo, self.row * v.lo), max(v.hi, self.row * v.hi))

    def row_max(self, x: Operand) -> Interval:
        """The largest element, or what stands for that of an empty row."""
        v = self._lift(x)
        return self.interval(min(v.lo, -(2**31)), v.hi) if self.bits > 32 else v

    def distance(self, x: Operand, keep: Any = None) -> Interval:
        """The largest element of a row is one of the row, so that no distance is negative."""
        v = self._lift(x)
        return self.interval(0, v.hi - v.lo)

    def _not_negative(self, x: Operand) -> Interval:
        v = self._lift(x)
        if v.lo < 0:
            raise QuantizationError(f"[{v.lo}, {v.hi}] may be negative")
        return v

    def _lift(self, value: Operand) -> Interval:
        return value if isinstance(value, Interval) else self.interval(int(value), int(value))
