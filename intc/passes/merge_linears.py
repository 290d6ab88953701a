"""Phase 5: linears that read the same tensor become one: ``x @ [Wq | Wk | Wv]``, sliced by its readers.

Only groups whose every output is read by one ``attention`` are merged, since attention takes column offsets
for free.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ops.fused import Attention, Linear
from intc.passes.match import Uses


@dataclass(frozen=True)
class MergeLinears:
    name: str = "merge_linears"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)
        groups: dict[str, tuple[Node, ...]] = {}
        for node in graph.nodes:
            if isinstance(node.op, Attention):
                groups |= _group(graph, uses, node)
        members = {n.output: key for key, nodes in groups.items() for n in nodes}
        merged: dict[str, str] = {}

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            key = members.get(node.output)
            if key is not None:
                if key not in merged:
                    merged[key] = _merge(graph, b, groups[key], inputs[0])
                return merged[key]
            if isinstance(node.op, Attention) and any(x in members for x in node.inputs[:3]):
                offsets = [_offset(graph, groups, members, x) for x in node.inputs[:3]]
                op = replace(node.op, q_offset=offsets[0], k_offset=offsets[1], v_offset=offsets[2])
                return b.emit(
                    op, *inputs, name=node.output, source=node.source, scale=graph.values[node.output].scale
                )
            return None

        return rebuild(graph, visit)


def _group(graph: Graph, uses: Uses, attention: Node) -> dict[str, tuple[Node, ...]]:
    """The linears behind q, k, v that share their input and their epilogue, keyed by the first one's
    output.
    """
    assert isinstance(attention.op, Attention)
    if attention.op.q_offset or attention.op.k_offset or attention.op.v_offset:
        return {}
    alike: dict[object, list[Node]] = {}
    for value in dict.fromkeys(attention.inputs[:3]):
        node = uses.only(value, Linear)
        if node is None or len(node.inputs) != 5:
            return {}
        packed = graph.type(node.inputs[1]).magnitude <= 7  # 4-bit weights stay so
        alike.setdefault((node.inputs[0], node.op, packed), []).append(node)
    return {nodes[0].output: tuple(nodes) for nodes in alike.values() if len(nodes) > 1}


def _merge(graph: Graph, b: Builder, nodes: tuple[Node, ...], x: str) -> str:
    """One linear over the concatenated columns of weights, biases and factors."""
    columns = [np.concatenate([graph.constants[n.inputs[i]] for n in nodes], axis=-1) for i in range(1, 5)]
    names = [b.constant(f"{nodes[0].output}.merged", array) for array in columns]
    return b.emit(nodes[0].op, x, *names, name=f"{nodes[0].output}.merged", source=nodes[0].source)


def _offset(graph: Graph, groups: dict[str, tuple[Node, ...]], members: dict[str, str], value: str) -> int:
    if value not in members:
        return 0
    before = 0
    for node in groups[members[value]]:
        if node.output == value:
            return before
        width = graph.type(node.output).shape[-1]
        assert isinstance(width, int)
        before += width
    raise AssertionError(value)
