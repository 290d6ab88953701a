"""Convolutions become matrix products, or convolutions in groups, of channels-last images.

``conv(x, w)[b, o, i, j] = sum_k im2col(x)[b, i, j, k] * w[k, o]``; a kernel of one pixel needs no im2col.
The images are transposed before and behind; between two convolutions the transposes cancel. An image that
comes straight from an input and is cut into patches keeps its layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Array, Op
from intc.ops.conv import Conv
from intc.ops.elementwise import Add, Cast, Div, Mul, Sub
from intc.ops.im2col import Im2col
from intc.ops.matmul import MatMul
from intc.ops.movement import Pad, Reshape, Transpose
from intc.ops.window import GroupedConv

TO_LAST = (0, 2, 3, 1)
TO_FIRST = (0, 3, 1, 2)


@dataclass(frozen=True)
class LowerConv:
    """2-D convolutions with constant weights; others stay and are refused by the integer phase."""

    name: str = "lower_conv"

    def run(self, graph: Graph) -> Graph:
        producers = graph.producers()

        bare: dict[str, str] = {}  # what is padded, in the new graph

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            if isinstance(node.op, Pad):
                bare[node.output] = inputs[0]
            weight = graph.constants.get(node.inputs[1]) if isinstance(node.op, Conv) else None
            if weight is None or weight.ndim != 4:
                return None
            whole = _absorbed(producers, node)
            if whole is not node:
                inputs = (bare[node.inputs[0]], *inputs[1:])
            given = _patches(whole.op, weight) and _given(graph, producers, whole.inputs[0])
            return _lowered(b, whole, inputs, weight, given)

        return rebuild(graph, visit)


def _absorbed(producers: Mapping[str, Node], node: Node) -> Node:
    """Convolution ``node`` with the zeros that its images are padded with as pads of its own."""
    pad, op = producers.get(node.inputs[0]), node.op
    assert isinstance(op, Conv)
    if pad is None or not isinstance(pad.op, Pad) or any((*pad.op.before[:2], *pad.op.after[:2])):
        return node
    around = (*pad.op.before[2:], *pad.op.after[2:])
    pads = (op.pads[0] + around[0], op.pads[1] + around[1], op.pads[2] + around[2], op.pads[3] + around[3])
    return replace(node, op=replace(op, pads=pads), inputs=(pad.inputs[0], *node.inputs[1:]))


def _patches(op: Op, weight: Array) -> bool:
    """Whether no element of an image is in two windows."""
    assert isinstance(op, Conv)
    return op.dilations == (1, 1) and op.strides[0] >= weight.shape[2] and op.strides[1] >= weight.shape[3]


def _given(graph: Graph, producers: Mapping[str, Node], value: str) -> bool:
    """Whether ``value`` is an input of the graph, up to its normalisation."""
    while (node := producers.get(value)) is not None and isinstance(
        node.op, Add | Sub | Mul | Div | Cast | Reshape
    ):
        live = [x for x in node.inputs if x not in graph.constants]
        if len(live) != 1:
            return False
        value = live[0]
    return value in graph.inputs


def _lowered(b: Builder, node: Node, inputs: tuple[str, ...], weight: np.ndarray, given: bool) -> str:
    op, stem, x = node.op, node.output, inputs[0]
    assert isinstance(op, Conv)
    outputs, _, kh, kw = weight.shape
    if op.groups != 1:
        top, left, bottom, right = op.pads
        x = b.emit(Transpose(TO_LAST), x, name=f"{stem}.last", source=node.source)
        if any(op.pads):
            x = b.emit(
                Pad((0, top, left, 0), (0, bottom, right, 0)), x, name=f"{stem}.padded", source=node.source
            )
        w = b.constant(f"{node.inputs[1]}.last", np.ascontiguousarray(weight.transpose(2, 3, 1, 0)))
        y = b.emit(
            GroupedConv(op.strides, op.dilations, op.groups), x, w, name=f"{stem}.product", source=node.source
        )
    else:
        columns = Im2col((kh, kw), op.strides, op.pads, op.dilations, not given)
        order = weight.reshape(outputs, -1) if given else weight.transpose(0, 2, 3, 1).reshape(outputs, -1)
        matrix = b.constant(f"{node.inputs[1]}.matrix", np.ascontiguousarray(order.T))
        if not given:
            x = b.emit(Transpose(TO_LAST), x, name=f"{stem}.last", source=node.source)
        if given or kh * kw > 1 or op.strides != (1, 1) or any(op.pads):
            x = b.emit(columns, x, name=f"{stem}.patches", source=node.source)
        y = b.emit(MatMul(), x, matrix, name=f"{stem}.product", source=node.source)
    if len(inputs) == 3:
        y = b.emit(Add(), y, inputs[2], name=f"{stem}.biased", source=node.source)
    return b.emit(Transpose(TO_FIRST), y, name=stem, source=node.source)
