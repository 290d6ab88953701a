"""Converters of data movement: reshapes, slices and gathers, with sizes that may be symbolic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import divide, require_broadcast, require_product
from intc.frontend.call import Call, Converter
from intc.frontend.chosen import counted
from intc.frontend.symbolic import NUMBERS, Imported, Index, dims_of
from intc.ir.dims import Dim, Poly, as_dim, broadcast, product, symbol
from intc.ir.op import Array
from intc.ir.ranges import bounds
from intc.ops.elementwise import Cast, Where
from intc.ops.logic import And, Equal, LessOrEqual, Or
from intc.ops.movement import Concat, Expand, Reshape, Slice, Transpose


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


def concat(call: Call) -> list[Imported]:
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
    return size if number >= bounds(size)[1] else number


def _backward(start: Any, end: Any, axis: int, size: Dim, step: int) -> Slice:
    """A slice in negative steps; of a symbolic size, from its last entry to its first."""
    if isinstance(size, int):
        picked = range(size)[slice(int(start), None if int(end) < -size else int(end), step)]
        return Slice(axis, picked.start, picked.stop, step)
    last = start in (-1, size - 1) or (not isinstance(start, Poly) and start >= 2**31 - 1)
    if not last or isinstance(end, Poly) or end >= -(2**31) + 1:
        raise GraphError("a backward slice of a part of an axis needs a fixed size")
    return Slice(axis, size - 1, -1, step)


def _slice(call: Call) -> list[Imported]:
    x = call.x()
    starts, ends = (call.known(i, "a slice bound").ravel() for i in (1, 2))
    rank = len(call.shape(x))
    axes = [int(a) % rank for a in call.known(3, "axes").ravel()] if call.has(3) else list(range(len(starts)))
    steps = [int(s) for s in call.known(4, "steps").ravel()] if call.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = call.shape(x)[axis]
        if step < 0:
            op = _backward(start, end, axis, size, step)
        else:
            op = Slice(axis, _bound(start, size, 0), _bound(end, size, 0), step)
        if op.start == 0 and op.stop == size and step == 1:
            continue
        x = call.emit(op, x)
    return [x]


def split(call: Call) -> list[Imported]:
    x = call.x()
    axis = call.axis(x)
    size = call.shape(x)[axis]
    count = len(call.node.output)
    if call.has(1):
        sizes: list[Dim] = list(dims_of(call.known(1, "the split").ravel()))
    elif isinstance(size, int):
        chunk = -(-size // count)
        sizes = [min(chunk, size - i * chunk) for i in range(count)]
        call.refuse(chunk * (count - 1) >= size, f"an axis of size {size} cannot be split in {count}")
    else:
        raise GraphError("the split axis has a symbolic size")
    out: list[Imported] = []
    start: Dim = 0
    for name, length in zip(call.node.output, sizes, strict=True):
        op = Slice(axis, start, start + length)
        out.append(call.ctx.builder.emit(op, x, name=name, source=call.label))
        start += length
    return out


def _expand(call: Call) -> list[Imported]:
    x = call.x()
    call.inputs[1] = counted(call.ctx, call.inputs[1])
    target = dims_of(call.known(1, "the target shape"))
    x = _as_many(call, x, target)
    require_broadcast(call.shape(x), target)
    shape = broadcast(call.shape(x), target)
    return [x if shape == call.shape(x) else call.emit(Expand(shape), x)]


def _as_many(call: Call, x: str, target: Sequence[Dim]) -> str:
    """``x``, whose rows are written where a condition is true, with as many as it has true entries."""
    counts = {*map(symbol, call.ctx.counts())}
    for axis, (have, want) in enumerate(zip(call.shape(x), target, strict=False)):
        if len(call.shape(x)) == len(target) and want in counts and have not in (1, want):
            x = call.emit(Slice(axis, 0, want), x, last=False)
    return x


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
    "Slice": _slice,
    "Expand": _expand,
    "Tile": _tile,
    "Trilu": _trilu,
    "EyeLike": _eye_like,
    "OneHot": _one_hot,
}
