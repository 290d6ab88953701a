"""Graphs for notebooks: HTML tables and an SVG drawing; self-contained, without scripts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import Final, TypeAlias

from intc.ir.dims import format_shape
from intc.ir.graph import Graph, Node
from intc.ir.layout import Layout, layout
from intc.ir.text import format_attributes
from intc.ir.types import TensorType, format_type

DRAWN_NODES: Final = 80  # larger graphs are listed, not drawn
BOX: Final = (150, 34)
GAP: Final = (20, 26)
LETTERS: Final = 21  # of 11 pixels height, that a box is wide
Place: TypeAlias = tuple[float, int]
STYLE: Final = (
    "<style>.intc{font:13px/1.4 ui-monospace,monospace;overflow-x:auto}"
    ".intc table{border-collapse:collapse;margin:.4em 0}"
    ".intc td,.intc th{text-align:left!important;padding:1px 10px 1px 0;border-bottom:1px solid #8883}"
    "</style>"
)


def graph_html(graph: Graph, listed: int = 400) -> str:
    """Inputs, outputs and operator counts; a drawing where the graph is small; the first ``listed`` nodes."""
    counts = Counter(node.op.name for node in graph.nodes)
    summary = ", ".join(f"{n} {name}" for name, n in counts.most_common())
    size = sum(a.nbytes for a in graph.constants.values())
    ports = [("input", n) for n in graph.inputs] + [("output", n) for n in graph.outputs]
    rows = "".join(_row(kind, n, format_type(graph.type(n)), _scale(graph, n)) for kind, n in ports)
    drawing = graph_svg(graph) if len(graph.nodes) <= DRAWN_NODES else ""
    nodes = "".join(_node_row(graph, node) for node in graph.nodes[:listed])
    more = f"<p>{len(graph.nodes) - listed} more nodes</p>" if len(graph.nodes) > listed else ""
    return (
        f"{STYLE}<div class='intc'><b>{escape(graph.name)}</b>: "
        f"{len(graph.nodes)} nodes ({escape(summary)}), "
        f"{len(graph.constants)} constants of {size:,} bytes<table>{rows}</table>{drawing}"
        "<details><summary>nodes</summary><table>"
        "<tr><th>value</th><th>type</th><th>scale</th><th>operator</th><th>inputs</th></tr>"
        f"{nodes}</table>{more}</details></div>"
    )


def graph_svg(graph: Graph) -> str:
    """A layered drawing: one box for each input and node, an arrow for each use; constants are left out."""
    drawn = layout(graph)
    across = max((x for x, _ in drawn.places.values()), default=0) + 1
    down = max((y for _, y in drawn.places.values()), default=0) + 1
    width, height = _corner((across, down))
    arrows = [
        _arrow([drawn.places[name], *_passed(drawn, name, end), end])
        for node in graph.nodes
        for name, end in ((x, drawn.places[node.output]) for x in dict.fromkeys(node.inputs))
        if name in drawn.places
    ]
    producers = graph.producers()
    boxes = [
        _box(place, _label(name, producers.get(name)), graph.type(name))
        for name, place in drawn.places.items()
    ]
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' "
        f"style='width:{width:g}px;max-width:100%;height:auto' font-family='monospace' "
        f"font-size='11'>{''.join(arrows)}{''.join(boxes)}</svg>"
    )


def _passed(drawn: Layout, name: str, end: Place) -> list[Place]:
    """Where the use of ``name`` at ``end`` passes the rows between."""
    first = drawn.places[name][1] + 1
    return [(x, first + i) for i, x in enumerate(drawn.lanes.get(name, ())[: end[1] - first])]


def _corner(place: Place) -> Place:
    x, y = (GAP[i] + place[i] * (BOX[i] + GAP[i]) for i in (0, 1))
    return x, int(y)


def _arrow(path: Sequence[Place]) -> str:
    """From below the first place, through the middles of those between, to above the last."""
    points = []
    for i, place in enumerate(path):
        x, y = _corner(place)
        if i:
            points.append((x + BOX[0] / 2, y))
        if i < len(path) - 1:
            points.append((x + BOX[0] / 2, y + BOX[1]))
    line = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f"<polyline points='{line}' fill='none' stroke='#999'/>"


def _box(place: Place, label: str, type_: TensorType) -> str:
    x, y = (f"{v:g}" for v in _corner(place))
    fill = "#fde8cf" if type_.is_float else "#dcebfb"
    shape = type_.dtype + format_shape(type_.shape)
    return (
        f"<g><title>{escape(label)} : {escape(format_type(type_))}</title>"
        f"<rect x='{x}' y='{y}' width='{BOX[0]}' height='{BOX[1]}' rx='4' fill='{fill}' stroke='#888'/>"
        f"<text dx='6' x='{x}' dy='14' y='{y}' fill='#222'>{escape(_short(label))}</text>"
        f"<text dx='6' x='{x}' dy='28' y='{y}' fill='#666'>{escape(_short(shape))}</text></g>"
    )


def _short(text: str) -> str:
    """As much of ``text`` as a box holds."""
    return text if len(text) <= LETTERS else text[: LETTERS - 1] + "\u2026"


def _label(name: str, node: Node | None) -> str:
    return node.op.name if node else f"input {name}"


def _scale(graph: Graph, name: str) -> str:
    scale = graph.values[name].scale
    if isinstance(scale, tuple):
        return f"{len(scale)} scales"
    return "" if scale is None else f"{scale:.6g}"


def _node_row(graph: Graph, node: Node) -> str:
    operator = node.op.name + format_attributes(node.op)
    type_ = format_type(graph.type(node.output))
    return _row(node.output, type_, _scale(graph, node.output), operator, ", ".join(node.inputs))


def _row(*cells: str) -> str:
    return f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"
