"""Which positions of an output count: padding is computed too, but nobody reads it."""

from __future__ import annotations

from collections.abc import Mapping
from types import EllipsisType
from typing import TypeAlias

import numpy as np

from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.ops.softmax import Softmax

Where: TypeAlias = Array | EllipsisType  # an index: True where a position counts, or all of them


def attended(graph: Graph, values: Mapping[str, Array]) -> dict[str, Where]:
    """Where [B, T] some query attends to a position, for each output [B, T, ...] of a float graph.

    ``values`` holds the sample's masks [B, ..., T] of the softmaxes. Outputs whose first dimensions are not
    those of a mask are left out: all of their positions count.
    """
    by_shape: dict[tuple[object, object], Array] = {}
    for node in graph.nodes:
        if isinstance(node.op, Softmax) and len(node.inputs) == 2:
            shape, mask = graph.type(node.inputs[1]).shape, values[node.inputs[1]]
            if len(shape) > 2:
                seen = mask.any(axis=tuple(range(1, mask.ndim - 1)))
                key = (shape[0], shape[-1])
                by_shape[key] = by_shape.get(key, np.zeros_like(seen)) | seen
    shapes = {name: graph.type(name).shape[:2] for name in graph.outputs}
    return {name: by_shape[s[0], s[1]] for name, s in shapes.items() if len(s) == 2 and s in by_shape}
