"""``exp(x - log(sum(exp(x))))``, the exponential of what LogSoftmax and ReduceLogSumExp give, is softmax."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from intc.ir.graph import Builder, Graph, Node
from intc.ops.elementwise import Add, Exp, Log, Max, Sub
from intc.ops.reduce import ReduceSum
from intc.ops.softmax import Softmax
from intc.passes.match import Uses
from intc.passes.rewrite import rewrite, scalar_of


@dataclass(frozen=True)
class RecoverSoftmax:
    name: str = "recover_softmax"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            less = uses.producer(node.inputs[0], Sub) if isinstance(node.op, Exp) else None
            axis = _summed(graph, uses, less.inputs[1], less.inputs[0]) if less is not None else None
            if (
                less is None
                or axis is None
                or graph.type(less.inputs[0]).shape != graph.type(node.output).shape
            ):
                return None
            return b.emit(Softmax(axis), names[less.inputs[0]], name=node.output, source=node.source)

        return rewrite(graph, rule)


def _summed(graph: Graph, uses: Uses, value: str, x: str) -> int | None:
    """The axis along which ``value`` is ``log(sum(exp(x)))``, or ``log(sum(exp(x - m))) + m``."""
    total = uses.producer(value, Add)
    for rest, shift in (total.inputs, total.inputs[::-1]) if total is not None else ():
        log = uses.producer(rest, Log)
        less = _exponents(graph, uses, log)
        if less is not None and (sub := uses.producer(less[0], Sub)) is not None:
            if sub.inputs == (x, shift) and graph.type(shift).shape[less[1]] == 1:
                return less[1]
    found = _exponents(graph, uses, uses.producer(value, Log))
    return found[1] if found is not None and found[0] == x else None


def _exponents(graph: Graph, uses: Uses, log: Node | None) -> tuple[str, int] | None:
    """x and the axis where ``log`` is that of ``sum(exp(x))``, along one axis which stays; the sum may have 1
    for a floor.
    """
    if log is None:
        return None
    floored = uses.producer(log.inputs[0], Max)
    live = [v for v in floored.inputs if scalar_of(graph, uses.producers, v) != 1] if floored else log.inputs
    total = uses.producer(live[0], ReduceSum) if len(live) == 1 else None
    grown = uses.producer(total.inputs[0], Exp) if total is not None else None
    if total is None or grown is None:
        return None
    assert isinstance(total.op, ReduceSum)
    if not total.op.keepdims or len(total.op.axes) != 1:
        return None
    return grown.inputs[0], total.op.axes[0] % graph.type(grown.output).rank
