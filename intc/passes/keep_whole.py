"""Phase 1: whole numbers that a model keeps in floats are computed as integers, where they are compared or
become integers again: counts, running sums of one-hot rows, places in a buffer; and so are their quotients by
whole numbers, where they are rounded down or cut off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Op
from intc.ops.division import Divide
from intc.ops.elementwise import Abs, Add, Cast, Div, Floor, Max, Min, Mul, Relu, Round, Sub, Where
from intc.ops.logic import Equal, Less, LessOrEqual
from intc.ops.movement import MOVEMENT, MOVES
from intc.ops.reduce import CumSum, ReduceMax, ReduceSum
from intc.ops.requantize import Clip
from intc.passes.rewrite import rewrite

EXACT: Final = 2**24  # floats hold all whole numbers below; integers that become floats saturate there
LARGEST: Final = 2**30
ROUNDED: Final = 2**20  # places that are rounded saturate there: what they are multiplied by has room
ALIKE: Final = (*MOVEMENT, Add, Sub, Mul, Max, Min, ReduceSum, ReduceMax, CumSum)  # the same on integers
DIVISOR: Final = 2**15
REAL: Final = 1e-6  # how far off what stands for a whole number, or its reciprocal, may be in floats
ROUNDING: Final = (Floor, Round)
KEEPING: Final = (*ALIKE, Cast, Where, Abs, Relu, *ROUNDING)  # whole where what they read is


@dataclass(frozen=True)
class KeepWhole:
    """Only what is whole whatever the input, and provably small."""

    name: str = "keep_whole"

    def run(self, graph: Graph) -> Graph:
        whole = Wholes(graph)

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            op = node.op
            becomes = isinstance(op, Cast) and op.dtype not in ("float32", "bool")
            tested = isinstance(op, Cast) and op.dtype == "bool"
            if not becomes and not tested and not isinstance(op, (Equal, Less, LessOrEqual)):
                return None
            if not graph.type(node.inputs[0]).is_float or all(x in graph.constants for x in node.inputs):
                return None
            rounded = becomes and isinstance(_op(whole.producers, node.inputs[0]), ROUNDING)
            if rounded and not whole.divides(b, names, node.inputs[0]):
                return None  # as it is
            operands = [
                _bound(graph, b, op, x, i) or whole.of(b, names, x) for i, x in enumerate(node.inputs)
            ]
            if None in operands:
                if becomes and (parts := whole.quotient(b, names, node.inputs[0])) is not None:
                    return _cut_off(b, node, *parts)
                if not becomes and not tested and (sides := whole.sides(b, names, node)) is not None:
                    return b.emit(op, *sides, name=node.output, source=node.source)
                given = becomes and is_given(graph, whole.producers, node.inputs[0])
                return _truncated(b, node, names[node.inputs[0]]) if given else None
            return b.emit(op, *map(str, operands), name=node.output, source=node.source)

        return rewrite(graph, rule)


def _op(producers: Mapping[str, Node], value: str) -> Op | None:
    return producers[value].op if value in producers else None


def _bound(graph: Graph, b: Builder, op: Op, value: str, place: int) -> str | None:
    """The constant ``value`` on the left (``place`` 0) or right of the comparison ``op`` as the whole number
    that whole numbers compare with alike; None where it is no constant, or whole.
    """
    array = graph.constants.get(value)
    if array is None or not isinstance(op, (Less, LessOrEqual)) or not bool(np.all(np.abs(array) < EXACT)):
        return None
    up = isinstance(op, Less) == bool(place)  # x < 2.5 is x < 3, and x <= 2.5 is x <= 2
    whole = (np.ceil if up else np.floor)(array)
    return b.constant(f"{value}.whole", whole.astype(np.int64)) if np.any(whole != array) else None


def is_given(graph: Graph, producers: Mapping[str, Node], value: str) -> bool:
    """Whether ``value`` is computed from inputs by what keeps whole numbers whole."""
    pending, seen = [value], set[str]()
    while pending:
        current = pending.pop()
        node = producers.get(current)
        if current in seen or current in graph.constants or not graph.type(current).is_float:
            continue
        seen.add(current)
        if current not in graph.inputs and (node is None or not isinstance(node.op, KEEPING)):
            return False
        pending += node.inputs if node is not None else ()
    return not seen.isdisjoint(graph.inputs)


def _truncated(b: Builder, node: Node, x: str) -> str:
    """The cast ``node`` of ``x``: ``floor(max(x, 0)) - floor(max(-x, 0))`` in integers."""

    def emit(op: Op, *inputs: str) -> str:
        return b.emit(op, *inputs, name=f"{node.output}.whole", source=node.source)

    minus = b.constant(f"{node.output}.minus", np.full(1, -1, np.float32))
    above, below = (emit(node.op, emit(Floor(), emit(Relu(), part))) for part in (x, emit(Mul(), x, minus)))
    return b.emit(Sub(), above, below, name=node.output, source=node.source)


def _cut_off(b: Builder, node: Node, numerator: str, divisor: int) -> str:
    """The cast ``node`` of a quotient, which rounds toward zero."""
    zero = b.constant(f"{node.output}.zero", np.zeros(1, np.int64))
    minus = b.emit(Sub(), zero, numerator, name=f"{node.output}.whole")
    above, below = (
        _down(b, node, b.emit(Max(), part, zero, name=f"{node.output}.whole"), divisor)
        for part in (numerator, minus)
    )
    cut = b.emit(Sub(), above, below, name=f"{node.output}.whole", source=node.source)
    return b.emit(node.op, cut, name=node.output, source=node.source)


def _down(b: Builder, node: Node, numerator: str, divisor: int) -> str:
    """``floor(numerator / divisor)`` as int64."""

    def emit(op: Op, *inputs: str) -> str:
        return b.emit(op, *inputs, name=f"{node.output}.whole", source=node.source)

    narrow = emit(Clip(-LARGEST, LARGEST, "int32"), numerator)
    half = b.constant(f"{node.output}.half", np.full(1, divisor // 2, np.int32))
    number = b.constant(f"{node.output}.divisor", np.full(1, divisor, np.int32))
    return emit(Cast("int64"), emit(Divide(0, LARGEST), emit(Sub(), narrow, half), number))


def _inverse(number: float) -> int | None:
    """The whole number of which ``number`` is the reciprocal in floats, if any."""
    nearest = round(1 / number) if number else 0
    return nearest if 1 < nearest <= DIVISOR and abs(nearest * number - 1) < REAL else None


class Wholes:
    """The float values of a graph that are whole numbers, as int64 in the graph that replaces it."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self.producers = graph, graph.producers()
        self._found: dict[str, str | None] = {}
        self._quotients: dict[str, tuple[str, int] | None] = {}

    def of(self, b: Builder, names: Mapping[str, str], value: str) -> str | None:
        """``value``, or None where it may be no whole number."""
        found, pending = self._found, [value]
        while pending:
            current = pending[-1]
            missing = [x for x in self._read(current) if x not in found] if current not in found else []
            if missing:
                pending += missing
                continue
            pending.pop()
            if current not in found:
                made = self._made(b, names, current)
                fits = made is not None and max(map(abs, b.graph.type(made).interval)) <= LARGEST
                found[current] = made if fits else None
        return found[value]

    def _read(self, value: str) -> list[str]:
        """The float values from which ``value`` is computed, where whole ones make it whole."""
        node = self.producers.get(value)
        if node is None or not isinstance(node.op, KEEPING):
            return []
        return [x for x in node.inputs if self._graph.type(x).is_float]

    def _made(self, b: Builder, names: Mapping[str, str], value: str) -> str | None:
        """``value``, where what it reads is found."""
        graph, array = self._graph, self._graph.constants.get(value)
        if array is not None:
            whole = array.dtype != np.bool_ and bool(
                np.all(np.abs(array) <= EXACT) and np.all(array == np.rint(array))
            )
            return b.constant(f"{value}.whole", array.astype(np.int64)) if whole else None
        node = self.producers.get(value)
        if node is None or not graph.type(value).is_float:
            return None
        op, inputs = node.op, node.inputs
        if isinstance(op, Cast) and not graph.type(inputs[0]).is_float:
            integer = names[inputs[0]]
            if max(map(abs, b.graph.type(integer).interval)) > EXACT:
                integer = b.emit(Clip(-EXACT, EXACT, "int32"), integer, name=f"{value}.whole")
            return b.emit(Cast("int64"), integer, name=f"{value}.whole", source=node.source)
        if not isinstance(op, KEEPING):
            return None
        data = inputs[1:] if isinstance(op, Where) else inputs
        operands = [self._found[x] if graph.type(x).is_float else names[x] for x in data]
        if isinstance(op, Floor) and operands[0] is None and self.divides(b, names, value):
            parts = self.quotient(b, names, inputs[0])
            assert parts is not None
            return _down(b, node, *parts)
        if isinstance(op, ROUNDING) and operands[0] is None:
            rounded = b.emit(Cast("int64"), names[value], name=f"{value}.whole", source=node.source)
            rounded = b.emit(Clip(-ROUNDED, ROUNDED, "int32"), rounded, name=f"{value}.whole")
            return b.emit(Cast("int64"), rounded, name=f"{value}.whole")
        if None in operands:
            return None
        if isinstance(op, (Cast, *ROUNDING)):
            return operands[0]
        if isinstance(op, Where):
            operands.insert(0, names[inputs[0]])
        if isinstance(op, Relu | Abs):
            other = b.constant(f"{value}.zero", np.zeros(1, np.int64))
            if isinstance(op, Abs):
                other = b.emit(Sub(), other, str(operands[0]), name=f"{value}.whole", source=node.source)
            op, operands = Max(), [*operands, other]
        return b.emit(op, *map(str, operands), name=f"{value}.whole", source=node.source)

    def divides(self, b: Builder, names: Mapping[str, str], value: str) -> bool:
        """Whether ``value`` is a quotient of whole numbers, rounded down."""
        node = self.producers.get(value)
        rounds = node is not None and isinstance(node.op, Floor)
        return rounds and node is not None and self.quotient(b, names, node.inputs[0]) is not None

    def sides(self, b: Builder, names: Mapping[str, str], node: Node) -> list[str] | None:
        """The integers of which the comparison ``node`` of a quotient with a constant number is one."""
        place = next((i for i, x in enumerate(node.inputs) if x in self._graph.constants), 0)
        number = self._graph.constants.get(node.inputs[place])
        found = self.quotient(b, names, node.inputs[1 - place])
        if number is None or number.size != 1 or number.ndim > 1 or found is None:
            return None
        if abs(float(number.item())) > EXACT:
            return None
        bound = float(number.item()) * found[1]
        whole = round(bound) if abs(bound - round(bound)) < REAL else None
        if whole is None:
            if isinstance(node.op, Equal):
                return None
            whole = math.ceil(bound) if isinstance(node.op, Less) == bool(place) else math.floor(bound)
        constant = b.constant(f"{node.output}.number", np.full(1, whole, np.int64))
        return [constant, found[0]] if place == 0 else [found[0], constant]

    def quotient(self, b: Builder, names: Mapping[str, str], value: str) -> tuple[str, int] | None:
        """Integers, and the number above 0 by which they are divided to give ``value``; else None."""
        if value not in self._quotients:
            whole = self.of(b, names, value)
            found = (whole, 1) if whole is not None else self._quotient(b, names, value)
            fits = found is not None and max(map(abs, b.graph.type(found[0]).interval)) <= LARGEST
            self._quotients[value] = found if fits else None
        return self._quotients[value]

    def _quotient(self, b: Builder, names: Mapping[str, str], value: str) -> tuple[str, int] | None:
        node = self.producers.get(value)
        if node is None or not isinstance(node.op, (*MOVES, Add, Sub, Mul, Div, Abs, Relu)):
            return None
        op, inputs = node.op, list(node.inputs)
        if isinstance(op, (Add, Mul)) and inputs[0] in self._graph.constants:
            inputs.reverse()
        number = self._graph.constants.get(inputs[-1])
        rank = self._graph.type(inputs[0]).rank
        if len(inputs) == 2 and (number is None or number.size != 1 or number.ndim > max(rank, 1)):
            return None
        inner = self.quotient(b, names, inputs[0])
        if inner is None:
            return None
        numerator, divisor = inner

        def emit(op: Op, *others: str) -> str:
            return b.emit(op, numerator, *others, name=f"{value}.whole", source=node.source)

        def constant(whole: float) -> str:
            return b.constant(f"{value}.number", np.full(1, round(whole), np.int64))

        if number is None:
            if isinstance(op, (Abs, Relu)):
                other = emit(Mul(), constant(-1)) if isinstance(op, Abs) else constant(0)
                return emit(Max(), other), divisor
            return emit(op), divisor
        by = float(number.item())
        if isinstance(op, (Add, Sub)):
            by *= divisor
            return (emit(op, constant(by)), divisor) if abs(by - round(by)) < REAL else None
        if not np.isfinite(by) or by == 0:
            return None
        by = 1 / by if isinstance(op, Div) else by
        if by == round(by) and abs(by) <= DIVISOR:
            return emit(Mul(), constant(by)), divisor
        times = _inverse(by)
        return None if times is None or divisor * times > DIVISOR else (numerator, divisor * times)
