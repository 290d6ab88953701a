"""Coordinates of the true entries of a mask: what ``NonZero`` gives, as known data.

How many there are is a size that depends on values: a symbol of its own, which every operator takes like any
other. Rows at such coordinates are read by :class:`Taken` and written by :class:`Placed`, which live only
until :mod:`intc.frontend.whole` computes all rows instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import onnx

from intc.errors import GraphError
from intc.frontend.agreement import require_equal, substitute
from intc.frontend.possible import possible
from intc.frontend.symbolic import Imported, Splat, axes_of, dims_of
from intc.ir.dims import Dim, Shape, as_dim, broadcast, evaluate_shape, product, symbol, symbols
from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Op
from intc.ir.types import TensorType
from intc.ops.elementwise import Cast
from intc.ops.movement import Expand, Reshape
from intc.ops.reduce import ReduceSum

if TYPE_CHECKING:
    from intc.frontend.importer import Importer

Coordinates = tuple[tuple[tuple[Dim, ...], Dim], ...]  # (steps over the mask's axes, offset) of each number


@dataclass(frozen=True)
class Entries:
    """The true entries of ``mask``, a value of ``shape``, in row-major order; there are ``count``."""

    mask: str
    shape: Shape
    count: Dim

    @property
    def symbol(self) -> str:
        """The name of the symbol that ``count`` is, or is the size of the first axis times."""
        return next(s for s in symbols((self.count,)) if s not in symbols(self.shape))


@dataclass(frozen=True)
class Part:
    """``offset + sum(steps[a] * i_a)`` for the index i of each entry, along ``axis`` of ``shape``; the same
    along its other axes.
    """

    entries: Entries
    steps: tuple[Dim, ...]
    offset: Dim
    shape: Shape
    axis: int = 0


@dataclass(frozen=True)
class Parts:
    """Parts of one axis stacked before it (``first``) or behind it. With a ``tail``, every entry stands for
    all positions of that shape, which are further coordinates.
    """

    parts: tuple[Part, ...]
    first: bool
    tail: Shape = ()

    @property
    def shape(self) -> Shape:
        """[coordinates, entries], or the other way round."""
        rows = self.parts[0].entries.count * product(self.tail)
        numbers = len(self.parts) + len(self.tail)
        return (numbers, rows) if self.first else (rows, numbers)

    @property
    def coordinates(self) -> Coordinates:
        """What :class:`Taken` and :class:`Placed` take."""
        return tuple((p.steps, p.offset) for p in self.parts)


@dataclass(frozen=True)
class Taken(Op):
    """Rows of the first input at coordinates of the axes from ``axis`` on: one for each of the ``count`` true
    entries of the second.
    """

    count: Dim
    axis: int
    coordinates: Coordinates
    name: ClassVar[str] = "rows of a condition"
    arity: ClassVar[tuple[int, ...]] = (2,)

    def infer(self, *types: TensorType) -> TensorType:
        shape = types[0].shape
        rest = shape[self.axis + len(self.coordinates) :]
        return types[0].with_shape((*shape[: self.axis], self.count, *rest))


@dataclass(frozen=True)
class Placed(Op):
    """The first input with the rows of the third written or ``added`` at coordinates of the axes from
    ``axis`` on, one for each of the ``count`` true entries of the second.
    """

    count: Dim
    axis: int
    coordinates: Coordinates
    added: bool
    name: ClassVar[str] = "rows written by a condition"
    arity: ClassVar[tuple[int, ...]] = (3,)

    def infer(self, *types: TensorType) -> TensorType:
        return types[0]


def digits(steps: Sequence[Dim], shape: Shape) -> tuple[list[int], Dim]:
    """The axes of ``shape`` that a coordinate counts through, the slowest first, and how many positions that
    are; GraphError where it does not count.
    """
    left = {a: s for a, s in enumerate(steps) if s != 0 and shape[a] != 1}
    order: list[int] = []
    span: Dim = 1
    while left:
        fastest = next((a for a, s in left.items() if s == span), None)
        if fastest is None:
            raise GraphError("places that are computed from those of a condition's entries are not supported")
        order.insert(0, fastest)
        span = span * shape[fastest]
        del left[fastest]
    return order, span


def check(coordinates: Coordinates, entries: Entries, sizes: Shape, write: bool) -> None:
    """GraphError where rows at ``coordinates`` of axes of ``sizes`` cannot be read, or written."""
    every: list[int] = []
    for (steps, offset), size in zip(coordinates, sizes, strict=True):
        order, span = digits(steps, entries.shape)
        every += order
        inside = not write and isinstance(size, int) and isinstance(span, int) and isinstance(offset, int)
        if inside and offset >= 0 and offset + span <= size:  # type: ignore[operator]
            continue
        require_equal(span, size)
        if offset != 0 or span != size:
            raise GraphError(f"a condition over {span} entries chooses among {size} rows")
    if len(set(every)) != len(every):
        raise GraphError("two coordinates follow the same axis of a condition")


def non_zero(ctx: Importer, x: str) -> Parts:
    """The coordinates of what is not 0 in ``x``."""
    graph = ctx.builder.graph
    if graph.type(x).dtype != "bool":
        x = ctx.builder.emit(Cast("bool"), x, name=f"{x}.mask")
    mask, tail = _repeated(ctx.builder, x)
    shape = graph.type(mask).shape
    if not shape:
        raise GraphError("the entries of a single number are not supported")
    number = ctx.numbers.of(graph, mask)
    count = substitute(symbol(f"chosen_{len(ctx.entries)}"), ctx.assumed.sizes)
    found = ctx.entries.setdefault(number, Entries(mask, shape, count))
    steps = ((tuple(int(a == k) for a in range(len(shape)))) for k in range(len(shape)))
    return Parts(tuple(Part(found, s, 0, (found.count,)) for s in steps), True, tail)


def _repeated(builder: Builder, mask: str) -> tuple[str, Shape]:
    """The mask that ``mask`` repeats along its last axes, without those, and their sizes."""
    node = builder.producer(mask)
    while node is not None and isinstance(node.op, Expand) and len(builder.graph.type(mask).shape) > 1:
        shape, have = (builder.graph.type(x).shape for x in (mask, node.inputs[0]))
        kept = len(have) - next((i for i, d in enumerate(reversed(have)) if d != 1), len(have))
        if len(have) != len(shape) or have[:kept] != shape[:kept] or not kept:
            break
        inner = builder.producer(node.inputs[0])
        if (
            inner is not None
            and isinstance(inner.op, Expand)
            and builder.graph.type(inner.output).shape == shape
        ):
            mask, node = inner.output, inner
            continue
        if inner is not None and builder.graph.type(next(iter(inner.inputs), mask)).shape == have[:kept]:
            if isinstance(inner.op, Reshape):
                return inner.inputs[0], shape[kept:]
        return builder.emit(Reshape(have[:kept]), node.inputs[0], name=f"{mask}.rows"), shape[kept:]
    return mask, ()


class Numbers:
    """Numbers of the values of a graph that grows: the same for those that are computed alike."""

    def __init__(self) -> None:
        self.numbers: dict[object, int] = {}
        self.values: dict[str, int] = {}
        self.seen = 0

    def of(self, graph: Graph, value: str) -> int:
        for node in graph.nodes[self.seen :]:
            key = (node.op, *(self._leaf(graph, x) for x in node.inputs))
            self.values[node.output] = self.numbers.setdefault(key, len(self.numbers))
        self.seen = len(graph.nodes)
        return self._leaf(graph, value)

    def _leaf(self, graph: Graph, value: str) -> int:
        if value not in self.values:
            array = graph.constants.get(value)
            small = array is not None and array.nbytes < 4096
            key = (array.dtype, array.shape, array.tobytes()) if array is not None and small else value
            self.values[value] = self.numbers.setdefault(key, len(self.numbers))
        return self.values[value]


def fold_chosen(
    ctx: Importer, node: onnx.NodeProto, inputs: Sequence[Imported | None], attributes: dict[str, Any]
) -> list[Imported] | None:
    """The results of a node that rearranges coordinates of entries, or computes with them; else None."""
    x, op = inputs[0], node.op_type
    if op in ("Identity", "Cast"):
        return [x]
    if op == "Concat":
        return _stack(inputs, int(attributes["axis"]))
    if isinstance(x, Parts):
        return _stacked(ctx, node, x, inputs, attributes)
    if op in ("Add", "Sub", "Mul"):
        return _combined(op, inputs)
    if op == "Max" and all(hasattr(i, "shape") for i in inputs):  # taken only for its broadcast shape
        return [Splat(reduce(broadcast, (tuple(i.shape) for i in inputs)), None)]  # type: ignore[union-attr]
    if not isinstance(x, Part):
        return None
    if op == "Expand" and isinstance(inputs[1], np.ndarray):
        return [_broadcast(x, broadcast(x.shape, dims_of(inputs[1])))]
    if op == "Unsqueeze":
        axes = axes_of(inputs, attributes)
        rank = len(x.shape) + len(axes)
        kept = iter(x.shape)
        shape = tuple(1 if i in {a % rank for a in axes} else next(kept) for i in range(rank))
        return _reshaped(x, shape)
    if op == "Squeeze":
        axes = [a % len(x.shape) for a in axes_of(inputs, attributes)]
        return _reshaped(x, tuple(d for i, d in enumerate(x.shape) if i not in axes and (axes or d != 1)))
    if op == "Reshape" and isinstance(inputs[1], np.ndarray):
        return _reshaped(x, tuple(x.entries.count if d == -1 else d for d in dims_of(inputs[1])))
    return None


def _stacked(
    ctx: Importer, node: onnx.NodeProto, x: Parts, inputs: Sequence[Any], attributes: dict[str, Any]
) -> list[Imported] | None:
    """A node that rearranges or cuts stacked coordinates."""
    op, axis = node.op_type, 0 if x.first else 1
    if op == "Transpose" and list(attributes.get("perm", (1, 0))) == [1, 0]:
        return [replace(x, first=not x.first)]
    if x.tail:
        return None
    if op in ("Squeeze", "Reshape") and len(x.parts) == 1:
        ahead = op == "Squeeze" and [a % 2 for a in axes_of(inputs, attributes)] not in ([], [axis])
        flat = op == "Squeeze" or list(dims_of(np.asarray(inputs[1]))) == [-1]
        return None if ahead or not flat else [x.parts[0]]
    if op == "Slice" and all(isinstance(i, np.ndarray) and i.size == 1 for i in inputs[1:]):
        start, stop, *along = (int(i.ravel()[0]) for i in inputs[1:])
        if not along or along[0] not in (axis, axis - 2) or along[1:] not in ([], [1]):
            return None
        return [replace(x, parts=x.parts[start:stop])]
    if op == "Gather" and isinstance(inputs[1], np.ndarray) and int(attributes.get("axis", 0)) % 2 == axis:
        at = np.asarray(inputs[1]).ravel()
        picked = tuple(x.parts[int(i)] for i in at)
        return [picked[0] if np.ndim(inputs[1]) == 0 else replace(x, parts=picked)]
    if op == "Split":
        sizes = [int(d) for d in np.asarray(inputs[1]).ravel()] if len(inputs) > 1 else [1] * len(node.output)
        if int(attributes.get("axis", 0)) % 2 != axis:
            return _every(ctx, x, sizes)
        if sizes == [1] * len(x.parts):
            return [replace(x, parts=(part,)) for part in x.parts]
    return None


def _every(ctx: Importer, x: Parts, sizes: Sequence[int]) -> list[Imported] | None:
    """The coordinates of a condition over few entries, cut into ``sizes`` as an exporter does that unrolled a
    loop over them: as many are true as can be true, so these are known.
    """
    (size, *more), entries = x.parts[0].entries.shape, x.parts[0].entries
    if more or x.first or not isinstance(size, int):
        return None
    known = np.asarray(possible(ctx.builder.graph, entries.mask, size), np.int64)
    if len(known) != sum(sizes):
        raise GraphError(
            f"the file is right only for inputs that make {sum(sizes)} of {len(known)} entries of a condition"
            " true, as the exporter's example did; export with an example that makes all of them true"
        )
    rows = [[as_dim(p.steps[0] * int(i) + p.offset) for p in x.parts] for i in known]
    every = np.asarray(rows, np.int64)
    return list(np.split(every, np.cumsum(sizes)[:-1]))


def _stack(inputs: Sequence[Any], axis: int) -> list[Imported] | None:
    """Coordinates [entries, 1] joined as [entries, coordinates]."""
    parts: list[Part] = []
    for x in inputs:
        column = coordinates_of(x)
        if column is None or column.tail:
            return None
        parts += column.parts
    alike = axis in (1, -1) and len({p.entries for p in parts}) == 1
    return [Parts(tuple(parts), False)] if alike else None


def _reshaped(x: Part, shape: Shape) -> list[Imported] | None:
    """``x`` with axes of size 1 added or removed."""
    have = [d for d in x.shape if d != 1]
    if have != [d for d in shape if d != 1] or x.entries.count not in shape:
        return None
    return [replace(x, shape=shape, axis=shape.index(x.entries.count))]


def _broadcast(x: Part, shape: Shape) -> Part:
    return replace(x, shape=shape, axis=x.axis + len(shape) - len(x.shape))


def _combined(op: str, inputs: Sequence[Any]) -> list[Imported] | None:
    """Sums of coordinates of the same entries, and sums and products with a number."""
    x, y = inputs
    if isinstance(x, Part) and isinstance(y, Part):
        if op == "Mul" or x.entries != y.entries or x.shape != y.shape:
            return None
        sign = -1 if op == "Sub" else 1
        steps = tuple(a + sign * b for a, b in zip(x.steps, y.steps, strict=True))
        return [replace(x, steps=steps, offset=x.offset + sign * y.offset)]
    part, number = (x, y) if isinstance(x, Part) else (y, x)
    if not isinstance(part, Part) or not isinstance(number, np.ndarray) or number.size != 1:
        return None
    value = as_dim(number.ravel()[0])
    if op == "Mul":
        return [replace(part, steps=tuple(s * value for s in part.steps), offset=part.offset * value)]
    if op == "Sub" and part is y:
        return None
    return [replace(part, offset=part.offset + (value if op == "Add" else -value))]


def coordinates_of(index: Imported) -> Parts | None:
    """A tensor of coordinates [entries, numbers] as stacked parts, else None."""
    if isinstance(index, Parts) and not index.first:
        return index
    if isinstance(index, Part) and len(index.shape) == 2 and index.shape[1] == 1 and index.axis == 0:
        return Parts((replace(index, shape=index.shape[:1]),), False)
    return None


def counted(ctx: Importer, value: Imported | None) -> Imported | None:
    """A sum of all entries of a condition whose entries are chosen somewhere, as that size."""
    graph = ctx.builder.graph
    if not isinstance(value, str) or graph.type(value).is_float or product(graph.type(value).shape) != 1:
        return value
    node = _behind(ctx.builder, value)
    if node is None or not isinstance(node.op, ReduceSum):
        return value
    summed = graph.type(node.inputs[0]).shape
    cast = _behind(ctx.builder, node.inputs[0])
    if len(node.op.axes) != len(summed) or cast is None or not isinstance(cast.op, Cast):
        return value
    mask = cast.inputs[0]
    source = ctx.builder.producer(mask)
    mask = source.inputs[0] if source is not None and isinstance(source.op, Reshape) else mask
    number = ctx.numbers.of(graph, mask)
    if number not in ctx.entries:
        return value
    return np.full(evaluate_shape(graph.type(value).shape, {}), ctx.entries[number].count, object)


def _behind(builder: Builder, value: str) -> Node | None:
    """The node that computes ``value``, seen through reshapes and casts between integers."""
    node = builder.producer(value)
    while node is not None and (
        isinstance(node.op, Reshape)
        or (isinstance(node.op, Cast) and builder.graph.type(node.inputs[0]).dtype in ("int32", "int64"))
    ):
        node = builder.producer(node.inputs[0])
    return node
