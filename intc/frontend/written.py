"""Rows that a condition chooses, written into a value that has all rows."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from intc.frontend.chosen import Placed, digits
from intc.ir.dims import product
from intc.ops import elementwise as ew
from intc.ops import logic
from intc.ops.movement import Slice
from intc.ops.reduce import ReduceSum

if TYPE_CHECKING:
    from intc.frontend.whole import Whole

FEW = 16  # entries of a condition that may write the same row, the last of which counts


class Writer:
    """Rows in the places of the value that they are written into."""

    def __init__(self, whole: Whole, op: Placed, mask: str) -> None:
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
                    axis = w.axis(x)
                    both = len(w.graph.type(x).shape) == len(w.graph.type(weight).shape)
                    if both and axis == self.axis:
                        return w.emit(ew.Mul(), self._placed(x), self.rows(weight, added))
        return self._chosen(value, added)

    def last(self, value: str) -> str:
        """``value``, of the old graph, where the condition holds, and anything elsewhere."""
        return self._chosen(value, False) if self.again else self._placed(value)

    def _is_weight(self, value: str) -> bool:
        axis = self.w.axis(value)
        if axis is None or axis != self.axis:
            return False
        return product(d for a, d in enumerate(self.w.graph.type(value).shape) if a != axis) == 1

    def _apart(self, value: str, axes: Sequence[int]) -> str:
        """``value`` with an axis for each of ``axes`` of the condition."""
        w, have = self.w, self.w.rows[value]
        x, old = w.names[value], w.graph.type(value).shape
        alone = old[self.axis] == w.count and w.inner[value] == product(old[self.axis + 1 :])
        w.refuse(not alone, "the rows that are written are no rows of what a condition chooses")
        shape = w.b.graph.type(x).shape
        sizes = (w.shape[a] if a in have else 1 for a in axes)
        return w.reshape(x, (*shape[: self.axis], *sizes, *shape[self.axis + 1 :]))

    def _mask(self, axes: Sequence[int], before: int, after: int) -> str:
        w = self.w
        return w.reshape(self.mask, (*(1,) * before, *(w.shape[a] for a in axes), *(1,) * after))

    def _placed(self, value: str) -> str:
        """The rows of ``value``, which are the same for all entries of one place."""
        return self._arranged(self._apart(value, self.kept))

    def _arranged(self, x: str) -> str:
        """``x`` [.., kept axes, ..] with the axes of the value that is written into."""
        w = self.w
        shape = w.b.graph.type(x).shape
        sizes = dict(zip(self.kept, shape[self.axis : self.axis + len(self.kept)], strict=True))
        x = w.ordered(x, self.axis, self.kept, self.order)
        whole = [sizes[a] == w.shape[a] for a in self.order]
        w.refuse(any(whole) and not all(whole), "rows follow some axes of a condition only")
        places = self.places if all(whole) else (1,) * len(self.places)
        return w.reshape(x, (*shape[: self.axis], *places, *shape[self.axis + len(self.kept) :]))

    def _chosen(self, value: str, added: bool) -> str:
        w = self.w
        w.refuse(w.axis(value) != self.axis, "the rows that are written stand along another axis")
        axes = sorted((*self.kept, *self.again))
        x = self._apart(value, axes)
        after = len(w.graph.type(value).shape) - self.axis - 1
        mask = self._mask(axes, self.axis, after)
        zero = w.b.constant(f"{w.node.output}.zero", np.zeros(1, w.graph.type(value).dtype))
        again = tuple(self.axis + axes.index(a) for a in self.again)
        if added or not again:
            x = w.emit(ew.Where(), mask, x, zero)
            return self._arranged(w.emit(ReduceSum(again, False), x) if again else x)
        last = zero
        for m, part in zip(self._each(mask, again), self._each(x, again), strict=True):
            last = w.emit(ew.Where(), m, part, last)
        return self._arranged(last)

    def _each(self, x: str, axes: tuple[int, ...]) -> list[str]:
        """``x`` at every position of ``axes``, in order; all the same where it does not depend on them."""
        w, shape = self.w, self.w.b.graph.type(x).shape
        sizes = [d for d in (self.w.shape[a] for a in self.again) if isinstance(d, int)]
        few = len(sizes) == len(axes) and product(sizes) <= FEW  # type: ignore[operator]
        w.refuse(not few, f"more than {FEW} entries of a condition may write one row")
        kept = [d for a, d in enumerate(shape) if a not in axes]
        out = []
        for at in itertools.product(*map(range, sizes)):
            part = x
            for axis, i in zip(axes, at, strict=True):
                part = part if shape[axis] == 1 else w.emit(Slice(axis, i, i + 1), part)
            out.append(w.reshape(part, kept))
        return out

    def written(self) -> str:
        """Where a row is written."""
        axes = sorted((*self.kept, *self.again))
        after = len(self.w.graph.type(self.w.node.inputs[2]).shape) - self.axis - 1
        mask = self._mask(axes, self.axis, after)
        again = tuple(self.axis + axes.index(a) for a in self.again)
        found, *others = self._each(mask, again) if again else [mask]
        for other in others:
            found = self.w.emit(logic.Or(), found, other)
        return self._arranged(found)
