"""Converters of data movement: reshapes, slices and gathers, with sizes that may be symbolic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import divide, require_product
from intc.frontend.call import Call, Converter
from intc.frontend.symbolic import NUMBERS, Imported, Index, IndexTuple, as_index, dims_of, gather_axes
from intc.ir.dims import Dim, Poly, as_dim, bounds, broadcast, product
from intc.ir.op import Array
from intc.ops.elementwise import Add, And, Cast, Equal, Less, LessOrEqual, Max, Min, Mul, Or, Where
from intc.ops.movement import Concat, Expand, Gather, GatherElements, Reshape, Slice, Transpose


def reshape_to(call: Call, x: str, target: Sequence[Dim], allow_zero: bool = False) -> str:
    """``x`` under the ONNX target shape: 0 copies a size (unless ``allow_zero``), -1 is what remains."""
    have = call.shape(x)
    call.refuse(
        not allow_zero and any(d == 0 for d in target[len(have) :]), "a copied size lies outside the input"
    )
    shape: list[Dim] = [have[i] if d == 0 and not allow_zero else d for i, d in enumerate(target)]
    holes = [i for i, d in enumerate(shape) if d == -1]
    call.refuse(len(holes) > 1, "the target shape has more than one -1")
    rest = [d for i, d in enumerate(shape) if i not in holes]
    if holes:
        left = list(have)
        for d in list(rest):  # equal sizes cancel, even sums such as sequence + 1
            if d in left:
                left.remove(d)
                rest.remove(d)
        shape[holes[0]] = divide(product(left), product(rest))
    elif product(have) != product(shape):
        require_product(have, tuple(shape))
    return x if tuple(shape) == tuple(have) else call.emit(Reshape(tuple(shape)), x)


def _reshape(call: Call) -> list[Imported]:
    target = dims_of(call.known(1, "the target shape"))
    return [reshape_to(call, call.x(), target, bool(call.attributes.get("allowzero", 0)))]


def _flatten(call: Call) -> list[Imported]:
    x = call.x()
    shape = call.shape(x)
    axis = int(call.attributes.get("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    return [reshape_to(call, x, (product(shape[:axis]), product(shape[axis:])), True)]


def _unsqueeze(call: Call) -> list[Imported]:
    x = call.x()
    shape: list[Dim] = list(call.shape(x))
    count = len(shape) + (call.known(1, "axes").size if call.has(1) else len(call.attributes["axes"]))
    for axis in sorted(call.axes(count)):
        shape.insert(axis, 1)
    return [reshape_to(call, x, shape, True)]


def _squeeze(call: Call) -> list[Imported]:
    x = call.x()
    shape = call.shape(x)
    axes = call.axes(len(shape)) or tuple(i for i, d in enumerate(shape) if d == 1)
    if any(shape[a] != 1 for a in axes):
        raise GraphError("only axes of size 1 can be squeezed")
    return [reshape_to(call, x, [d for i, d in enumerate(shape) if i not in axes], True)]


def _transpose(call: Call) -> list[Imported]:
    x = call.x()
    perm = tuple(call.attributes.get("perm", range(len(call.shape(x)) - 1, -1, -1)))
    return [x if perm == tuple(range(len(perm))) else call.emit(Transpose(perm), x)]


def _concat(call: Call) -> list[Imported]:
    every = [call.x(i) for i in range(len(call.inputs)) if call.has(i)]
    axis = call.axis(every[0])
    values = [v for v in every if call.shape(v)[axis] != 0] or every[:1]
    return [values[0] if len(values) == 1 else call.emit(Concat(axis), *values)]


def _bound(value: Any, size: Dim, default: Dim) -> Dim:
    """One slice bound normalised to [0, size]."""
    if isinstance(value, Poly):
        value = size + value if bounds(value)[1] < 0 else value
        return size if bounds(value - size)[0] >= 0 else value
    number = int(value)
    if number < 0:
        low = size + number
        return default if abs(number) >= 2**31 else (max(low, 0) if isinstance(low, int) else low)
    if isinstance(size, int):
        return min(number, size)
    return size if number >= 2**31 else number


def _slice(call: Call) -> list[Imported]:
    x = call.x()
    starts, ends = (call.known(i, "a slice bound").ravel() for i in (1, 2))
    rank = len(call.shape(x))
    axes = [int(a) % rank for a in call.known(3, "axes").ravel()] if call.has(3) else list(range(len(starts)))
    steps = [int(s) for s in call.known(4, "steps").ravel()] if call.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = call.shape(x)[axis]
        if step < 0:
            if not isinstance(size, int):
                raise GraphError("a backward slice needs an axis of fixed size")
            picked = range(size)[slice(int(start), None if int(end) < -size else int(end), step)]
            op = Slice(axis, picked.start, picked.stop, step)
        else:
            op = Slice(axis, _bound(start, size, 0), _bound(end, size, 0), step)
        if op.start == 0 and op.stop == size and step == 1:
            continue
        x = call.emit(op, x)
    return [x]


def _split(call: Call) -> list[Imported]:
    x = call.x()
    axis = call.axis(x)
    size = call.shape(x)[axis]
    count = len(call.node.output)
    if call.has(1):
        sizes = [int(s) for s in call.known(1, "the split").ravel()]
    elif isinstance(size, int):
        chunk = -(-size // count)
        sizes = [min(chunk, size - i * chunk) for i in range(count)]
        call.refuse(sizes[-1] < 1, f"an axis of size {size} cannot be split in {count}")
    else:
        raise GraphError("the split axis has a symbolic size")
    out: list[Imported] = []
    start = 0
    for name, length in zip(call.node.output, sizes, strict=True):
        op = Slice(axis, start, start + length)
        out.append(call.ctx.builder.emit(op, x, name=name, source=call.label))
        start += length
    return out


def _expand(call: Call) -> list[Imported]:
    x = call.x()
    shape = broadcast(call.shape(x), dims_of(call.known(1, "the target shape")))
    return [x if shape == call.shape(x) else call.emit(Expand(shape), x)]


def _gather(call: Call) -> list[Imported]:
    data, indices = call.x(0), call.inputs[1]
    axis = call.axis(data)
    size = call.shape(data)[axis]
    if isinstance(indices, Index):
        return [_gather_range(call, data, axis, indices)]
    if isinstance(indices, np.ndarray):
        if indices.ndim == 0 and np.issubdtype(np.asarray(indices).dtype, np.integer):
            at: Dim = int(indices) if int(indices) >= 0 else size + int(indices)
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
        part = data
        if index.offset != 0 or index.shape[a] != size:
            part = call.emit(Slice(axis, index.offset, index.offset + index.shape[a]), data, last=False)
        shape = (*call.shape(data)[:axis], *index.shape, *call.shape(data)[axis + 1 :])
        flat = [1 if i != a else d for i, d in enumerate(index.shape)]
        part = reshape_to(call, part, (*call.shape(data)[:axis], *flat, *call.shape(data)[axis + 1 :]), True)
        return part if call.shape(part) == shape else call.emit(Expand(shape), part)
    source = next((n for n in call.ctx.builder.graph.nodes if n.output == data), None)
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
    call.refuse(call.attributes.get("batch_dims"), "batch_dims is not supported")
    if call.ctx.shape_of(index)[-1] == 1:
        return [_gather_first(call, index)]
    if isinstance(index, str):
        return [_gather_flat(call, data, index)]
    if isinstance(index, np.ndarray) and index.ndim > 1:
        parts = [as_index(index[..., k]) for k in range(index.shape[-1])]
        known = tuple(part for part in parts if part is not None)
        index = IndexTuple(known) if len(known) == len(parts) else index
    if not isinstance(index, IndexTuple) or len(index.parts) != len(call.shape(data)):
        raise GraphError("only whole coordinates made of index ranges are supported")
    return [_select(call, data, index.parts)]


def _gather_elements(call: Call) -> list[Imported]:
    data = call.x(0)
    return [call.emit(GatherElements(call.axis(data)), data, call.x(1))]


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


def _tile(call: Call) -> list[Imported]:
    """Every axis split in (repeats, size), the first repeated, both merged."""
    x = call.x()
    have, repeats = call.shape(x), dims_of(call.known(1, "the repeats"))
    call.refuse(len(repeats) != len(have), f"{len(repeats)} repeats do not fit rank {len(have)}")
    apart = [d for r, size in zip(repeats, have, strict=True) for d in ((1, size) if r != 1 else (size,))]
    whole = [d for r, size in zip(repeats, have, strict=True) for d in ((r, size) if r != 1 else (size,))]
    if apart == whole:
        return [x]
    wide = call.emit(Expand(tuple(whole)), reshape_to(call, x, apart, True), last=False)
    return [reshape_to(call, wide, [r * size for r, size in zip(repeats, have, strict=True)], True)]


def triangle(call: Call, rows: Dim, columns: Dim, k: Dim = 0, upper: bool = False) -> str:
    """bool [rows, columns], true where ``column <= row + k`` (``upper``: ``row + k <= column``)."""
    row, column = Index((rows, 1), (1, 0), k), Index((1, columns), (0, 1))
    order = (row, column) if upper else (column, row)

    def emit() -> str:
        return call.emit(LessOrEqual(), *(call.ctx.live(i, "positions") for i in order), last=False)

    return call.ctx.once((LessOrEqual, order), emit)


def _eye_like(call: Call) -> list[Imported]:
    """1 on the diagonal ``k``, 0 elsewhere, of the shape of the input."""
    x = call.inputs[0]
    assert x is not None
    shape = call.ctx.shape_of(x)
    call.refuse(len(shape) != 2, "an identity needs two axes")
    row = Index((shape[0], 1), (1, 0), int(call.attributes.get("k", 0)))
    sides = (call.ctx.live(i, "positions") for i in (row, Index((1, shape[1]), (0, 1))))
    if "dtype" in call.attributes:
        dtype = NUMBERS.get(int(call.attributes["dtype"]))
    elif isinstance(x, str):
        dtype = call.ctx.builder.graph.type(x).dtype
    else:
        dtype = "float32" if np.asarray(getattr(x, "value", x)).dtype.kind == "f" else "int64"
    call.refuse(dtype is None, "an identity of this element type is not supported")
    return [call.emit(Cast(dtype or "float32"), call.emit(Equal(), *sides, last=False))]


def _one_hot(call: Call) -> list[Imported]:
    """``on`` along a new axis where its position is the index (from the end if negative), else ``off``."""
    depth = int(call.known(1, "the depth").ravel()[0])
    off, on = call.known(2, "the values").ravel()
    index = call.x(0)
    rank = len(call.shape(index)) + 1
    axis = int(call.attributes.get("axis", -1)) % rank
    column = reshape_to(call, index, (*call.shape(index)[:axis], 1, *call.shape(index)[axis:]), True)
    column = call.emit(Cast("int64"), column, last=False)
    one = tuple(depth if a == axis else 1 for a in range(rank))
    steps = tuple(int(a == axis) for a in range(rank))
    here = [
        call.emit(Equal(), column, call.ctx.live(Index(one, steps, start), "positions"), last=False)
        for start in (0, -depth)
    ]
    hot = call.emit(Or(), *here, last=False)
    values = (
        call.ctx.builder.constant(f"{call.node.output[0]}.{n}", _storable(v))
        for n, v in (("on", on), ("off", off))
    )
    return [call.emit(Where(), hot, *values)]


def _storable(number: Any) -> Array:
    """One number as a constant of the graph."""
    array = np.asarray(number).reshape(1)
    return array.astype(np.float32 if array.dtype.kind == "f" else np.int64)


def _trilu(call: Call) -> list[Imported]:
    """``where(triangle, x, 0)`` on the last two axes."""
    x = call.inputs[0]
    assert x is not None
    shape = call.ctx.shape_of(x)
    call.refuse(len(shape) < 2, "a triangle needs two axes")
    k = as_dim(call.known(1, "the diagonal").ravel()[0]) if call.has(1) else 0
    keep = triangle(call, shape[-2], shape[-1], k, bool(call.attributes.get("upper", 1)))
    value = call.x()
    dtype = call.ctx.builder.graph.type(value).dtype
    if dtype == "bool":
        return [call.emit(And(), keep, value)]
    zero = call.ctx.builder.constant(f"{call.node.output[0]}.zero", np.zeros(1, dtype))
    return [call.emit(Where(), keep, value, zero)]


CONVERTERS: dict[str, Converter] = {
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "GatherElements": _gather_elements,
    "Tile": _tile,
    "Trilu": _trilu,
    "EyeLike": _eye_like,
    "OneHot": _one_hot,
}
