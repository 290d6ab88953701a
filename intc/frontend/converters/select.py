"""Converters of choices among the entries of a row: the largest few, the largest one, one that is marked."""

from __future__ import annotations

from intc.frontend.call import Call, Converter
from intc.frontend.converters.movement import reshape_to
from intc.frontend.symbolic import Imported, Index
from intc.ir.dims import Dim, Shape, as_dim
from intc.ops import elementwise as ew
from intc.ops import logic
from intc.ops.movement import Concat, GatherElements, Slice, Transpose
from intc.ops.reduce import ArgMax, ReduceMax, ReduceSum

RANKED = 1024  # entries that are compared with one another; of longer rows in groups
PAIRS = 2**26  # the most comparisons of a row, each of which takes a byte


def _positions(call: Call, shape: Shape, axis: int) -> str:
    steps = tuple(int(a == axis % len(shape)) for a in range(len(shape)))
    return call.ctx.live(Index(shape, steps), "positions")


def _top_k(call: Call) -> list[Imported]:
    """The k largest (or smallest) entries along an axis and where they stand, in order."""
    x, k = call.x(), as_dim(call.known(1, "the count").ravel()[0])
    rank, axis = len(call.shape(x)), call.axis(x, -1)
    turn = (*(a for a in range(rank) if a != axis), axis)
    back = tuple(turn.index(a) for a in range(rank))
    rows = x if axis == rank - 1 else call.emit(Transpose(turn), x, last=False)
    size = call.shape(rows)[-1]
    if not isinstance(k, int):
        call.refuse(k != size, f"{k} of {size} entries")
    elif isinstance(size, int):
        call.refuse(k > size, f"{k} of {size} entries")
        pairs = size * min(size, _group(k))
        call.refuse(pairs > PAIRS, f"{k} of {size} entries take more than {PAIRS} comparisons")
    call.refuse(isinstance(k, int) and k < 1, f"{k} of {size} entries")
    at = _first(call, rows, k)
    values = call.emit(GatherElements(rank - 1), rows, at, last=False)
    if axis != rank - 1:
        values, at = (call.emit(Transpose(back), v, last=False) for v in (values, at))
    return [values, at]


def _group(k: int) -> int:
    """Entries of a group: at least twice as many as are taken from it."""
    return max(RANKED, 2 * k)


def _first(call: Call, rows: str, k: Dim) -> str:
    """The positions of the first ``k`` along the last axis. Of a long row the first of every group are
    candidates, in the order of the row where they are equal.
    """
    *lead, size = call.shape(rows)
    rank = len(lead)
    if not isinstance(size, int) or not isinstance(k, int) or size <= _group(k):
        return _ranked(call, rows, k)
    group = _group(k)
    whole, rest = size - size % group, size % group
    candidates = []
    for start, count, width in ((0, whole // group, group), (whole, 1, rest)):
        if not width:
            continue
        part = call.emit(Slice(rank, start, start + count * width), rows, last=False)
        at = _ranked(call, reshape_to(call, part, (*lead, count, width), True), min(k, width))
        first = call.ctx.live(Index((count, 1), (width, 0), start), "positions")
        at = call.emit(ew.Add(), at, first, last=False)
        candidates.append(reshape_to(call, at, (*lead, count * min(k, width)), True))
    places = candidates[0] if not rest else call.emit(Concat(rank), *candidates, last=False)
    chosen = _first(call, call.emit(GatherElements(rank), rows, places, last=False), k)
    return call.emit(GatherElements(rank), places, chosen, last=False)


def _ranked(call: Call, rows: str, k: Dim) -> str:
    """:func:`_first`, by the place of every entry: the number of those that come before it; of equal ones the
    first.
    """
    *lead, size = call.shape(rows)
    rank = len(lead) + 1
    each = reshape_to(call, rows, (*lead, size, 1), True)
    other = reshape_to(call, rows, (*lead, 1, size), True)
    pair = (each, other) if call.attributes.get("largest", 1) else (other, each)
    above = call.emit(logic.Less(), *pair, last=False)
    level = call.emit(logic.Equal(), each, other, last=False)
    first = call.emit(
        logic.Less(), _positions(call, (1, size), 1), _positions(call, (size, 1), 0), last=False
    )
    before = call.emit(logic.Or(), above, call.emit(logic.And(), level, first, last=False), last=False)
    place = call.emit(ReduceSum((rank,), False), call.emit(ew.Cast("int32"), before, last=False), last=False)
    place = reshape_to(call, call.emit(ew.Cast("int64"), place, last=False), (*lead, 1, size), True)
    asked = _positions(call, (size, 1), 0)
    asked = asked if k == size else call.emit(Slice(0, 0, k), asked, last=False)  # refuses k > size
    here = call.emit(logic.Equal(), place, asked, last=False)
    zero = call.ctx.live(Index((1,), (0,)), "zero")
    at = call.emit(ew.Where(), here, _positions(call, (1, size), 1), zero, last=False)
    return call.emit(ReduceMax((rank,), False), at, last=False)


def _hardmax(call: Call) -> list[Imported]:
    """1 at the first largest entry along an axis, 0 elsewhere."""
    x = call.x()
    axis = call.axis(x, -1)
    largest = call.emit(ArgMax(axis, True), x, last=False)
    shape = tuple(d if a == axis else 1 for a, d in enumerate(call.shape(x)))
    here = call.emit(logic.Equal(), largest, _positions(call, shape, axis), last=False)
    return [call.emit(ew.Cast("float32"), here)]


CONVERTERS: dict[str, Converter] = {"TopK": _top_k, "Hardmax": _hardmax}
