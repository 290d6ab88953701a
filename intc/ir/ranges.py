"""Which numbers symbolic sizes can be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intc.ir.dims import PAST, SYMBOL_MAX, Dim, evaluate, factor, factors, quotient, symbols, terms_of


def bounds(dim: Dim, largest: Mapping[str, int] | None = None) -> tuple[int, int]:
    """The smallest and the largest value of ``dim`` over all symbols of 1 (``PAST``: 0) to ``SYMBOL_MAX`` (or
    what ``largest`` names): exactly where quotients of one symbol are among its terms, else term by term.

    >>> from intc.ir.dims import floor_div, symbol
    >>> n = symbol("n")
    >>> bounds(4 * floor_div(n + 3, 4) - n)
    (0, 3)
    """
    names = symbols((dim,))
    if len(names) == 1 and len(terms_of(dim)) > 1 and names != factors((dim,)):
        values = tried(dim, (largest or {}).get(names[0], SYMBOL_MAX))
        return int(values.min()), int(values.max())
    lo = hi = 0
    for mono, coef in terms_of(dim).items():
        ends = [_ends(name, largest or {}) for name in mono]
        pair = [coef * math.prod(end) for end in zip(*ends, strict=True)] or [coef, coef]
        lo, hi = lo + min(pair), hi + max(pair)
    return lo, hi


@lru_cache(256)
def tried(dim: Dim, largest: int = SYMBOL_MAX) -> NDArray[Any]:
    """``dim`` at each size of its only symbol: of 1 (``PAST``: 0) to ``largest``."""
    (name,) = symbols((dim,))
    reach = sum(abs(coef) * SYMBOL_MAX ** len(mono) for mono, coef in terms_of(dim).items())
    sizes = np.arange(_ends(name, {})[0], largest + 1).astype(np.int64 if reach < 2**47 else object)
    return np.asarray(evaluate(dim, {name: sizes}))  # type: ignore[dict-item]


def linear(dim: Dim, largest: Mapping[str, int]) -> Dim:
    """``dim`` without those quotients that are ``a*n + b`` as far as ``largest`` lets their symbol n grow.

    >>> from intc.ir.dims import floor_div, symbol
    >>> n = symbol("n")
    >>> linear(64 * n - 64 * floor_div(63 * n, 64), {"n": 64}), linear(floor_div(n, 4), {"n": 64})
    (64, Poly('floor(n/4)'))
    """
    out: Dim = 0
    for mono, coef in terms_of(dim).items():
        term: Dim = coef
        for name in mono:
            inner = symbols((factor(name),))
            few = quotient(name) and len(inner) == 1 and inner[0] in largest
            term = term * (_straight(name, largest[inner[0]]) if few else factor(name))
        out = out + term
    return out


def _straight(name: str, largest: int) -> Dim:
    """The quotient ``name``, as ``a*n + b`` where it is that for its symbol n up to ``largest``."""
    (symbol_,), values = symbols((factor(name),)), tried(factor(name), largest)
    first, slope = _ends(symbol_, {})[0], int(values[-1] - values[-2]) if len(values) > 1 else 0
    line = int(values[0]) + slope * np.arange(len(values))
    return int(values[0]) + slope * (factor(symbol_) - first) if (values == line).all() else factor(name)


def _ends(name: str, largest: Mapping[str, int]) -> tuple[int, int]:
    """The smallest and the largest value of a factor. No coefficient inside a quotient is negative."""
    inner = quotient(name)
    if inner is None:
        return int(name != PAST), largest.get(name, SYMBOL_MAX)
    low, high = bounds(inner[0], largest)
    return low // inner[1], high // inner[1]


def counted(sizes: Iterable[Dim]) -> list[tuple[Dim, int]]:
    """The limits by which none of ``sizes`` exceeds ``SYMBOL_MAX``, as the proofs of sums take it."""
    return [
        (size, SYMBOL_MAX) for size in sizes if bounds(size)[1] > SYMBOL_MAX and not isinstance(size, int)
    ]
