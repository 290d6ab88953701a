"""Values that are known while importing: shape arithmetic is computed here and never reaches the graph.

A tensor of the ONNX graph is *live* (a value of our graph, held by name) or known: a numpy array whose
elements may be symbolic sizes, a tensor of one repeated value (:class:`Splat`), or an affine function of its
own index (:class:`Index`), which is what ``Range`` and its ``Unsqueeze``/``Add``/``Mul`` relatives compute
when exporters spell out mask positions.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import AtMost, divide, require_equal
from intc.ir.dims import (
    Dim,
    Poly,
    Shape,
    as_dim,
    broadcast,
    factor,
    floor_div,
    is_symbol,
    remainder,
    smaller,
    symbols,
    terms_of,
)
from intc.ir.op import Array
from intc.ir.ranges import bounds
from intc.ir.types import DType

NUMBERS: dict[int, DType] = {
    1: "float32",
    10: "float32",
    11: "float32",
    6: "int64",
    7: "int64",
}  # ONNX's codes


@dataclass(frozen=True)
class Splat:
    """A tensor of ``shape`` (with symbolic sizes) that holds ``value`` everywhere."""

    shape: Shape
    value: Any


@dataclass(frozen=True)
class Index:
    """``t[i0, i1, ...] = offset + sum(steps[a] * i_a)`` over ``shape``."""

    shape: Shape
    steps: tuple[Dim, ...]
    offset: Dim = 0
    dtype: DType = "int64"


@dataclass(frozen=True)
class IndexTuple:
    """Index tensors stacked on a new last axis: the coordinates that GatherND reads."""

    parts: tuple[Index, ...]


@dataclass(frozen=True)
class NanTest:
    """``isnan`` of a live value that rows without any kept entry may reach, or its negation; only
    ``Where(isnan(x), 0, x)``, which is x here, may read it.
    """

    value: str
    negated: bool = False


@dataclass(frozen=True, eq=False)
class Items:
    """A sequence of tensors."""

    values: tuple[Any, ...]


Imported: TypeAlias = Any  # str | Array | Splat | Index | IndexTuple | Between | NanTest | Items | Tabulated

Pair: TypeAlias = tuple[str, int]  # a symbol and a number


def is_symbolic(array: Array) -> bool:
    """Whether an element is a symbolic size."""
    return array.dtype == object and any(isinstance(x, Poly) for x in array.ravel())


def tidy(array: Any) -> Array:
    """Object arrays without symbols become int64."""
    out = np.asarray(array)
    return out.astype(np.int64) if out.dtype == object and not is_symbolic(out) else out


def dims_of(array: Array) -> Shape:
    """A known 1-D array as a shape."""
    return tuple(as_dim(x) for x in np.asarray(array, object).ravel())


def _quotient(a: Any, b: Any, least: dict[Dim, int]) -> Any:
    """ONNX's quotient of integers, rounded towards zero; what some inputs make negative goes to ``least``:
    some operator must refuse those.
    """
    if isinstance(a, Poly) and not isinstance(b, Poly) and b > 0:
        low, high = bounds(a)
        if high <= 0:
            return -floor_div(-a, int(b))
        if low < 0 and floor_div(a, int(b)) * int(b) != a:
            least[a] = max(least.get(a, 0), 0)
        return floor_div(a, int(b))
    return divide(a, b)


def _remainder(a: Any, b: Any) -> Any:
    """``a`` modulo ``b``: of a size by a number, or of a multiple of a symbol and a small number by it."""
    if not isinstance(b, Poly):
        return a - floor_div(a, int(b)) * int(b)
    name = str(b)
    rest = a - terms_of(as_dim(a)).get((name,), 0) * b
    if not is_symbol(b) or isinstance(rest, Poly) or abs(int(rest)) > REMAINDER:
        raise GraphError(f"{a} modulo {b} is not supported")
    return remainder(int(rest), name)


@dataclass
class Floors:
    """How ``max(0, n - 5)`` and ``max(0, 5 - n)`` are taken: as n - 5 and 5 - n, the start of a slice, which
    may not be negative, or ``exact``. ``taken``: whether any was.
    """

    exact: bool = False
    taken: bool = False

    def of(self, size: Dim) -> Dim | None:
        """The larger of 0 and a size that may be negative; None where it counts as that size."""
        for name in symbols((size,)):
            for whole, number in ((factor(name), factor(name) - size), (size + factor(name),) * 2):
                if isinstance(number, int) and number > 0:
                    self.taken = True
                    return whole - smaller(name, number) if self.exact else None
        return None


def _decided(
    a: Any, b: Any, larger: bool, largest: Mapping[str, int], either: Container[Pair], floors: Floors
) -> Any:
    """The larger (or smaller) of two sizes, where all symbols agree on which it is.

    ``floors`` says what ``max(0, x)`` is. The smaller of a symbol and a number is a size of its own if they
    are a pair of ``either``, and else asks for another import.
    """
    low, high = bounds(as_dim(a) - as_dim(b), largest)
    if larger and 0 in (a, b) and low < 0 < high:
        exact = floors.of(as_dim(a) + as_dim(b))
        if exact is not None:
            return exact
    if larger and 0 in (a, b):
        low, high = (0, 1) if b == 0 and high > 0 else (-1, 0) if a == 0 and low < 0 else (low, high)
    if low < 0 < high:
        for x, y in ((a, b), (b, a)):
            if not larger and is_symbol(as_dim(x)) and not isinstance(y, Poly) and int(y) > 0:
                if (str(x), int(y)) in either:
                    return smaller(str(x), int(y))
                raise AtMost(str(x), int(y))
        raise GraphError(f"which of {a} and {b} is larger depends on the input")
    return a if (low >= 0) == larger else b


_ELEMENTWISE: dict[str, Callable[[Any, Any], Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Equal": lambda a, b: a == b,
}
REMAINDER = 16  # a number modulo a symbol is a sum of as many terms
TERMS, FACTORS = 256, 16  # of a size that is computed from others, and of each term


def _moderate(size: Any) -> Any:
    """``size``, unless no shape could hold it: repeated squares would fill the memory."""
    for factors, coefficient in terms_of(as_dim(size)).items():
        if not -(2**63) <= coefficient < 2**63:
            raise GraphError("a computed size leaves 64 bits")
        if len(factors) > FACTORS or len(terms_of(size)) > TERMS:
            raise GraphError(f"a computed size has more than {TERMS} terms or {FACTORS} factors")
    return size


def fold_symbolic(
    op: str,
    inputs: Sequence[Array | None],
    attributes: dict[str, Any],
    largest: Mapping[str, int],
    either: Container[Pair],
    least: dict[Dim, int],
    floors: Floors,
) -> Array | None:
    """The result of a shape-arithmetic node on arrays that may hold symbolic sizes, of which ``largest``
    bounds some, and ``either`` names some with a number that may be smaller; None where op is no such node.
    Sizes that are taken to be no smaller than a number go to ``least``; ``floors`` says what those are that
    may be negative.
    """
    args = [np.asarray(x, object) if x is not None else None for x in inputs]
    x = args[0]
    if op in (*_ELEMENTWISE, "Div") and len(args) == 2:
        function = _ELEMENTWISE.get(op, lambda a, b: _quotient(a, b, least))
        found = np.frompyfunc(function, 2, 1)(args[0], args[1])
        return np.asarray(found if op == "Equal" else np.frompyfunc(_moderate, 1, 1)(found), object)
    if op == "Mod" and not attributes.get("fmod"):
        return np.asarray(np.frompyfunc(_remainder, 2, 1)(args[0], args[1]), object)
    if op in ("Max", "Min") and len(args) == 2:
        decide = np.frompyfunc(lambda a, b: _decided(a, b, op == "Max", largest, either, floors), 2, 1)
        return np.asarray(decide(args[0], args[1]), object)
    if x is None:
        return None
    if op in ("Identity", "Cast"):
        return x
    if op == "Neg":
        return np.asarray(-x, object)
    if op == "Concat":
        return np.concatenate(
            [np.atleast_1d(a) for a in args if a is not None], axis=int(attributes.get("axis", 0))
        )
    if op == "Gather":
        return np.asarray(
            np.take(x, np.asarray(inputs[1], np.int64), axis=int(attributes.get("axis", 0))), object
        )
    if op == "Where":
        a, b = (np.asarray(value, object) for value in args[1:3])
        return np.asarray(np.where(np.asarray(x, bool), a, b), object)
    if op == "Unsqueeze":
        return np.expand_dims(x, tuple(int(a) for a in axes_of(args, attributes)))
    if op == "Squeeze":
        axes = tuple(int(a) for a in axes_of(args, attributes)) or None
        return np.asarray(np.squeeze(x, axes), object)
    if op == "Reshape":
        return x.reshape([int(d) for d in np.asarray(inputs[1]).ravel()])
    if op == "Transpose":
        return np.transpose(x, attributes.get("perm"))
    if op == "Slice":
        return _slice(x, inputs, attributes)
    if op == "ScatterElements" and x.ndim == 1 and attributes.get("reduction", "none") == "none":
        changed = x.copy()
        changed[np.asarray(inputs[1], np.int64)] = args[2]
        return changed
    if op == "ReduceProd":
        whole: Any = 1
        for item in x.ravel():
            whole = whole * item
        return np.asarray([whole] if attributes.get("keepdims", 1) else whole, object)
    return None


def axes_of(args: Sequence[Array | None], attributes: dict[str, Any]) -> list[int]:
    given = args[1] if len(args) > 1 and args[1] is not None else attributes.get("axes", [])
    return [int(a) for a in np.asarray(given).ravel()]


def _slice(x: Array, inputs: Sequence[Array | None], attributes: dict[str, Any]) -> Array:
    starts, ends = (np.asarray(a).ravel() for a in inputs[1:3])
    axes = np.asarray(inputs[3]).ravel() if len(inputs) > 3 and inputs[3] is not None else range(len(starts))
    steps = np.asarray(inputs[4]).ravel() if len(inputs) > 4 and inputs[4] is not None else [1] * len(starts)
    index: list[slice] = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        stop = None if abs(int(end)) > 2**31 else int(end)
        index[int(axis)] = slice(None if int(start) < -(2**31) else int(start), stop, int(step))
    return x[tuple(index)]


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
        return _with_ones(first, dims_of(inputs[1]))
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
    return None


def _with_ones(index: Index, shape: Shape) -> Index | None:
    """``index`` with axes of size 1 added and removed, or None where ``shape`` is another one."""
    kept = [i for i, d in enumerate(index.shape) if d != 1]
    if shape.count(-1) == 1:
        missing = [index.shape[i] for i in kept if index.shape[i] not in shape]
        if len(missing) > 1:
            return None
        shape = tuple((missing[0] if missing else 1) if d == -1 else d for d in shape)
    if [index.shape[i] for i in kept] != [d for d in shape if d != 1]:
        return None
    moving = iter(index.steps[i] for i in kept)
    return replace(index, shape=shape, steps=tuple(0 if d == 1 else next(moving) for d in shape))


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
        b = _scaled(b, -1) if op == "Sub" else b
        shape = broadcast(a.shape, b.shape)
        a, b = _broadcast(a, shape), _broadcast(b, shape)
        steps = tuple(x + y for x, y in zip(a.steps, b.steps, strict=True))
        return replace(a, shape=shape, steps=steps, offset=a.offset + b.offset)
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
