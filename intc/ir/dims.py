"""Symbolic sizes: integer polynomials over named symbols such as ``batch`` and ``sequence``.

A size in a shape is a plain ``int`` wherever it is known and a :class:`Poly` otherwise; :func:`as_dim` keeps
that normal form, so ``==`` on dims is exact polynomial equality. A factor of a term is a symbol or a quotient
rounded down, ``floor(n/2)``, whose name says what it is; :func:`floor_div` makes them.

>>> b, s = symbol("batch"), symbol("seq")
>>> str(b * s * 3 + s * b)
'4*batch*seq'
>>> (b * s * 12) // (s * 4)
Poly('3*batch')
>>> evaluate(b * s + 1, {"batch": 2, "seq": 5})
11
>>> parse("4*batch*seq - 2") == 4 * b * s - 2
True
>>> str(floor_div(floor_div(s - 10, 5) + 1, 2)), evaluate(floor_div(s, 2), {"seq": 7})
('floor((seq + 5)/10) - 1', 3)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Final, TypeAlias

from intc.errors import GraphError

# no symbol stands for more; the runtime refuses larger feeds, and proofs rely on it
SYMBOL_MAX: Final = 65535
# how many positions a decoder's state holds: of all symbols, this one may be 0
PAST: Final = "past"
QUOTIENT: Final = "floor("  # how the name of a quotient begins; no symbol contains a bracket
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
    if isinstance(dim, Poly):
        return dim.terms
    if int(dim) != dim:
        raise GraphError(f"a size times or plus {dim} is no whole number")
    return {(): int(dim)} if dim else {}


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


def factor(name: str) -> Dim:
    """The dim that is the factor ``name`` of a term: a symbol or a quotient."""
    return Poly({(name,): 1})


def multiple(dim: Dim) -> tuple[int, str] | None:
    """``(k, symbol)`` where ``dim`` is a positive number ``k`` times one symbol, else None."""
    terms = list(terms_of(dim).items())
    if len(terms) != 1 or len(terms[0][0]) != 1 or terms[0][1] < 1 or quotient(terms[0][0][0]):
        return None
    ((name,), coef) = terms[0]
    return coef, name


def is_symbol(dim: Dim) -> bool:
    """Whether ``dim`` is one symbol and nothing else."""
    found = multiple(dim)
    return found is not None and found[0] == 1


def as_dim(value: object) -> Dim:
    """``value`` (int, numpy integer or Poly) as a dim."""
    return value if isinstance(value, Poly) else int(value)  # type: ignore[call-overload]


def exact_div(a: Dim, b: Dim) -> Dim:
    """``a / b`` where that is a polynomial; GraphError otherwise.

    >>> n = symbol("n")
    >>> exact_div(2 * n * n + 3 * n + 1, n + 1)
    Poly('2*n + 1')
    """
    divisor = terms_of(b)
    if a == b and divisor:
        return 1
    if len(divisor) > 1:
        return _long_division(a, b)
    if not divisor:
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


def _long_division(a: Dim, b: Dim) -> Dim:
    """``a / b``, leading term by leading term; GraphError where a rest is left."""
    names = factors((a, b))

    def leading(size: Dim) -> Dim:
        terms = terms_of(size)
        mono = max(terms, key=lambda m: (len(m), *map(m.count, names)))
        return _normal({mono: terms[mono]})

    out: Dim = 0
    rest = a
    while rest != 0:
        try:
            part = exact_div(leading(rest), leading(b))
        except GraphError:
            raise GraphError(f"size {a} cannot be divided by {b}") from None
        out, rest = out + part, rest - part * b
    return out


def floor_div(a: Dim, k: int) -> Dim:
    """``a / k`` rounded down, for a positive ``k``: whole multiples come out, the rest is one quotient.

    Quotients of a quotient become one: ``floor(floor(n/2)/3)`` is ``floor(n/6)``.
    """
    if k < 1:
        raise GraphError(f"size {a} cannot be divided by {k}")
    whole = _normal({mono: coef // k for mono, coef in terms_of(a).items()})
    rest = {mono: coef % k for mono, coef in terms_of(a).items() if coef % k}
    constant = rest.pop((), 0)
    if not rest:
        return whole
    common = math.gcd(k, *rest.values())
    k, constant = k // common, constant // common
    terms = {mono: coef // common for mono, coef in rest.items()}
    inner = quotient(next(iter(terms))[0]) if list(terms.values()) == [1] else None
    if inner and len(next(iter(terms))) == 1:
        dividend, divisor = inner
        return whole + floor_div(dividend + constant * divisor, divisor * k)
    text = str(_normal(terms) + constant)
    return whole + factor(f"floor({f'({text})' if ' ' in text else text}/{k})")


def exceeds(name: str, number: int) -> Dim:
    """1 where the symbol ``name`` is larger than a positive number, else 0."""
    return floor_div(factor(name) + SYMBOL_MAX - number, SYMBOL_MAX + 1)


def smaller(name: str, number: int) -> Dim:
    """The smaller of the symbol ``name`` and a positive number.

    >>> [evaluate(smaller("seq", 16), {"seq": size}) for size in (1, 16, 17, SYMBOL_MAX)]
    [1, 16, 16, 16]
    """
    size = factor(name)
    return size + (number - size) * exceeds(name, number)


def remainder(number: int, name: str) -> Dim:
    """``number`` modulo the symbol ``name``, with the sign of the symbol.

    >>> [[evaluate(remainder(k, "seq"), {"seq": size}) for size in (1, 2, 3, 7)] for k in (3, -2)]
    [[0, 1, 0, 3], [0, 0, 1, 5]]
    """
    size, negative = factor(name), number < 0
    apart = [number % v - (number + v * negative) for v in range(1, abs(number) + 1)] + [0]
    out = number + size * negative + apart[0]
    for v in range(1, len(apart)):
        out = out + (apart[v] - apart[v - 1]) * exceeds(name, v)
    return out


@lru_cache(None)
def quotient(name: str) -> tuple[Dim, int] | None:
    """Dividend and divisor of the factor ``name``; None for a symbol."""
    if not name.startswith(QUOTIENT):
        return None
    dividend, _, divisor = name[len(QUOTIENT) : -1].rpartition("/")
    return parse(dividend.removeprefix("(").removesuffix(")") if dividend[0] == "(" else dividend), int(
        divisor
    )


def product(dims: Iterable[Dim]) -> Dim:
    """The product of ``dims`` (1 for none)."""
    out: Dim = 1
    for dim in dims:
        out = out * dim
    return out


def total(dims: Iterable[Dim]) -> Dim:
    """The sum of ``dims`` (0 for none)."""
    out: Dim = 0
    for dim in dims:
        out = out + dim
    return out


def factors(dims: Iterable[Dim]) -> list[str]:
    """The symbols and quotients that the terms of ``dims`` consist of, in order of first appearance."""
    return list(dict.fromkeys(name for dim in dims for mono in terms_of(dim) for name in mono))


def symbols(dims: Iterable[Dim]) -> list[str]:
    """The symbol names in ``dims``, those inside quotients too, in order of first appearance."""
    seen: dict[str, None] = {}
    for name in factors(dims):
        inner = quotient(name)
        seen.update(dict.fromkeys(symbols((inner[0],)) if inner else (name,)))
    return list(seen)


def evaluate(dim: Dim, env: Mapping[str, int]) -> int:
    """The value of ``dim`` under ``env`` (symbol -> size); KeyError names a missing symbol."""
    total = 0
    for mono, coef in terms_of(dim).items():
        for name in mono:
            inner = quotient(name)
            coef *= evaluate(inner[0], env) // inner[1] if inner else env[name]
        total += coef
    return total


def substitute(dim: Dim, env: Mapping[str, Dim]) -> Dim:
    """``dim`` with the symbols in ``env`` (symbol -> size) replaced."""
    total: Dim = 0
    for mono, coef in terms_of(dim).items():
        term: Dim = coef
        for name in mono:
            inner = quotient(name)
            part = floor_div(substitute(inner[0], env), inner[1]) if inner else env.get(name, factor(name))
            term = term * part
        total = total + term
    return total


def evaluate_shape(shape: Shape, env: Mapping[str, int]) -> tuple[int, ...]:
    """Every size of ``shape`` under ``env``."""
    return tuple(evaluate(d, env) for d in shape)


def parse(text: str) -> Dim:
    """The inverse of ``str`` on dims: sums of products of integers, symbols and quotients."""
    try:
        total, rest = _sum(text.replace(" ", ""))
    except RecursionError:
        rest = text
    if rest:
        raise GraphError(f"'{text}' is not a size")
    return total


def _sum(text: str) -> tuple[Dim, str]:
    """The terms at the start of ``text``, and what follows them."""
    total: Dim = 0
    while True:
        sign = -1 if text[:1] == "-" else 1
        term, text = _factor(text.lstrip("+-"))
        while text[:1] == "*":
            more, text = _factor(text[1:])
            term = term * more
        total = total + sign * term
        if text[:1] not in ("+", "-"):
            return total, text


def _factor(text: str) -> tuple[Dim, str]:
    if text.startswith(QUOTIENT):
        bracketed = text.startswith(QUOTIENT + "(")
        dividend, text = _sum(text[len(QUOTIENT) + bracketed :])
        end = re.match(r"\)/(\d+)\)" if bracketed else r"/(\d+)\)", text)
        if end is None:
            raise GraphError(f"'{text}' does not end a quotient")
        return floor_div(dividend, int(end[1])), text[end.end() :]
    word = re.match(r"\w+", text)
    if word is None:
        raise GraphError(f"'{text}' is not a size")
    return int(word[0]) if word[0].isdecimal() else symbol(word[0]), text[word.end() :]


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
