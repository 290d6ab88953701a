"""Arithmetic of index tensors: affine functions of an element's position, which stay such."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import divide, require_equal
from intc.frontend.symbolic import NUMBERS, Index, IndexTuple, Splat, axes_of, dims_of
from intc.ir.dims import Dim, Poly, Shape, as_dim, broadcast, product
from intc.ir.op import Array
from intc.ir.ranges import bounds


def slice_positions(inputs: Sequence[Array | None]) -> Index | None:
    """``arange(n)[..., :end]`` with a symbolic end, the position ids that exporters slice, as an index
    tensor.
    """
    data, starts, ends, axes, steps = (*inputs, None, None)[:5]
    if data is None or starts is None or ends is None or axes is None or len(starts) != 1:
        return None
    flat = data.size == data.shape[-1] and np.array_equal(data.ravel(), np.arange(data.size))
    last = int(axes[0]) % data.ndim == data.ndim - 1
    if not flat or not last or int(starts[0]) != 0 or (steps is not None and int(steps[0]) != 1):
        return None
    return Index((*data.shape[:-1], as_dim(ends[0])), (*((0,) * (data.ndim - 1)), 1))


def from_start(position: Dim, size: Dim) -> Dim:
    """``position`` along an axis of ``size``; what is below 0 for all inputs counts from the end."""
    return position + size if bounds(position)[1] < 0 else position


def fold_index(op: str, inputs: Sequence[Any], attributes: dict[str, Any]) -> Any:
    """The result of a node on index tensors and known scalars, or None where it has no affine form."""
    inputs = [(as_index(x) or x) if isinstance(x, np.ndarray) and x.ndim > 1 else x for x in inputs]
    first = next(x for x in inputs if isinstance(x, Index | IndexTuple))
    if op == "Identity":
        return first
    if op == "Cast":
        to = NUMBERS.get(int(attributes["to"]))
        return first if isinstance(first, IndexTuple) else replace(first, dtype=to) if to else None
    if isinstance(first, IndexTuple):
        return None
    if op == "Unsqueeze":
        axes = sorted(
            a % (len(first.shape) + len(axes_of(inputs, attributes))) for a in axes_of(inputs, attributes)
        )
        shape, steps = list(first.shape), list(first.steps)
        for axis in axes:
            shape.insert(axis, 1)
            steps.insert(axis, 0)
        return replace(first, shape=tuple(shape), steps=tuple(steps))
    if op == "Reshape" and isinstance(inputs[1], np.ndarray):
        return reshaped(first, dims_of(inputs[1]))
    if op == "Expand":
        return _broadcast(first, broadcast(first.shape, dims_of(inputs[1])))
    if op == "Tile" and all(r == 1 or d == 1 for r, d in zip(dims_of(inputs[1]), first.shape, strict=True)):
        return _broadcast(first, broadcast(first.shape, dims_of(inputs[1])))
    if op == "Neg":
        return _scaled(first, -1)
    if op in ("Add", "Sub", "Mul", "Max"):
        return _combine(op, inputs[0], inputs[1])
    if op in ("GreaterOrEqual", "Less") and first is inputs[0] and first.offset == 0:
        bound = np.asarray(inputs[1], object).ravel()
        nonnegative = all(not isinstance(s, int) or s >= 0 for s in first.steps)
        if bound.size == 1 and bound[0] == 0 and nonnegative:
            return Splat(first.shape, op == "GreaterOrEqual")
    if op == "Concat" and all(isinstance(x, Index) and x.shape[-1] == 1 for x in inputs):
        return IndexTuple(tuple(Index(x.shape[:-1], x.steps[:-1], x.offset) for x in inputs))
    if op == "Concat" and isinstance(inputs[0], Index) and len(first.shape) == 1:
        return _continued(first, inputs[1:])
    return None


def _continued(index: Index, more: Sequence[Any]) -> Index | None:
    """``index`` and single numbers behind it that go on in its steps."""
    for number in more:
        (size,), (step,) = index.shape, index.steps
        if not isinstance(number, np.ndarray) or number.shape != (1,):
            return None
        if as_dim(number.astype(object)[0]) != index.offset + step * size:
            return None
        index = replace(index, shape=(size + 1,))
    return index


def reshaped(index: Index, shape: Shape) -> Index | None:
    """``index`` under ``shape``, of which one size may be -1, or None where it is not affine there."""
    if (found := _with_ones(index, shape)) is not None:
        return found
    moving = [a for a, d in enumerate(index.shape) if d != 1]
    if len(moving) != 1:
        return None
    size, step = index.shape[moving[0]], index.steps[moving[0]]
    if -1 in shape:
        rest = product(d for d in shape if d != -1)
        shape = tuple(divide(size, rest) if d == -1 else d for d in shape)
    if product(shape) != size:
        return None
    return replace(index, shape=shape, steps=tuple(step * product(shape[a + 1 :]) for a in range(len(shape))))


def _with_ones(index: Index, shape: Shape) -> Index | None:
    """``index`` with axes of size 1 added and removed, or None where ``shape`` is another one."""
    axes = with_ones(index.shape, shape)
    if axes is None:
        return None
    steps = tuple(0 if i is None else index.steps[i] for _, i in axes)
    return replace(index, shape=tuple(d for d, _ in axes), steps=steps)


def with_ones(old: Shape, new: Shape) -> list[tuple[Dim, int | None]] | None:
    """The axes of ``new`` (of which one may be -1), each with the axis of ``old`` that it is (None: of size
    1), where only axes of size 1 are added and removed; else None.
    """
    kept = [i for i, d in enumerate(old) if d != 1]
    if new.count(-1) == 1:
        missing = [old[i] for i in kept if old[i] not in new]
        if len(missing) > 1:
            return None
        new = tuple((missing[0] if missing else 1) if d == -1 else d for d in new)
    if [old[i] for i in kept] != [d for d in new if d != 1]:
        return None
    moving = iter(kept)
    return [(d, None if d == 1 else next(moving)) for d in new]


def as_index(array: Array) -> Index | None:
    """Integers or sizes that are an affine function of their position, as an index tensor."""
    if array.dtype.kind not in "iuO" or array.ndim == 0 or array.size == 0:
        return None
    values = array.astype(object)
    offset = as_dim(values.flat[0])
    steps: list[Dim] = []
    for axis, size in enumerate(array.shape):
        second = tuple(1 if a == axis else 0 for a in range(array.ndim))
        steps.append(as_dim(values[second]) - offset if size > 1 else 0)
    affine: Array = np.full(array.shape, offset, object)
    grid: tuple[Array, ...] = np.indices(array.shape, sparse=True)
    for step, part in zip(steps, grid, strict=True):
        affine = affine + part.astype(object) * step
    return Index(array.shape, tuple(steps), offset) if np.array_equal(affine, values) else None


def _broadcast(index: Index, shape: Shape) -> Index:
    pad = len(shape) - len(index.shape)
    have, steps = (1,) * pad + tuple(index.shape), (0,) * pad + tuple(index.steps)
    return replace(
        index, shape=shape, steps=tuple(0 if h == 1 else s for h, s in zip(have, steps, strict=True))
    )


def _combine(op: str, a: Any, b: Any) -> Any:
    if op == "Max":  # exporters take it only for its broadcast shape
        return Splat(broadcast(a.shape, b.shape), None)
    a_first = isinstance(a, Index)
    if not a_first:
        a, b = b, a
    if isinstance(b, Index):
        if op == "Mul":
            return None
        return added(a, b, -1 if op == "Sub" else 1)
    scalar = np.asarray(b.value if isinstance(b, Splat) else b, object).ravel()
    if (
        scalar.size != 1
        or scalar[0] is None
        or (not isinstance(scalar[0], Poly) and scalar[0] != int(scalar[0]))
    ):
        return None
    value, a = as_dim(scalar[0]), _broadcast(a, broadcast(a.shape, tuple(b.shape)))
    if op == "Add":
        return replace(a, offset=a.offset + value)
    if op == "Sub":
        return (
            replace(a, offset=a.offset - value)
            if a_first
            else replace(_scaled(a, -1), offset=value - a.offset)
        )
    return _scaled(a, value)


def added(a: Index, b: Index, factor: int = 1) -> Index:
    """``a + factor * b``."""
    shape, b = broadcast(a.shape, b.shape), _scaled(b, factor)
    a, b = _broadcast(a, shape), _broadcast(b, shape)
    steps = tuple(x + y for x, y in zip(a.steps, b.steps, strict=True))
    return replace(a, shape=shape, steps=steps, offset=a.offset + b.offset)


def _scaled(a: Index, factor: Dim) -> Index:
    return replace(a, steps=tuple(s * factor for s in a.steps), offset=a.offset * factor)


def gather_axes(parts: Sequence[Index], data: Shape) -> tuple[Shape, tuple[int, ...]]:
    """How coordinates that run along output axes select all of ``data``: (output shape, data axis of each
    output axis).

    Part k must be ``i_a`` for one output axis a of the size of data axis k; -1 marks repeated axes.
    GraphError otherwise.
    """
    shape: Shape = parts[0].shape
    for part in parts[1:]:
        shape = broadcast(shape, part.shape)
    source = [-1] * len(shape)
    for k, part in enumerate(parts):
        part = _broadcast(part, shape)
        moving = [a for a, s in enumerate(part.steps) if s != 0]
        if not moving and data[k] == 1 and part.offset == 0:
            continue
        if len(moving) == 1:
            require_equal(shape[moving[0]], data[k])
        if len(moving) != 1 or part.steps[moving[0]] != 1 or part.offset != 0 or shape[moving[0]] != data[k]:
            raise GraphError("the gathered positions are not plain index ranges")
        if source[moving[0]] >= 0:
            raise GraphError("the gathered positions are not plain index ranges")
        source[moving[0]] = k
    return shape, tuple(source)
