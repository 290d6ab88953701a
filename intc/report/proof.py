"""What every value and every intermediate of an integer graph can reach, from its actual weights.

Types carry intervals of whole tensors, by which an operator is admitted. Here the graph is gone through once
more, fused operators taken apart, with one interval per channel where weights, biases and multipliers are
constants. The bounds of sums hold for every order of summation, and so for every partial sum of a kernel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from intc.errors import QuantizationError
from intc.ir.dims import SYMBOL_MAX, Dim
from intc.ir.graph import Graph, Node
from intc.ir.op import Array, FormulaOp
from intc.ir.types import TensorType
from intc.ops.elementwise import Add, Max, Min, Mul, Sub, Where
from intc.ops.im2col import Im2col
from intc.ops.intervals import Condition, Intervals, signed_bits
from intc.ops.matmul import MatMul, column_ends
from intc.ops.movement import MOVEMENT, Concat, Pad
from intc.ops.reduce import ReduceMax
from intc.ops.requantize import Clip, Requantize
from intc.ops.row_softmax import NormaliseRows
from intc.ops.window import GroupedConv, MaxPool
from intc.passes.unfuse import Unfuse

KEEPING: Final = tuple(op for op in MOVEMENT if op not in (Concat, Pad))


@dataclass(frozen=True)
class Bounds:
    """The smallest and largest integers, of shape () or one per index of the last axis; int64.

    ``widest`` covers every intermediate on the way to them, the result included.
    """

    lo: Array
    hi: Array
    widest: tuple[int, int]

    @property
    def ends(self) -> tuple[int, int]:
        return int(self.lo.min()), int(self.hi.max())

    def summary(self, type_: TensorType) -> dict[str, Any]:
        """The JSON form: what is proven, what the type admits, and the narrowest accumulator."""
        return {
            "proven": list(self.ends),
            "type": [type_.dtype, *type_.interval],
            "widest": list(self.widest),
            "bits": signed_bits(*self.widest),
        }


def prove(graph: Graph) -> dict[str, Bounds]:
    """The bounds of every computed value of ``graph`` with fused operators taken apart.

    A value keeps its name; the parts of a fused operator are called ``<value>/<part>``. QuantizationError
    where an intermediate may leave 64 bits.
    """
    plain = Unfuse().run(graph)
    known: dict[str, Bounds] = {}
    for name in plain.inputs:
        known[name] = _whole(plain.type(name))
    for name, array in plain.constants.items():
        known[name] = _of_constant(array)
    for node in plain.nodes:
        known[node.output] = _node(plain, node, known)
    return {node.output: known[node.output] for node in plain.nodes}


def proofs(graph: Graph) -> dict[str, dict[str, Any]]:
    """:func:`prove` in JSON form, by value; of values that are computed, not moved or compared."""
    plain, found = Unfuse().run(graph), prove(graph)
    return {
        node.output: {"op": node.op.name, **found[node.output].summary(plain.type(node.output))}
        for node in plain.nodes
        if not isinstance(node.op, MOVEMENT) and plain.type(node.output).dtype != "bool"
    }


def _whole(type_: TensorType) -> Bounds:
    return _ends(*type_.interval)


def _ends(lo: int, hi: int, *others: tuple[int, int]) -> Bounds:
    every = [(lo, hi), *others]
    widest = min(a for a, _ in every), max(b for _, b in every)
    return Bounds(np.asarray(lo, np.int64), np.asarray(hi, np.int64), widest)


def _of_constant(array: Array) -> Bounds:
    """Exact, index by index of the last axis."""
    if not array.size or not array.ndim:
        lo, hi = (int(array.min()), int(array.max())) if array.size else (0, 0)
        return _ends(lo, hi)
    rows = array.reshape(-1, array.shape[-1]).astype(np.int64)
    return _channels(rows.min(axis=0), rows.max(axis=0))


def _channels(lo: Array, hi: Array, *others: Array) -> Bounds:
    every = [lo, hi, *others]
    return Bounds(lo, hi, (min(int(a.min()) for a in every), max(int(a.max()) for a in every)))


def _node(graph: Graph, node: Node, known: Mapping[str, Bounds]) -> Bounds:
    """The bounds of one result; never wider than its type."""
    type_ = graph.type(node.output)
    if type_.dtype == "bool":
        return _ends(0, 1)
    found = _rule(graph, node, [known[x] for x in node.inputs])
    if found is None:
        return _whole(type_)
    low, high = type_.interval
    return Bounds(np.clip(found.lo, low, high), np.clip(found.hi, low, high), found.widest)


def _rule(graph: Graph, node: Node, x: list[Bounds]) -> Bounds | None:
    """The bounds by the operator's own rule; None where its type says all there is."""
    op, types = node.op, [graph.type(name) for name in node.inputs]
    constants = [graph.constants.get(name) for name in node.inputs]
    if any(t.dtype == "int64" and t.magnitude >= 2**31 for t in types[:2]):
        return None  # positions and counts, which no register of a kernel computes with
    match op:
        case MatMul() if constants[1] is not None and constants[1].ndim == 2:
            return _products(x[0], constants[1])
        case MatMul():
            return _sums(_terms(x[0], x[1]), _size(types[0].shape[-1]))
        case GroupedConv() if constants[1] is not None:
            w = constants[1]
            return _products(_ends(*x[0].ends), w.reshape(-1, w.shape[-1]))
        case Requantize() if constants[1] is not None and constants[2] is not None:
            return _requantize(op, x[0], *(np.asarray(c, np.int64) for c in constants[1:] if c is not None))
        case Clip():
            return _channels(np.clip(x[0].lo, op.lo, op.hi), np.clip(x[0].hi, op.lo, op.hi))
        case Add() | Sub() | Mul() | Max() | Min():
            return _binary(op, x, types)
        case NormaliseRows():
            _check_average(graph, node)
            return _formula(op, x, types)
        case FormulaOp():
            return _formula(op, x, types)
        case Concat() | Where() | Pad() | Im2col() | MaxPool() | ReduceMax():
            return _joined(op, x)
        case _ if isinstance(op, KEEPING):
            return _ends(*x[0].ends)
    return None


def _size(dim: Dim) -> int:
    return dim if isinstance(dim, int) else SYMBOL_MAX


def _products(x: Bounds, w: Array) -> Bounds:
    """``x @ w`` for constant w [K, N], column by column; ``widest`` covers all partial sums."""
    partial = column_ends(w, np.minimum(x.lo, 0), np.maximum(x.hi, 0))
    return _channels(*column_ends(w, x.lo, x.hi), *partial)


def _terms(a: Bounds, b: Bounds) -> tuple[int, int]:
    ends = [i * j for i in a.ends for j in b.ends]
    return min(ends), max(ends)


def _sums(term: tuple[int, int], count: int) -> Bounds:
    lo, hi = count * min(term[0], 0), count * max(term[1], 0)
    return _ends(lo, hi)


def _requantize(op: Requantize, x: Bounds, m: Array, e: Array) -> Bounds:
    """The corners of a function that is monotone in x; every step fits 64 bits, as the operator demands."""
    half = np.int64(1) << (e - 1)
    products = x.lo * m, x.hi * m
    moved = [p + half for p in products]
    results = [np.clip(v >> e, op.lo, op.hi) for v in moved]
    return _channels(np.minimum(*results), np.maximum(*results), *products, *moved)


def _binary(op: Any, x: list[Bounds], types: list[TensorType]) -> Bounds:
    """Corners, channel by channel where both sides have the same channels or one of them has none."""
    a, b = x
    if types[0].shape[-1:] != types[1].shape[-1:]:
        a, b = (_ends(*v.ends) if t.rank and t.shape[-1] != 1 else v for v, t in zip(x, types, strict=True))
    ends = [np.asarray(op.apply(i, j)) for i in (a.lo, a.hi) for j in (b.lo, b.hi)]
    return _channels(np.minimum.reduce(ends), np.maximum.reduce(ends))


def _formula(op: FormulaOp, x: list[Bounds], types: list[TensorType]) -> Bounds:
    """The operator's own formula over intervals of 64 bits; every intermediate is noted."""
    ns = Intervals(64, _size(op.row(*types)))
    both = Condition(True, True)
    operands = [both if t.dtype == "bool" else ns.interval(*b.ends) for t, b in zip(types, x, strict=True)]
    result = op.formula(ns, *operands)
    return _ends(result.lo, result.hi, *ns.seen)


def _check_average(graph: Graph, node: Node) -> None:
    """QuantizationError unless ``node`` divides what it may: sums of 8-bit values with its own weights."""
    product = graph.producers().get(node.inputs[0])
    if product is not None and isinstance(product.op, MatMul) and product.inputs[0] == node.inputs[1]:
        if graph.type(product.inputs[1]).magnitude <= 255:
            return
    raise QuantizationError(f"node '{node.output}' ({node.op.name}) does not divide sums by their weights")


def _joined(op: Any, x: list[Bounds]) -> Bounds:
    """One of the operands' elements, or what an operator pads with."""
    parts = x[1:] if isinstance(op, Where) else x
    around = [(0, 0)] if isinstance(op, Pad) else []
    if isinstance(op, Im2col) and any(op.pads):
        around = [(op.fill, op.fill)]
    ends = [*(part.ends for part in parts), *around]
    return _ends(min(a for a, _ in ends), max(b for _, b in ends))
