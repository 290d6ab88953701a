"""Numbers far below all others of a value, which maxima ignore: around an image, where a mask keeps nothing.

The largest of a window does not depend on such a number as long as the window holds anything else. So where
only maxima read a value, its range is that of the rest, at whose scale the number becomes the least integer.
Where a caller reads a masked value, the least integer is returned as the number that it stands for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from intc.calibration.observers import Statistics
from intc.ir.graph import Graph, Node
from intc.ops.elementwise import Div, Mul, Where
from intc.ops.im2col import Im2col
from intc.ops.logic import Equal, Less, LessOrEqual
from intc.ops.movement import MOVEMENT, MOVES, Concat, Gather, GatherElements
from intc.ops.reduce import ArgMax, ReduceMax
from intc.ops.window import MaxPool
from intc.passes.masks import BIG

MAXIMA: Final = (ReduceMax, MaxPool, ArgMax)
COMPARISONS: Final = (Equal, Less, LessOrEqual)
TAKING: Final = (Gather, GatherElements)  # entries of a value, at its scale


@dataclass(frozen=True)
class Rest:
    """What is left of a value without the ``number`` below it: other values, each with its factor.

    ``returned``: whether the number is in an output of the model.
    """

    number: float
    parts: tuple[tuple[str, float], ...]
    returned: bool


@dataclass
class Sentinels:
    """The values of ``graph`` of which only maxima, or callers, read such a number; minima are maxima of what
    is negated.
    """

    graph: Graph
    stats: Mapping[str, Statistics]
    producers: Mapping[str, Node]
    users: Mapping[str, list[Node]]
    known: dict[str, Rest | None] = field(default_factory=dict)

    def rest(self, value: str) -> Rest | None:
        """The rest of ``value``, moved, taken from or times a number too; None where its whole range is
        read.
        """
        value = self._taken(value)
        node = self.producers.get(value)
        if node is not None and (factor := self._factor(node, node.inputs[0])) is not None:
            inner = self.rest(node.inputs[0])
            return inner and replace(inner, parts=tuple((x, f * factor) for x, f in inner.parts))
        if value not in self.known:
            self.known[value] = self._rest(value, 1) or self._rest(value, -1)
        return self.known[value]

    def unmoved(self, value: str) -> str:
        """The value that is moved, if at all, to give ``value``."""
        while (node := self.producers.get(value)) is not None and isinstance(node.op, MOVES):
            value = node.inputs[0]
        return value

    def _rest(self, value: str, side: int) -> Rest | None:
        """The rest of ``value`` where such a number lies below the others, or above for a ``side`` of -1."""
        made = self.producers.get(value)
        if made is None or not isinstance(made.op, Concat | Where):
            return None
        parts, numbers, ends = list[tuple[str, float]](), dict[tuple[str, float], float](), [0.0]
        for name, factor in self._sources(value, side):
            if (constant := self.graph.constants.get(name)) is not None:
                numbers[name, factor] = float((constant * factor).max(initial=-np.inf))
                continue
            found = self.stats.get(name)
            if found is None or not found.low.size:
                return None
            ends += [float((end * factor).min()) for end in (found.low, found.high)]
            ends += [float((end * factor).max()) for end in (found.low, found.high)]
            parts.append((name, factor))
        far = {source: n for source, n in numbers.items() if n < min(ends)} if parts else {}
        if not far:
            return None
        number, returned = min(far.values()), self._returned(value, side, max(far.values()))
        if returned is None or (returned and (side < 0 or self.branch(made, number) is None)):
            return None
        if not returned and self._only_compared(value):  # what is as far above is the largest integer
            far |= {source: n for source, n in numbers.items() if n >= BIG and n > max(ends)}
        return Rest(number, (*parts, *(source for source in numbers if source not in far)), returned)

    def branch(self, node: Node, number: float) -> int | None:
        """Which branch of the choice ``node`` is ``number`` alone, 0 or 1."""
        branches = [self.graph.constants.get(x) for x in node.inputs[1:] if isinstance(node.op, Where)]
        alone = [c is not None and c.size == 1 and float(c.ravel()[0]) == number for c in branches]
        return alone.index(True) if True in alone else None

    def _sources(self, value: str, side: int) -> Iterator[tuple[str, float]]:
        """What ``value`` is joined or chosen from, through movement and factors, times ``side``; each
        once.
        """
        seen, pending = set[tuple[str, float]](), [(value, float(side))]
        while pending:
            at, factor = pending.pop()
            if (at, factor) in seen:
                continue
            seen.add((at, factor))
            node = self.producers.get(at)
            if node is not None and isinstance(node.op, (*MOVES, Concat)):
                pending += [(x, factor) for x in node.inputs]
            elif node is not None and isinstance(node.op, Where):
                pending += [(x, factor) for x in node.inputs[1:]]
            elif node is not None and (scale := self._factor(node, node.inputs[0])) is not None:
                pending.append((node.inputs[0], factor * scale))
            else:
                yield at, factor

    def _factor(self, node: Node, value: str) -> float | None:
        """The number that ``node`` multiplies ``value`` by, alone; None for another node."""
        if not isinstance(node.op, Mul | Div) or (isinstance(node.op, Div) and node.inputs[0] != value):
            return None
        other = self.graph.constants.get(node.inputs[node.inputs[0] == value])
        if other is None or other.size != 1 or not other.all():
            return None
        number = float(other.ravel()[0])
        return 1 / number if isinstance(node.op, Div) else number

    def _returned(self, value: str, side: int, number: float) -> bool | None:
        """Whether an output holds ``number``, or something below, of ``value``; None where anything but a
        maximum reads it. All times ``side``.
        """
        returned, seen, pending = False, set[tuple[str, float]](), [(value, float(side))]
        while pending:
            at, factor = pending.pop()
            if (at, factor) in seen or (at != value and self._clear(at, number * factor)):
                continue
            seen.add((at, factor))
            if at in self.graph.outputs:
                if self.unmoved(at) != value:
                    return None
                returned = True
            for user in self.users[at]:
                if self._moves(user, at):
                    pending.append((user.output, factor))
                elif (scale := self._factor(user, at)) is not None:
                    pending.append((user.output, factor * scale))
                elif isinstance(user.op, MAXIMA) and factor > 0:
                    if not isinstance(user.op, ArgMax) and not self._clear(user.output, number * factor):
                        return None
                elif not self._compares_itself(user) and not (at == value and self._masked_again(user)):
                    return None
        return returned

    def _moves(self, node: Node, value: str) -> bool:
        """Whether ``node`` moves ``value``, or chooses between it and something else."""
        if isinstance(node.op, Where):
            return value in node.inputs[1:]
        return isinstance(node.op, (*MOVEMENT, Im2col)) and value in node.inputs

    def _compares_itself(self, node: Node) -> bool:
        """Whether ``node`` compares the entries of one value, taken from it too, with one another."""
        return isinstance(node.op, COMPARISONS) and len({self._taken(x) for x in node.inputs}) == 1

    def _taken(self, value: str) -> str:
        while (node := self.producers.get(value)) is not None and isinstance(node.op, (*MOVES, *TAKING)):
            value = node.inputs[0]
        return value

    def _only_compared(self, value: str) -> bool:
        """Whether comparisons alone read ``value``, moved or not."""
        pending = [value]
        while pending:
            for user in self.users[pending.pop()]:
                if isinstance(user.op, (*MOVES, *TAKING)):
                    pending.append(user.output)
                elif not isinstance(user.op, COMPARISONS):
                    return False
        return True

    def _masked_again(self, node: Node) -> bool:
        """Whether ``node`` is a function of a choice, and read where the same branch is chosen."""
        chosen, readers = self.producers.get(node.inputs[0]), self.users[node.output]
        if chosen is None or len(node.inputs) != 1 or node.output in self.graph.outputs or not readers:
            return False
        same = [isinstance(n.op, Where) and n.inputs[:2] == (chosen.inputs[0], node.output) for n in readers]
        return isinstance(chosen.op, Where) and all(same)

    def _clear(self, value: str, number: float) -> bool:
        """Whether calibration saw nothing of ``value`` as far from zero as ``number``, on its side."""
        found = self.stats.get(value)
        if found is None or not found.low.size:
            return False
        return float(found.low.min()) > number if number < 0 else float(found.high.max()) < number
