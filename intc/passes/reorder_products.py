"""Products with constants are taken where they are cheapest, if nothing but linear operators lies between.

``(x @ A + b) @ W = x @ (A @ W) + b @ W``; a product along one axis passes interpolations and other products
along other axes, reshapes, transposes and joins: ``concat(x, y) @ [U; V] = x @ U + y @ V``. So the mixing of
feature maps that were projected, enlarged and joined (the heads of segmentation networks) happens at each
map's own size, in one product with its projection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from intc.ir.dims import Shape, evaluate_shape, product, symbols
from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array
from intc.ops.elementwise import Add
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Reshape, Transpose
from intc.passes.match import Uses, biased_product, weight_of
from intc.passes.rewrite import rewrite

TYPICAL: Final = 64  # of a symbolic size, where costs are compared
SUM_COST: Final = 16  # of adding one element of two joined parts, in multiply-adds
WORTH: Final = 0.9  # of the cost before, at most
SUMS_TO_ONE: Final = 1e-5  # how far the columns of an interpolation may be from it

Emit = Callable[[Builder, Mapping[str, str]], str]


@dataclass(frozen=True)
class ReorderProducts:
    name: str = "reorder_products"

    def run(self, graph: Graph) -> Graph:
        search = _Search(graph, Uses.of(graph))

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            found = biased_product(graph, search.uses.producers, node.output)
            if found is None or (found[1] is None and search.biased(node)):
                return None
            product, bias = found
            x = product.inputs[0]
            shift = (
                None
                if bias is None
                else graph.constants[next(c for c in bias.inputs if c in graph.constants)]
            )
            request = _Product(x, graph.type(x).rank - 1, graph.constants[product.inputs[1]], shift, node)
            best, plain = search.cheapest(request), search.here(request).cost
            return best.emit(b, names) if best.cost < WORTH * plain else None

        return rewrite(graph, rule)


@dataclass(frozen=True)
class _Product:
    """``value`` multiplied along ``axis`` by ``weight`` [K, N], and ``shift`` [N] added, for ``node``."""

    value: str
    axis: int
    weight: Array
    shift: Array | None
    node: Node

    def of(self, value: str) -> _Product:
        """The same with another value."""
        return replace(self, value=value)


@dataclass(frozen=True)
class _Way:
    """Multiply-adds of the product and of all products and sums in front of it that only it needs."""

    cost: int
    emit: Emit


@dataclass(frozen=True)
class _Search:
    graph: Graph
    uses: Uses

    def biased(self, product: Node) -> bool:
        """Whether only a sum with a constant vector reads ``product``."""
        total = self.uses.sole_user(product.output, Add)
        return total is not None and biased_product(self.graph, self.uses.producers, total.output) is not None

    def cheapest(self, p: _Product) -> _Way:
        """Taken here, or earlier."""
        here, earlier = self.here(p), self._earlier(p)
        return earlier if earlier is not None and earlier.cost < here.cost else here

    def here(self, p: _Product) -> _Way:
        """Of ``value`` as it is."""
        rank = self.graph.type(p.value).rank
        order = (*(i for i in range(rank) if i != p.axis), p.axis)
        back = tuple(int(i) for i in np.argsort(order))

        def emit(b: Builder, names: Mapping[str, str]) -> str:
            x = names[p.value]
            if p.axis != rank - 1:
                x = _emit(b, p, Transpose(order), x)
            y = _emit(b, p, MatMul(), x, b.constant(f"{p.node.output}.weight", p.weight))
            y = _shifted(b, p, y, 0)
            return y if p.axis == rank - 1 else _emit(b, p, Transpose(back), y)

        elements = self._elements(self.graph.type(p.value).shape)
        return _Way(elements * p.weight.shape[1] + self._before(p.value), emit)

    def _earlier(self, p: _Product) -> _Way | None:
        """Of what ``value`` is computed from, by an operator that the product can pass."""
        node = self.uses.only(p.value, Concat, MatMul, Transpose, Reshape, Add)
        if node is None:
            return None
        op, x = node.op, node.inputs[0]
        if isinstance(op, Concat):
            return self._parts(p, node, op.axis)
        if isinstance(op, MatMul):
            return self._product(p, node)
        if isinstance(op, Add):
            return self._sum(p, node)
        if isinstance(op, Transpose):
            return self._moved(p, replace(p, value=x, axis=op.perm[p.axis]), op)
        assert isinstance(op, Reshape)
        axis = _same_axis(self.graph.type(x).shape, op.shape, p.axis)
        if axis is None:
            return None
        shape = (*op.shape[: p.axis], p.weight.shape[1], *op.shape[p.axis + 1 :])
        return self._moved(p, replace(p, value=x, axis=axis), Reshape(shape))

    def _moved(self, p: _Product, inner: _Product, op: Reshape | Transpose) -> _Way:
        way = self.cheapest(inner)
        return _Way(way.cost, lambda b, names: _emit(b, p, op, way.emit(b, names)))

    def _parts(self, p: _Product, node: Node, axis: int) -> _Way | None:
        """The sum of the products of what is joined along the axis."""
        if axis != p.axis:
            return None
        sizes = [s for x in node.inputs if isinstance(s := self.graph.type(x).shape[axis], int)]
        if len(sizes) != len(node.inputs):
            return None
        cuts = np.split(p.weight, np.cumsum(sizes)[:-1])
        # a sum joins the product behind it, so what ends in no product comes first; it takes the shift
        order = sorted(range(len(cuts)), key=lambda i: self.uses.producer(node.inputs[i], MatMul) is not None)
        ways = [
            self.cheapest(replace(p, value=node.inputs[i], weight=cuts[i], shift=None if k else p.shift))
            for k, i in enumerate(order)
        ]

        def emit(b: Builder, names: Mapping[str, str]) -> str:
            total, *rest = [way.emit(b, names) for way in ways]
            for part in rest:
                total = _emit(b, p, Add(), total, part)
            return total

        shape = self.graph.type(p.value).shape
        elements = self._elements((*shape[:axis], *shape[axis + 1 :])) * p.weight.shape[1]
        return _Way(sum(way.cost for way in ways) + SUM_COST * elements * (len(ways) - 1), emit)

    def _product(self, p: _Product, node: Node) -> _Way | None:
        """Two products along the same axis are one; along different ones they change places."""
        other = weight_of(self.graph, node)
        if other is None:
            return None
        x = node.inputs[0]
        rank = self.graph.type(x).rank
        if p.axis == rank - 1:
            merged = other.astype(np.float64) @ p.weight
            return self.cheapest(replace(p, value=x, weight=merged.astype(np.float32)))
        through = p.shift is not None and bool(np.allclose(other.sum(axis=0), 1.0, rtol=0, atol=SUMS_TO_ONE))
        way = self.cheapest(p.of(x) if through else replace(p.of(x), shift=None))
        shape = list(self.graph.type(p.value).shape)
        shape[p.axis] = p.weight.shape[1]

        def emit(b: Builder, names: Mapping[str, str]) -> str:
            y = way.emit(b, names)
            y = b.emit(MatMul(), y, node.inputs[1], name=f"{node.output}.moved", source=node.source)
            return y if through else _shifted(b, p, y, rank - 1 - p.axis)

        return _Way(way.cost + self._elements(tuple(shape)) * other.shape[0], emit)

    def _sum(self, p: _Product, node: Node) -> _Way | None:
        """A constant vector along the axis is multiplied at compile time."""
        x, c = node.inputs if node.inputs[1] in self.graph.constants else node.inputs[::-1]
        constant, type_ = self.graph.constants.get(c), self.graph.type(p.value)
        if constant is None or self.graph.type(x).shape != type_.shape or constant.ndim > type_.rank:
            return None
        full = constant.reshape((1,) * (type_.rank - constant.ndim) + constant.shape)
        if full.size not in (1, full.shape[p.axis]):
            return None
        vector = np.broadcast_to(full.reshape(-1).astype(np.float64), p.weight.shape[:1]) @ p.weight
        shift = vector if p.shift is None else vector + p.shift
        return self.cheapest(replace(p, value=x, shift=shift))

    def _before(self, value: str) -> int:
        """Multiply-adds that lead to ``value`` and that nothing else needs, as the graph is."""
        node = self.uses.only(value, Concat, MatMul, Transpose, Reshape, Add)
        if node is None:
            return 0
        weight = weight_of(self.graph, node)
        own = 0 if weight is None else self._elements(self.graph.type(value).shape) * weight.shape[0]
        return own + sum(self._before(x) for x in node.inputs if x not in self.graph.constants)

    def _elements(self, shape: Shape) -> int:
        return math.prod(evaluate_shape(shape, dict.fromkeys(symbols(shape), TYPICAL)))


def _emit(b: Builder, p: _Product, op: Add | MatMul | Reshape | Transpose, *inputs: str) -> str:
    return b.emit(op, *inputs, name=f"{p.node.output}.moved", source=p.node.source)


def _shifted(b: Builder, p: _Product, y: str, behind: int) -> str:
    """``y`` plus the shift along the axis that ``behind`` others follow."""
    if p.shift is None:
        return y
    shift = p.shift.astype(np.float32).reshape(-1, *(1,) * behind)
    return _emit(b, p, Add(), y, b.constant(f"{p.node.output}.shift", shift))


def _same_axis(before: Shape, after: Shape, axis: int) -> int | None:
    """The axis of ``before`` that a reshape to ``after`` leaves as ``axis``."""
    ahead = product(after[:axis])
    for i, size in enumerate(before):
        if size == after[axis] and product(before[:i]) == ahead:
            return i
    return None
