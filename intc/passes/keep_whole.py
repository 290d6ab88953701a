"""Phase 1: whole numbers that a model keeps in floats are computed as integers, where they are compared or
become integers again: counts, running sums of one-hot rows, places in a buffer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Op
from intc.ops.elementwise import Abs, Add, Cast, Floor, Max, Min, Mul, Relu, Round, Sub, Where
from intc.ops.logic import Equal, Less, LessOrEqual
from intc.ops.movement import MOVEMENT
from intc.ops.reduce import CumSum, ReduceMax, ReduceSum
from intc.ops.requantize import Clip
from intc.passes.rewrite import rewrite

EXACT: Final = 2**24  # floats hold all whole numbers below; integers that become floats saturate there
LARGEST: Final = 2**30
ALIKE: Final = (*MOVEMENT, Add, Sub, Mul, Max, Min, ReduceSum, ReduceMax, CumSum)  # the same on integers


@dataclass(frozen=True)
class KeepWhole:
    """Only what is whole whatever the input, and provably small."""

    name: str = "keep_whole"

    def run(self, graph: Graph) -> Graph:
        found: dict[str, str | None] = {}
        producers = graph.producers()

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            op = node.op
            becomes = isinstance(op, Cast) and op.dtype not in ("float32", "bool")
            if not becomes and not isinstance(op, (Equal, Less, LessOrEqual)):
                return None
            if not graph.type(node.inputs[0]).is_float or all(x in graph.constants for x in node.inputs):
                return None
            operands = [
                _bound(graph, b, op, x, i) or _whole(graph, producers, b, names, x, found)
                for i, x in enumerate(node.inputs)
            ]
            if None in operands:
                return None
            return b.emit(op, *map(str, operands), name=node.output, source=node.source)

        return rewrite(graph, rule)


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


def _whole(
    graph: Graph,
    producers: Mapping[str, Node],
    b: Builder,
    names: Mapping[str, str],
    value: str,
    found: dict[str, str | None],
) -> str | None:
    """``value`` as int64 in the new graph, or None where it may be no whole number."""
    if value not in found:
        made = _made(graph, producers, b, names, value, found)
        fits = made is not None and max(map(abs, b.graph.type(made).interval)) <= LARGEST
        found[value] = made if fits else None
    return found[value]


def _made(
    graph: Graph,
    producers: Mapping[str, Node],
    b: Builder,
    names: Mapping[str, str],
    value: str,
    found: dict[str, str | None],
) -> str | None:
    type_, array = graph.type(value), graph.constants.get(value)
    if array is not None:
        whole = array.dtype != np.bool_ and bool(
            np.all(np.abs(array) <= EXACT) and np.all(array == np.rint(array))
        )
        return b.constant(f"{value}.whole", array.astype(np.int64)) if whole else None
    node = producers.get(value)
    if node is None or not type_.is_float:
        return None
    op, inputs = node.op, node.inputs
    if isinstance(op, Cast):
        if not graph.type(inputs[0]).is_float:
            integer = names[inputs[0]]
            if max(map(abs, b.graph.type(integer).interval)) > EXACT:
                integer = b.emit(Clip(-EXACT, EXACT, "int32"), integer, name=f"{value}.whole")
            return b.emit(Cast("int64"), integer, name=f"{value}.whole", source=node.source)
        return _whole(graph, producers, b, names, inputs[0], found)
    if not isinstance(op, (*ALIKE, Where, Abs, Relu, Floor, Round)):
        return None
    data = inputs[1:] if isinstance(op, Where) else inputs
    operands = [
        _whole(graph, producers, b, names, x, found) if graph.type(x).is_float else names[x] for x in data
    ]
    if None in operands:
        return None
    if isinstance(op, (Floor, Round)):
        return operands[0]
    if isinstance(op, Where):
        operands.insert(0, names[inputs[0]])
    if isinstance(op, Relu | Abs):
        other = b.constant(f"{value}.zero", np.zeros(1, np.int64))
        if isinstance(op, Abs):
            other = b.emit(Sub(), other, str(operands[0]), name=f"{value}.whole", source=node.source)
        op, operands = Max(), [*operands, other]
    return b.emit(op, *map(str, operands), name=f"{value}.whole", source=node.source)
