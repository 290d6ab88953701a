"""Symbolic sizes: integer polynomials over named symbols such as ``batch`` and ``sequence``.

A size in a shape is a plain ``int`` wherever it is known and a :class:`Poly` otherwise; :func:`as_dim` keeps
that normal form, so ``==`` on dims is exact polynomial equality.

>>> b, s = symbol("batch"), symbol("seq")
>>> str(b * s * 3 + s * b)
'4*batch*seq'
>>> (b * s * 12) // (s * 4)
Poly('3*batch')
>>> evaluate(b * s + 1, {"batch": 2, "seq": 5})
11
>>> parse("4*batch*seq - 2") == 4 * b * s - 2
True
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from intc.errors import GraphError

# no symbol stands for more; the runtime refuses larger feeds, and proofs rely on it
SYMBOL_MAX: Final = 65535
# how many positions a decoder's state holds: of all symbols, this one may be 0
PAST: Final = "past"
Monomial: TypeAlias = tuple[str, ...]


class Poly:
    """A polynomial with integer coefficients and at least one symbol; immutable and hashable."""

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[Monomial, int]) -> None:
        self.terms: dict[Monomial, int] = dict(sorted((k, v) for k, v in terms.items() if v))
        self._hash = hash(tuple(self.terms.items()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly) and self.terms == other.terms

    def __add__(self, other: Dim) -> Dim:
        out = dict(self.terms)
        for mono, coef in terms_of(other).items():
            out[mono] = out.get(mono, 0) + coef
        return _normal(out)

    __radd__ = __add__

    def __neg__(self) -> Dim:
        return _normal({k: -v for k, v in self.terms.items()})

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: Dim) -> Dim:
        return -self + other

    def __mul__(self, other: Dim) -> Dim:
        out: dict[Monomial, int] = {}
        for ma, ca in self.terms.items():
            for mb, cb in terms_of(other).items():
                mono = tuple(sorted(ma + mb))
                out[mono] = out.get(mono, 0) + ca * cb
        return _normal(out)

    __rmul__ = __mul__

    def __floordiv__(self, other: Dim) -> Dim:
        return exact_div(self, other)

    def __rfloordiv__(self, other: Dim) -> Dim:
        return exact_div(other, self)

    def __str__(self) -> str:
        parts = []
        for mono, coef in sorted(self.terms.items(), key=lambda kv: (-len(kv[0]), kv[0])):
            factors = ([] if coef == 1 and mono else [str(coef)]) + list(mono)
            parts.append("*".join(factors))
        return " + ".join(parts).replace("+ -", "- ")

    def __repr__(self) -> str:
        return f"Poly({str(self)!r})"


Dim: TypeAlias = int | Poly
Shape: TypeAlias = tuple[Dim, ...]


def terms_of(dim: Dim) -> dict[Monomial, int]:
    """The monomials of ``dim`` with their coefficients; the empty monomial is the constant."""
    return dim.terms if isinstance(dim, Poly) else ({(): int(dim)} if dim else {})


def _normal(terms: Mapping[Monomial, int]) -> Dim:
    kept = {k: v for k, v in terms.items() if v}
    if not kept:
        return 0
    if set(kept) == {()}:
        return kept[()]
    return Poly(kept)


def symbol(name: str) -> Dim:
    """The dim that is the symbol ``name``; characters outside [A-Za-z0-9_] become ``_``."""
    clean = re.sub(r"\W", "_", name) or "dim"
    return Poly({("d" + clean if clean[0].isdigit() else clean,): 1})


def is_symbol(dim: Dim) -> bool:
    """Whether ``dim`` is one symbol and nothing else."""
    return isinstance(dim, Poly) and list(dim.terms.values()) == [1] and len(next(iter(dim.terms))) == 1


def as_dim(value: object) -> Dim:
    """``value`` (int, numpy integer or Poly) as a dim."""
    return value if isinstance(value, Poly) else int(value)  # type: ignore[call-overload]


def exact_div(a: Dim, b: Dim) -> Dim:
    """``a / b`` when ``b`` is one monomial (or int) that divides every term of ``a``; GraphError
    otherwise.
    """
    divisor = terms_of(b)
    if a == b and divisor:
        return 1
    if len(divisor) != 1:
        raise GraphError(f"size {a} cannot be divided by {b}")
    ((mono_b, coef_b),) = divisor.items()
    out: dict[Monomial, int] = {}
    for mono, coef in terms_of(a).items():
        rest = list(mono)
        for sym in mono_b:
            if sym not in rest:
                raise GraphError(f"size {a} cannot be divided by {b}")
            rest.remove(sym)
        if coef % coef_b:
            raise GraphError(f"size {a} cannot be divided by {b}")
        out[tuple(rest)] = coef // coef_b
    return _normal(out)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of ``dims`` (1 for none)."""
    out: Dim = 1
    for dim in dims:
        out = out * dim
    return out


def symbols(dims: Iterable[Dim]) -> list[str]:
    """The symbol names in ``dims``, in order of first appearance."""
    seen: dict[str, None] = {}
    for dim in dims:
        for mono in terms_of(dim):
            seen.update(dict.fromkeys(mono))
    return list(seen)


def evaluate(dim: Dim, env: Mapping[str, int]) -> int:
    """The value of ``dim`` under ``env`` (symbol -> size); KeyError names a missing symbol."""
    total = 0
    for mono, coef in terms_of(dim).items():
        for sym in mono:
            coef *= env[sym]
        total += coef
    return total


def substitute(dim: Dim, env: Mapping[str, int]) -> Dim:
    """``dim`` with the symbols in ``env`` (symbol -> size) replaced."""
    total: Dim = 0
    for mono, coef in terms_of(dim).items():
        term: Dim = coef
        for sym in mono:
            term = term * (env[sym] if sym in env else symbol(sym))
        total = total + term
    return total


def bounds(dim: Dim, largest: Mapping[str, int] | None = None) -> tuple[int, int]:
    """The smallest and the largest value of ``dim`` over all symbols of 1 (``PAST``: 0) to ``SYMBOL_MAX`` (or
    what ``largest`` names), term by term.
    """
    ends = largest or {}
    lo = hi = 0
    for mono, coef in terms_of(dim).items():
        most = math.prod(ends.get(name, SYMBOL_MAX) for name in mono)
        pair = (coef * (PAST not in mono), coef * most)
        lo, hi = lo + min(pair), hi + max(pair)
    return lo, hi


def evaluate_shape(shape: Shape, env: Mapping[str, int]) -> tuple[int, ...]:
    """Every size of ``shape`` under ``env``."""
    return tuple(evaluate(d, env) for d in shape)


def parse(text: str) -> Dim:
    """The inverse of ``str`` on dims: sums of products of integers and symbols."""
    total: Dim = 0
    for sign, term in re.findall(r"([+-]?)\s*([\w*]+)", text.replace(" ", "")):
        value: Dim = -1 if sign == "-" else 1
        for factor in term.split("*"):
            if not factor:
                raise GraphError(f"'{text}' is not a size")
            value = value * (int(factor) if factor.isdigit() else symbol(factor))
        total = total + value
    return total


def broadcast(a: Shape, b: Shape) -> Shape:
    """The numpy broadcast of two shapes; a symbol is taken to equal any size it meets except 1."""
    rank = max(len(a), len(b))
    left, right = (1,) * (rank - len(a)) + tuple(a), (1,) * (rank - len(b)) + tuple(b)
    out: list[Dim] = []
    for x, y in zip(left, right, strict=True):
        if x == y or y == 1:
            out.append(x)
        elif x == 1:
            out.append(y)
        else:
            raise GraphError(f"shapes {format_shape(a)} and {format_shape(b)} do not broadcast")
    return tuple(out)


def format_shape(shape: Shape) -> str:
    """``[batch, 197, 384]``."""
    return "[" + ", ".join(str(d) for d in shape) + "]"
