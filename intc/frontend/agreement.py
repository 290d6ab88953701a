"""Sizes that an operator needs to agree, and the import that starts over with two of them equal."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from intc.errors import GraphError
from intc.ir import dims
from intc.ir.dims import (
    PAST,
    Dim,
    Monomial,
    Poly,
    Shape,
    factor,
    factors,
    floor_div,
    is_symbol,
    product,
    quotient,
    symbol,
    symbols,
    terms_of,
)
from intc.ir.graph import Graph
from intc.ir.ranges import bounds, tried


class EqualSizes(Exception):
    """An operator works only if ``symbol`` is one of ``sizes``: the import starts over with that."""

    def __init__(self, symbol: str, *sizes: Dim, beside: Sequence[str] = ()) -> None:
        super().__init__(f"{symbol} = {' or '.join(map(str, sizes))}")
        self.symbol, self.sizes = symbol, sizes
        self.beside = beside  # the symbols of a sum, which are ``sizes`` in the order of the inputs


class AtMost(Exception):
    """The import starts over with ``symbol`` at most ``largest``, or ``either``, where the smaller of the two
    may be a size of its own; some operator must ask for that.
    """

    def __init__(self, symbol: str, largest: int, either: bool = True) -> None:
        super().__init__(f"{symbol} <= {largest}")
        self.symbol, self.largest, self.either = symbol, largest, either


def require_equal(a: Dim, b: Dim) -> None:
    """Raise :class:`EqualSizes` where two different sizes must agree and one is a bare symbol, and
    :class:`AtMost` where they agree up to some size.
    """
    if a == b:
        return
    for x, y in ((a, b), (b, a)):
        if is_symbol(x) and str(x) not in symbols((y,)):
            raise EqualSizes(str(x), y)
    left, right = (terms_of(x) for x in (a - b, b - a))
    more, less = ([k for k, v in terms.items() if v == 1 and len(k) == 1] for terms in (left, right))
    if len(left) == 2 and len(more) == len(less) == 1 and not quotient(less[0][0]):  # n + s and n + t
        raise EqualSizes(less[0][0], factor(more[0][0]))
    _require_alike(a, b)
    _require_few(a - b)
    _require_root(a - b)
    require_zero(a - b)


def _require_alike(a: Dim, b: Dim) -> None:
    """Raise :class:`EqualSizes` where two sizes differ by one name: floor(n/4) and floor(m/4); or where both
    are sums of as many symbols: n + m and s + t.
    """
    mine, others = (symbols((x,)) for x in (a, b))
    mine, others = [x for x in mine if x not in others], [x for x in others if x not in mine]
    if len(mine) != len(others) or not mine:
        return
    if len(mine) == 1 and dims.substitute(a, {mine[0]: symbol(others[0])}) == b:
        raise EqualSizes(mine[0], symbol(others[0]))
    if a - b == sum(map(factor, mine)) - sum(map(factor, others)):
        raise EqualSizes(mine[0], *map(symbol, others), beside=mine)


def _require_in_order(have: Shape, wanted: Shape) -> None:
    """Raise :class:`EqualSizes` where both products are one term with the same number, and as many symbols
    under other names: [n, 4, m] and [4*s, t].
    """
    terms = [terms_of(product(shape)) for shape in (have, wanted)]
    if any(len(found) != 1 for found in terms) or [*terms[0].values()] != [*terms[1].values()]:
        return
    names = [[x for dim in shape for x in next(iter(terms_of(dim)))] for shape in (have, wanted)]
    mine, others = (list((Counter(x) - Counter(y)).elements()) for x, y in (names, names[::-1]))
    if len(mine) == len(others) > 0 and not any(map(quotient, (*mine, *others))):
        raise EqualSizes(others[0], symbol(mine[0]))


def require_product(have: Shape, wanted: Shape) -> None:
    """Raise :class:`EqualSizes` where a reshape works only if two sizes agree: those that differ at the same
    axis, or a symbol and the number that both products leave it.
    """
    _require_few(product(have) - product(wanted))
    _require_root(product(have) - product(wanted))
    _require_in_order(have, wanted)
    for a, b in zip(have, wanted, strict=False):
        if isinstance(a, Poly) and isinstance(b, Poly):
            require_equal(a, b)
    require_zero(product(have) - product(wanted))
    _require_traced(have, wanted)


def _require_traced(have: Shape, wanted: Shape) -> None:
    """Raise :class:`EqualSizes` where an exporter wrote the sizes of its example in place of symbols."""
    pairs = zip(*([d for d in shape if d != 1] for shape in (have, wanted)), strict=False)
    traced: dict[str, Dim] = {str(a): b for a, b in pairs if isinstance(b, int) and is_symbol(a)}
    if traced and dims.substitute(product(have), traced) == product(wanted):
        raise EqualSizes(*next(iter(traced.items())))


def _require_root(difference: Dim) -> None:
    """Raise :class:`EqualSizes` where a size is, but for factors that all its terms have, ``a*n - b`` or
    ``a*n - b*m``: it is 0 where the symbol n is b / a, or that times m.
    """
    rest = _without_common(difference)
    if len(rest) != 2:
        return
    for (names, slope), (others, constant) in (rest, rest[::-1]):
        root, off = divmod(-constant, slope)
        if len(names) != 1 or len(others) > 1 or quotient(names[0]) or off or root < 1:
            continue
        size = root * product(map(factor, others))
        if names[0] not in symbols((size,)):
            raise EqualSizes(names[0], size)


def _without_common(size: Dim) -> list[tuple[Monomial, int]]:
    """The terms of ``size`` without the factors that all of them have."""
    common = _common(size)
    return [(tuple((Counter(names) - common).elements()), coef) for names, coef in terms_of(size).items()]


def _common(size: Dim) -> Counter[str]:
    """How often each factor is in all terms of ``size``."""
    terms = terms_of(size)
    common = Counter(next(iter(terms), ()))
    for names in terms:
        common &= Counter(names)
    return common


def _require_few(difference: Dim) -> None:
    """Raise :class:`AtMost` where a size is, but for symbols that all its terms have, 0 for all sizes of its
    only symbol up to some: ``ceil(n/64) - 1``, where a single chunk was written into the file, or ``n`` less
    the smaller of n and a number.
    """
    alike = _common(difference)
    whole = product(factor(name) for name in alike.elements() if not quotient(name))
    rest = difference // whole if difference != 0 else 0
    names = symbols((rest,))
    if len(names) == 1 and names[0] != PAST:
        zero = tried(rest) == 0
        most = int(np.argmin(zero))
        if most > 1 and not zero[most:].any():
            raise AtMost(names[0], most, either=False)


def require_broadcast(*shapes: Shape) -> None:
    """:func:`require_equal` for every pair of sizes that broadcasting puts together."""
    for rank in range(1, max(map(len, shapes)) + 1):
        sizes = [shape[-rank] for shape in shapes if len(shape) >= rank and shape[-rank] != 1]
        for size in sizes[1:]:
            require_equal(sizes[0], size)


def substitute(dim: Dim, sizes: Mapping[str, Dim]) -> Dim:
    """``dim`` with symbols replaced until none of ``sizes`` is left."""
    while any(name in sizes for name in symbols((dim,))):
        dim = dims.substitute(dim, sizes)
    return dim


def divide(a: Any, b: Any) -> Any:
    """``a / b`` of sizes, which must come out: where one symbol of b is missing in a, another that is only in
    a must be equal; where b is a number, the one symbol of a a multiple.
    """
    try:
        return a // b
    except GraphError:
        left, right = symbols((a,)), symbols((b,))
        missing, free = [s for s in right if s not in left], [s for s in left if s not in right]
        if len(missing) == 1 and free:
            raise EqualSizes(missing[0], *map(symbol, free)) from None
        if isinstance(b, int) and len(left) == 1:
            require_zero(floor_div(a, b) * b - a)
        _require_whole(a, b)
        raise


def _require_whole(a: Any, b: Any) -> None:
    """Raise :class:`EqualSizes` where ``a / b`` comes out if symbols are multiples of the divisors in b, such
    as ``n*m / (2*floor(n/2)*floor(m/2))`` for even n and m.
    """
    wholes: dict[str, Dim] = {}
    for name in factors((b,)):
        dividend, divisor = quotient(name) or (0, 1)
        if is_symbol(dividend):
            wholes[str(dividend)] = divisor * part_of(str(dividend), divisor)
    try:
        dims.substitute(a, wholes) // dims.substitute(b, wholes)
    except GraphError:
        return
    raise EqualSizes(*next(iter(wholes.items())))


def require_zero(difference: Dim) -> None:
    """Raise :class:`EqualSizes` where a size is 0 if symbols are multiples of divisors in it, such as
    ``2*floor(n/2) - n`` for even n.
    """
    inner = [found for name in factors((difference,)) if (found := quotient(name))]
    wholes: dict[str, Dim] = {}
    for name in symbols((difference,)):
        divisors = {divisor for dividend, divisor in inner if name in symbols((dividend,))}
        for divisor in sorted({*divisors, math.lcm(*divisors)} - {1}):
            wholes[name] = divisor * part_of(name, divisor)
            if dims.substitute(difference, {name: wholes[name]}) == 0:
                raise EqualSizes(name, wholes[name])
    if wholes and dims.substitute(difference, wholes) == 0:
        raise EqualSizes(*next(iter(wholes.items())))


def kept_below(graph: Graph, name: str, largest: int) -> bool:
    """Whether the limits of ``graph`` keep the symbol ``name`` at ``largest`` or below."""
    for size, most in graph.limits().items():
        slope = terms_of(size).get((name,), 0)
        rest = size - symbol(name) * slope
        if slope > 0 and isinstance(rest, int) and most - rest < slope * (largest + 1):
            return True
    return False


def kept_above(graph: Graph, size: Dim, least: int) -> bool:
    """Whether the limits of ``graph`` keep ``size`` at ``least`` or above."""
    if bounds(size)[0] >= least:
        return True
    limits = graph.limits()
    excesses = ((limited + size, most) for limited, most in limits.items())
    if any(isinstance(rest, int) and rest - most >= least for rest, most in excesses):
        return True
    taken = [tried(x) <= most for x, most in limits.items() if symbols((x,)) == symbols((size,))]
    alone = len(symbols((size,))) == 1 and bool(taken)
    return alone and bool((tried(size)[np.all(taken, axis=0)] >= least).all())


def part_of(name: str, divisor: int) -> Dim:
    """The symbol for a ``divisor``-th of the symbol ``name``.

    >>> part_of("height", 2), part_of("height_by_2", 4)
    (Poly('height_by_2'), Poly('height_by_8'))
    """
    stem, _, count = name.rpartition("_by_")
    return symbol(f"{stem}_by_{int(count) * divisor}" if stem and count.isdigit() else f"{name}_by_{divisor}")
