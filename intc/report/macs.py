"""Multiply-accumulates of a graph's matrix products."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intc.ir.dims import evaluate_shape
from intc.ir.graph import Graph, Node


def node_macs(graph: Graph, node: Node, sizes: Mapping[str, int]) -> int:
    """Multiply-accumulates of ``node`` at these sizes; 0 for everything but matrix products."""
    if node.op.name not in ("attention", "linear", "matmul"):
        return 0
    shapes = [evaluate_shape(graph.type(n).shape, sizes) for n in (*node.inputs, node.output)]
    if node.op.name == "attention":
        (batch, rows, width), keys = shapes[-1], shapes[1][1]
        return 2 * batch * rows * keys * width
    return int(np.prod(shapes[-1])) * shapes[0][-1]


def count_macs(graph: Graph, sizes: Mapping[str, int]) -> int:
    """Multiply-accumulates of all matrix products at these sizes."""
    return sum(node_macs(graph, node, sizes) for node in graph.nodes)
