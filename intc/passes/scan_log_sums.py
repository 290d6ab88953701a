"""``log(cumsum(exp(x)))`` without the exponentials, whose sums no integer holds beside their first terms.

Running sums by doubling (Hillis & Steele 1986): after step k every entry is the logarithm of the sum of the
``2**k`` entries that end there, and ``log(e^a + e^b) = max(a, b) + log(1 + e^-|a - b|)`` joins two of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from intc.ir.graph import Builder, Graph, Node
from intc.ops.elementwise import Add, Exp, Log, Max, Sub
from intc.ops.movement import Concat, Slice
from intc.ops.pointwise import Pointwise
from intc.ops.reduce import CumSum
from intc.passes.match import Uses
from intc.passes.rewrite import rewrite

BEYOND: Final = Pointwise("(log (add 1 (exp (mul -1 (abs x)))))")


@dataclass(frozen=True)
class ScanLogSums:
    """``longest``: of an axis of fixed size, beyond which the running sums stay."""

    longest: int = 4096
    name: str = "scan_log_sums"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            total = uses.producer(node.inputs[0], CumSum) if isinstance(node.op, Log) else None
            terms = uses.producer(total.inputs[0], Exp) if total is not None else None
            if total is None or terms is None:
                return None
            assert isinstance(total.op, CumSum)
            size = graph.type(node.output).shape[total.op.axis]
            if total.op.exclusive or not isinstance(size, int) or size > self.longest:
                return None
            return _scanned(b, node, names[terms.inputs[0]], total.op, size)

        return rewrite(graph, rule)


def _scanned(b: Builder, node: Node, x: str, sums: CumSum, size: int) -> str:
    """The logarithms of the running sums of ``e^x`` along an axis of ``size``."""
    axis, reverse = sums.axis, sums.reverse

    def part(value: str, start: int, stop: int) -> str:
        return b.emit(Slice(axis, start, stop), value, name=f"{node.output}.part", source=node.source)

    def joined(op: Add | Sub | Max | Pointwise, *values: str) -> str:
        return b.emit(op, *values, name=f"{node.output}.{op.name}", source=node.source)

    reach = 1
    while reach < size:
        first, last = part(x, 0, size - reach), part(x, reach, size)
        both = joined(Add(), joined(Max(), first, last), joined(BEYOND, joined(Sub(), first, last)))
        alone = part(x, size - reach, size) if reverse else part(x, 0, reach)
        ordered = (both, alone) if reverse else (alone, both)
        reach *= 2
        name = f"{node.output}.upto{reach}" if reach < size else node.output
        x = b.emit(Concat(axis), *ordered, name=name, source=node.source)
    return x
