"""Converters of writes: ScatterND and ScatterElements, as choices between what was there and what is written.

Ranges of positions are cuts and joins, known positions one lookup in old and new rows together, positions
that are read at run time a comparison of every row's number with them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import require_equal
from intc.frontend.call import Call, Converter
from intc.frontend.chosen import Part, Parts, Placed, check, coordinates_of
from intc.frontend.converters.cells import cells
from intc.frontend.converters.cells import written as written_cells
from intc.frontend.converters.movement import reshape_to
from intc.frontend.converters.segments import emptied, reduced
from intc.frontend.indices import as_index, from_start
from intc.frontend.symbolic import Imported, Index, IndexTuple, Splat
from intc.frontend.tabulated import written
from intc.ir.dims import Dim, product
from intc.ir.op import Array
from intc.ops.elementwise import Add, Where
from intc.ops.logic import Equal, Less, LessOrEqual, Or
from intc.ops.movement import Concat, Expand, Gather, GatherElements, Slice
from intc.ops.positions import Positions
from intc.ops.reduce import ReduceMax

REDUCTIONS = ("none", "add", "max", "min")
FEW = 16  # positions of a row that are written one after the other
Ranges = dict[int, tuple[Dim, Dim, int]]  # start, count, step along each axis that is not written as a whole


def _scatter_nd(call: Call) -> list[Imported]:
    """``data`` with ``updates`` at coordinates of the first axes."""
    reduction = call.attributes.get("reduction", "none")
    index = call.inputs[1]
    if isinstance(index, np.ndarray) and not index.size:
        return [call.inputs[0]]
    if reduction in ("none", "add") and (chosen := coordinates_of(index)) is not None:
        return [_placed(call, 0, chosen, reduction == "add")]
    count = call.ctx.shape_of(index)[-1]
    if reduction in REDUCTIONS[1:] and count == 1 and isinstance(index, str):
        return [_rows_reduced(call, index, reduction)]
    call.refuse(reduction != "none", "only plain writes are supported")
    parts = _parts(index)
    ranges = _ranges(parts, call.ctx.shape_of(call.inputs[0])) if parts else None
    known = _known(call, ranges) if ranges else None
    if known is not None:
        return [known]
    data, updates = call.x(0), call.x(2)
    if ranges is not None:
        lead = [_count(ranges, k, d) for k, d in enumerate(call.shape(data)[: len(parts)])]
        updates = reshape_to(call, updates, (*lead, *call.shape(data)[len(parts) :]), True)
        return [_replaced(call, data, updates, ranges)]
    if isinstance(index, np.ndarray) and index.dtype != object:
        return [_at_known(call, data, updates, index)]
    within = _within_rows(call, data) if isinstance(count, int) and count > 1 else None
    if within is not None:
        return [_written_within(call, data, updates, within)]
    call.refuse(count != 1, "writes at computed coordinates of several axes are not supported")
    live, data_shape = call.x(1), call.shape(data)
    at = cells(call, live) if len(data_shape) == 1 else None
    if at is not None and at.taps is not None:
        zeros = call.inputs[0]
        call.refuse(not isinstance(zeros, Splat) or zeros.value != 0, "places of windows in computed values")
        return [written_cells(call, at, updates, data_shape[0])]
    positions = reshape_to(call, live, (product(call.shape(live)),), True)
    rows = reshape_to(call, updates, (*call.shape(positions), *call.shape(data)[1:]), True)
    return [_at_computed(call, data, rows, positions, 0)]


def _rows_reduced(call: Call, index: str, reduction: str) -> str:
    """Rows added (or maximised) at the places ``index`` [.., 1] along the first axis."""
    count, rows = product(call.shape(index)), call.ctx.shape_of(call.inputs[0])[1:]
    call.inputs[1] = reshape_to(call, index, (count, *(1,) * len(rows)), True)
    call.inputs[2] = reshape_to(call, call.x(2), (count, *rows), True)
    return reduced(call, reduction, 0)


def _placed(call: Call, axis: int, parts: Parts, added: bool) -> str:
    """Rows written, or added, at the coordinates of a condition's true entries."""
    data, entries, count = call.x(0), parts.parts[0].entries, len(parts.parts)
    shape = call.shape(data)
    check(parts.coordinates, entries, shape[axis : axis + count], True)
    rows = (*shape[:axis], entries.count, *shape[axis + count :])
    updates = reshape_to(call, call.x(2), rows, True)
    return call.emit(Placed(entries.count, axis, parts.coordinates, added), data, entries.mask, updates)


def _within_rows(call: Call, data: str) -> str | None:
    """The places [.., n] along axis k where the coordinates are (i, j, .., place) for every entry (i, j, ..)
    of the k axes of ``data`` in front, else None.
    """
    joined = call.ctx.builder.producer(call.x(1))
    if joined is None or not isinstance(joined.op, Concat):
        return None
    *fronts, places = joined.inputs
    lead, last = len(fronts), len(call.shape(places)) - 1
    if joined.op.axis != last or last - lead not in (0, 1):
        return None
    for axis, front in enumerate(fronts):
        number = call.ctx.builder.producer(front)
        steps = tuple(int(a == axis) for a in range(last + 1))
        if number is None or number.op != Positions(call.shape(front), steps):
            return None
        require_equal(call.shape(front)[axis], call.shape(data)[axis])
    shape = call.shape(data)[:lead]
    if call.shape(places)[:lead] != shape or call.shape(places)[-1] != 1:
        return None
    return places if last == lead else reshape_to(call, places, (*shape, call.shape(places)[lead]), True)


def _written_within(call: Call, data: str, updates: str, places: str) -> str:
    """``updates`` written at ``places`` [.., n] along the axis of ``data`` behind those in front."""
    *lead, count = call.shape(places)
    rest = call.shape(data)[len(lead) + 1 :]
    updates = reshape_to(call, updates, (*lead, count, *rest), True)
    if not isinstance(count, int) or count > FEW:
        return _at_computed(call, data, updates, places, len(lead))
    places = reshape_to(call, places, (*lead, count, *(1,) * len(rest)), True)
    return _in_rows(call, data, updates, places, len(lead), False)


def _parts(index: Imported) -> tuple[Index, ...]:
    """The coordinates as index tensors, one for each axis; none where they are no such tensors."""
    if isinstance(index, IndexTuple):
        return index.parts
    if isinstance(index, Index) and index.shape[-1] == 1:
        return (Index(index.shape[:-1], index.steps[:-1], index.offset),)
    if isinstance(index, np.ndarray) and index.ndim > 1:
        parts = [as_index(index[..., k]) for k in range(index.shape[-1])]
        return tuple(p for p in parts if p is not None) if None not in parts else ()
    return ()


def _count(ranges: Ranges, axis: int, size: Dim) -> Dim:
    return ranges[axis][1] if axis in ranges else size


def _known(call: Call, ranges: Ranges) -> Imported | None:
    """Tabulated rows written to places along one axis of a table or of one repeated value."""
    (axis, (start, count, step)), *more = ranges.items()
    if more or not isinstance(start, int) or not isinstance(count, int):
        return None
    places = slice(start, start + count * step, step)
    return written(call.inputs[0], call.inputs[2], axis, places)


def _ranges(parts: Sequence[Index], shape: Sequence[Dim]) -> Ranges | None:
    """The box that coordinates fill in row-major order, in steps along axes of known size, or None where they
    fill none.
    """
    found: Ranges = {}
    last = -1
    for k, (part, size) in enumerate(zip(parts, shape, strict=False)):
        moving = [a for a, step in enumerate(part.steps) if step != 0 and part.shape[a] != 1]
        if len(moving) > 1 or (moving and moving[0] <= last):
            return None
        length: Dim = part.shape[moving[0]] if moving else 1
        step = part.steps[moving[0]] if moving else 1
        last = moving[0] if moving else last
        offset = from_start(part.offset, size)
        if step != 1:
            ends = [x for x in (step, length, offset, size) if isinstance(x, int)]
            if len(ends) != 4 or step < 1 or offset + (length - 1) * step >= size:  # type: ignore[operator]
                return None
        elif part.offset == 0 and moving and not isinstance(size, int):
            require_equal(length, size)
        if (offset, length) != (0, size):
            found[k] = (offset, length, int(step))  # type: ignore[arg-type]
    lead = product(_count(found, k, d) for k, d in enumerate(shape[: len(parts)]))
    whole: Dim = 1
    for axis in range(max(len(p.shape) for p in parts)):
        sizes = [p.shape[axis - max(len(q.shape) for q in parts)] for p in parts if len(p.shape) > axis]
        whole = whole * next((d for d in sizes if d != 1), 1)
    return found if whole == lead else None


def _replaced(call: Call, data: str, updates: str, ranges: Ranges) -> str:
    """``data`` with ``updates`` in the box ``ranges``."""
    if not ranges:
        return updates
    axis, (start, count, step) = next(iter(ranges.items()))
    size, stop = call.shape(data)[axis], start + (count - 1) * step + 1
    inside = {k: v for k, v in ranges.items() if k != axis}
    if inside:
        part = call.emit(Slice(axis, start, stop, step), data, last=False)
        updates = _replaced(call, part, updates, inside)
    if step != 1:
        assert isinstance(size, int) and isinstance(start, int) and isinstance(count, int)
        source = np.arange(size)
        source[start : start + count * step : step] = np.arange(size, size + count)
        both = call.emit(Concat(axis), data, updates, last=False)
        return call.emit(Gather(axis), both, call.ctx.builder.constant("positions", source))
    parts = [call.emit(Slice(axis, 0, start), data, last=False)] if start != 0 else []
    parts.append(updates)
    parts += [call.emit(Slice(axis, stop, size), data, last=False)] if stop != size else []
    return call.emit(Concat(axis), *parts) if len(parts) > 1 else updates


def _at_known(call: Call, data: str, updates: str, index: Array) -> str:
    """Old and new rows in one table, of which every row is one."""
    count = index.shape[-1]
    shape = call.shape(data)
    lead = [d for d in shape[:count] if isinstance(d, int)]
    if len(lead) != count:
        raise GraphError("writes along an axis of symbolic size are not supported at these positions")
    flat = np.ravel_multi_index(tuple(np.moveaxis(index, -1, 0) % lead_column(lead, index)), lead).ravel()
    source = np.arange(math.prod(lead), dtype=np.int64)
    source[flat] = len(source) + np.arange(flat.size)
    old = reshape_to(call, data, (len(source), *shape[count:]), True)
    new = reshape_to(call, updates, (flat.size, *shape[count:]), True)
    both = call.emit(Concat(0), old, new, last=False)
    positions = call.ctx.builder.constant(f"{call.node.output[0]}.positions", source)
    return reshape_to(call, call.emit(Gather(0), both, positions, last=False), shape, True)


def lead_column(lead: Sequence[int], index: Array) -> Array:
    """The sizes of the axes, for coordinates that stand along the first axis."""
    return np.asarray(lead).reshape(-1, *(1,) * (index.ndim - 1))


def _at_computed(call: Call, data: str, updates: str, positions: str, axis: int) -> str:
    """``updates``, one row along ``axis`` for each of ``positions`` (the last counts), in ``data``; the
    positions are [n], or [.., n] with some for each entry of the axes in front.
    """
    shape = call.shape(data)
    *lead, count = call.shape(positions)
    size, rest = shape[axis], shape[axis + 1 :]

    def integer(index: Index) -> str:
        return call.ctx.live(index, f"{call.node.output[0]}.positions")

    zero = integer(Index((1,), (0,), 0))
    behind = call.emit(Less(), positions, zero, last=False)
    moved = call.emit(Add(), positions, integer(Index((1,), (0,), size)), last=False)
    positions = call.emit(Where(), behind, moved, positions, last=False)
    rows = integer(Index((size, 1), (1, 0)))
    here = call.emit(Equal(), rows, reshape_to(call, positions, (*lead, 1, count), True), last=False)
    minus = call.ctx.builder.constant(f"{call.node.output[0]}.none", np.array([-1], np.int64))
    number = call.emit(Where(), here, integer(Index((1, count), (0, 1))), minus, last=False)
    number = call.emit(ReduceMax((len(lead) + 1,), False), number, last=False)  # -1 where nothing is written
    written = call.emit(LessOrEqual(), zero, number, last=False)
    written = reshape_to(call, written, (*lead, size, *(1 for _ in rest)), True)
    if count == 1:
        return call.emit(Where(), written, updates, data)
    first = call.emit(Where(), call.emit(Less(), number, zero, last=False), zero, number, last=False)
    if not lead:
        return call.emit(Where(), written, call.emit(Gather(axis), updates, first, last=False), data)
    first = reshape_to(call, first, (*lead, size, *(1 for _ in rest)), True)
    first = call.emit(Expand((*lead, size, *rest)), first, last=False) if rest else first
    return call.emit(Where(), written, call.emit(GatherElements(axis), updates, first, last=False), data)


def _scatter_elements(call: Call) -> list[Imported]:
    """Writes along one axis: at a few positions of every row, or at any that are alike in all rows."""
    reduction = call.attributes.get("reduction", "none")
    call.refuse(reduction not in REDUCTIONS, "products at computed places are not supported")
    cleared = emptied(call, reduction)
    if cleared is not None:
        return [cleared]
    index, shape = call.inputs[1], call.ctx.shape_of(call.inputs[0])
    axis = call.attributes.get("axis", 0) % len(shape)
    where = call.ctx.shape_of(index)
    added = reduction == "add"
    if isinstance(index, Part) and index.axis == axis and index.shape == call.ctx.shape_of(call.inputs[2]):
        return [_placed(call, axis, Parts((index,), False), added)]
    for a, (d, e) in enumerate(zip(shape, where, strict=True)):
        if a != axis:
            require_equal(d, e)
    call.refuse(
        any(d != e for a, (d, e) in enumerate(zip(shape, where, strict=True)) if a != axis),
        "writes to a part of the other axes are not supported",
    )
    line = _line(call, index, axis) if reduction == "none" else None
    ranges = _ranges((line,), (shape[axis],)) if line is not None else None
    if ranges is not None:
        return [_replaced(call, call.x(0), call.x(2), {axis: ranges[0]} if ranges else {})]
    few = where[axis]
    if reduction in ("none", "add") and isinstance(few, int) and few <= FEW and product(where) != few:
        return [_in_rows(call, call.x(0), call.x(2), call.x(1), axis, added)]
    if reduction != "none":
        return [reduced(call, reduction, axis)]
    return [_at_computed(call, call.x(0), call.x(2), _along(call, index, axis), axis)]


def _line(call: Call, index: Imported, axis: int) -> Index | None:
    """Known positions [n] along ``axis``, evenly apart and the same along all others."""
    if isinstance(index, Index):
        elsewhere = any(s for a, s in enumerate(index.steps) if a != axis)
        return None if elsewhere else Index((index.shape[axis],), (index.steps[axis],), index.offset)
    if isinstance(index, Splat):
        return as_index(np.asarray(index.value).reshape(1)) if index.shape[axis] == 1 else None
    if not isinstance(index, np.ndarray) or index.dtype == object:
        return None
    rows = np.moveaxis(index, axis, -1).reshape(-1, index.shape[axis])
    return as_index(rows[0]) if rows.size and not (rows != rows[0]).any() else None


def _in_rows(call: Call, data: str, updates: str, index: str, axis: int, added: bool) -> str:
    """``updates`` written or ``added`` one after the other, each where ``index`` is the position along
    ``axis``, or that many from the end.
    """
    shape, count = call.shape(data), call.shape(index)[axis]
    assert isinstance(count, int)
    line = tuple(d if a == axis else 1 for a, d in enumerate(shape))
    steps = tuple(int(a == axis) for a in range(len(shape)))
    starts = [call.ctx.live(Index(line, steps, start), "positions") for start in (0, -shape[axis])]
    zero = call.ctx.builder.constant(f"{call.node.output[0]}.zero", np.zeros(1, call.dtype(updates)))
    for i in range(count):
        at, new = (call.emit(Slice(axis, i, i + 1), x, last=False) for x in (index, updates))
        hits = (call.emit(Equal(), at, start, last=False) for start in starts)
        here = call.emit(Or(), *hits, last=False)
        if added:
            data = call.emit(
                Add(), data, call.emit(Where(), here, new, zero, last=False), last=i == count - 1
            )
        else:
            data = call.emit(Where(), here, new, data, last=i == count - 1)
    return data


def _along(call: Call, index: Imported, axis: int) -> str:
    """Positions [n] along ``axis`` of an index tensor that repeats them along all others."""
    if isinstance(index, np.ndarray) and index.dtype != object:
        row = np.moveaxis(index, axis, -1).reshape(-1, index.shape[axis])
        call.refuse((row != row[0]).any(), "positions that differ along other axes are not supported")
        return call.ctx.builder.constant(f"{call.node.output[0]}.index", row[0].astype(np.int64))
    if isinstance(index, Index):
        call.refuse(
            any(s for a, s in enumerate(index.steps) if a != axis),
            "positions that differ along other axes are not supported",
        )
        return call.ctx.live(Index((index.shape[axis],), (index.steps[axis],), index.offset), "positions")
    value = call.x(1)
    size = call.shape(value)[axis]
    nodes = {n.output: n for n in call.ctx.builder.graph.nodes}
    while value in nodes and isinstance(nodes[value].op, Expand):
        value = nodes[value].inputs[0]
    call.refuse(
        product(call.shape(value)) != size, "positions that differ along other axes are not supported"
    )
    return reshape_to(call, value, (size,), True)


CONVERTERS: dict[str, Converter] = {"ScatterND": _scatter_nd, "ScatterElements": _scatter_elements}
