"""What a pass is: a small frozen dataclass with a name and ``run(graph) -> graph``.

Its fields are its options. A pass never edits the graph it is given; it returns the same object when nothing
changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from intc.ir.graph import Graph


class Pass(Protocol):
    """One named rewrite of a whole graph."""

    @property
    def name(self) -> str: ...

    def run(self, graph: Graph) -> Graph: ...


@dataclass(frozen=True)
class Snapshot:
    """The graph after the pass ``name``; ``before`` is the graph that pass was given."""

    name: str
    before: Graph
    graph: Graph

    def diff(self) -> str:
        """Unified diff of the two text forms; empty when the pass changed nothing."""
        from intc.ir.text import diff_graphs

        return diff_graphs(self.before, self.graph)
