"""What an import takes for granted about symbolic sizes, and how it starts over with more of it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from intc.errors import GraphError
from intc.frontend.agreement import AtMost, EqualSizes, kept_below, substitute
from intc.ir.dims import Dim, Poly, as_dim, factor, is_symbol, smaller, symbol, symbols
from intc.ir.graph import Graph
from intc.ir.ranges import bounds

Pair: TypeAlias = tuple[str, int]  # a symbol and a number


@dataclass
class Floors:
    """How ``max(0, n - 5)`` and ``max(0, 5 - n)`` are taken: as n - 5 and 5 - n, the start of a slice, which
    may not be negative, or ``exact``. ``taken``: whether any was.
    """

    exact: bool = False
    taken: bool = False

    def of(self, size: Dim) -> Dim | None:
        """The larger of 0 and a size that may be negative; None where it counts as that size."""
        for name in symbols((size,)):
            for whole, number in ((factor(name), factor(name) - size), (size + factor(name),) * 2):
                if isinstance(number, int) and number > 0:
                    self.taken = True
                    return whole - smaller(name, number) if self.exact else None
        return None


@dataclass
class Assumed:
    """Grows from one import of a model to the next, until one comes out: :meth:`equal`, :meth:`at_most`,
    :meth:`otherwise` and :meth:`narrowed` are told how one ended.
    """

    sizes: dict[str, Dim] = field(default_factory=dict)  # symbols found to be other sizes
    largest: dict[str, int] = field(default_factory=dict)  # symbols taken to be no larger
    floors: Floors = field(default_factory=Floors)
    either: set[Pair] = field(default_factory=set)  # symbols with numbers; the smaller is a size of its own

    def equal(self, found: EqualSizes, graph: Graph) -> None:
        """An operator needs two sizes to agree; ``graph`` is what was imported before it.
        GraphError where a size would have to be larger than itself.
        """
        if open_pairs := {pair for pair in self.either if pair[0] == found.symbol}:
            self._keep_below(open_pairs)
            return
        size = substitute(_same_axis(found, graph), self.sizes)
        if found.symbol in symbols((size,)):
            raise GraphError(f"{found.symbol} would have to be {size}")
        self.sizes[found.symbol] = size

    def at_most(self, found: AtMost) -> None:
        """An operator needs a size to be limited, or the smaller of it and a number."""
        pair = (found.symbol, found.largest)
        if found.symbol in self.largest or not found.either:
            self._keep_below({pair})
        self.either |= {pair} - self.largest.items()

    def otherwise(self) -> bool:
        """Nodes cannot be converted: whether they may be with sizes taken in another way."""
        if self.floors.taken and not self.floors.exact:
            self.floors.exact = True
            return True
        self.floors = Floors()
        return self._keep_below(self.either)

    def narrowed(self, built: Graph) -> bool:
        """The import came out: whether ``built`` itself refuses the larger of what could be either."""
        return self._keep_below({pair for pair in self.either if kept_below(built, *pair)})

    def larger(self, a: Any, b: Any) -> Any:
        """The larger of two sizes, where all symbols agree on which it is."""
        low, high = bounds(as_dim(a) - as_dim(b), self.largest)
        if 0 in (a, b):
            if low < 0 < high and (exact := self.floors.of(as_dim(a) + as_dim(b))) is not None:
                return exact
            if b == 0 and high > 0:
                return a
            if a == 0 and low < 0:
                return b
        self._agree(low, high, a, b)
        return a if low >= 0 else b

    def smaller(self, a: Any, b: Any) -> Any:
        """The smaller of two sizes, where all symbols agree on which it is, or of a symbol and a number."""
        low, high = bounds(as_dim(a) - as_dim(b), self.largest)
        if low < 0 < high:
            for x, y in ((a, b), (b, a)):
                if is_symbol(as_dim(x)) and not isinstance(y, Poly) and int(y) > 0:
                    if (str(x), int(y)) in self.either:
                        return smaller(str(x), int(y))
                    raise AtMost(str(x), int(y))
        self._agree(low, high, a, b)
        return b if low >= 0 else a

    def _agree(self, low: int, high: int, a: Any, b: Any) -> None:
        if low < 0 < high:
            raise GraphError(f"which of {a} and {b} is larger depends on the input")

    def _keep_below(self, pairs: Set[Pair]) -> bool:
        """Take the symbols of ``pairs`` to be no larger than their numbers; whether there are any."""
        for name, largest in sorted(pairs):
            self.largest[name] = min(largest, self.largest.get(name, largest))
        self.either = self.either - pairs
        return bool(pairs)


def _same_axis(found: EqualSizes, graph: Graph) -> Dim:
    """Of several sizes that a symbol may be, one that stands at the same axis of another input."""
    axes: dict[str, int] = {}
    for name in graph.inputs:
        axes.update((str(d), i) for i, d in enumerate(graph.type(name).shape))
    if found.beside:
        order = list(axes)
        names = sorted((str(x) for x in found.sizes), key=[*order, *map(str, found.sizes)].index)
        return symbol(names[sorted(found.beside, key=[*order, *found.beside].index).index(found.symbol)])
    same = [d for d in found.sizes if axes.get(str(d)) == axes.get(found.symbol)]
    return same[0] if same else found.sizes[0]
