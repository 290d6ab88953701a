"""Phase 2: channels of a GELU that would spoil the rounding of all others are computed several times.

A channel much larger than the rest, times its row of the next weights, sets the scale of every column of
those weights, and its own eight bits are coarse beside the others' (the outlier channels of trained
transformers). With ``k`` copies of it, made by copies of a column of the weights before, and a k-th of its
row behind each, the model is the same and no part of it stands out (outlier channel splitting, Zhao et al.
2019). The integer GELU then staggers the copies' rounding by k-ths of a step, so that together they are k
times as fine: ``sum_j floor(x + j/k) = floor(k*x)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Array
from intc.ops.gelu import Gelu
from intc.passes.match import Uses, biased_product, weight_of
from intc.passes.rewrite import with_constant

MOST: Final = 1 / 48  # of the channels: copies added
GROUP: Final = 32  # copies are added in groups, as kernels take columns
OUTLIER: Final = 4.0  # times the median channel


@dataclass(frozen=True)
class SplitOutliers:
    """``ranges``: the largest magnitude per index of the last axis, by value."""

    ranges: Mapping[str, Array] = field(repr=False)
    name: str = "split_outliers"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)
        columns: dict[str, Array] = {}  # by the node whose constant vector or columns are repeated
        rows: dict[str, Array] = {}  # by the product whose rows are repeated and shared out
        for node in graph.nodes:
            if not isinstance(node.op, Gelu) or node.output in uses.outputs or node.output not in self.ranges:
                continue
            before = biased_product(graph, uses.producers, node.inputs[0])
            if before is None or not all(uses.single(n.output) for n in before if n is not None):
                continue
            after = uses.users[node.output]
            if not all(weight_of(graph, n) is not None and n.inputs[0] == node.output for n in after):
                continue
            weights = [graph.constants[n.inputs[1]] for n in after]
            index = repeated(np.asarray(self.ranges[node.output], np.float64), weights)
            if len(index) > len(weights[0]):
                columns |= {n.output: index for n in before if n is not None}
                rows |= {n.output: index for n in after}

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            if node.output not in columns and node.output not in rows:
                return None

            def copied(array: Array) -> Array:
                if node.output in rows:
                    index = rows[node.output]
                    array = (array[index] / np.bincount(index)[index][:, None]).astype(array.dtype)
                return array[..., columns[node.output]] if node.output in columns else array

            return with_constant(graph, b, node, inputs, copied, ".split")

        return rebuild(graph, visit) if columns else graph


def repeated(ranges: Array, weights: list[Array]) -> Array:
    """The channels [C and more] as they are to be computed, copies side by side.

    ``ranges`` [C] are their magnitudes, ``weights`` the products [C, N] that read them. In turn the channel
    that weighs most gets a further copy, until none is an outlier or enough have been added.
    """
    reach = ranges * np.max([np.abs(w).max(axis=1) for w in weights], axis=0)
    limit = OUTLIER * float(np.median(reach))
    copies = np.ones(len(reach), np.int64)
    most = int(len(reach) * MOST) // GROUP * GROUP
    while (added := int((copies - 1).sum())) < most:
        largest = int(np.argmax(reach / copies))
        if added % GROUP == 0 and reach[largest] / copies[largest] <= limit:
            break
        copies[largest] += 1
    return np.repeat(np.arange(len(reach)), copies)


def offsets(graph: Graph, producers: Mapping[str, Node], gelu: Node) -> Array:
    """By how much of its step each channel [C] of ``gelu`` is rounded off the middle: copies of one channel
    evenly over a step, others not at all.
    """
    found = biased_product(graph, producers, gelu.inputs[0])
    if found is None:
        return np.zeros(1)
    columns = np.ascontiguousarray(graph.constants[found[0].inputs[1]].T)
    keys = [column.tobytes() for column in columns]
    copies: dict[bytes, list[int]] = {}
    for channel, key in enumerate(keys):
        copies.setdefault(key, []).append(channel)
    out = np.zeros(len(keys))
    for channels in copies.values():
        out[channels] = (np.arange(len(channels)) + 0.5) / len(channels) - 0.5
    return out
