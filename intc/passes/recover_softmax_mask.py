"""``softmax(x + mask)`` with mask 0 where a position counts and very negative elsewhere becomes ``softmax(x, keep)``.

The bool ``keep`` is read off every form that exporters emit: ``where(keep, 0, -big)``, ``where(drop, -big, 0)``,
``(1 - keep) * -big`` and ``masked_fill(1 - keep, drop, -big)``; an expansion of it along the scores is dropped.
"""

from __future__ import annotations

from dataclasses import dataclass

from intc.ir.dims import product
from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ops.elementwise import Add, Cast, Mul, Not, Sub, Where
from intc.ops.movement import Expand, Reshape, Slice
from intc.ops.softmax import Softmax
from intc.passes.match import Uses

VERY_NEGATIVE = -1000.0


@dataclass(frozen=True)
class RecoverSoftmaxMask:
    name: str = "recover_softmax_mask"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)
        masks: dict[str, str] = {}

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            total = uses.producer(node.inputs[0], Add) if isinstance(node.op, Softmax) and len(inputs) == 1 else None
            if total is None:
                return None
            for scores, mask in (total.inputs, total.inputs[::-1]):
                if mask not in masks:
                    keep = _keep(graph, uses, b, mask)
                    if keep is None:
                        continue
                    masks[mask] = keep
                fits = graph.type(scores).shape == graph.type(total.output).shape
                if fits and masks[mask] in graph.constants and graph.constants[masks[mask]].all():
                    return b.emit(node.op, scores, name=node.output, source=node.source)
                if fits:
                    return b.emit(node.op, scores, masks[mask], name=node.output, source=node.source)
            return None

        return rebuild(graph, visit)


def _number(graph: Graph, value: str) -> float | None:
    array = graph.constants.get(value)
    if array is None or array.dtype.kind != "f" or array.size == 0 or array.min() != array.max():
        return None
    return float(array.ravel()[0])


def _keep(graph: Graph, uses: Uses, b: Builder, mask: str) -> str | None:
    """The bool value that is True where the additive float ``mask`` is 0, emitted once; None for other values."""
    node = uses.producers.get(mask)
    if node is None:
        return None
    if isinstance(node.op, Expand):
        return _keep(graph, uses, b, node.inputs[0])
    if isinstance(node.op, Reshape | Slice):
        inner = _keep(graph, uses, b, node.inputs[0])
        if inner is None or graph.type(node.inputs[0]).shape != b.graph.type(inner).shape:
            return None
        return b.emit(node.op, inner, name=f"{mask}.keep", source=node.source)
    if isinstance(node.op, Where):
        return _where(graph, uses, b, node)
    if isinstance(node.op, Mul):
        for number, other in (node.inputs, node.inputs[::-1]):
            if (_number(graph, number) or 0.0) <= VERY_NEGATIVE:
                return _complement(graph, uses, b, other)
    return None


def _where(graph: Graph, uses: Uses, b: Builder, node: Node) -> str | None:
    condition, yes, no = node.inputs
    zero_or_big = (_number(graph, yes), _number(graph, no))
    if zero_or_big[0] == 0.0 and (zero_or_big[1] or 0.0) <= VERY_NEGATIVE:
        return _unexpanded(uses, condition)
    if (zero_or_big[0] or 0.0) <= VERY_NEGATIVE:
        if zero_or_big[1] == 0.0:
            return b.emit(Not(), _unexpanded(uses, condition), name=f"{node.output}.keep", source=node.source)
        cast = uses.producer(condition, Cast)
        if cast is not None and cast.inputs[0] == no:  # masked_fill(1 - keep, (1 - keep).bool(), -big)
            return _complement(graph, uses, b, no)
    return None


def _unexpanded(uses: Uses, value: str) -> str:
    node = uses.producer(value, Expand)
    return value if node is None else _unexpanded(uses, node.inputs[0])


def _complement(graph: Graph, uses: Uses, b: Builder, value: str) -> str | None:
    """For ``value = 1 - m`` with m an integer or bool tensor cast to float: ``m != 0``, emitted as bool."""
    node = uses.producer(value, Sub)
    if node is None or _number(graph, node.inputs[0]) != 1.0:
        return None
    source = node.inputs[1]
    steps: list[Node] = []
    while graph.type(source).is_float:
        inner = uses.producers.get(source)
        if inner is None or not isinstance(inner.op, Cast | Expand | Reshape | Slice):
            return None
        steps.append(inner)
        source = inner.inputs[0]
    keep = source if graph.type(source).dtype == "bool" else b.emit(Cast("bool"), source, name=f"{value}.keep")
    for step in reversed(steps):
        if isinstance(step.op, Reshape | Slice) and product(b.graph.type(keep).shape) == product(
            graph.type(step.inputs[0]).shape
        ):
            keep = b.emit(step.op, keep, name=f"{step.output}.keep", source=step.source)
    return keep
