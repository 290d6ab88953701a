"""Chains of element-wise operators that are a function of one value become one node.

``x * sigmoid(x)``, ``x * tanh(log(1 + exp(x)))``, ``max(x, 0)^2``: integers compute such a function exactly
once, from its curve, however an exporter spelt it; the intermediate values, which may overflow (``exp``),
are never quantised. Regions that the integer operators compute as they are (a scale, a shift, one sigmoid)
stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intc.ir.graph import Builder, Graph, Node
from intc.ops.elementwise import Pow, Relu, Sigmoid, Tanh
from intc.ops.pointwise import BINARY, CURVED, FUNCTIONS, Pointwise
from intc.passes.rewrite import rewrite, scalar_of

BENT = (Relu, Sigmoid, Tanh, *CURVED)
LONGEST = 64  # operators of one formula
OWN_POWERS = (2.0, 0.5)


@dataclass(frozen=True)
class FusePointwise:
    name: str = "fuse_pointwise"

    def run(self, graph: Graph) -> Graph:
        regions = _Regions(graph)
        users = graph.users()

        def ends(node: Node) -> bool:
            """Whether the function that ``node`` belongs to is not continued behind it."""
            behind = users[node.output]
            return node.output in graph.outputs or any(
                regions.root(n.output) != regions.root(node.output) for n in behind
            )

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            x = regions.root(node.output)
            if x == node.output or not ends(node) or not regions.worthwhile(node.output, x):
                return None
            if graph.type(x).shape != graph.type(node.output).shape:
                return None
            formula = regions.formula(node.output, x)
            return b.emit(Pointwise(formula), names[x], name=node.output, source=node.source)

        return rewrite(graph, rule)


@dataclass
class _Regions:
    graph: Graph
    roots: dict[str, str] = field(default_factory=dict)
    producers: dict[str, Node] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.producers = self.graph.producers()
        for node in self.graph.nodes:
            self.roots[node.output] = self._root(node)

    def root(self, value: str) -> str:
        """The value that ``value`` is a function of; itself where it is of several."""
        return self.roots.get(value, value)

    def _root(self, node: Node) -> str:
        if node.op.name not in FUNCTIONS or not self.graph.type(node.output).is_float:
            return node.output
        live = [x for x in node.inputs if self._number(x) is None]
        for candidates in ({self.root(x) for x in live}, set(live)):
            if len(candidates) == 1 and (x := candidates.pop()) not in self.graph.constants:
                return x
        return node.output

    def _number(self, value: str) -> float | None:
        return scalar_of(self.graph, self.producers, value)

    def _inside(self, value: str, x: str) -> list[Node]:
        """The nodes between ``x`` and ``value``, as often as the formula has them, or the first too many."""
        nodes, pending = list[Node](), [value]
        while pending and len(nodes) <= LONGEST:
            at = pending.pop()
            if at != x and at in self.producers and self._number(at) is None:
                nodes.append(self.producers[at])
                pending += nodes[-1].inputs
        return nodes

    def worthwhile(self, value: str, x: str) -> bool:
        """Whether the region needs a curve, or combines a bent function of x with x again."""
        nodes = self._inside(value, x)
        if len(nodes) > LONGEST:
            return False
        curved = any(isinstance(n.op, CURVED) or self._odd_power(n) for n in nodes)
        bent = any(isinstance(n.op, BENT) for n in nodes)
        joins = (n for n in nodes if isinstance(n.op, BINARY) and not isinstance(n.op, Pow))
        return curved or (bent and any(all(self._number(i) is None for i in n.inputs) for n in joins))

    def _odd_power(self, node: Node) -> bool:
        return isinstance(node.op, Pow) and self._number(node.inputs[1]) not in OWN_POWERS

    def formula(self, value: str, x: str) -> str:
        number = self._number(value)
        if value == x or number is not None:
            return "x" if value == x else repr(number)
        node = self.producers[value]
        return f"({node.op.name} {' '.join(self.formula(i, x) for i in node.inputs)})"
