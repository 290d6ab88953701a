"""A value that is limited twice is limited once: ``clip(requantize(x)) = requantize(x)`` within both bounds,
``clip(clip(x)) = clip(x)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from intc.ir.graph import Builder, Graph, Node
from intc.ops.requantize import Clip, Requantize
from intc.passes.match import Uses
from intc.passes.rewrite import rewrite


@dataclass(frozen=True)
class MergeClips:
    """Where only the second reads the first, and the bounds meet."""

    name: str = "merge_clips"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            op = node.op
            first = uses.only(node.inputs[0], Clip, Requantize) if isinstance(op, Clip) else None
            if first is None or not isinstance(op, Clip):
                return None
            made = b.producer(names[first.output])
            if made is None or not isinstance(made.op, Clip | Requantize):
                return None
            lo, hi = max(op.lo, made.op.lo), min(op.hi, made.op.hi)
            if lo > hi:
                return None
            merged = replace(made.op, lo=lo, hi=hi, dtype=op.dtype)
            scale = graph.values[node.output].scale
            return b.emit(merged, *made.inputs, name=node.output, source=node.source, scale=scale)

        return rewrite(graph, rule)
