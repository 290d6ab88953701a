"""The walk that pattern passes share, and the small questions they ask about constants."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from intc.ir.graph import Builder, Graph, Node, copy_node, rebuild
from intc.ir.op import Array
from intc.ops.movement import MOVES, Gather

Rule = Callable[[Builder, Node, Mapping[str, str]], str | None]


def rewrite(graph: Graph, rule: Rule) -> Graph:
    """``graph`` with ``rule(builder, node, names)`` applied to every node in order; the same object if none
    applied.

    ``names`` maps each earlier value of ``graph`` to its value in the new graph; ``None`` keeps the node.
    """
    names = {n: n for n in (*graph.inputs, *graph.constants)}
    changed = False

    def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str:
        nonlocal changed
        result = rule(b, node, names)
        changed |= result is not None
        names[node.output] = copy_node(graph, b, node, inputs) if result is None else result
        return names[node.output]

    out = rebuild(graph, visit)
    return out if changed else graph


def with_constant(
    graph: Graph,
    b: Builder,
    node: Node,
    inputs: tuple[str, ...],
    change: Callable[[Array], Array],
    suffix: str,
) -> str:
    """``node`` of ``graph`` on ``inputs`` with its constant operand changed, and ``suffix`` behind that
    operand's name.
    """
    k = next(i for i, x in enumerate(node.inputs) if x in graph.constants)
    constant = b.constant(node.inputs[k] + suffix, change(graph.constants[node.inputs[k]]))
    operands = [constant if i == k else x for i, x in enumerate(inputs)]
    return b.emit(node.op, *operands, name=node.output, source=node.source)


def constant_of(graph: Graph, producers: Mapping[str, Node], value: str) -> Array | None:
    """The array behind ``value``: a constant, or one element that is repeated, however it is moved then."""
    node = producers.get(value)
    while node is not None and isinstance(node.op, (*MOVES, Gather)):
        value = node.inputs[0]
        inner = graph.constants.get(value)
        if inner is not None:
            return inner.reshape(-1)[:1] if inner.size and np.all(inner == inner.flat[0]) else None
        node = producers.get(value)
    return graph.constants.get(value)


def scalar_of(graph: Graph, producers: Mapping[str, Node], value: str) -> float | None:
    """The one number that ``value`` holds everywhere, if it is a constant and does."""
    array = constant_of(graph, producers, value)
    if array is None or array.size == 0 or not np.all(array == array.flat[0]):
        return None
    return float(array.flat[0])
