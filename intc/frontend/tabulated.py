"""Functions of a position, tabulated: rotary angles, relative position buckets, linear biases, windows.

Exporters compute them from ``Range`` with the model's own arithmetic. A :class:`Tabulated` tensor depends on
its symbolic axes only through one sum ``v = steps . i``, so a table over v, computed while importing, and one
lookup replace all of it, in floats and integers alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from intc.frontend.fold import compute
from intc.frontend.indices import with_ones
from intc.frontend.symbolic import Index, Splat, axes_of, dims_of
from intc.ir.dims import Dim, Shape, broadcast, symbols, terms_of, total
from intc.ir.graph import Builder
from intc.ir.op import Array
from intc.ops.movement import Expand, Lookup, Transpose

if TYPE_CHECKING:
    from intc.frontend.importer import Importer

FARTHEST: Final = 2**20  # what the caller may ask for
LONGEST: Final = 4096  # the longest symbolic axis that a table covers, unless the caller asks for another
TABLE_LIMIT: Final = 2**26  # elements
ELEMENTWISE: Final = frozenset(
    {
        "Abs",
        "Add",
        "And",
        "Cast",
        "Ceil",
        "Clip",
        "Cos",
        "Div",
        "Elu",
        "Equal",
        "Erf",
        "Exp",
        "Floor",
        "Greater",
    }
    | {
        "GreaterOrEqual",
        "Identity",
        "Less",
        "LessOrEqual",
        "Log",
        "Max",
        "Min",
        "Mod",
        "Mul",
        "Neg",
        "Not",
        "Or",
    }
    | {"Pow", "Reciprocal", "Relu", "Round", "Sigmoid", "Sign", "Sin", "Sqrt", "Sub", "Tanh", "Where", "Xor"}
)
STRUCTURAL: Final = frozenset(
    {
        "Concat",
        "Einsum",
        "Expand",
        "Gather",
        "GatherElements",
        "MatMul",
        "Reshape",
        "Slice",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)


@dataclass(frozen=True, eq=False)
class Tabulated:
    """``t[i] = table[offset + sum(steps * i) - low][i]`` over ``shape``; ``table`` has a size of 1 on axes
    that ``steps`` moves along, and may have on others. An ``offset`` other than 0 depends on sizes in
    ``shape``, as where positions count down from the last.
    """

    shape: Shape
    steps: tuple[int, ...]
    low: int
    table: Array
    offset: Dim = 0

    @property
    def rows(self) -> tuple[Any, ...]:
        """What two tables must have in common to be combined row by row."""
        return self.offset, self.low, self.table.shape[0]

    def aligned(self, rank: int) -> tuple[tuple[int, ...], Array]:
        """Steps and table with axes of size 1 in front up to ``rank``."""
        pad = rank - len(self.shape)
        table = self.table.reshape(self.table.shape[0], *(1,) * pad, *self.table.shape[1:])
        return (0,) * pad + self.steps, table


def tabulate(
    ctx: Importer, node: onnx.NodeProto, inputs: Sequence[Any], attributes: dict[str, Any]
) -> Tabulated | None:
    """The result of ``node`` on known inputs as a Tabulated, or None where it is none."""
    op = node.op_type
    if op not in ELEMENTWISE and op not in STRUCTURAL:
        return None
    if op == "Expand" and isinstance(inputs[0], np.ndarray):
        inputs = [_constant(inputs[0]), inputs[1]]
    known = [_tabulated(x, ctx.longest) if isinstance(x, Index) else x for x in inputs]
    if not any(isinstance(x, Tabulated) for x in known):
        return None
    if op == "Einsum":
        known = _unsummed(str(attributes["equation"].replace(" ", "")), known)
    if op == "Einsum" or (op == "MatMul" and _outer(known)):
        node = onnx.helper.make_node("Mul", node.input, node.output)
        op = "Mul"
    result = (
        _elementwise(node, known, ctx.opsets)
        if op in ELEMENTWISE
        else _structural(op, known, attributes, ctx.longest)
    )
    return result if result is not None and result.table.size <= TABLE_LIMIT else None


def _constant(array: Array) -> Tabulated:
    return Tabulated(array.shape, (0,) * array.ndim, 0, array[None])


def _tabulated(index: Index, longest: int) -> Tabulated | None:
    """An index tensor as the table of its own values."""
    if not all(isinstance(s, int) for s in index.steps):
        return None
    steps = tuple(int(s) if d != 1 else 0 for s, d in zip(index.steps, index.shape, strict=True))  # type: ignore[arg-type]
    first, offset = (index.offset, 0) if isinstance(index.offset, int) else (0, index.offset)
    if offset == 0:
        low, high = _reach(index.shape, steps, longest)
    elif set(symbols((offset,))) <= set(symbols(index.shape)) and any(steps):
        low, high = _reach_from(offset, index.shape, steps, longest)
    else:
        return None
    if high - low >= 4 * longest:
        return None
    values = np.arange(low, high + 1, dtype=index.dtype) + np.asarray(first, index.dtype)
    return Tabulated(index.shape, steps, low, values.reshape(-1, *(1,) * len(steps)), offset)


def _reach(shape: Shape, steps: Sequence[int], longest: int) -> tuple[int, int]:
    """The smallest and the largest sum of steps."""
    ends = [s * ((d if isinstance(d, int) else longest) - 1) for s, d in zip(steps, shape, strict=True)]
    return sum(min(e, 0) for e in ends), sum(max(e, 0) for e in ends)


def _reach_from(offset: Dim, shape: Shape, steps: Sequence[int], longest: int) -> tuple[int, int]:
    """The smallest and the largest ``offset + sum of steps``, no symbol or quotient above ``longest``."""
    moves = [s * (d - 1) for s, d in zip(steps, shape, strict=True)]
    lowest = offset + total(m for m, s in zip(moves, steps, strict=True) if s < 0)
    highest = offset + total(m for m, s in zip(moves, steps, strict=True) if s > 0)
    return _extreme(lowest, min, longest), _extreme(highest, max, longest)


def _extreme(dim: Dim, pick: Callable[[int, int], int], longest: int) -> int:
    """The smallest or largest value of ``dim``, term by term."""
    return sum(
        coef if not names else pick(0, coef * longest ** len(names)) for names, coef in terms_of(dim).items()
    )


def _outer(inputs: Sequence[Any]) -> bool:
    """Whether a product sums over one element only."""
    shapes = [tuple(x.shape) for x in inputs]
    return min(map(len, shapes)) >= 2 and shapes[0][-1] == 1 and shapes[1][-2] == 1


def _unsummed(equation: str, inputs: Sequence[Any]) -> list[Any]:
    """The two operands of ``i,j->ij`` and its like with axes that broadcast; None for those of other sums."""
    left, _, out = equation.partition("->")
    terms = left.split(",")
    plain = len(terms) == 2 and "".join(terms) == out and len(set(out)) == len(out) and out.isalpha()
    if not plain or not all(isinstance(x, Tabulated | np.ndarray) for x in inputs):
        return [None for _ in inputs]
    shape = (*inputs[0].shape, *(1,) * len(terms[1]))
    first = inputs[0]
    return [
        _reshaped(first, shape) if isinstance(first, Tabulated) else first.reshape(shape),
        inputs[1],
    ]


def _elementwise(node: onnx.NodeProto, inputs: Sequence[Any], opsets: Any) -> Tabulated | None:
    operands = [x for x in inputs if x is not None]
    if not operands or not all(isinstance(x, Tabulated | Splat | np.ndarray) for x in operands):
        return None
    if any(isinstance(x, np.ndarray) and x.dtype == object for x in operands):
        return None
    if any(isinstance(x, Splat) and x.value is None for x in operands):
        return None
    shape: Shape = ()
    for x in operands:
        shape = broadcast(shape, tuple(x.shape))
    moving = [x for x in operands if isinstance(x, Tabulated) and any(x.steps)]
    moves = {(x.aligned(len(shape))[0], x.rows) for x in moving}
    if len(moves) > 1:
        return None
    feeds: dict[str, Array] = {}
    for name, x in zip(node.input, inputs, strict=True):
        if isinstance(x, Tabulated):
            _, feeds[name] = x.aligned(len(shape))
        elif isinstance(x, Splat):
            feeds[name] = np.full((1,) * (len(shape) + 1), x.value)
        elif x is not None and node.op_type != "Clip":
            feeds[name] = x.reshape((1,) * (len(shape) + 1 - x.ndim) + x.shape)
        elif x is not None:
            feeds[name] = x
    steps = next(iter(moves))[0] if moves else (0,) * len(shape)
    if any(s and d == 1 for s, d in zip(steps, shape, strict=True)):
        return None
    (table,) = compute(node, feeds, opsets)
    low, offset = (moving[0].low, moving[0].offset) if moving else (0, 0)
    return Tabulated(shape, steps, low, table, offset)


def _structural(op: str, inputs: Sequence[Any], attributes: dict[str, Any], longest: int) -> Tabulated | None:
    x = inputs[0]
    if op == "Gather":
        return _gather(inputs[0], inputs[1], int(attributes.get("axis", 0)))
    if op == "GatherElements":
        return _gather_elements(inputs[0], inputs[1], int(attributes.get("axis", 0)))
    if op == "Concat":
        return _concat(inputs, int(attributes["axis"]))
    if not isinstance(x, Tabulated):
        return None
    rank = len(x.shape)
    if op == "Expand" and isinstance(inputs[1], np.ndarray):
        shape = broadcast(tuple(x.shape), dims_of(inputs[1]))
        steps, table = x.aligned(len(shape))
        return Tabulated(shape, steps, x.low, table, x.offset)
    if op == "Transpose":
        perm = tuple(attributes.get("perm", range(rank - 1, -1, -1)))
        table = x.table.transpose(0, *(p + 1 for p in perm))
        shape, steps = (tuple(v[p] for p in perm) for v in (x.shape, x.steps))
        return Tabulated(shape, steps, x.low, table, x.offset)
    if op == "Unsqueeze":
        axes = axes_of(inputs, attributes)
        target: list[Dim] = list(x.shape)
        for axis in sorted(a % (rank + len(axes)) for a in axes):
            target.insert(axis, 1)
        return _reshaped(x, tuple(target))
    if op == "Squeeze":
        gone = {a % rank for a in axes_of(inputs, attributes)} or {i for i, d in enumerate(x.shape) if d == 1}
        return _reshaped(x, tuple(d for i, d in enumerate(x.shape) if i not in gone))
    if op == "Reshape" and isinstance(inputs[1], np.ndarray):
        return _reshaped(x, dims_of(inputs[1]))
    return _slice(x, inputs, longest) if op == "Slice" else None


def _reshaped(x: Tabulated, shape: Shape) -> Tabulated | None:
    """``x`` with axes of size 1 added and removed, or None where the shape is another one."""
    axes = with_ones(x.shape, shape)
    if axes is None:
        return None
    sizes = [1 if i is None else x.table.shape[i + 1] for _, i in axes]
    steps = tuple(0 if i is None else x.steps[i] for _, i in axes)
    table = x.table.reshape(x.table.shape[0], *sizes)
    return Tabulated(tuple(d for d, _ in axes), steps, x.low, table, x.offset)


def _slice(x: Tabulated, inputs: Sequence[Any], longest: int) -> Tabulated | None:
    starts, ends, axes, strides = (*inputs[1:], None, None)[:4]
    if not isinstance(starts, np.ndarray) or not isinstance(ends, np.ndarray):
        return None
    given = range(len(starts)) if axes is None else [int(a) for a in np.ravel(axes)]
    every = [1] * len(starts) if strides is None else [int(s) for s in np.ravel(strides)]
    shape, table = list(x.shape), x.table
    for start, end, axis, step in zip(starts.ravel(), ends.ravel(), given, every, strict=True):
        axis %= len(shape)
        size = shape[axis]
        if start == 0 and step == 1 and (not isinstance(end, int | np.integer) or end >= longest):
            shape[axis] = size if isinstance(end, int | np.integer) else end
            continue
        if x.steps[axis] or not isinstance(size, int):
            return None
        part = slice(int(start), int(end) if abs(int(end)) < 2**31 else None, step)
        full = np.broadcast_to(table, (*table.shape[: axis + 1], size, *table.shape[axis + 2 :]))
        table = full[(slice(None),) * (axis + 1) + (part,)]
        shape[axis] = table.shape[axis + 1]
    return Tabulated(tuple(shape), x.steps, x.low, table, x.offset)


def _concat(inputs: Sequence[Any], axis: int) -> Tabulated | None:
    parts = [_constant(x) if isinstance(x, np.ndarray) and x.dtype != object else x for x in inputs]
    if not all(isinstance(x, Tabulated) for x in parts):
        return None
    rank = len(parts[0].shape)
    axis %= rank
    moves = {(x.steps, x.rows) for x in parts if any(x.steps)}
    sizes = [x.shape[axis] for x in parts]
    if len(moves) > 1 or any(s[axis] for s, _ in moves) or not all(isinstance(d, int) for d in sizes):
        return None
    moving = next((x for x in parts if any(x.steps)), parts[0])
    rows = moving.table.shape[0]
    dims = [max(x.table.shape[i + 1] for x in parts) for i in range(rank)]
    tables = [
        np.broadcast_to(x.table, (rows, *dims[:axis], size, *dims[axis + 1 :]))
        for x, size in zip(parts, sizes, strict=True)
    ]
    shape = (*moving.shape[:axis], sum(sizes), *moving.shape[axis + 1 :])
    return Tabulated(shape, moving.steps, moving.low, np.concatenate(tables, axis=axis + 1), moving.offset)


def written(data: Any, updates: Any, axis: int, positions: slice) -> Tabulated | None:
    """``data`` with ``updates`` at ``positions`` along an axis of known size that neither moves along."""
    if isinstance(data, str) or isinstance(updates, str):
        return None
    size = data.shape[axis]
    if isinstance(data, Splat) and data.value is not None and isinstance(size, int):
        sizes = tuple(size if a == axis else 1 for a in range(len(data.shape)))
        data = Tabulated(data.shape, (0,) * len(sizes), 0, np.full((1, *sizes), data.value))
    both = _concat([data, updates], axis) if isinstance(data, Tabulated | np.ndarray) else None
    if both is None:
        return None
    source = np.arange(size)
    source[positions] = np.arange(size, size + len(source[positions]))
    shape = (*both.shape[:axis], size, *both.shape[axis + 1 :])
    return replace(both, shape=shape, table=np.take(both.table, source, axis=axis + 1))


def _rows(indices: Tabulated, size: int) -> Array:
    """The tabulated positions in an axis of ``size``; those that no input reaches are cut to it."""
    return np.clip(np.where(indices.table < 0, indices.table + size, indices.table), 0, size - 1)


def _gather(data: Any, indices: Any, axis: int) -> Tabulated | None:
    """Rows of a constant at tabulated positions."""
    if not isinstance(data, np.ndarray) or not isinstance(indices, Tabulated) or data.dtype == object:
        return None
    axis %= data.ndim
    size = data.shape[axis]
    at = _rows(indices, size)
    table = np.moveaxis(np.take(data, at, axis=axis), axis, 0)
    front, back = data.shape[:axis], data.shape[axis + 1 :]
    shape = (*front, *indices.shape, *back)
    steps = (0,) * len(front) + indices.steps + (0,) * len(back)
    return Tabulated(shape, steps, indices.low, table, indices.offset)


def _gather_elements(data: Any, indices: Any, axis: int) -> Tabulated | None:
    """Elements of a constant that differ along ``axis`` only."""
    data = _constant(data) if isinstance(data, np.ndarray) and data.dtype != object else data
    if isinstance(data, Splat):
        return Tabulated(
            indices.shape, (0,) * len(indices.shape), 0, np.full((1,) * (len(indices.shape) + 1), data.value)
        )
    if not isinstance(data, Tabulated) or any(data.steps) or not isinstance(indices, Tabulated):
        return None
    axis %= len(data.shape)
    if data.table.size != data.table.shape[axis + 1] or not isinstance(data.shape[axis], int):
        return None
    row = np.broadcast_to(data.table.ravel(), (data.shape[axis],))  # type: ignore[arg-type]
    table = row[_rows(indices, len(row))]
    return Tabulated(indices.shape, indices.steps, indices.low, table, indices.offset)


def emit(b: Builder, x: Tabulated, name: str) -> str:
    """The live value of ``x``."""
    moving = [a for a, s in enumerate(x.steps) if s]
    if not moving:
        value = b.constant(f"{name}.table", _storable(x.table[0]))
    else:
        still = [a for a in range(len(x.shape)) if a not in moving]
        rows = x.table.reshape(x.table.shape[0], *(x.table.shape[a + 1] for a in still))
        op = Lookup(tuple(x.shape[a] for a in moving), tuple(x.steps[a] for a in moving), x.offset - x.low)
        value = b.emit(op, b.constant(f"{name}.table", _storable(rows)), name=name)
        order = [*moving, *still]
        if order != sorted(order):
            value = b.emit(Transpose(tuple(order.index(a) for a in range(len(order)))), value, name=name)
    if b.graph.type(value).shape != tuple(x.shape):
        value = b.emit(Expand(tuple(x.shape)), value, name=name)
    return value


def _storable(array: Array) -> Array:
    return np.ascontiguousarray(array, np.float32 if array.dtype.kind == "f" else array.dtype)
