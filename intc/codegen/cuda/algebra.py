"""The scalar formulas as CUDA C: an algebra (``intc.ops.scalar``) whose values are terms of a function.

Every result of ``where``, ``minimum``, ``maximum`` and ``assume`` is a variable, so that a formula which uses
a result twice computes it once; so is the product within ``mulhrs``. A term is 32 bits wide unless one of its
operands has 64.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from intc.codegen.cuda.printer import literal

Operand: TypeAlias = Union["Term", int]
PLAIN_EXPONENT: Final = 15  # of the multipliers behind polynomials


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


class Parameter(NamedTuple):
    """An operand of a formula: the term, and every value that it takes."""

    term: Term
    array: NDArray[Any]


@dataclass(frozen=True)
class Dyadic:
    """The rescaling of ``scalar.requantize`` prepared for many values within a reach of 0:
    ``(x*m + start) >> e``, which lies within ``bound`` of 0; products have 64 bits where they are ``wide``.
    """

    m: Term
    start: Term
    e: Term
    wide: bool
    bound: int

    @staticmethod
    def prepare(m: Parameter, e: Parameter, reach: int, bias: tuple[Term, int] | None = None) -> Dyadic:
        """That of x + bias for x within ``reach`` of 0 and a bias of at most so much."""
        reach += bias[1] if bias else 0
        pairs = list(zip(np.ravel(m.array).tolist(), np.ravel(e.array).tolist(), strict=True))
        products = [reach * abs(factor) + (1 << exponent - 1) for factor, exponent in pairs]
        bound = max(product >> exponent for product, (_, exponent) in zip(products, pairs, strict=True)) + 1
        wide, known = max(products) >= 2**31, {exponent for _, exponent in pairs} == {PLAIN_EXPONENT}
        start = Term(str(2**PLAIN_EXPONENT // 2))
        if not known:
            start = Term("1ll" if wide else "1", wide) << (e.term - 1)
        if bias is not None:
            start = (bias[0].widened() if wide else bias[0]) * m.term + start
        return Dyadic(m.term, start, Term(str(PLAIN_EXPONENT)) if known else e.term, wide, bound)

    def each(self, change: Callable[[Term], Term]) -> Dyadic:
        """The same with ``change`` applied to the terms that are no numbers."""
        m, start, e = (t if t.text.isdigit() else change(t) for t in (self.m, self.start, self.e))
        return Dyadic(m, start, e, self.wide, self.bound)

    def unclipped(self, ns: Text, x: Term) -> Term:
        """The rescaled ``x``."""
        value = ((x.widened() if self.wide else x) * self.m + self.start) >> self.e
        return ns.bind(value.narrowed() if self.bound < 2**31 else value)

    def apply(self, ns: Text, x: Term, lo: int, hi: int) -> Term:
        """The rescaled ``x`` in [lo, hi]."""
        value = self.unclipped(ns, x)
        if self.bound > min(-lo, hi):
            value = ns.minimum(ns.maximum(value, lo), hi)
        return ns.bind(value.narrowed())


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
