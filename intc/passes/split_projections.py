"""``(x @ [Wq | Wk | Wv] + b)`` cut into parts becomes one product per part, each with a scale of its own.

The cut may stand right behind the sum, or behind a ``reshape`` that splits the columns, [B, S, n, m, ...],
and a ``transpose``, along any of the axes n, m, ...
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intc.ir.dims import product
from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Array
from intc.ops.elementwise import Add
from intc.ops.matmul import MatMul
from intc.ops.movement import Reshape, Slice, Transpose
from intc.passes.match import Uses


@dataclass(frozen=True)
class SplitProjections:
    name: str = "split_projections"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)
        return rebuild(graph, lambda b, node, inputs: _split(graph, uses, b, node))


@dataclass(frozen=True)
class _Projection:
    """``x @ weight + bias`` with constant weight [K, N] and bias [N]."""

    x: str
    weight: Array
    bias: Array | None

    def columns(self, b: Builder, picked: Array, node: Node) -> str:
        """The product restricted to those columns."""
        w = b.constant(f"{node.output}.weight", self.weight[:, picked])
        last = self.bias is None
        stem = node.output if last else f"{node.output}.product"
        y = b.emit(MatMul(), self.x, w, name=f"{stem}.columns", source=node.source)
        if self.bias is None:
            return y
        c = b.constant(f"{node.output}.bias", self.bias[picked])
        return b.emit(Add(), y, c, name=f"{node.output}.columns", source=node.source)


def _projection(graph: Graph, uses: Uses, value: str) -> _Projection | None:
    bias = None
    total = uses.producer(value, Add)
    if total is not None:
        left, right = total.inputs if total.inputs[1] in graph.constants else total.inputs[::-1]
        bias = graph.constants.get(right)
        if bias is None or bias.ndim != 1 or bias.shape[0] != graph.type(value).shape[-1]:
            return None
        value = left
    product = uses.producer(value, MatMul)
    weight = graph.constants.get(product.inputs[1]) if product else None
    if product is None or weight is None or weight.ndim != 2 or product.inputs[0] in graph.constants:
        return None
    return _Projection(product.inputs[0], weight, bias)


def _split(graph: Graph, uses: Uses, b: Builder, node: Node) -> str | None:
    op = node.op
    if (
        not isinstance(op, Slice)
        or op.step != 1
        or not isinstance(op.start, int)
        or not isinstance(op.stop, int)
    ):
        return None
    if not all(isinstance(user.op, Slice) for user in uses.users[node.inputs[0]]):
        return None  # the whole is needed too
    direct = _projection(graph, uses, node.inputs[0])
    if direct is not None:
        whole = op.axis == graph.type(node.inputs[0]).rank - 1
        return direct.columns(b, np.arange(op.start, op.stop), node) if whole else None
    moved = uses.producer(node.inputs[0], Transpose)
    perm = tuple(moved.op.perm) if moved is not None and isinstance(moved.op, Transpose) else None
    shaped = uses.producer(moved.inputs[0] if moved else node.inputs[0], Reshape)
    projection = _projection(graph, uses, shaped.inputs[0]) if shaped else None
    if shaped is None or projection is None:
        return None
    split, base = graph.type(shaped.output).shape, graph.type(shaped.inputs[0]).shape
    axis = perm[op.axis] if perm else op.axis
    lead = next((i for i in range(len(split)) if product(split[i:]) == base[-1]), len(split))
    sizes = [d for d in split[lead:] if isinstance(d, int)]
    if axis < lead or product(split[:lead]) != product(base[:-1]) or len(sizes) != len(split) - lead:
        return None
    columns = np.arange(projection.weight.shape[1]).reshape(sizes)
    picked = np.take(columns, range(op.start, op.stop), axis=axis - lead)
    part = projection.columns(b, picked.ravel(), node)
    if op.stop - op.start > 1:
        y = b.emit(Reshape((*split[:lead], *picked.shape)), part, name=f"{node.output}.split")
        return y if perm is None else b.emit(Transpose(perm), y, name=node.output, source=node.source)
    inner = picked.squeeze(axis - lead).shape
    y = b.emit(Reshape((*split[:lead], *inner)), part, name=f"{node.output}.split", source=node.source)
    if perm is not None:  # the same order without the axis of size 1
        y = b.emit(
            Transpose(tuple(p - (p > axis) for p in perm if p != axis)), y, name=f"{node.output}.moved"
        )
    return b.emit(Reshape(graph.type(node.output).shape), y, name=node.output, source=node.source)
