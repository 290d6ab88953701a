"""Converters that read entries at given positions: Gather and its like."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import require_equal
from intc.frontend.call import Call, Converter
from intc.frontend.chosen import Part, Parts, Taken, check, coordinates_of, non_zero
from intc.frontend.converters.between import Between, chosen_between
from intc.frontend.converters.movement import reshape_to
from intc.frontend.indices import as_index, from_start, gather_axes
from intc.frontend.symbolic import Imported, Index, IndexTuple, Splat, is_symbolic
from intc.ir.dims import Shape, as_dim, product
from intc.ir.op import Array
from intc.ops.elementwise import Add, Max, Min, Mul, Where
from intc.ops.logic import Less
from intc.ops.movement import Expand, Gather, GatherElements, Reshape, Slice, Transpose


def _gather(call: Call) -> list[Imported]:
    data, indices = call.x(0), call.inputs[1]
    axis = call.axis(data)
    size = call.shape(data)[axis]
    if isinstance(indices, Index):
        return [_gather_range(call, data, axis, indices)]
    if isinstance(indices, Between):
        indices = chosen_between(call, data, axis, indices)
    if isinstance(indices, Part):
        return [_taken(call, data, axis, Parts((indices,), False), indices.shape)]
    if isinstance(indices, np.ndarray):
        if indices.ndim == 0 and (is_symbolic(indices) or np.issubdtype(indices.dtype, np.integer)):
            at = from_start(as_dim(indices.item()), size)
            one = call.emit(Slice(axis, at, at + 1), data, last=False)
            shape = [d for i, d in enumerate(call.shape(one)) if i != axis]
            return [reshape_to(call, one, shape, True)]
        if isinstance(size, int) and indices.size and (indices.min() < -size or indices.max() >= size):
            raise GraphError(f"an index lies outside the {size} entries")
        part = _constant_range(call, data, axis, indices)
        if part is not None:
            return [part]
        if isinstance(size, int):
            known = call.ctx.builder.constant(
                f"{call.node.output[0]}.indices", np.asarray(indices % size, np.int64)
            )
            return [call.emit(Gather(axis), data, known)]
    return [call.emit(Gather(axis), data, call.x(1))]


def _taken(call: Call, data: str, axis: int, parts: Parts, shape: Shape) -> str:
    """Rows of ``data`` at the coordinates of a condition's true entries; ``shape`` is that of the entries."""
    entries, count = parts.parts[0].entries, len(parts.parts)
    have = call.shape(data)
    check(parts.coordinates, entries, have[axis : axis + count], False)
    rows = call.emit(Taken(entries.count, axis, parts.coordinates), data, entries.mask, last=False)
    whole = (*have[:axis], *shape, *have[axis + count :])
    flat = (*have[:axis], *(1 if d != entries.count else d for d in shape), *have[axis + count :])
    rows = reshape_to(call, rows, flat, True)
    return rows if flat == whole else call.emit(Expand(whole), rows)


def _constant_range(call: Call, data: str, axis: int, indices: Array) -> str | None:
    """:func:`_gather_range` for constant positions, or None where they are no range of ``data``."""
    index = as_index(indices)
    if index is None:
        return None
    last = index.offset + sum((s * (d - 1) for s, d in zip(index.steps, index.shape, strict=True)), 0)
    room = call.shape(data)[axis]
    if not isinstance(room, int) or not isinstance(last, int) or last >= room or int(indices.min()) < 0:
        return None
    try:
        return _gather_range(call, data, axis, index)
    except GraphError:
        return None


def _gather_range(call: Call, data: str, axis: int, index: Index) -> str:
    """Positions that are ranges select a slice, or a whole flattened tensor rearranged."""
    size = call.shape(data)[axis]
    moving = [a for a, s in enumerate(index.steps) if s != 0]
    single = not moving and product(index.shape) == 1
    if single or (len(moving) == 1 and index.steps[moving[0]] == 1):
        a = 0 if single else moving[0]
        part, at = data, from_start(index.offset, size)
        if at != 0 or index.shape[a] != size:
            part = call.emit(Slice(axis, at, at + index.shape[a]), data, last=False)
        shape = (*call.shape(data)[:axis], *index.shape, *call.shape(data)[axis + 1 :])
        flat = [1 if i != a else d for i, d in enumerate(index.shape)]
        part = reshape_to(call, part, (*call.shape(data)[:axis], *flat, *call.shape(data)[axis + 1 :]), True)
        return part if call.shape(part) == shape else call.emit(Expand(shape), part)
    source = call.ctx.builder.producer(data)
    rest = call.shape(data)[1:]
    if axis == 0 and source is not None and isinstance(source.op, Reshape) and product(rest) == 1:
        base = source.inputs[0]
        have = call.shape(base)
        strides = [product(have[k + 1 :]) for k in range(len(have))]
        if index.offset == 0 and all(s == 0 or s in strides for s in index.steps):
            parts = []
            for k in range(len(have)):
                steps = tuple(int(have[k] != 1 and s == strides[k] and s != 0) for s in index.steps)
                parts.append(Index(index.shape, steps))
            picked = _select(call, base, parts)
            return reshape_to(call, picked, (*call.shape(picked), *rest), True)
    return call.emit(Gather(axis), data, call.ctx.live(index, f"{call.node.output[0]}.positions"))


def _select(call: Call, data: str, parts: Sequence[Index]) -> str:
    shape, source = gather_axes(parts, call.shape(data))
    used = [k for k in source if k >= 0]
    if used != sorted(used):
        data = call.emit(Transpose(tuple(used)), data, last=False)
    flat = [1 if k < 0 else d for k, d in zip(source, shape, strict=True)]
    part = reshape_to(call, data, flat, True)
    return part if tuple(flat) == tuple(shape) else call.emit(Expand(tuple(shape)), part)


def _gather_nd(call: Call) -> list[Imported]:
    index = call.inputs[1]
    data = call.x(0)
    if batch := int(call.attributes.get("batch_dims", 0)):
        return [_gather_in_batch(call, data, index, batch)]
    if (chosen := coordinates_of(index)) is not None:
        rows = _taken(call, data, 0, chosen, (chosen.parts[0].entries.count,))
        return [reshape_to(call, rows, (-1, *call.shape(data)[len(chosen.parts) + len(chosen.tail) :]), True)]
    if call.ctx.shape_of(index)[-1] == 1:
        return [_gather_first(call, index)]
    if isinstance(index, str):
        return [_gather_flat(call, data, index)]
    if isinstance(index, np.ndarray) and index.ndim > 1:
        parts = [as_index(index[..., k]) for k in range(index.shape[-1])]
        known = tuple(part for part in parts if part is not None)
        whole = len(known) == len(call.shape(data))
        index = IndexTuple(known) if whole else index
    if isinstance(index, np.ndarray) and not is_symbolic(index):
        return [_gather_known(call, data, index)]
    if not isinstance(index, IndexTuple) or len(index.parts) != len(call.shape(data)):
        raise GraphError("only whole coordinates made of index ranges are supported")
    return [_select(call, data, index.parts)]


def _gather_in_batch(call: Call, data: str, index: Imported, batch: int) -> str:
    """For each index of the first ``batch`` axes, entries along the next at positions [.., n, 1]."""
    shape, where = call.shape(data), call.ctx.shape_of(index)
    call.refuse(where[-1] != 1, "coordinates of several axes in a batch are not supported")
    call.refuse(len(where) != batch + 2, "positions along several axes in a batch are not supported")
    if isinstance(index, Index) and not any(index.steps[:batch]):
        same = Index(where[batch:-1], index.steps[batch:-1], index.offset)
        return _gather_range(call, data, batch, same)
    rest = shape[batch + 1 :]
    rows = reshape_to(call, call.x(1), (*where[:-1], *(1 for _ in rest)), True)
    whole = (*shape[:batch], where[batch], *rest)
    rows = rows if call.shape(rows) == whole else call.emit(Expand(whole), rows, last=False)
    return call.emit(GatherElements(batch), data, rows)


def _gather_elements(call: Call) -> list[Imported]:
    """Positions may cover the first entries of the other axes only."""
    data, index = call.x(0), call.x(1)
    axis = call.axis(data)
    for other, (have, wanted) in enumerate(zip(call.shape(data), call.shape(index), strict=True)):
        if other != axis and isinstance(have, int) and isinstance(wanted, int) and wanted < have:
            data = call.emit(Slice(other, 0, wanted), data, last=False)
        elif other != axis:
            require_equal(have, wanted)
    return [call.emit(GatherElements(axis), data, index)]


def _gather_first(call: Call, index: Imported) -> str:
    """Coordinates of one number select along the first axis."""
    if isinstance(index, Index):
        call.inputs[1] = Index(index.shape[:-1], index.steps[:-1], index.offset)
    elif isinstance(index, np.ndarray):
        call.inputs[1] = index[..., 0]
    elif isinstance(index, IndexTuple):
        call.inputs[1] = index.parts[0]
    else:
        live = call.x(1)
        call.inputs[1] = reshape_to(call, live, call.shape(live)[:-1], True)
    call.attributes["axis"] = 0
    (value,) = _gather(call)
    return str(value)


def _gather_known(call: Call, data: str, index: Array) -> str:
    """Known coordinates as positions in the axes that they select, flattened into one."""
    shape, count = call.shape(data), index.shape[-1]
    front = [d for d in shape[:count] if isinstance(d, int)]
    call.refuse(
        len(front) != count, f"coordinates of {count} numbers do not fit axes of fixed size in {shape}"
    )
    outside = (index < -np.asarray(front)) | (index >= np.asarray(front))
    call.refuse(outside.any(), f"an index lies outside the {'x'.join(map(str, front))} entries")
    positive = np.moveaxis(index.astype(np.int64) % np.asarray(front), -1, 0)
    rows = reshape_to(call, data, (product(front), *shape[count:]), True)
    at = np.asarray(np.ravel_multi_index(tuple(positive), tuple(front)), np.int64)
    return call.emit(Gather(0), rows, call.ctx.builder.constant(f"{call.node.output[0]}.indices", at))


def _gather_flat(call: Call, data: str, index: str) -> str:
    """Computed coordinates as positions in the axes that they select, flattened into one."""
    shape, count = call.shape(data), call.shape(index)[-1]
    if not isinstance(count, int) or count > len(shape):
        raise GraphError(f"coordinates of {count} numbers do not fit rank {len(shape)}")
    at = ""
    for k in range(count):
        part = call.emit(Slice(len(call.shape(index)) - 1, k, k + 1), index, last=False)
        part = reshape_to(call, part, call.shape(index)[:-1], True)
        size = call.ctx.live(Index((1,), (0,), shape[k]), "size")
        zero = call.ctx.builder.constant(f"{call.node.output[0]}.zero", np.zeros(1, np.int64))
        behind = call.emit(Less(), part, zero, last=False)
        part = call.emit(Where(), behind, call.emit(Add(), part, size, last=False), part, last=False)
        last = call.ctx.live(Index((1,), (0,), shape[k] - 1), "last")
        part = call.emit(Min(), call.emit(Max(), part, zero, last=False), last, last=False)
        stride = Index((1,), (0,), product(shape[k + 1 : count]))
        part = call.emit(Mul(), part, call.ctx.live(stride, "stride"), last=False)
        at = call.emit(Add(), at, part, last=False) if at else part
    rows = reshape_to(call, data, (product(shape[:count]), *shape[count:]), True)
    return call.emit(Gather(0), rows, at)


def _non_zero(call: Call) -> list[Imported]:
    x = call.inputs[0]
    if isinstance(x, Splat) and x.value and len(x.shape) == 1:
        return [Index((1, *x.shape), (0, 1))]
    if isinstance(x, Splat) and x.value is not None and not x.value:
        return [np.zeros((len(x.shape), 0), np.int64)]
    return [non_zero(call.ctx, call.x())]


CONVERTERS: dict[str, Converter] = {
    "NonZero": _non_zero,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GatherElements": _gather_elements,
}
