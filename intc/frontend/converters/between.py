"""Concat, and rows between two computed positions, which it joins again: products of each expert with its
own tokens, sorted by expert.

``Range(start, stop)`` reads what a condition chooses, ``start <= position < stop``, as soon as something says
along which axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import substitute
from intc.frontend.call import Call, Converter
from intc.frontend.chosen import Part, Placed, non_zero
from intc.frontend.converters.movement import concat, reshape_to, split
from intc.frontend.symbolic import Imported, Index, Splat
from intc.ir.dims import Dim, symbol
from intc.ops.logic import And, Less, LessOrEqual
from intc.ops.movement import Slice


@dataclass(frozen=True)
class Between:
    """Positions from ``start`` (0 or a live integer) to ``stop`` (live, or the last), one after the other."""

    start: int | str
    stop: str | Dim


def chosen_between(call: Call, data: str, axis: int, between: Between) -> Part:
    """The positions along ``axis`` of ``data`` as the true entries of a condition."""
    size = call.shape(data)[axis]

    def bound(value: str | Dim) -> str:
        return value if isinstance(value, str) else call.ctx.live(Index((1,), (0,), value), "positions")

    def mask() -> str:
        at = call.ctx.live(Index((size,), (1,)), "positions")
        start, stop = (reshape_to(call, bound(value), (1,), True) for value in (between.start, between.stop))
        sides = (
            call.emit(LessOrEqual(), start, at, last=False),
            call.emit(Less(), at, stop, last=False),
        )
        return call.emit(And(), *sides, last=False)

    (part,) = non_zero(call.ctx, call.ctx.once((between, size), mask)).parts
    call.ctx.between[part.entries.symbol] = between, part
    return part


def _concat(call: Call) -> list[Imported]:
    values = [call.x(i) for i in range(len(call.inputs)) if call.has(i)]
    rows = _joined(call, values, call.axis(values[0]))
    return concat(call) if rows is None else [rows]


def _joined(call: Call, values: Sequence[str], axis: int) -> str | None:
    """All rows again, where ``values`` hold those between 0 and a first position, between that and a second,
    and so on; else None. The last is the number of rows, if any operator asks for as many.
    """
    found = [call.ctx.between.get(str(call.shape(value)[axis])) for value in values]
    ranges = [pair for pair in found if pair is not None]
    if len(ranges) != len(values):
        return None
    (first, part), (last, _) = ranges[0], ranges[-1]
    size = part.entries.shape
    if any(p.entries.shape != size for _, p in ranges):
        return None
    if isinstance(first.start, str) or any(a.stop != b.start for (a, _), (b, _) in pairwise(ranges)):
        raise GraphError("rows between computed positions are joined in another order")
    shape = [*call.shape(values[0])]
    shape[axis] = size[0]
    whole = call.ctx.live(Splat(tuple(shape), 0.0), f"{call.node.output[0]}.rows")
    for value, (_, rows) in zip(values, ranges, strict=True):
        op = Placed(rows.entries.count, axis, ((rows.steps, rows.offset),), False)
        whole = call.emit(op, whole, rows.entries.mask, value, last=False)
    if last.stop == size[0]:
        return whole
    name = f"joined_{call.ctx.joined.setdefault(str(last.stop), len(call.ctx.joined))}"
    count = substitute(symbol(name), call.ctx.assumed.sizes)
    return whole if count == size[0] else call.emit(Slice(axis, 0, count), whole)


def _split(call: Call) -> list[Imported]:
    """Parts of computed sizes are the rows between their sums."""
    if not call.has(1) or not isinstance(call.inputs[1], str):
        return split(call)
    x, axis, sizes = call.inputs[0], call.axis(call.x()), call.x(1)
    (ends,) = call.apply("CumSum", [sizes, np.array(0)])
    stops = [call.emit(Slice(0, i, i + 1), ends, last=False) for i in range(len(call.node.output) - 1)]
    starts: list[int | str] = [0, *stops]
    parts: list[Imported] = []
    for start, stop in zip(starts, (*stops, call.shape(call.x())[axis]), strict=True):
        parts += call.apply("Gather", [x, Between(start, stop)], axis=axis)
    return parts


CONVERTERS: dict[str, Converter] = {"Concat": _concat, "Split": _split}
