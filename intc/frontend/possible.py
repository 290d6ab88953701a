"""Which entries of a condition can be true, by what its values can be at one position of an axis."""

from __future__ import annotations

from dataclasses import replace

from intc.ir.graph import Graph, Node
from intc.ir.types import TensorType
from intc.ops import elementwise as ew
from intc.ops import logic
from intc.ops.movement import Expand, Reshape, Transpose
from intc.ops.positions import Positions
from intc.ops.reduce import ReduceMax, ReduceSum

Ends = tuple[int, int]
POINTWISE = (
    ew.Cast,
    logic.Not,
    ew.Where,
    ew.Mul,
    logic.Or,
    logic.And,
    logic.Equal,
    logic.Less,
    logic.LessOrEqual,
)
DEPTH = 64  # operators that a question passes through


def possible(graph: Graph, mask: str, size: int) -> list[int]:
    """The positions of the condition ``mask`` [size] where some input may make it true."""
    values = _Values(graph)
    return [i for i in range(size) if values.ends(mask, 0, i)[1] != 0]


class _Values:
    """What the integers and bools of a graph can be at one position of an axis."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.producers = graph, graph.producers()
        self.found: dict[tuple[str, int, int], Ends] = {}

    def ends(self, value: str, axis: int, at: int, depth: int = DEPTH) -> Ends:
        """The smallest and the largest that ``value`` takes at position ``at`` of ``axis``."""
        key = (value, axis, at)
        if key not in self.found:
            self.found[key] = self._ends(value, axis, at, depth)
        return self.found[key]

    def _ends(self, value: str, axis: int, at: int, depth: int) -> Ends:
        type_, node = self.graph.type(value), self.producers.get(value)
        if value in self.graph.constants and not type_.is_float:
            part = self.graph.constants[value].take(at, axis)
            return int(part.min()), int(part.max())
        found = self._through(node, type_, axis, at, depth) if node is not None and depth else None
        return type_.interval if found is None else found

    def _through(self, node: Node, type_: TensorType, axis: int, at: int, depth: int) -> Ends | None:
        op, types = node.op, [self.graph.type(x) for x in node.inputs]
        if isinstance(op, Positions):
            shape = (*op.shape[:axis], 1, *op.shape[axis + 1 :])
            one = replace(op, shape=shape, offset=op.offset + op.steps[axis] * at)
            return one.infer().interval
        inside = None if any(t.is_float for t in types) else _axis_of(node, types, type_, axis)
        if inside is None:
            return None
        operands = [
            t.interval if along is None else self.ends(x, along, at, depth - 1)
            for x, t, along in zip(node.inputs, types, inside, strict=True)
        ]
        return _result(op, operands)


def _axis_of(node: Node, types: list[TensorType], type_: TensorType, axis: int) -> list[int | None] | None:
    """The axis of each input that ``axis`` of the result runs along (None: repeated), where it does."""
    op, size = node.op, type_.shape[axis]
    if isinstance(op, Transpose):
        return [op.perm[axis]]
    if isinstance(op, ReduceSum | ReduceMax):
        summed = {a % types[0].rank for a in op.axes}
        kept = [a for a in range(types[0].rank) if op.keepdims or a not in summed]
        return None if kept[axis] in summed else [kept[axis]]
    if isinstance(op, Reshape):
        before = [d for d in type_.shape[:axis] if d != 1]
        for a, d in enumerate(types[0].shape):
            if d == size and [e for e in types[0].shape[:a] if e != 1] == before:
                return [a]
        return None
    if isinstance(op, (Expand, *POINTWISE)):
        aligned = [axis - type_.rank + t.rank for t in types]
        return [a if a >= 0 and t.shape[a] == size else None for a, t in zip(aligned, types, strict=True)]
    return None


def _result(op: object, x: list[Ends]) -> Ends | None:
    """The interval of ``op`` on operands in the intervals ``x``; None where nothing is known."""
    (low, high), *others = x
    if isinstance(op, Transpose | Expand | Reshape | ReduceMax):
        return low, high
    if isinstance(op, ReduceSum):
        return (0, 0) if (low, high) == (0, 0) else None
    if isinstance(op, ew.Cast):
        away = low > 0 or high < 0
        return (int(away), int((low, high) != (0, 0))) if op.dtype == "bool" else (low, high)
    if isinstance(op, logic.Not):
        return 1 - high, 1 - low
    if isinstance(op, ew.Where):
        yes, no = others
        return yes if low else no if not high else (min(yes[0], no[0]), max(yes[1], no[1]))
    ((least, most),) = others
    if isinstance(op, ew.Mul):
        ends = [a * b for a in (low, high) for b in (least, most)]
        return min(ends), max(ends)
    if isinstance(op, logic.And):
        return min(low, least), min(high, most)
    if isinstance(op, logic.Or):
        return max(low, least), max(high, most)
    if isinstance(op, logic.Equal):
        return int(low == high == least == most), int(low <= most and least <= high)
    if isinstance(op, logic.Less):
        return int(high < least), int(low < most)
    return int(high <= least), int(low <= most)
