"""Rows that a condition chooses, computed for all entries of the condition instead.

What reads rows at the true entries of a mask, passes them through operators that treat every row alone, and
writes the results at the same entries equals the same for all entries, written where the mask is true. So a
size that depends on values becomes one that does not. An operator that reads several rows at once is refused.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from intc.frontend.chosen import Entries, Placed, Taken, digits
from intc.frontend.row_wise import POINTWISE, row_wise
from intc.ir.dims import Dim, Poly, product, substitute, symbols, terms_of
from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Op
from intc.ops import elementwise as ew
from intc.ops.movement import Expand, Gather, Reshape, Slice, Transpose
from intc.ops.positions import Positions
from intc.ops.reduce import CumSum, ReduceSum

FEW = 16  # entries of a condition that may write the same row, the last of which counts


class SeveralRows(Exception):
    """``node`` has no meaning row by row; ``reason`` says why."""

    def __init__(self, node: Node, reason: str) -> None:
        super().__init__(reason)
        self.node, self.reason = node, reason


def whole_rows(graph: Graph, every: Sequence[Entries]) -> Graph:
    """``graph`` without the sizes that count ``every`` condition's entries; SeveralRows names a node that has
    no such form.
    """
    for entries in reversed(every):  # the later may be chosen among rows that the earlier chooses
        graph = _Whole(graph, entries).run()
    return graph


class _Whole:
    """One condition: ``rows`` holds, for every value of the old graph with a row for each true entry, which
    axes of the condition its rows depend on; the new value has one for each of their positions.
    """

    def __init__(self, graph: Graph, entries: Entries) -> None:
        self.graph, self.mask, self.shape, self.count = graph, entries.mask, entries.shape, entries.count
        (self.name,) = symbols((entries.count,))
        self.producers = graph.producers()
        self.rows: dict[str, tuple[int, ...]] = {}
        self.inner: dict[str, Dim] = {}  # elements of one row that are next to one another
        self.names: dict[str, str] = {}

    def run(self) -> Graph:
        if not any(self._mentions(n.op) for n in self.graph.nodes):
            return self.graph
        for name in (*self.graph.inputs, *self.graph.constants):
            self.names[name] = name
        return rebuild(self.graph, self._visit)

    def _visit(self, b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
        self.b, self.node = b, node
        op = node.op
        if isinstance(op, Taken) and op.count == self.count:
            result: str | None = self._taken(op, *inputs)
        elif isinstance(op, Placed) and op.count == self.count:
            result = self._placed(op, *inputs)
        elif self._mentions(op) or any(self._axis(x) is not None for x in (*node.inputs, node.output)):
            result = self._alone(op, inputs)
        else:
            result = None
        self.names[node.output] = node.output if result is None else result
        return result

    def _refuse(self, condition: object, reason: str) -> None:
        if condition:
            raise SeveralRows(self.node, reason)

    def _emit(self, op: Op, *inputs: str) -> str:
        return self.b.emit(op, *inputs, name=self.node.output, source=self.node.source)

    def _reshape(self, x: str, shape: Sequence[Dim]) -> str:
        same = tuple(shape) == tuple(self.b.graph.type(x).shape)
        return x if same else self._emit(Reshape(tuple(shape)), x)

    def _mentions(self, op: Op) -> bool:
        return any(self.name in symbols(_dims(getattr(op, f.name))) for f in fields(op))

    def _axis(self, value: str) -> int | None:
        """The axis of ``value`` along which its rows stand, if it has any."""
        shape = self.graph.type(value).shape
        axes = [a for a, d in enumerate(shape) if self.name in symbols((d,))]
        if not axes:
            return None
        (single, *more), terms = axes, terms_of(shape[axes[0]])
        self._refuse(
            more or len(terms) != 1 or next(iter(terms)).count(self.name) != 1,
            f"'{value}' mixes the rows that a condition chooses",
        )
        return single

    def _size(self, axes: Sequence[int]) -> Dim:
        return product(self.shape[a] for a in axes)

    def _alone(self, op: Op, inputs: tuple[str, ...]) -> str:
        """``op`` on all rows."""
        node, types = self.node, [self.graph.type(x) for x in self.node.inputs]
        along = [self._axis(x) for x in node.inputs]
        out, shape = self._axis(node.output), self.graph.type(node.output).shape
        self._refuse(out is None, "it reads all rows that a condition chooses")
        assert out is not None
        if isinstance(op, Slice) and along == [None] and (op.start, op.step) == (0, 1):
            return self._one_after_another(op, inputs[0])
        reason = f"it does not treat every row alone, of those that a condition chooses ({op.name})"
        each = shape[out] // self.count  # how many entries of the axis belong to one row, next to one another
        held = {x: self.rows[x] for x in node.inputs if x in self.rows}
        axes = tuple(sorted({a for part in held.values() for a in part}))
        inner = each * product(shape[out + 1 :])
        if isinstance(op, Reshape):
            inner = self.inner.get(node.inputs[0], inner)
        else:
            rows = [
                (x, t.shape, a) for x, t, a in zip(node.inputs, types, along, strict=True) if a is not None
            ]
            apart = any(s[a] != shape[out] for _, s, a in rows) or any(
                self.inner[x] != each * product(s[a + 1 :]) for x, s, a in rows
            )
            pointwise = isinstance(op, POINTWISE)
            aligned = {len(s) - a for _, s, a in rows} == {len(shape) - out}
            alone = aligned if pointwise else row_wise(op, along, [t.rank for t in types])
            self._refuse(apart or not alone, reason)
        operands = [
            self._widened(x, value, axis, axes, isinstance(op, POINTWISE))
            for x, value, axis in zip(inputs, node.inputs, along, strict=True)
        ]
        self.rows[node.output], self.inner[node.output] = axes, inner
        return self._emit(_resized(op, {self.name: self._size(axes)}), *operands)

    def _one_after_another(self, op: Slice, x: str) -> str:
        """As many of the first rows of ``x`` as the condition has true entries, in the order of those."""
        shape, inner = self.b.graph.type(x).shape, op.stop // self.count
        mask = self.names.get(self.mask)
        self._refuse(mask is None, "it cuts rows by a condition that nothing reads")
        rows = tuple(a for a, d in enumerate(self.shape) if d != 1)
        size, room = self._size(rows), shape[op.axis] // inner
        flags = self._emit(ew.Cast("int32"), self._reshape(str(mask), (size,)))
        number = self._emit(ew.Cast("int64"), self._emit(CumSum(0), flags))
        one, last = (self._emit(Positions((1,), (0,), d)) for d in (1, room - 1))
        first = self._emit(Positions((1,), (0,), 0))
        number = self._emit(ew.Max(), self._emit(ew.Sub(), number, one), first)
        number = self._emit(ew.Min(), number, last)
        before, after = shape[: op.axis], shape[op.axis + 1 :]
        part = self._emit(Gather(op.axis), self._reshape(x, (*before, room, inner, *after)), number)
        self.rows[self.node.output], self.inner[self.node.output] = rows, inner * product(after)
        return self._reshape(part, (*before, size * inner, *after))

    def _widened(self, x: str, old: str, axis: int | None, axes: tuple[int, ...], broadcasts: bool) -> str:
        """``x`` with rows that depend on all of ``axes``."""
        have = self.rows.get(old, axes)
        if axis is None or have == axes or (broadcasts and not have):
            return x
        shape, each = self.b.graph.type(x).shape, self.graph.type(old).shape[axis] // self.count
        before, after = shape[:axis], (each, *shape[axis + 1 :])
        apart = self._reshape(x, (*before, *(self.shape[a] if a in have else 1 for a in axes), *after))
        wide = self._emit(Expand((*before, *(self.shape[a] for a in axes), *after)), apart)
        return self._reshape(wide, (*before, self._size(axes) * each, *shape[axis + 1 :]))

    def _taken(self, op: Taken, data: str, mask: str) -> str:
        """All rows, in the order of the condition's axes that they follow."""
        shape = self.b.graph.type(data).shape
        before, after = shape[: op.axis], shape[op.axis + len(op.coordinates) :]
        order: list[int] = []
        for k, (steps, offset) in enumerate(op.coordinates):
            axes, span = digits(steps, self.shape)
            if span != shape[op.axis + k]:
                data = self._emit(Slice(op.axis + k, offset, offset + span), data)
            order += axes
        rows = tuple(sorted(order))
        data = self._reshape(data, (*before, *(self.shape[a] for a in order), *after))
        data = self._ordered(data, op.axis, order, rows)
        out = self._reshape(data, (*before, self._size(rows), *after))
        self.rows[self.node.output], self.inner[self.node.output] = rows, product(after)
        return out

    def _ordered(self, x: str, start: int, have: Sequence[int], want: Sequence[int]) -> str:
        """``x``, whose axes from ``start`` on are ``have`` of the condition, with them as in ``want``."""
        rank = len(self.b.graph.type(x).shape)
        turn = [start + list(have).index(a) for a in want]
        perm = (*range(start), *turn, *range(start + len(turn), rank))
        return x if perm == tuple(range(rank)) else self._emit(Transpose(perm), x)

    def _placed(self, op: Placed, data: str, mask: str, updates: str) -> str:
        """What was there, and the rows where the condition holds."""
        old, new = self.node.inputs[0], self._origin(self.node.inputs[2])
        added = op.added
        increment = None if added else self._increment(op, new)
        shown = _Writer(self, op, mask)
        if increment is not None:
            added, new = True, increment
        nothing = self._zero(old)
        if added or nothing:
            rows = shown.rows(new, op.added)
            return self._fitted(rows, data) if nothing else self._emit(ew.Add(), data, rows)
        return self._emit(ew.Where(), shown.written(), shown.last(new), data)

    def _fitted(self, x: str, data: str) -> str:
        shape = self.b.graph.type(data).shape
        return x if self.b.graph.type(x).shape == shape else self._emit(Expand(shape), x)

    def _origin(self, value: str) -> str:
        """The value whose elements ``value`` holds, in the same shape."""
        found, shape = value, self.graph.type(value).shape
        node = self.producers.get(value)
        while node is not None and isinstance(node.op, Reshape):
            value = node.inputs[0]
            found = value if self.graph.type(value).shape == shape else found
            node = self.producers.get(value)
        return found

    def _increment(self, op: Placed, updates: str) -> str | None:
        """What is added to the rows that were there, where ``updates`` is such a sum."""
        node = self.producers.get(updates)
        if node is None or not isinstance(node.op, ew.Add):
            return None
        read = Taken(op.count, op.axis, op.coordinates)
        for before, more in (node.inputs, node.inputs[::-1]):
            source = self.producers.get(self._origin(before))
            same = source is not None and source.op == read and source.inputs[1] == self.node.inputs[1]
            if source is not None and same and self._equal(source.inputs[0], self.node.inputs[0]):
                return more if self.graph.type(more).shape == self.graph.type(updates).shape else None
        return None

    def _equal(self, x: str, y: str) -> bool:
        return x == y or (self._zero(x) and self._zero(y))

    def _zero(self, value: str) -> bool:
        node = self.producers.get(value)
        while node is not None and isinstance(node.op, (Expand, Reshape, Taken)):
            value = node.inputs[0]
            node = self.producers.get(value)
        array = self.graph.constants.get(value)
        return array is not None and not np.any(array)


class _Writer:
    """Rows in the places of the value that they are written into."""

    def __init__(self, whole: _Whole, op: Placed, mask: str) -> None:
        self.w, self.axis, self.mask = whole, op.axis, mask
        counted = [digits(steps, whole.shape)[0] for steps, _ in op.coordinates]
        self.order = [a for part in counted for a in part]
        self.kept = sorted(self.order)
        self.again = [a for a, d in enumerate(whole.shape) if d != 1 and a not in self.order]
        shape = whole.graph.type(whole.node.inputs[0]).shape
        self.places = shape[op.axis : op.axis + len(counted)]

    def rows(self, value: str, added: bool) -> str:
        """``value``, of the old graph, where the condition holds, and 0 elsewhere. Of several entries for one
        place the last counts, or their sum where they are ``added``.
        """
        w = self.w
        node = w.producers.get(value)
        if node is not None and isinstance(node.op, ew.Mul):
            for x, weight in (node.inputs, node.inputs[::-1]):
                if self._is_weight(weight) and not set(w.rows.get(x, ())) & set(self.again):
                    axis = w._axis(x)
                    both = len(w.graph.type(x).shape) == len(w.graph.type(weight).shape)
                    if both and axis == self.axis:
                        return w._emit(ew.Mul(), self._placed(x), self.rows(weight, added))
        return self._chosen(value, added)

    def last(self, value: str) -> str:
        """``value``, of the old graph, where the condition holds, and anything elsewhere."""
        return self._chosen(value, False) if self.again else self._placed(value)

    def _is_weight(self, value: str) -> bool:
        axis = self.w._axis(value)
        if axis is None or axis != self.axis:
            return False
        return product(d for a, d in enumerate(self.w.graph.type(value).shape) if a != axis) == 1

    def _apart(self, value: str, axes: Sequence[int]) -> str:
        """``value`` with an axis for each of ``axes`` of the condition."""
        w, have = self.w, self.w.rows[value]
        x, old = w.names[value], w.graph.type(value).shape
        alone = old[self.axis] == w.count and w.inner[value] == product(old[self.axis + 1 :])
        w._refuse(not alone, "the rows that are written are no rows of what a condition chooses")
        shape = w.b.graph.type(x).shape
        sizes = (w.shape[a] if a in have else 1 for a in axes)
        return w._reshape(x, (*shape[: self.axis], *sizes, *shape[self.axis + 1 :]))

    def _mask(self, axes: Sequence[int], before: int, after: int) -> str:
        w = self.w
        return w._reshape(self.mask, (*(1,) * before, *(w.shape[a] for a in axes), *(1,) * after))

    def _placed(self, value: str) -> str:
        """The rows of ``value``, which are the same for all entries of one place."""
        return self._arranged(self._apart(value, self.kept))

    def _arranged(self, x: str) -> str:
        """``x`` [.., kept axes, ..] with the axes of the value that is written into."""
        w = self.w
        shape = w.b.graph.type(x).shape
        sizes = dict(zip(self.kept, shape[self.axis : self.axis + len(self.kept)], strict=True))
        x = w._ordered(x, self.axis, self.kept, self.order)
        whole = [sizes[a] == w.shape[a] for a in self.order]
        w._refuse(any(whole) and not all(whole), "rows follow some axes of a condition only")
        places = self.places if all(whole) else (1,) * len(self.places)
        return w._reshape(x, (*shape[: self.axis], *places, *shape[self.axis + len(self.kept) :]))

    def _chosen(self, value: str, added: bool) -> str:
        w = self.w
        w._refuse(w._axis(value) != self.axis, "the rows that are written stand along another axis")
        axes = sorted((*self.kept, *self.again))
        x = self._apart(value, axes)
        after = len(w.graph.type(value).shape) - self.axis - 1
        mask = self._mask(axes, self.axis, after)
        zero = w.b.constant(f"{w.node.output}.zero", np.zeros(1, w.graph.type(value).dtype))
        again = tuple(self.axis + axes.index(a) for a in self.again)
        if added or not again:
            x = w._emit(ew.Where(), mask, x, zero)
            return self._arranged(w._emit(ReduceSum(again, False), x) if again else x)
        last = zero
        for m, part in zip(self._each(mask, again), self._each(x, again), strict=True):
            last = w._emit(ew.Where(), m, part, last)
        return self._arranged(last)

    def _each(self, x: str, axes: tuple[int, ...]) -> list[str]:
        """``x`` at every position of ``axes``, in order; all the same where it does not depend on them."""
        w, shape = self.w, self.w.b.graph.type(x).shape
        sizes = [d for d in (self.w.shape[a] for a in self.again) if isinstance(d, int)]
        few = len(sizes) == len(axes) and product(sizes) <= FEW  # type: ignore[operator]
        w._refuse(not few, f"more than {FEW} entries of a condition may write one row")
        kept = [d for a, d in enumerate(shape) if a not in axes]
        out = []
        for at in itertools.product(*map(range, sizes)):
            part = x
            for axis, i in zip(axes, at, strict=True):
                part = part if shape[axis] == 1 else w._emit(Slice(axis, i, i + 1), part)
            out.append(w._reshape(part, kept))
        return out

    def written(self) -> str:
        """Where a row is written."""
        axes = sorted((*self.kept, *self.again))
        after = len(self.w.graph.type(self.w.node.inputs[2]).shape) - self.axis - 1
        mask = self._mask(axes, self.axis, after)
        again = tuple(self.axis + axes.index(a) for a in self.again)
        found, *others = self._each(mask, again) if again else [mask]
        for other in others:
            found = self.w._emit(ew.Or(), found, other)
        return self._arranged(found)


def _dims(field: Any) -> list[Dim]:
    """The sizes in an attribute of an operator."""
    if isinstance(field, tuple):
        return [d for part in field for d in _dims(part)]
    return [field] if isinstance(field, Poly) else []


def _resized(op: Op, sizes: dict[str, Dim]) -> Op:
    """``op`` with symbols in its attributes replaced."""

    def change(field: Any) -> Any:
        if isinstance(field, tuple):
            return tuple(change(part) for part in field)
        return substitute(field, sizes) if isinstance(field, Poly) else field

    return replace(op, **{f.name: change(getattr(op, f.name)) for f in fields(op)})
