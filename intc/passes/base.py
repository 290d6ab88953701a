"""What a pass is: a small frozen dataclass with a name and ``run(graph) -> graph``.

Its fields are its options. A pass never edits the graph it is given; it returns the same object when nothing
changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Protocol

from intc.ir.diff import Diff, diff_graphs, diff_html
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

    def diff(self) -> Diff:
        """What the pass changed: a unified diff of the texts, which a notebook shows side by side."""
        return diff_graphs(self.before, self.graph)

    def _repr_html_(self) -> str:
        counts = f"{len(self.before.nodes)} nodes before, {len(self.graph.nodes)} after"
        return f"<p><b>{escape(self.name)}</b>: {counts}</p>{diff_html(self.before, self.graph)}"
