"""Graphs for readers: HTML tables and diffs, and an SVG drawing; self-contained, without scripts."""

from __future__ import annotations

from collections import Counter
from html import escape
from typing import Final

import networkx as nx

from intc.ir.dims import format_shape
from intc.ir.graph import Graph, Node
from intc.ir.text import diff_graphs, format_attributes
from intc.ir.types import TensorType, format_type

DRAWN_NODES: Final = 80  # larger graphs are listed, not drawn
BOX: Final = (150, 34)
GAP: Final = (20, 26)
STYLE: Final = (
    "<style>.intc{font:13px/1.4 ui-monospace,monospace;color:#222;background:#fff}"
    ".intc table{border-collapse:collapse;margin:.4em 0}"
    ".intc td,.intc th{text-align:left;padding:1px 10px 1px 0;border-bottom:1px solid #ddd}"
    ".intc .add{background:#e3f6e3}.intc .del{background:#fbe3e3}"
    ".intc .at{color:#777}</style>"
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


def diff_html(before: Graph, after: Graph) -> str:
    """The unified diff of two graphs, coloured."""
    lines = []
    for line in diff_graphs(before, after).splitlines():
        kind = {"+": "add", "-": "del", "@": "at"}.get(line[:1], "")
        lines.append(f"<div class='{kind}'>{escape(line) or '&nbsp;'}</div>")
    return f"{STYLE}<div class='intc'>{''.join(lines) or 'no difference'}</div>"


def page(title: str, body: str) -> str:
    """A whole HTML document."""
    head = f"<meta charset='utf-8'><title>{escape(title)}</title>"
    return f"<!doctype html><html><head>{head}</head><body>{body}</body></html>\n"


def graph_svg(graph: Graph) -> str:
    """A layered drawing: one box for each input and node, an arrow for each use; constants are left out."""
    places = _layout(graph)
    across = max((x for x, _ in places.values()), default=0) + 1
    down = max((y for _, y in places.values()), default=0) + 1
    width, height = (
        count * (box + gap) + gap for count, box, gap in zip((across, down), BOX, GAP, strict=True)
    )
    arrows = [
        _arrow(places[name], places[node.output])
        for node in graph.nodes
        for name in dict.fromkeys(node.inputs)
        if name in places
    ]
    producers = graph.producers()
    boxes = [
        _box(place, _label(name, producers.get(name)), graph.type(name)) for name, place in places.items()
    ]
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' font-family='monospace' "
        f"font-size='11'>{''.join(arrows)}{''.join(boxes)}</svg>"
    )


def dataflow(graph: Graph) -> nx.DiGraph:
    """Inputs and node results as vertices, uses as edges."""
    out = nx.DiGraph()
    out.add_nodes_from((*graph.inputs, *(node.output for node in graph.nodes)))
    out.add_edges_from(
        (name, node.output) for node in graph.nodes for name in node.inputs if name not in graph.constants
    )
    return out


def _layout(graph: Graph) -> dict[str, tuple[int, int]]:
    """Column and row of every value: the row is its depth."""
    layers = nx.topological_generations(dataflow(graph))
    return {name: (x, y) for y, layer in enumerate(layers) for x, name in enumerate(sorted(layer))}


def _corner(place: tuple[int, int]) -> tuple[int, int]:
    x, y = (GAP[i] + place[i] * (BOX[i] + GAP[i]) for i in (0, 1))
    return x, y


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    """A line to the next row; a use further down leaves and enters at the side, around the boxes between."""
    (x0, y0), (x1, y1) = _corner(start), _corner(end)
    if end[1] == start[1] + 1:
        path = f"M{x0 + BOX[0] // 2} {y0 + BOX[1]}L{x1 + BOX[0] // 2} {y1}"
    else:
        right, top, bottom = max(x0, x1) + BOX[0] + GAP[0] - 4, y0 + BOX[1] // 2, y1 + BOX[1] // 2
        path = f"M{x0 + BOX[0]} {top}C{right} {top} {right} {top} {right} {top + BOX[1]}"
        path += f"L{right} {bottom - BOX[1]}C{right} {bottom} {right} {bottom} {x1 + BOX[0]} {bottom}"
    return f"<path d='{path}' fill='none' stroke='#999'/>"


def _box(place: tuple[int, int], label: str, type_: TensorType) -> str:
    x, y = _corner(place)
    fill = "#fde8cf" if type_.is_float else "#dcebfb"
    shape = type_.dtype + format_shape(type_.shape)
    return (
        f"<g><title>{escape(label)} : {escape(format_type(type_))}</title>"
        f"<rect x='{x}' y='{y}' width='{BOX[0]}' height='{BOX[1]}' rx='4' fill='{fill}' stroke='#888'/>"
        f"<text x='{x + 6}' y='{y + 14}'>{escape(label[:22])}</text>"
        f"<text x='{x + 6}' y='{y + 28}' fill='#666'>{escape(shape[:22])}</text></g>"
    )


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
