"""Rows that a condition chooses, computed for all entries of the condition instead.

What reads rows at the true entries of a mask, passes them through operators that treat every row alone, and
writes the results at the same entries equals the same for all entries, written where the mask is true. So a
size that depends on values becomes one that does not. An operator that reads several rows at once is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from intc.errors import GraphError
from intc.frontend.chosen import Entries, Placed, Taken, digits
from intc.frontend.row_wise import POINTWISE, row_wise
from intc.frontend.written import Writer
from intc.ir.dims import Dim, Poly, product, substitute, symbol, symbols, terms_of
from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Op
from intc.ops import elementwise as ew
from intc.ops.movement import Expand, Gather, Reshape, Slice, Transpose
from intc.ops.positions import Positions
from intc.ops.reduce import ArgMax, CumSum


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
        graph = Whole(graph, entries).run()
    return graph


class Whole:
    """One condition: ``rows`` holds, for every value of the old graph with a row for each true entry, which
    axes of the condition its rows depend on; the new value has one for each of their positions.
    """

    def __init__(self, graph: Graph, entries: Entries) -> None:
        self.graph, self.mask, self.shape, self.count = graph, entries.mask, entries.shape, entries.count
        self.name = entries.symbol
        self.producers = graph.producers()
        self.rows: dict[str, tuple[int, ...]] = {}
        self.inner: dict[str, Dim] = {}  # elements of one row that are next to one another
        self.names: dict[str, str] = {}
        self.samples: set[str] = set()  # values whose rows stand apart for every sample

    def run(self) -> Graph:
        if not any(self._mentions(n.op) for n in self.graph.nodes):
            return self.graph
        for name in (*self.graph.inputs, *self.graph.constants):
            self.names[name] = name
        return rebuild(self.graph, self._visit)

    def _visit(self, b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
        self.b, self.node = b, node
        try:
            result = self._result(node.op, inputs)
        except GraphError as error:
            raise SeveralRows(node, str(error)) from None
        self.names[node.output] = node.output if result is None else result
        return result

    def _result(self, op: Op, inputs: tuple[str, ...]) -> str | None:
        if isinstance(op, Taken) and op.count == self.count:
            return self._taken(op, *inputs)
        if isinstance(op, Placed) and op.count == self.count:
            return self._placed(op, *inputs)
        if self._mentions(op) or any(self.axis(x) is not None for x in (*self.node.inputs, self.node.output)):
            return (
                self._end(op, *inputs) if {*self.node.inputs[:1]} & self.samples else self._alone(op, inputs)
            )
        return None

    def refuse(self, condition: object, reason: str) -> None:
        if condition:
            raise SeveralRows(self.node, reason)

    def emit(self, op: Op, *inputs: str) -> str:
        return self.b.emit(op, *inputs, name=self.node.output, source=self.node.source)

    def reshape(self, x: str, shape: Sequence[Dim]) -> str:
        same = tuple(shape) == tuple(self.b.graph.type(x).shape)
        return x if same else self.emit(Reshape(tuple(shape)), x)

    def _mentions(self, op: Op) -> bool:
        return any(self.name in symbols(_dims(getattr(op, f.name))) for f in fields(op))

    def axis(self, value: str) -> int | None:
        """The axis of ``value`` along which its rows stand, if it has any."""
        shape = self.graph.type(value).shape
        axes = [a for a, d in enumerate(shape) if self.name in symbols((d,))]
        if not axes:
            return None
        (single, *more), terms = axes, terms_of(shape[axes[0]])
        self.refuse(
            more or len(terms) != 1 or next(iter(terms)).count(self.name) != 1,
            f"'{value}' mixes the rows that a condition chooses",
        )
        return single

    def _size(self, axes: Sequence[int]) -> Dim:
        return product(self.shape[a] for a in axes)

    def _alone(self, op: Op, inputs: tuple[str, ...]) -> str:
        """``op`` on all rows."""
        node, types = self.node, [self.graph.type(x) for x in self.node.inputs]
        along = [self.axis(x) for x in node.inputs]
        out, shape = self.axis(node.output), self.graph.type(node.output).shape
        self.refuse(out is None, "it reads all rows that a condition chooses")
        assert out is not None
        if isinstance(op, Slice) and along == [None] and (op.start, op.step) == (0, 1):
            return self._one_after_another(op, inputs[0])
        if shape[out] == symbol(self.name) != self.count:
            return self._by_sample(op, inputs[0], out)
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
            self.refuse(apart or not alone, reason)
        operands = [
            self._widened(x, value, axis, axes, isinstance(op, POINTWISE))
            for x, value, axis in zip(inputs, node.inputs, along, strict=True)
        ]
        self.rows[node.output], self.inner[node.output] = axes, inner
        return self.emit(_resized(op, {self.name: self._size(axes)}), *operands)

    def _by_sample(self, op: Op, x: str, axis: int) -> str:
        """All rows of a reshape to [samples, entries, ..]: every sample has as many true entries."""
        old, shape = self.node.inputs[0], self.graph.type(self.node.output).shape
        whole = product(shape[axis + 1 :]) == self.inner.get(old) and axis == 1 and len(self.shape) == 2
        self.refuse(not isinstance(op, Reshape) or not whole, "it counts the true entries of every sample")
        x = self._widened(x, old, self.axis(old), (0, 1), False)
        self.samples.add(self.node.output)
        return self.reshape(x, (*self.shape, *shape[2:]))

    def _end(self, op: Op, x: str) -> str:
        """The row at the first or the last true entry of every sample."""
        entries = symbol(self.name)
        first, last = Slice(1, 0, 1), Slice(1, entries - 1, entries)
        self.refuse(op not in (first, last), "only the first or the last row of every sample can be read")
        (samples, size), after = self.shape, self.b.graph.type(x).shape[2:]
        flags = self.emit(ew.Cast("int32"), self.names[self.mask])
        at = self.emit(ArgMax(1, False, op == last), flags)
        at = self.emit(ew.Add(), at, self.emit(Positions((samples,), (size,))))
        row = self.emit(Gather(0), self.reshape(x, (samples * size, *after)), at)
        return self.reshape(row, (samples, 1, *after))

    def _one_after_another(self, op: Slice, x: str) -> str:
        """As many of the first rows of ``x`` as the condition has true entries, in the order of those."""
        shape, inner = self.b.graph.type(x).shape, op.stop // self.count
        mask = self.names.get(self.mask)
        self.refuse(mask is None, "it cuts rows by a condition that nothing reads")
        rows = tuple(a for a, d in enumerate(self.shape) if d != 1)
        size, room = self._size(rows), shape[op.axis] // inner
        flags = self.emit(ew.Cast("int32"), self.reshape(str(mask), (size,)))
        number = self.emit(ew.Cast("int64"), self.emit(CumSum(0), flags))
        one, last = (self.emit(Positions((1,), (0,), d)) for d in (1, room - 1))
        first = self.emit(Positions((1,), (0,), 0))
        number = self.emit(ew.Max(), self.emit(ew.Sub(), number, one), first)
        number = self.emit(ew.Min(), number, last)
        before, after = shape[: op.axis], shape[op.axis + 1 :]
        part = self.emit(Gather(op.axis), self.reshape(x, (*before, room, inner, *after)), number)
        self.rows[self.node.output], self.inner[self.node.output] = rows, inner * product(after)
        return self.reshape(part, (*before, size * inner, *after))

    def _widened(self, x: str, old: str, axis: int | None, axes: tuple[int, ...], broadcasts: bool) -> str:
        """``x`` with rows that depend on all of ``axes``."""
        have = self.rows.get(old, axes)
        if axis is None or have == axes or (broadcasts and not have):
            return x
        shape, each = self.b.graph.type(x).shape, self.graph.type(old).shape[axis] // self.count
        before, after = shape[:axis], (each, *shape[axis + 1 :])
        apart = self.reshape(x, (*before, *(self.shape[a] if a in have else 1 for a in axes), *after))
        wide = self.emit(Expand((*before, *(self.shape[a] for a in axes), *after)), apart)
        return self.reshape(wide, (*before, self._size(axes) * each, *shape[axis + 1 :]))

    def _taken(self, op: Taken, data: str, mask: str) -> str:
        """All rows, in the order of the condition's axes that they follow."""
        shape = self.b.graph.type(data).shape
        before, after = shape[: op.axis], shape[op.axis + len(op.coordinates) :]
        order: list[int] = []
        for k, (steps, offset) in enumerate(op.coordinates):
            axes, span = digits(steps, self.shape)
            if span != shape[op.axis + k]:
                data = self.emit(Slice(op.axis + k, offset, offset + span), data)
            order += axes
        rows = tuple(sorted(order))
        data = self.reshape(data, (*before, *(self.shape[a] for a in order), *after))
        data = self.ordered(data, op.axis, order, rows)
        out = self.reshape(data, (*before, self._size(rows), *after))
        self.rows[self.node.output], self.inner[self.node.output] = rows, product(after)
        return out

    def ordered(self, x: str, start: int, have: Sequence[int], want: Sequence[int]) -> str:
        """``x``, whose axes from ``start`` on are ``have`` of the condition, with them as in ``want``."""
        rank = len(self.b.graph.type(x).shape)
        turn = [start + list(have).index(a) for a in want]
        perm = (*range(start), *turn, *range(start + len(turn), rank))
        return x if perm == tuple(range(rank)) else self.emit(Transpose(perm), x)

    def _placed(self, op: Placed, data: str, mask: str, updates: str) -> str:
        """What was there, and the rows where the condition holds."""
        old, new = self.node.inputs[0], self._origin(self.node.inputs[2])
        added = op.added
        increment = None if added else self._increment(op, new)
        shown = Writer(self, op, mask)
        if increment is not None:
            added, new = True, increment
        nothing = self._zero(old)
        if added or nothing:
            rows = shown.rows(new, op.added)
            return self._fitted(rows, data) if nothing else self.emit(ew.Add(), data, rows)
        return self.emit(ew.Where(), shown.written(), shown.last(new), data)

    def _fitted(self, x: str, data: str) -> str:
        shape = self.b.graph.type(data).shape
        return x if self.b.graph.type(x).shape == shape else self.emit(Expand(shape), x)

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
