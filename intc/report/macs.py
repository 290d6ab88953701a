"""Multiply-accumulates of a graph's matrix products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Mapping

from intc.ir.dims import evaluate_shape
from intc.ir.graph import Graph, Node


def node_macs(graph: Graph, node: Node, sizes: Mapping[str, int]) -> int:
    """Multiply-accumulates of ``node`` at these sizes; 0 but for matrix products and convolutions."""
    if node.op.name not in ("attention", "linear", "matmul", "conv", "grouped_conv"):
        return 0
    shapes = [evaluate_shape(graph.type(n).shape, sizes) for n in (*node.inputs, node.output)]
    if node.op.name == "attention":
        return 2 * math.prod(shapes[-1]) * shapes[1][-2]
    taps = {"conv": shapes[1][1:], "grouped_conv": shapes[1][:3]}.get(node.op.name, shapes[0][-1:])
    return math.prod(shapes[-1]) * math.prod(taps)


def count_macs(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Multiply-accumulates of all matrix products and convolutions at these sizes."""
    return sum(node_macs(graph, node, sizes) for node in graph.nodes)
