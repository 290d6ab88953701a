"""Which entries of a condition can be true, by what its values can be at one position of an axis."""

from __future__ import annotations

from dataclasses import replace

from intc.ir.graph import Builder, Node
from intc.ir.types import TensorType
from intc.ops import elementwise as ew
from intc.ops.movement import Expand, Reshape, Transpose
from intc.ops.positions import Positions
from intc.ops.reduce import ReduceMax, ReduceSum

Ends = tuple[int, int]
POINTWISE = (ew.Cast, ew.Not, ew.Where, ew.Mul, ew.Or, ew.And, ew.Equal, ew.Less, ew.LessOrEqual)
DEPTH = 64  # operators that a question passes through


def possible(builder: Builder, mask: str, size: int) -> list[int]:
    """The positions of the condition ``mask`` [size] where some input may make it true."""
    return [i for i in range(size) if _ends(builder, mask, 0, i, DEPTH)[1] != 0]


def _ends(builder: Builder, value: str, axis: int, at: int, depth: int) -> Ends:
    """The smallest and the largest integer that ``value`` takes at position ``at`` of ``axis``."""
    type_ = builder.graph.type(value)
    if value in builder.graph.constants:
        part = builder.graph.constants[value].take(at, axis)
        return (int(part.min()), int(part.max())) if not type_.is_float else type_.interval
    node = builder.producer(value)
    found = _through(builder, node, type_, axis, at, depth) if node is not None and depth else None
    return type_.interval if found is None else found


def _through(builder: Builder, node: Node, type_: TensorType, axis: int, at: int, depth: int) -> Ends | None:
    op, types = node.op, [builder.graph.type(x) for x in node.inputs]
    if any(t.is_float for t in types):
        return None
    if isinstance(op, Positions):
        shape = (*op.shape[:axis], 1, *op.shape[axis + 1 :])
        one = replace(op, shape=shape, offset=op.offset + op.steps[axis] * at)
        return one.infer().interval
    inside = _axis_of(node, types, type_, axis)
    if inside is None:
        return None

    def operand(i: int) -> Ends:
        along = inside[i]
        return types[i].interval if along is None else _ends(builder, node.inputs[i], along, at, depth - 1)

    return _result(op, [operand(i) for i in range(len(types))])


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
    if isinstance(op, ew.Not):
        return 1 - high, 1 - low
    if isinstance(op, ew.Where):
        yes, no = others
        return yes if low else no if not high else (min(yes[0], no[0]), max(yes[1], no[1]))
    ((least, most),) = others
    if isinstance(op, ew.Mul):
        ends = [a * b for a in (low, high) for b in (least, most)]
        return min(ends), max(ends)
    if isinstance(op, ew.And):
        return min(low, least), min(high, most)
    if isinstance(op, ew.Or):
        return max(low, least), max(high, most)
    if isinstance(op, ew.Equal):
        return int(low == high == least == most), int(low <= most and least <= high)
    if isinstance(op, ew.Less):
        return int(high < least), int(low < most)
    return int(high <= least), int(low <= most)
