"""Convolutions become matrix products, or convolutions in groups, of channels-last images.

``conv(x, w)[b, o, i, j] = sum_k im2col(x)[b, i, j, k] * w[k, o]``; a kernel of one pixel needs no im2col.
The images are transposed before and behind; between two convolutions the transposes cancel. An image that
comes straight from an input and is cut into patches keeps its layout. Weights that are computed multiply the
windows of each group as a matrix of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from intc.ir.dims import product
from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Array, Op
from intc.ops.conv import Conv
from intc.ops.elementwise import Add, Cast, Div, Mul, Sub
from intc.ops.im2col import Im2col
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Pad, Reshape, Slice, Transpose
from intc.ops.window import GroupedConv

TO_LAST = (0, 2, 3, 1)
TO_FIRST = (0, 3, 1, 2)
COLUMNS = 16  # of a product that fills a vector


@dataclass(frozen=True)
class LowerConv:
    """2-D convolutions."""

    name: str = "lower_conv"

    def run(self, graph: Graph) -> Graph:
        producers = graph.producers()
        bare: dict[str, str] = {}  # what is padded, in the new graph

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            if isinstance(node.op, Pad):
                bare[node.output] = inputs[0]
            if not isinstance(node.op, Conv):
                return None
            weight = graph.constants.get(node.inputs[1])
            if weight is None:
                return _computed(b, node, node.op, inputs)
            whole = _absorbed(producers, node)
            if whole is not node:
                inputs = (bare[node.inputs[0]], *inputs[1:])
            given = _patches(whole.op, weight) and _given(graph, producers, whole.inputs[0])
            assert isinstance(whole.op, Conv)
            return _Convolution(b, whole, whole.op, weight).lowered(inputs, given)

        return rebuild(graph, visit)


def _computed(b: Builder, node: Node, op: Conv, inputs: tuple[str, ...]) -> str:
    """Convolution ``node`` with computed weights: windows [N, G, P, K] times [G, K, O / G]."""

    def emit(op: Op, x: str, what: str, *others: str) -> str:
        return b.emit(op, x, *others, name=f"{node.output}.{what}", source=node.source)

    batch, _, height, width = b.graph.type(inputs[0]).shape
    outputs, depth, kh, kw = b.graph.type(inputs[1]).shape
    assert isinstance(outputs, int) and isinstance(kh, int) and isinstance(kw, int)
    groups, each = op.groups, outputs // op.groups
    x = emit(Reshape((batch * groups, depth, height, width)), inputs[0], "groups")
    x = emit(
        Im2col((kh, kw), op.strides, op.pads, op.dilations, True),
        emit(Transpose(TO_LAST), x, "last"),
        "patches",
    )
    _, *size, taps = b.graph.type(x).shape
    x = emit(Reshape((batch, groups, product(size), taps)), x, "rows")
    w = emit(Reshape((groups, each, depth, kh, kw)), inputs[1], "filters")
    w = emit(Reshape((groups, taps, each)), emit(Transpose((0, 3, 4, 2, 1)), w, "taps"), "matrix")
    y = emit(MatMul(), x, "product", w)
    if len(inputs) == 3:
        y = emit(Add(), y, "biased", emit(Reshape((groups, 1, each)), inputs[2], "bias"))
    y = emit(Transpose((0, 1, 3, 2)), y, "first")
    return b.emit(Reshape((batch, outputs, *size)), y, name=node.output, source=node.source)


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


@dataclass(frozen=True)
class _Convolution:
    """Convolution ``node`` with ``weight`` [O, C/groups, KH, KW] in the making."""

    b: Builder
    node: Node
    op: Conv
    weight: Array

    def lowered(self, inputs: tuple[str, ...], given: bool) -> str:
        """Its value from ``inputs``; images that are ``given`` keep their layout."""
        outputs, depth = self.weight.shape[:2]
        x = inputs[0] if given else self._emit(Transpose(TO_LAST), inputs[0], "last")
        if self.op.groups == 1:
            filters = self.weight if given else self.weight.transpose(0, 2, 3, 1)
            y = self._product(x, filters.reshape(outputs, -1).T, given=given)
        elif depth == 1 and outputs == self.op.groups:
            y = self._by_channel(x)
        else:
            y = self._by_group(x)
        if len(inputs) == 3:
            y = self._emit(Add(), y, "biased", inputs[2])
        return self.b.emit(Transpose(TO_FIRST), y, name=self.node.output, source=self.node.source)

    def _emit(self, op: Op, x: str, what: str, *others: str) -> str:
        return self.b.emit(op, x, *others, name=f"{self.node.output}.{what}", source=self.node.source)

    def _constant(self, what: str, array: Array) -> str:
        return self.b.constant(f"{self.node.inputs[1]}.{what}", np.ascontiguousarray(array))

    def _product(self, x: str, matrix: Array, suffix: str = "", given: bool = False) -> str:
        """The windows of images ``x`` times ``matrix``."""
        op, kernel = self.op, (self.weight.shape[2], self.weight.shape[3])
        if given or kernel != (1, 1) or op.strides != (1, 1) or any(op.pads):
            windows = Im2col(kernel, op.strides, op.pads, op.dilations, not given)
            x = self._emit(windows, x, f"patches{suffix}")
        return self._emit(MatMul(), x, f"product{suffix}", self._constant(f"matrix{suffix}", matrix))

    def _by_channel(self, x: str) -> str:
        """Every channel with a filter of its own."""
        op, (top, left, bottom, right) = self.op, self.op.pads
        if any(op.pads):
            x = self._emit(Pad((0, top, left, 0), (0, bottom, right, 0)), x, "padded")
        w = self._constant("last", self.weight.transpose(2, 3, 1, 0))
        return self._emit(GroupedConv(op.strides, op.dilations, op.groups), x, "product", w)

    def _by_group(self, x: str) -> str:
        """A product for every run of groups that fills a vector, with zeros where groups do not meet."""
        outputs, depth, kh, kw = self.weight.shape
        each = outputs // self.op.groups
        run = next(
            n
            for n in range(1, self.op.groups + 1)
            if self.op.groups % n == 0 and (n * each >= COLUMNS or n == self.op.groups)
        )
        parts = []
        for first in range(0, self.op.groups, run):
            matrix = np.zeros((kh, kw, run, depth, run, each), self.weight.dtype)
            for i in range(run):
                filters = self.weight[(first + i) * each : (first + i + 1) * each]
                matrix[:, :, i, :, i] = filters.transpose(2, 3, 1, 0)
            channels = Slice(3, first * depth, (first + run) * depth)
            part = self._emit(channels, x, f"group{first}") if run < self.op.groups else x
            parts.append(self._product(part, matrix.reshape(-1, run * each), str(first)))
        return self._emit(Concat(3), parts[0], "product", *parts[1:]) if len(parts) > 1 else parts[0]
