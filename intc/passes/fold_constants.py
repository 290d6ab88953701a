"""Nodes on constants are computed; nodes that change nothing disappear; division by a constant multiplies.

``x + 0 = x - 0 = x * 1 = x / 1 = x`` (where the constant does not broaden x), ``cast(x) = x`` to its own
type, ``expand(x) = x`` to its own shape; ``x + (y - x) = y``, which training passes gradients by.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from intc.ir.dims import Poly, product
from intc.ir.graph import Builder, Graph, Node
from intc.ops.elementwise import Add, Cast, Div, Mul, Sub
from intc.ops.movement import Expand, Reshape
from intc.passes.rewrite import rewrite, scalar_of

SIZE_LIMIT = 2**26  # elements; a larger result is cheaper to compute than to store
NEUTRAL: dict[type, tuple[float, tuple[int, ...]]] = {
    Add: (0.0, (0, 1)),
    Sub: (0.0, (1,)),
    Mul: (1.0, (0, 1)),
    Div: (1.0, (1,)),
}


@dataclass(frozen=True)
class FoldConstants:
    """Results of symbolic shape stay computed, and those above ``limit`` elements, or above what is left of
    ``limit`` and eight times the constants that were there, all together.
    """

    limit: int = SIZE_LIMIT
    name: str = "fold_constants"

    def run(self, graph: Graph) -> Graph:
        producers = graph.producers()
        room = self.limit + 8 * sum(array.size for array in graph.constants.values())

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            nonlocal room
            inputs = [names[x] for x in node.inputs]
            size = product(graph.type(node.output).shape)
            known = all(x in b.graph.constants for x in inputs) and not any(
                isinstance(d, Poly) for d in _dims(node)
            )
            if (
                known
                and isinstance(size, int)
                and size <= min(self.limit, room)
                and node.output not in graph.outputs
            ):
                room -= size
                arrays = [b.graph.constants[x] for x in inputs]
                return b.constant(node.output, node.op.evaluate(*arrays, sizes={}))
            kept = _without_effect(graph, producers, node, names)
            divisor = graph.constants.get(node.inputs[1]) if isinstance(node.op, Div) else None
            if (
                kept is None
                and divisor is not None
                and divisor.all()
                and node.inputs[0] not in graph.constants
            ):
                inverse = b.constant(f"{node.inputs[1]}.inverse", np.float32(1) / divisor)
                return b.emit(Mul(), inputs[0], inverse, name=node.output, source=node.source)
            return kept

        return rewrite(graph, rule)


def _dims(node: Node) -> list[object]:
    values = vars(node.op).values()
    return [d for v in values for d in (v if isinstance(v, tuple) else (v,))]


def _without_effect(
    graph: Graph, producers: Mapping[str, Node], node: Node, names: Mapping[str, str]
) -> str | None:
    """The operand that equals the node's result, if there is one."""
    if node.output in graph.outputs:
        return None
    if isinstance(node.op, (Cast, Expand, Reshape)) and graph.type(node.inputs[0]) == graph.type(node.output):
        return names[node.inputs[0]]
    if type(node.op) in NEUTRAL:
        neutral, positions = NEUTRAL[type(node.op)]
        for i in positions:
            kept = node.inputs[1 - i]
            same = graph.type(kept) == graph.type(node.output)
            if same and scalar_of(graph, producers, node.inputs[i]) == neutral:
                return names[kept]
    for x, other in (node.inputs, node.inputs[::-1]) if isinstance(node.op, Add) else ():
        difference = producers.get(other)
        if difference is not None and isinstance(difference.op, Sub) and difference.inputs[1] == x:
            y = difference.inputs[0]
            if graph.type(y) == graph.type(node.output) and graph.type(y).is_float:
                return names[y]
    return None
