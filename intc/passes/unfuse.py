"""Fused operators taken apart again: the same function, bit for bit, in plain integer operators.

``linear(x, w, bias, ..) = requantize(gelu(requantize(x @ w + bias)))``, and ``attention`` likewise. What must
look inside of a fused operator (the proof of its intermediates, the export to ONNX) reads this graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Op
from intc.ops.elementwise import Add, Sub
from intc.ops.fused import WIDE, Attention, Linear
from intc.ops.matmul import MatMul
from intc.ops.movement import Expand, Reshape, Slice, Transpose
from intc.ops.poly import PolyGelu
from intc.ops.requantize import Clip, Requantize
from intc.ops.row_softmax import NormaliseRows, ShiftWeights
from intc.ops.shift import ShiftGelu


@dataclass(frozen=True)
class Unfuse:
    """``linear`` and ``attention`` as the operators that they mean; other nodes are copied."""

    name: str = "unfuse"

    def run(self, graph: Graph) -> Graph:
        """The graph without fused operators."""

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, Linear | Attention):
                return None
            parts = _Parts(b, node, graph.values[node.output].scale)
            if isinstance(node.op, Linear):
                return _linear(parts, node.op, inputs)
            return _attention(parts, node.op, inputs)

        return rebuild(graph, visit)


@dataclass(frozen=True)
class _Parts:
    """Emits the operators that stand for one fused node; the last one takes its name."""

    builder: Builder
    node: Node
    scale: Any

    def part(self, what: str, op: Op, *inputs: str) -> str:
        return self.builder.emit(op, *inputs, name=f"{self.node.output}/{what}", source=self.node.source)

    def last(self, op: Op, *inputs: str) -> str:
        name, source = self.node.output, self.node.source
        return self.builder.emit(op, *inputs, name=name, source=source, scale=self.scale)

    def shape(self, name: str) -> tuple[Any, ...]:
        return self.builder.graph.type(name).shape


def _linear(p: _Parts, op: Linear, inputs: tuple[str, ...]) -> str:
    x, w, bias = inputs[:3]
    products = p.part("products", MatMul(), x, w)
    if op.raw:
        return p.last(Add(), products, bias)
    value, (m, e) = p.part("sums", Add(), products, bias), inputs[3:5]
    if op.gelu:
        value = p.part("gelu_in", Requantize(-32767, 32767, "int16"), value, m, e)
        value = _gelu(p, op, value, inputs[5 : 5 + op.centred])
        m, e = inputs[5 + op.centred : 7 + op.centred]
    if not op.residual:
        return p.last(Requantize(op.lo, op.hi, op.dtype), value, m, e)
    wide = Requantize(-WIDE, WIDE, "int32")
    branches = p.part("branch", wide, value, m, e), p.part("residual", wide, *inputs[-3:])
    return p.last(Clip(op.lo, op.hi, op.dtype), p.part("total", Add(), *branches))


def _gelu(p: _Parts, op: Linear, value: str, centre: tuple[str, ...]) -> str:
    if op.gelu != "shift":
        return p.part("gelu", PolyGelu(op.frac, op.gelu), value, *centre)
    value = p.part("gelu", ShiftGelu(op.frac), value)
    return p.part("centred", Sub(), value, *centre) if centre else value


def _attention(p: _Parts, op: Attention, inputs: tuple[str, ...]) -> str:
    heads: Callable[..., str] = lambda *a: _heads(p, op, *a)  # noqa: E731
    q = heads("q", inputs[0], op.q_offset, op.heads)
    k = heads("k", inputs[1], op.k_offset, op.kv_heads)
    v = heads("v", inputs[2], op.v_offset, op.kv_heads)
    scores = p.part("scores", MatMul(), q, p.part("k_turned", Transpose((0, 1, 3, 2)), k))
    if op.biased:
        scores = p.part("biased", Add(), scores, inputs[-1])
    masks = [_mask(p, mask) for mask in inputs[5 : 5 + op.masked]]
    weights = p.part("weights", ShiftWeights(op.m, op.shift, op.uniform), scores, *masks)
    context = p.part("context", NormaliseRows(), p.part("weighted", MatMul(), weights, v), weights)
    context = p.part("tokens", Transpose((0, 2, 1, 3)), context)
    split = p.shape(context)
    joined = p.part("joined", Reshape((*split[:2], op.heads * op.head_dim)), context)
    requantize = Requantize(op.lo, op.hi, op.dtype)
    if not op.heads_first:
        return p.last(requantize, joined, *inputs[3:5])
    out = p.part("split", Reshape(split), p.part("requantised", requantize, joined, *inputs[3:5]))
    return p.last(Transpose((0, 2, 1, 3)), out)


def _heads(p: _Parts, op: Attention, what: str, value: str, offset: int, heads: int) -> str:
    """[B, heads, S, head_dim] of the used columns, heads of keys and values repeated for those that share
    them.
    """
    if len(p.shape(value)) == 3:
        value = p.part(f"{what}_used", Slice(2, offset, offset + heads * op.head_dim), value)
        value = p.part(f"{what}_split", Reshape((*p.shape(value)[:2], heads, op.head_dim)), value)
        value = p.part(f"{what}_heads", Transpose((0, 2, 1, 3)), value)
    if heads == op.heads:
        return value
    batch, _, length, dim = p.shape(value)
    value = p.part(f"{what}_one", Reshape((batch, heads, 1, length, dim)), value)
    value = p.part(f"{what}_each", Expand((batch, heads, op.heads // heads, length, dim)), value)
    return p.part(f"{what}_shared", Reshape((batch, op.heads, length, dim)), value)


def _mask(p: _Parts, mask: str) -> str:
    """A mask over keys [B, S] as one over scores."""
    shape = p.shape(mask)
    return p.part("mask", Reshape((shape[0], 1, 1, shape[1])), mask) if len(shape) == 2 else mask
