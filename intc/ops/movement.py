"""Data movement: operators that only rearrange, select or repeat elements, of any element type.

They keep the interval of what they move; sizes in attributes may be symbolic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import (
    Dim,
    Shape,
    evaluate,
    evaluate_shape,
    floor_div,
    format_shape,
    product,
    terms_of,
    total,
)
from intc.ir.op import Array, Op, Sizes
from intc.ir.ranges import bounds
from intc.ir.types import DType, TensorType


@dataclass(frozen=True)
class Reshape(Op):
    """The same elements in row-major order under another shape."""

    shape: Shape
    name: ClassVar[str] = "reshape"

    def infer(self, *types: TensorType) -> TensorType:
        if product(types[0].shape) != product(self.shape):
            raise GraphError(f"cannot reshape {format_shape(types[0].shape)} to {format_shape(self.shape)}")
        return types[0].with_shape(tuple(self.shape))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.reshape(arrays[0], evaluate_shape(self.shape, sizes))


@dataclass(frozen=True)
class Transpose(Op):
    """``out.shape[i] = x.shape[perm[i]]``."""

    perm: tuple[int, ...]
    name: ClassVar[str] = "transpose"

    def infer(self, *types: TensorType) -> TensorType:
        if sorted(self.perm) != list(range(types[0].rank)):
            raise GraphError(f"permutation {list(self.perm)} does not fit rank {types[0].rank}")
        return types[0].with_shape(tuple(types[0].shape[i] for i in self.perm))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.transpose(arrays[0], self.perm)


@dataclass(frozen=True)
class Slice(Op):
    """Elements ``start, start + step, ...`` below ``stop`` (above it for a negative step) along ``axis``.

    ``start`` and ``stop`` are already normalised to the axis: 0 <= start, stop <= size (stop = -1 ends a
    reversal).
    """

    axis: int
    start: Dim
    stop: Dim
    step: int = 1
    name: ClassVar[str] = "slice"

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        size = types[0].shape[self.axis]
        end = self.start + 1 if self.step < 0 else self.stop
        span = (self.start - self.stop) * (-1 if self.step < 0 else 1)
        before = -1 - self.stop if self.step < 0 else 0
        out: list[tuple[Dim, int]] = (
            [] if isinstance(end, int) or not isinstance(size, int) else [(end, size)]
        )
        for excess in (end - size, span, before, -self.start):
            if not isinstance(excess, int) and bounds(excess)[1] > 0 and (excess + size, size) not in out:
                out.append((excess, 0))
        return out

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if not 0 <= self.axis < x.rank or self.step == 0:
            raise GraphError(f"slice of axis {self.axis} with step {self.step} does not fit {x}")
        span = self.stop - self.start
        if isinstance(span, int):
            count: Dim = max(-(-span // self.step), 0)
        elif self.step > 0:
            count = floor_div(span + self.step - 1, self.step)
        else:
            count = floor_div(-span - self.step - 1, -self.step)
        return x.with_shape((*x.shape[: self.axis], count, *x.shape[self.axis + 1 :]))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        stop: int | None = evaluate(self.stop, sizes)
        stop = None if self.step < 0 and stop is not None and stop < 0 else stop
        index = (slice(None),) * self.axis + (slice(evaluate(self.start, sizes), stop, self.step),)
        return arrays[0][index]


@dataclass(frozen=True)
class Concat(Op):
    """Inputs joined along ``axis``; all of one element type."""

    axis: int
    name: ClassVar[str] = "concat"
    arity: ClassVar[tuple[int, ...]] = tuple(range(1, 129))

    def infer(self, *types: TensorType) -> TensorType:
        first = types[0]
        rest = [t.shape[: self.axis] + t.shape[self.axis + 1 :] for t in types]
        if any(t.dtype != first.dtype or r != rest[0] for t, r in zip(types, rest, strict=True)):
            raise GraphError(f"cannot concatenate {', '.join(map(str, types))} along axis {self.axis}")
        total: Dim = 0
        for type_ in types:
            total = total + type_.shape[self.axis]
        shape = (*first.shape[: self.axis], total, *first.shape[self.axis + 1 :])
        return joined(shape, first.dtype, types)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.concatenate(arrays, axis=self.axis)


@dataclass(frozen=True)
class Gather(Op):
    """``data`` taken at integer ``indices`` along ``axis`` (numpy's ``take``); negative indices count from
    the end.
    """

    axis: int
    name: ClassVar[str] = "gather"
    arity: ClassVar[tuple[int, ...]] = (2,)

    def infer(self, *types: TensorType) -> TensorType:
        data, indices = types
        if indices.is_float or not 0 <= self.axis < data.rank:
            raise GraphError(f"gather along axis {self.axis} does not fit {data} at {indices}")
        return data.with_shape((*data.shape[: self.axis], *indices.shape, *data.shape[self.axis + 1 :]))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.take(arrays[0], arrays[1], axis=self.axis)


@dataclass(frozen=True)
class Expand(Op):
    """Broadcast to ``shape`` (numpy's ``broadcast_to``)."""

    shape: Shape
    name: ClassVar[str] = "expand"

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        sizes = [size for size in self.shape if not isinstance(size, int) and bounds(size)[0] < 0]
        rooms = (max(terms_of(size).get((), 0), 0) for size in sizes)  # of a size such as 64 - n
        return [(room - size, room) for size, room in zip(sizes, rooms, strict=True)]

    def infer(self, *types: TensorType) -> TensorType:
        have = types[0].shape
        padded = (1,) * (len(self.shape) - len(have)) + tuple(have)
        if len(padded) != len(self.shape) or any(
            a not in (1, b) for a, b in zip(padded, self.shape, strict=True)
        ):
            raise GraphError(f"cannot expand {format_shape(have)} to {format_shape(self.shape)}")
        return types[0].with_shape(tuple(self.shape))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.broadcast_to(arrays[0], evaluate_shape(self.shape, sizes))


@dataclass(frozen=True)
class GatherElements(Op):
    """``out[.., i, ..] = data[.., indices[.., i, ..], ..]`` along ``axis`` (numpy's ``take_along_axis``).

    Negative indices count from the end. On the other axes both have the same sizes.
    """

    axis: int
    name: ClassVar[str] = "gather_elements"
    arity: ClassVar[tuple[int, ...]] = (2,)

    def infer(self, *types: TensorType) -> TensorType:
        data, indices = types
        pairs = zip(data.shape, indices.shape, strict=False)
        if (
            indices.is_float
            or data.rank != indices.rank
            or not 0 <= self.axis < data.rank
            or any(a != b for i, (a, b) in enumerate(pairs) if i != self.axis)
        ):
            raise GraphError(f"gather_elements along axis {self.axis} does not fit {data} at {indices}")
        return data.with_shape(indices.shape)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.take_along_axis(arrays[0], arrays[1].astype(np.int64), axis=self.axis)


@dataclass(frozen=True)
class Lookup(Op):
    """Rows of ``table`` at positions that are computed, not read: ``out[i] = table[offset + sum(steps * i)]``
    for every index i of ``shape``, which stands before the other axes of the table.
    """

    shape: Shape
    steps: tuple[int, ...]
    offset: Dim
    name: ClassVar[str] = "lookup"

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        rows = types[0].shape[0]
        out: list[tuple[Dim, int]] = []
        for sign, room in ((1, rows - 1 - self.offset), (-1, self.offset)):
            moves = zip(self.steps, self.shape, strict=True)
            excess = total((size - 1) * abs(step) for step, size in moves if step * sign > 0) - room
            if isinstance(excess, int) and excess > 0:
                raise GraphError(f"lookup reaches {excess} rows beyond {types[0]} from row {self.offset}")
            if not isinstance(excess, int):
                constant = terms_of(excess).get((), 0)
                out.append((excess - constant, -constant))
        return out

    def infer(self, *types: TensorType) -> TensorType:
        table = types[0]
        if not table.rank or not isinstance(table.shape[0], int) or len(self.steps) != len(self.shape):
            raise GraphError(f"lookup of {format_shape(self.shape)} by {self.steps} does not fit {table}")
        self.limits(table)
        return table.with_shape((*self.shape, *table.shape[1:]))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        at: Array = np.asarray(evaluate(self.offset, sizes))
        for step, size in zip(self.steps, evaluate_shape(self.shape, sizes), strict=True):
            at = at[..., None] + step * np.arange(size)
        return arrays[0][at]


@dataclass(frozen=True)
class Pad(Op):
    """Zeros around ``x``: ``before[a]`` and ``after[a]`` along each axis."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    name: ClassVar[str] = "pad"

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if not len(self.before) == len(self.after) == x.rank or min(0, *self.before, *self.after) < 0:
            raise GraphError(f"padding by {self.before} and {self.after} does not fit {x}")
        shape = tuple(b + d + a for b, d, a in zip(self.before, x.shape, self.after, strict=True))
        if x.is_float:
            return x.with_shape(shape)
        return joined(shape, x.dtype, (x, TensorType(shape, x.dtype, 0, 0)))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.pad(arrays[0], list(zip(self.before, self.after, strict=True)))


def joined(shape: Shape, dtype: DType, types: Sequence[TensorType]) -> TensorType:
    """The type of a value that is one of ``types``: the hull of their intervals."""
    if dtype == "float32":
        return TensorType(shape, dtype)
    return TensorType(shape, dtype, min(t.interval[0] for t in types), max(t.interval[1] for t in types))


MOVES = (Reshape, Transpose, Slice, Expand)  # of one operand and nothing else
MOVEMENT = (Reshape, Transpose, Slice, Concat, Gather, GatherElements, Expand, Lookup, Pad)
OPS = MOVEMENT
