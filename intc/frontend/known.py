"""Nodes whose result is known while importing, or known as a function of sizes and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from intc.errors import GraphError
from intc.frontend.chosen import Part, Parts, counted, fold_chosen
from intc.frontend.converters import sequence
from intc.frontend.converters.between import Between
from intc.frontend.fold import UNFOLDED, compute, small
from intc.frontend.indices import as_index, fold_index, slice_positions
from intc.frontend.symbolic import (
    Imported,
    Index,
    IndexTuple,
    Items,
    NanTest,
    Splat,
    Stacked,
    axes_of,
    dims_of,
    fold_symbolic,
    is_symbolic,
    tidy,
)
from intc.frontend.tabulated import ELEMENTWISE, Tabulated, tabulate
from intc.ir.dims import Dim, Shape, as_dim, broadcast, evaluate_shape, floor_div, product
from intc.ir.op import Array
from intc.ir.ranges import linear
from intc.ir.types import DType

if TYPE_CHECKING:
    from intc.frontend.importer import Importer

FOLDED = (
    "Constant",
    "Shape",
    "Size",
    "ConstantOfShape",
    "Range",
    "If",
    "Loop",
)  # computed while importing, never converted
SEQUENCES = frozenset(sequence.CONVERTERS)
OPEN = 2**31 - 1  # bounds of a slice from here on mean its end
COMPARED = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual")  # two positions compare as they are


def fold(
    ctx: Importer, node: onnx.NodeProto, inputs: Sequence[Imported | None], attributes: dict[str, Any]
) -> list[Imported] | None:
    """The node's results where they are known at import time, else None."""
    op = node.op_type
    if op == "Constant":
        return [_constant(attributes)]
    if op == "Shape" and inputs[0] is not None:
        shape = ctx.shape_of(inputs[0])
        part = shape[attributes.get("start", 0) : attributes.get("end", len(shape))]
        return [tidy(_objects(part))]
    if op == "Size" and inputs[0] is not None:
        return [tidy(np.asarray(product(ctx.shape_of(inputs[0])), object))]
    if op == "ConstantOfShape":
        return [_filled(inputs[0], attributes)]
    if op == "Range":
        return [_range(inputs)]
    if op in SEQUENCES:
        return None
    if any(isinstance(x, Between) for x in inputs):
        if op == "Gather":
            return None
        raise GraphError("the bounds of a range depend on input values")
    if any(isinstance(x, Part | Parts) for x in inputs):
        return fold_chosen(ctx, node, inputs, attributes)
    if op == "Concat":
        inputs = (
            [counted(ctx, x) for x in inputs] if any(isinstance(x, np.ndarray) for x in inputs) else inputs
        )
    if not inputs or node.domain not in ("", "ai.onnx"):
        return None
    if any(isinstance(x, str | NanTest | Items | Stacked) for x in inputs):
        return None
    return _fold_known(ctx, node, inputs, attributes)


def _fold_known(
    ctx: Importer, node: onnx.NodeProto, inputs: Sequence[Imported | None], attributes: dict[str, Any]
) -> list[Imported] | None:
    op = node.op_type
    if any(isinstance(x, Index | IndexTuple) for x in inputs):
        folded = _cut(ctx, inputs) if op == "Slice" else fold_index(op, inputs, attributes)
        if folded is None or (isinstance(folded, Splat) and folded.value is None):
            live = op == "Gather" or (op in COMPARED and all(isinstance(x, Index) for x in inputs))
            table = None if live else tabulate(ctx, node, inputs, attributes)
            folded = folded if table is None else table
        return None if folded is None else [folded]
    if any(isinstance(x, Splat) for x in inputs):
        splat = _counted(inputs, attributes) if op == "CumSum" else _fold_splat(ctx, node, inputs, attributes)
        if splat is not None:
            return [splat]
    if any(isinstance(x, Tabulated | Splat) for x in inputs):
        table = tabulate(ctx, node, inputs, attributes)
        return None if table is None else [table]
    arrays = [x if isinstance(x, np.ndarray) else None for x in inputs]
    if any(a is not None and is_symbolic(a) for a in arrays):
        if op == "Slice" and arrays[0] is not None and not is_symbolic(arrays[0]):
            positions = slice_positions(arrays)
            return None if positions is None else [positions]
        if op == "Expand" and arrays[0] is not None and arrays[0].size == 1 and as_index(arrays[0]) is None:
            shape = broadcast(arrays[0].shape, dims_of(np.asarray(arrays[1])))
            return [Splat(shape, arrays[0].ravel()[0])]
        if op == "Expand" and arrays[0] is not None:
            index = as_index(arrays[0])
            folded = fold_index(op, [index, arrays[1]], attributes) if index is not None else None
            folded = folded or tabulate(ctx, node, inputs, attributes)
            return None if folded is None else [folded]
        if op == "Split" and arrays[0] is not None:
            return _parts(node, arrays[0], arrays[1] if len(arrays) > 1 else None, attributes)
        result = fold_symbolic(op, arrays, attributes, ctx.assumed, ctx.least)
        return None if result is None else [tidy(_linear(result, ctx.assumed.largest))]
    return _compute(ctx, node, arrays)


def _linear(sizes: Array, largest: Mapping[str, int]) -> Array:
    """``sizes`` without the quotients that ``largest`` makes superfluous."""
    if not largest or not is_symbolic(sizes):
        return sizes
    return np.asarray(np.frompyfunc(lambda size: linear(as_dim(size), largest), 1, 1)(sizes), object)


def _cut(ctx: Importer, inputs: Sequence[Any]) -> Index | None:
    """A part of an index tensor between known bounds, of symbolic sizes too: some operator must refuse those
    that are too small for it.
    """
    index, starts, ends, axes, steps = (*inputs, None, None)[:5]
    known = all(isinstance(x, np.ndarray) and not is_symbolic(x) for x in (starts, ends))
    if not isinstance(index, Index) or not known:
        return None
    given = range(len(starts)) if axes is None else axes.ravel()
    every = np.ones(len(starts), int) if steps is None else steps.ravel()
    for row in zip(starts.ravel(), ends.ravel(), given, every, strict=True):
        start, end, axis, step = map(int, row)
        size = index.shape[axis]
        first: Dim
        count: Dim
        if isinstance(size, int):
            picked = range(size)[slice(start, end, step)]
            first, count, step = picked.start, len(picked), picked.step
        else:
            first = start if start >= 0 else size + start
            count = (size if end >= OPEN else end if end > 0 else size + end) - first
            if step != 1 or start < 0 < end < OPEN:
                return None
            needed = start if end >= OPEN else start - min(end, 0) if start >= 0 else -start
            ctx.least[size] = max(ctx.least.get(size, 1), needed, end if end < OPEN else 1)
        if isinstance(count, int) and count < 1:
            return None
        shape, strides = list(index.shape), list(index.steps)
        offset = index.offset + first * strides[axis]
        shape[axis], strides[axis] = count, strides[axis] * step
        index = replace(index, shape=tuple(shape), steps=tuple(strides), offset=offset)
    return index


def _parts(node: onnx.NodeProto, x: Array, sizes: Array | None, attributes: dict[str, Any]) -> list[Imported]:
    """Sizes cut in parts."""
    axis, count = int(attributes.get("axis", 0)), len(node.output)
    chunk = -(-x.shape[axis] // count)
    given = [chunk] * (count - 1) if sizes is None else [int(s) for s in sizes.ravel()][:-1]
    return [tidy(part) for part in np.split(x, np.cumsum(given), axis=axis)]


def _compute(ctx: Importer, node: onnx.NodeProto, arrays: Sequence[Array | None]) -> list[Imported] | None:
    """Run a node on constants with onnx's reference implementation."""
    if node.op_type in UNFOLDED:
        return None
    if node.op_type == "Expand" and arrays[0] is not None and arrays[1] is not None:
        shape = broadcast(arrays[0].shape, dims_of(arrays[1]))
        return [np.broadcast_to(arrays[0], evaluate_shape(shape, {}))] if small(shape) else None
    feeds = {name: a for name, a in zip(node.input, arrays, strict=True) if name and a is not None}
    return list(compute(node, feeds, ctx.opsets))


def _objects(items: Sequence[Any]) -> Array:
    out = np.empty(len(items), object)
    out[:] = list(items)
    return out


def _constant(attributes: dict[str, Any]) -> Array:
    for name, value in attributes.items():
        if name == "value":
            return np.asarray(value)
        if name in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if name in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    raise GraphError("a constant without a value")


def _filled(shape: Imported | None, attributes: dict[str, Any]) -> Imported:
    fill = np.asarray(attributes.get("value", np.zeros(1, np.float32))).ravel()[0]
    if not isinstance(shape, np.ndarray):
        raise GraphError("the shape of a filled tensor depends on input values")
    if is_symbolic(shape):
        return Splat(tuple(shape.ravel()), fill)
    sizes = tuple(int(d) for d in shape.ravel())
    if not small(sizes):
        raise GraphError(f"a filled tensor of shape {list(sizes)} is too large")
    return np.full(sizes, fill)


def _range(inputs: Sequence[Imported | None]) -> Imported:
    if not all(isinstance(x, np.ndarray) for x in inputs):
        start, stop, step = (np.asarray(x).ravel()[0] if isinstance(x, np.ndarray) else x for x in inputs)
        if isinstance(stop, str) and not isinstance(step, str) and step == 1:
            if isinstance(start, str) or start == 0:
                return Between(start if isinstance(start, str) else 0, stop)
        raise GraphError("the bounds of a range depend on input values")
    start, stop, step = (np.asarray(x).ravel()[0] for x in inputs)
    if not any(is_symbolic(np.asarray(x, object)) for x in (start, stop, step)):
        if step == 0 or not small((max(0, int((stop - start) / step)),)):
            raise GraphError(f"a range from {start} to {stop} in steps of {step} is empty or too long")
        positions = np.arange(start, stop, step)
        return positions.astype(np.float32) if positions.dtype.kind == "f" else positions
    if is_symbolic(np.asarray(step, object)) or step == 0 or step != int(step):
        raise GraphError("a range with a symbolic bound must have a known whole step")
    real = any(np.asarray(x).dtype.kind == "f" for x in inputs)
    dtype: DType = "float32" if real else "int64"
    span, pace = as_dim(stop - start) * (1 if step > 0 else -1), abs(int(step))
    return Index((floor_div(span + (pace - 1), pace),), (int(step),), as_dim(start), dtype)


def _fold_splat(
    ctx: Importer, node: onnx.NodeProto, inputs: Sequence[Any], attributes: dict[str, Any]
) -> Splat | Array | None:
    """Nodes on repeated values that stay repeated values."""
    x, op = inputs[0], node.op_type
    if isinstance(x, Splat) and op in ("Expand", "Reshape") and isinstance(inputs[1], np.ndarray):
        shape = dims_of(inputs[1])
        if op == "Expand":
            return Splat(broadcast(x.shape, shape), x.value)
        if list(shape) == [-1]:
            return Splat((product(x.shape),), x.value)
        return None if any(d in (0, -1) for d in shape) else Splat(shape, x.value)
    if op == "ReduceSum" and x.value is not None and not x.value:
        return _summed_zeros(x, inputs, attributes)
    if op not in ELEMENTWISE:
        return None
    feeds: dict[str, Array] = {}
    whole: Shape = ()
    for name, value in zip(node.input, inputs, strict=True):
        if value is None:
            continue
        number = value.value if isinstance(value, Splat) else value.ravel()[0] if _single(value) else None
        if number is None:
            return None
        whole = broadcast(whole, tuple(value.shape))
        feeds[name] = np.asarray(number)
    (result,) = compute(node, feeds, ctx.opsets)
    return Splat(whole, result[()])


def _summed_zeros(x: Splat, inputs: Sequence[Any], attributes: dict[str, Any]) -> Splat | Array:
    """The sum of zeros along axes, as an array where its size is known."""
    given, rank = axes_of(inputs, attributes), len(x.shape)
    if not given and attributes.get("noop_with_empty_axes", 0):
        return x
    axes = {a % rank for a in given} or {*range(rank)}
    kept = attributes.get("keepdims", 1)
    shape = tuple(1 if a in axes else d for a, d in enumerate(x.shape) if kept or a not in axes)
    return np.full(evaluate_shape(shape, {}), x.value) if small(shape) else Splat(shape, x.value)


def _counted(inputs: Sequence[Any], attributes: dict[str, Any]) -> Index | None:
    """The running sums of a repeated whole number: a position times that number."""
    x, axis = inputs[0], inputs[1]
    if not isinstance(x, Splat) or not isinstance(axis, np.ndarray) or any(attributes.values()):
        return None
    if x.value is None or x.value != int(x.value):
        return None
    along = int(axis.ravel()[0]) % len(x.shape)
    steps = tuple(int(x.value) if a == along else 0 for a in range(len(x.shape)))
    dtype = "float32" if np.asarray(x.value).dtype.kind == "f" else "int64"
    return Index(x.shape, steps, int(x.value), dtype)  # type: ignore[arg-type]


def _single(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.size == 1 and value.dtype != object
