"""An inspection as one page; see :mod:`intc.report.page`."""

from __future__ import annotations

from collections import Counter
from html import escape
from string import Template
from typing import Final

from intc.errors import UsageError
from intc.report.inspection import Inspection
from intc.report.inspection_data import inspection_data
from intc.report.page import asset, chip, document

SCRIPTS: Final = ("inspection_graph.js", "inspection_details.js", "inspection.js")


def inspection_html(inspection: Inspection, after: str | None, diff: bool) -> str:
    """The whole document; UsageError for a pass that is not among the graphs."""
    names = list(inspection.graphs)
    if after is not None and after not in names:
        raise UsageError(f"no graph after '{after}'; there are {', '.join(names)}")
    last = list(inspection.graphs.values())[-1]
    operators = Counter(node.op.name for node in last.nodes)
    body = Template(asset("inspection.html")).substitute(
        title=escape(inspection.title),
        notes="".join(f"<p class='warn'>{escape(note)}</p>" for note in inspection.notes),
        facts="".join(chip(key, value) for key, value in inspection.facts.items()),
        operators="".join(chip(name, str(count)) for name, count in operators.most_common()),
    )
    start = {"pass": names.index(after) if after else len(names) - 1, "view": "diff" if diff else "graph"}
    data = {"data": {**inspection_data(inspection), "start": start}, "code-data": inspection.listings.sources}
    return document(f"{inspection.title}: graph", body, ["inspection.css"], SCRIPTS, data)
