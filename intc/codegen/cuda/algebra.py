"""The scalar formulas as CUDA C: an algebra (``intc.ops.scalar``) whose values are terms of a function.

Every result of ``where``, ``minimum``, ``maximum`` and ``assume`` is a variable, so that a formula which uses
a result twice computes it once; so is the product within ``mulhrs``. A term is 32 bits wide unless one of its
operands has 64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from intc.codegen.cuda.printer import literal

Operand: TypeAlias = Union["Term", int]


@dataclass(frozen=True)
class Term:
    """An expression of type i32, or i64 where ``wide``."""

    text: str
    wide: bool = False

    @property
    def type(self) -> str:
        return "i64" if self.wide else "i32"

    def widened(self) -> Term:
        """The same number in 64 bits."""
        return self if self.wide else Term(f"(i64){self.text}", True)

    def narrowed(self) -> Term:
        """The same number in 32 bits, which hold it."""
        return Term(f"(i32){self.text}") if self.wide else self

    def _with(self, other: Operand, operator: str, swapped: bool = False) -> Term:
        wide = self.wide or (isinstance(other, Term) and other.wide)
        text = other.text if isinstance(other, Term) else literal(other, "int64" if wide else "int32")
        left, right = (text, self.text) if swapped else (self.text, text)
        return Term(f"({left} {operator} {right})", wide)

    def __add__(self, other: Operand) -> Term:
        return self._with(other, "+")

    def __radd__(self, other: int) -> Term:
        return self._with(other, "+", True)

    def __sub__(self, other: Operand) -> Term:
        return self._with(other, "-")

    def __rsub__(self, other: int) -> Term:
        return self._with(other, "-", True)

    def __mul__(self, other: Operand) -> Term:
        return self._with(other, "*")

    def __rmul__(self, other: int) -> Term:
        return self._with(other, "*", True)

    def __rshift__(self, other: Operand) -> Term:
        return self._with(other, ">>")

    def __lshift__(self, other: Operand) -> Term:
        return self._with(other, "<<")

    def __rlshift__(self, other: int) -> Term:
        return self._with(other, "<<", True)

    def __and__(self, other: int) -> Term:
        return self._with(other, "&")

    def __ge__(self, other: Operand) -> Term:
        return self._with(other, ">=")


@dataclass(frozen=True)
class Rounded(Term):
    """``(product + 2**14) >> 15`` of two 16-bit values; a 16-bit summand joins the addition."""

    product: str = ""

    @staticmethod
    def of(product: str) -> Rounded:
        return Rounded(f"(({product} + 16384) >> 15)", product=product)

    def __add__(self, other: Operand) -> Term:
        if isinstance(other, int) and -32768 <= other < 32768:
            return Term(f"(({self.product} + {16384 + (other << 15)}) >> 15)")
        return super().__add__(other)

    __radd__ = __add__


@dataclass(frozen=True)
class Dyadic:
    """The rescaling of ``scalar.requantize`` prepared for many values, ``(x*m + start) >> e``; ``narrow``
    where the result has 32 bits before it is clipped.
    """

    m: Term
    start: Term
    e: Term
    narrow: bool

    @staticmethod
    def prepare(m: Term, e: Term, narrow: bool, bias: Term | None = None) -> Dyadic:
        """That of x + bias."""
        start = Term("1ll", True) << (e - 1)
        return Dyadic(m, start if bias is None else bias.widened() * m + start, e, narrow)

    def each(self, change: Callable[[Term], Term]) -> Dyadic:
        """The same with ``change`` applied to the terms."""
        return Dyadic(change(self.m), change(self.start), change(self.e), self.narrow)

    def apply(self, ns: Text, x: Term, lo: int, hi: int) -> Term:
        """The rescaled ``x`` in [lo, hi]."""
        shifted = (x.widened() * self.m + self.start) >> self.e
        clipped = ns.minimum(ns.maximum(shifted.narrowed() if self.narrow else shifted, lo), hi)
        return ns.bind(clipped.narrowed())


def is_narrow(reach: int, m: NDArray[Any], e: NDArray[Any]) -> bool:
    """Whether no x within ``reach`` of 0 leaves 32 bits when it is rescaled by any m / 2**e."""
    factors = zip(np.ravel(m).tolist(), np.ravel(e).tolist(), strict=True)
    return all((reach * abs(a) + (1 << b - 1)) >> b < 2**31 for a, b in factors)


def method(head: str, lines: Sequence[str]) -> str:
    """A member function of a kernel's struct."""
    body = "".join(f"    {line}\n" for line in lines)
    return f"  __device__ __forceinline__ {head} const {{\n{body}  }}\n"


class Text:
    """The algebra: ``lines`` are the statements so far."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def bind(self, value: Operand) -> Term:
        """A variable with this value."""
        term = value if isinstance(value, Term) else Term(literal(value, "int32"))
        name = f"t{len(self.lines)}"
        self.lines.append(f"const {term.type} {name} = {term.text};")
        return Term(name, term.wide)

    def where(self, condition: Term, a: Operand, b: Operand) -> Term:
        left, right, wide = self._pair(a, b)
        return self.bind(Term(f"({condition.text} ? {left} : {right})", wide))

    def minimum(self, a: Operand, b: Operand) -> Term:
        return self._of_two("least", a, b)

    def maximum(self, a: Operand, b: Operand) -> Term:
        return self._of_two("most", a, b)

    def mulhrs(self, a: Operand, b: Operand) -> Term:
        return Rounded.of(self.bind(a * b).text)

    def assume(self, value: Operand, lo: int, hi: int) -> Term:
        return value if isinstance(value, Rounded) else self.bind(value)

    def _of_two(self, function: str, a: Operand, b: Operand) -> Term:
        left, right, wide = self._pair(a, b)
        return self.bind(Term(f"{function}<{'i64' if wide else 'i32'}>({left}, {right})", wide))

    def _pair(self, a: Operand, b: Operand) -> tuple[str, str, bool]:
        wide = any(isinstance(x, Term) and x.wide for x in (a, b))
        left, right = (
            x.text if isinstance(x, Term) else literal(x, "int64" if wide else "int32") for x in (a, b)
        )
        return left, right, wide
