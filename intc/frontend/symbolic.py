"""Values that are known while importing: shape arithmetic is computed here and never reaches the graph.

A tensor of the ONNX graph is *live* (a value of our graph, held by name) or known: a numpy array whose
elements may be symbolic sizes, a tensor of one repeated value (:class:`Splat`), or an affine function of its
own index (:class:`Index`), which is what ``Range`` and its ``Unsqueeze``/``Add``/``Mul`` relatives compute
when exporters spell out mask positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import divide
from intc.frontend.assumed import Assumed
from intc.ir.dims import (
    Dim,
    Poly,
    Shape,
    as_dim,
    floor_div,
    is_symbol,
    remainder,
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


@dataclass(frozen=True, eq=False)
class Stacked:
    """A sequence of a tensor for each step of a loop, in place of which there is their ``join``."""

    join: Any


Imported: TypeAlias = Any  # str | Array | Splat | Index | IndexTuple | Between | NanTest | Items | Tabulated


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
    """``a`` modulo ``b``: of a size by a number, or of a multiple of a symbol and a small number by it, or by
    what is always larger.
    """
    if not isinstance(b, Poly):
        return a - floor_div(a, int(b)) * int(b)
    if not isinstance(a, Poly) and abs(int(a)) < bounds(b)[0]:
        return a if a >= 0 else a + b
    name = str(b)
    rest = a - terms_of(as_dim(a)).get((name,), 0) * b
    if not is_symbol(b) or isinstance(rest, Poly) or abs(int(rest)) > REMAINDER:
        raise GraphError(f"{a} modulo {b} is not supported")
    return remainder(int(rest), name)


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
    assumed: Assumed,
    least: dict[Dim, int],
) -> Array | None:
    """The result of a shape-arithmetic node on arrays that may hold symbolic sizes; None where op is no such
    node. ``assumed`` says which of two sizes is larger; those that are taken to be no smaller than a number
    go to ``least``.
    """
    args = [np.asarray(x, object) if x is not None else None for x in inputs]
    x = args[0]
    if op in (*_ELEMENTWISE, "Div") and len(args) == 2:
        function = _ELEMENTWISE.get(op, lambda a, b: _quotient(a, b, least))
        found = np.frompyfunc(function, 2, 1)(args[0], args[1])
        return np.asarray(found if op == "Equal" else np.frompyfunc(_moderate, 1, 1)(found), object)
    if op == "Mod" and not attributes.get("fmod"):
        return np.asarray(np.frompyfunc(_remainder, 2, 1)(args[0], args[1]), object)
    if op in ("Max", "Min") and len(args) > 1:
        decide = np.frompyfunc(assumed.larger if op == "Max" else assumed.smaller, 2, 1)
        return np.asarray(reduce(decide, args), object)
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
