"""Phase 2: the channels of queries, keys and values get equal ranges, by factors that cancel in the products.

In ``q @ k^T`` a channel of k may be multiplied by t where that of q is divided by it; in
``softmax(..) @ v @ w`` a channel of v divided by what the row of w is multiplied by. The factors go into the
weights that compute q, k and v, so the model stays what it is (cross-layer equalisation, Nagel et al. 2019),
while one scale for all channels then suits every one of them. Ranges are those of a first batch; any factor
is exact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from intc.ir.bound import admissible
from intc.ir.dims import PAST, evaluate_shape
from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Array
from intc.ops.elementwise import Add, Div, Mul
from intc.ops.matmul import MatMul
from intc.ops.movement import Expand, Reshape, Transpose
from intc.ops.softmax import Softmax
from intc.passes.match import Uses, biased_product, weight_of
from intc.passes.rewrite import with_constant

SIZES: Final = (2, 3, 5, 7, 11, 13)  # stand in for symbols, to see where channels go
LARGEST: Final = 64.0  # factor between channels
MOVES: Final = (Reshape, Transpose, Expand)


@dataclass(frozen=True)
class EqualiseHeads:
    """``ranges``: the largest magnitude per index of the last axis, by value."""

    ranges: Mapping[str, Array] = field(repr=False)
    name: str = "equalise_heads"

    def run(self, graph: Graph) -> Graph:
        if not self.ranges:  # nothing was seen
            return graph
        uses, edits = Uses.of(graph), _Edits(graph)
        trace = _Trace(graph, uses)
        for node in graph.nodes:
            if isinstance(node.op, Softmax):
                self._scores(trace, edits, node)
                self._values(trace, edits, node)
        return rebuild(graph, edits.visit)

    def _scores(self, trace: _Trace, edits: _Edits, softmax: Node) -> None:
        scores = trace.back(softmax.inputs[0], (Add, Mul, Div), MatMul)
        if scores is None:
            return
        q, k = (trace.projection(x) for x in scores.inputs)
        if q is None or k is None or q.root == k.root:
            return
        left, right = trace.channels(q), np.swapaxes(trace.channels(k), -1, -2)
        if not _constant_rows(left) or not _constant_rows(right):
            return
        mine, theirs = (a.ravel() for a in np.broadcast_arrays(left[..., :1, :], right[..., :1, :]))
        partner = np.full(q.width, -1)
        partner[mine] = theirs
        if not np.array_equal(partner[mine], theirs) or (partner < 0).any():
            return  # a channel of q meets several of k
        range_q, range_k = self._range(q.root), self._range(k.root)
        most = np.zeros(k.width)
        np.maximum.at(most, partner, range_q)
        factor = _bounded(np.sqrt(most / range_k))
        edits.columns(k, factor)
        edits.columns(q, 1 / factor[partner])

    def _values(self, trace: _Trace, edits: _Edits, softmax: Node) -> None:
        context = trace.uses.sole_user(softmax.output, MatMul)
        if context is None or context.inputs[0] != softmax.output:
            return
        v = trace.projection(context.inputs[1])
        if v is None or not _constant_rows(ids := trace.channels(v)):
            return
        shape = trace.shape(context.output)
        moved = trace.forward(context.output, np.broadcast_to(ids[..., :1, :], shape))
        if moved is None:
            return
        reader, ids = moved
        rows = ids.reshape(-1, ids.shape[-1])
        if not (rows == rows[0]).all():
            return
        found = self._range(v.root)
        factor = _bounded(found / np.exp(np.log(found).mean()))
        edits.columns(v, 1 / factor)
        edits.rows(reader, factor[rows[0]])

    def _range(self, value: str) -> Array:
        """Positive magnitudes per channel."""
        found = np.asarray(self.ranges[value], np.float64)
        return np.maximum(found, max(float(found.max()) * 1e-4, 1e-12))


def _bounded(factor: Array) -> Array:
    middle = np.exp(np.log(factor).mean())
    return np.asarray(np.clip(factor, middle / LARGEST, middle * LARGEST))


def _constant_rows(ids: Array) -> bool:
    """Whether all rows show the same channels."""
    return bool((ids == ids[..., :1, :]).all())


@dataclass(frozen=True)
class _Projection:
    """``root = x @ weight (+ bias)``, and the data movement from there to an operand of attention."""

    root: str
    product: Node
    width: int
    chain: tuple[Node, ...]


class _Trace:
    """Follows values through data movement, and channels with them."""

    def __init__(self, graph: Graph, uses: Uses) -> None:
        self.graph, self.uses = graph, uses
        sizes = {n: SIZES[i % len(SIZES)] for i, n in enumerate(graph.symbols())} | {PAST: 1}
        self.sizes = admissible(graph, sizes)

    def shape(self, value: str) -> tuple[int, ...]:
        return evaluate_shape(self.graph.type(value).shape, self.sizes)

    def back(self, value: str, through: tuple[Any, ...], to: type) -> Node | None:
        """The node of kind ``to`` that ``value`` comes from, alone, by element-wise nodes ``through``."""
        node = self.uses.producer(value, to, *through)
        while node is not None and not isinstance(node.op, to) and self.uses.single(value):
            live = [x for x in node.inputs if self.uses.producer(x, to, *through) is not None]
            value = live[0] if live else ""
            node = self.uses.producer(value, to, *through)
        return (
            node if node is not None and isinstance(node.op, to) and self.uses.single(node.output) else None
        )

    def projection(self, value: str) -> _Projection | None:
        """What computes ``value``, which one node reads."""
        chain: list[Node] = []
        node = self.uses.producers.get(value)
        while node is not None and self.uses.single(value) and self._moves(node):
            chain.append(node)
            value = node.inputs[0]
            node = self.uses.producers.get(value)
        if node is None or not self.uses.single(value):
            return None
        found = biased_product(self.graph, self.uses.producers, value)
        if found is None:
            return None
        product, bias = found
        if bias is not None and not self.uses.single(product.output):
            return None
        width = self.graph.constants[product.inputs[1]].shape[1]
        return _Projection(value, product, width, tuple(reversed(chain)))

    def _moves(self, node: Node) -> bool:
        if isinstance(node.op, Mul | Div):
            constant = self.graph.constants.get(node.inputs[1])
            return constant is not None and constant.size == 1
        return isinstance(node.op, MOVES)

    def channels(self, found: _Projection) -> Array:
        """The channel of the root at every element of the operand."""
        ids = np.broadcast_to(np.arange(found.width), self.shape(found.root))
        for node in found.chain:
            ids = self._moved(node, ids)
        return ids

    def _moved(self, node: Node, ids: Array) -> Array:
        return ids if isinstance(node.op, Mul | Div) else node.op.evaluate(ids, sizes=self.sizes)

    def forward(self, value: str, ids: Array) -> tuple[Node, Array] | None:
        """The product with constant weights that reads ``value``, alone, and the channels that it sees."""
        node = self.uses.sole_user(value, MatMul, Mul, Div, *MOVES)
        while node is not None and self._moves(node):
            ids = self._moved(node, ids)
            node = self.uses.sole_user(node.output, MatMul, Mul, Div, *MOVES)
        return (node, ids) if node is not None and weight_of(self.graph, node) is not None else None


class _Edits:
    """Factors for the columns and rows of weights, and for biases, by the node that reads them."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.column: dict[str, Array] = {}
        self.row: dict[str, Array] = {}

    def columns(self, found: _Projection, factor: Array) -> None:
        for output in {found.root, found.product.output}:
            self.column[output] = self.column.get(output, 1.0) * factor

    def rows(self, node: Node, factor: Array) -> None:
        self.row[node.output] = self.row.get(node.output, 1.0) * factor

    def visit(self, b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
        column, row = self.column.get(node.output), self.row.get(node.output)
        if column is None and row is None:
            return None

        def scaled(array: Array) -> Array:
            out = array.astype(np.float64)
            out = out if column is None else out * column
            out = out if row is None else out * row[:, None]
            return out.astype(np.float32)

        return with_constant(self.graph, b, node, inputs, scaled, ".equal")
