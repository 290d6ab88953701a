"""Everything that can be seen of a model: the graph after every pass, and what is known of each value.

``intc inspect --html`` and :meth:`intc.module.Module.inspect` show it as one page; docs/inspecting.md says
how to read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from html import escape
from typing import Any, Final

from intc.codegen.cuda.machine_code import gpu_code
from intc.codegen.machine_code import machine_code
from intc.codegen.targets import resolve
from intc.ir.graph import Graph
from intc.ir.verify import float_operators, float_values
from intc.passes.pipeline import Pipeline
from intc.report.accuracy import Report
from intc.report.accuracy_html import RANDOM
from intc.report.listings import Listings, listings
from intc.report.matching import matches
from intc.report.proof import proofs

SOURCE: Final = "import"  # what the graph before all passes is called


@dataclass(frozen=True)
class Inspection:
    """``graphs`` by the pass that made them, in order. What is known of values is by their names:
    ``measured`` (of integers: :class:`intc.report.accuracy.NodeReport` as JSON, histogram included),
    ``checked`` (:class:`intc.report.nodes.NodeCheck` as JSON), ``proofs`` (:func:`intc.report.proof.proofs`)
    and ``stands_for`` (the integer value that stands for a float one).

    ``facts`` are shown as a list of settings, ``notes`` as sentences. ``listings`` and ``proofs`` are of the
    last graph.
    """

    title: str
    graphs: dict[str, Graph]
    facts: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    listings: Listings = field(default_factory=Listings)
    proofs: dict[str, dict[str, Any]] = field(default_factory=dict)
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    checked: dict[str, dict[str, Any]] = field(default_factory=dict)
    stands_for: dict[str, str] = field(default_factory=dict)

    def html(self, after: str | None = None, diff: bool = False) -> str:
        """One self-contained document, which opens at the graph after the pass ``after`` (default: the last),
        or at what that pass changed.
        """
        from intc.report.inspection_html import inspection_html

        return inspection_html(self, after, diff)

    def summary(self) -> dict[str, Any]:
        """The JSON form: nodes after each pass, kernels, and how many values have an error."""
        return {
            "nodes": {name: len(graph.nodes) for name, graph in self.graphs.items()},
            "kernels": len(self.listings.sources),
            "measured": len(self.measured),
            "checked": len(self.checked),
        }

    def _repr_html_(self) -> str:
        """The page in a frame of its own, whose scripts cannot reach the notebook."""
        return (
            f'<iframe sandbox="allow-scripts" srcdoc="{escape(self.html())}" '
            'style="width:100%;height:680px;border:1px solid #8886;border-radius:8px"></iframe>'
        )


def graphs_of(state: Pipeline) -> dict[str, Graph]:
    """The imported graph and those that the passes made."""
    return {SOURCE: state.source, **{s.name: s.graph for s in state}}


def inspection_of(
    graph: Graph, target: str, library: bytes | None, provenance: Mapping[str, Any]
) -> Inspection:
    """What follows from the graph that was lowered: kernels, proofs and counts."""
    code = (gpu_code if resolve(target).gpu else machine_code)(library) if library else None
    facts = {k: str(v) for k, v in provenance.items() if not isinstance(v, (Mapping, list))}
    facts |= {"target": target, "float values": str(len(float_values(graph)))}
    facts |= {"float operators": str(len(float_operators(graph)))}
    if code:
        facts |= {"instructions": f"{code.instructions:,}", "of them float": str(len(code.floats))}
    return Inspection(
        facts.get("model", graph.name),
        {},
        facts,
        notes=(RANDOM,) if facts.get("calibration") == "random" else (),
        listings=listings(graph, resolve(target), library),
        proofs=proofs(graph),
    )


def with_report(found: Inspection, report: Report, source: Graph, integer: Graph) -> Inspection:
    """``found`` with the report's figures; ``source`` is the float graph that ``integer`` was made from."""
    stands_for: dict[str, str] = {}
    for name, real in matches(source, integer).items():
        stands_for.setdefault(real, name)
    measured = {node.name: {**node.summary(), "histogram": node.histogram} for node in report.nodes}
    return replace(found, measured=measured, stands_for=stands_for)
