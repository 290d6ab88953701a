"""Small helpers that every pattern-matching pass shares."""

from __future__ import annotations

from dataclasses import dataclass

from intc.ir.graph import Graph, Node
from intc.ir.op import Op


@dataclass(frozen=True)
class Uses:
    """Producers and consumers of a graph, looked up while a pass walks it."""

    producers: dict[str, Node]
    users: dict[str, list[Node]]
    outputs: frozenset[str]

    @classmethod
    def of(cls, graph: Graph) -> Uses:
        return cls(graph.producers(), graph.users(), frozenset(graph.outputs))

    def producer(self, value: str, *kinds: type[Op]) -> Node | None:
        """The node that computes ``value`` if its operator is one of ``kinds``."""
        node = self.producers.get(value)
        return node if node is not None and isinstance(node.op, kinds) else None

    def only(self, value: str, *kinds: type[Op]) -> Node | None:
        """Like :meth:`producer`, and ``value`` has exactly one consumer and is no output: it may be
        absorbed.
        """
        node = self.producer(value, *kinds)
        return node if node is not None and self.single(value) else None

    def single(self, value: str) -> bool:
        return len(self.users[value]) == 1 and value not in self.outputs

    def sole_user(self, value: str, *kinds: type[Op]) -> Node | None:
        """The one consumer of ``value`` if its operator is one of ``kinds``."""
        users = self.users[value]
        if len(users) == 1 and value not in self.outputs and isinstance(users[0].op, kinds):
            return users[0]
        return None
