"""Where the values of a graph stand in a drawing: rows by depth, few crossings, long uses in lanes.

After Sugiyama: every value is put below all that it is computed from; a use further down takes one place in
every row between, shared by all uses of the value; rows are ordered by the mean place of their neighbours and
then spread, neighbours above each other where there is room. All steps are linear in what is drawn, but for
sorting rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import networkx as nx

from intc.ir.graph import Graph

SWEEPS: Final = 8
LANE: Final = 0.2  # the width of a lane, in boxes
Item: TypeAlias = tuple[str, int]  # a value and a row: that of its box, or one that its lane passes


@dataclass(frozen=True)
class Layout:
    """``places``: column (in boxes, the leftmost at 0) and row of every value, inputs included.

    ``lanes``: for a value that is used below the next row, its column in each row between.
    """

    places: dict[str, tuple[float, int]]
    lanes: dict[str, list[float]]


def dataflow(graph: Graph) -> nx.DiGraph:
    """Inputs and node results as vertices, uses as edges; constants are left out."""
    out = nx.DiGraph()
    out.add_nodes_from((*graph.inputs, *(node.output for node in graph.nodes)))
    out.add_edges_from(
        (name, node.output) for node in graph.nodes for name in node.inputs if name not in graph.constants
    )
    return out


def layout(graph: Graph) -> Layout:
    """The drawing of ``graph``; the same for equal graphs."""
    flow = dataflow(graph)
    depth = {name: y for y, layer in enumerate(nx.topological_generations(flow)) for name in layer}
    rows: list[list[Item]] = [[] for _ in range(max(depth.values(), default=-1) + 1)]
    above: dict[Item, list[Item]] = {}
    below: dict[Item, list[Item]] = {}
    last = {name: max((depth[user] for user in flow[name]), default=depth[name] + 1) for name in flow}
    for name, y in depth.items():
        rows[y].append((name, y))
        for row in range(y + 1, last[name]):
            rows[row].append((name, row))
            _join(above, below, (name, row - 1), (name, row))
    for name, user in flow.edges:
        _join(above, below, (name, depth[user] - 1), (user, depth[user]))
    widths = {item: 1.0 if depth[item[0]] == item[1] else LANE for row in rows for item in row}
    _order(rows, above, below)
    columns = _spread(rows, above, below, widths)
    left = min((columns[item] - widths[item] / 2 for item in columns), default=0.0)
    return Layout(
        {name: (columns[name, y] - left - 0.5, y) for name, y in depth.items()},
        {
            name: [columns[name, row] - left - 0.5 for row in range(y + 1, last[name])]
            for name, y in depth.items()
            if last[name] > y + 1
        },
    )


def _join(above: dict[Item, list[Item]], below: dict[Item, list[Item]], upper: Item, lower: Item) -> None:
    below.setdefault(upper, []).append(lower)
    above.setdefault(lower, []).append(upper)


def _order(
    rows: list[list[Item]], above: Mapping[Item, list[Item]], below: Mapping[Item, list[Item]]
) -> None:
    """Sort every row by the mean place of its neighbours, down and up in turn."""
    place = {item: float(i) for row in rows for i, item in enumerate(row)}
    for sweep in range(SWEEPS):
        neighbours, order = (above, rows) if sweep % 2 == 0 else (below, reversed(rows))
        for row in order:
            wanted = {item: _mean(place, neighbours.get(item, ()), place[item]) for item in row}
            row.sort(key=lambda item: wanted[item])
            place.update({item: float(i) for i, item in enumerate(row)})


def _spread(
    rows: Sequence[Sequence[Item]],
    above: Mapping[Item, list[Item]],
    below: Mapping[Item, list[Item]],
    widths: Mapping[Item, float],
) -> dict[Item, float]:
    """The middle of every item, in boxes: in the order of its row, near its neighbours."""
    columns: dict[Item, float] = {}
    for row in rows:
        columns.update(_apart(row, [0.0] * len(row), widths))
    for sweep in range(SWEEPS):
        neighbours, order = (above, rows) if sweep % 2 == 0 else (below, reversed(rows))
        for row in order:
            wanted = [_mean(columns, neighbours.get(item, ()), columns[item]) for item in row]
            columns.update(_apart(row, wanted, widths))
    return columns


def _apart(row: Sequence[Item], wanted: Sequence[float], widths: Mapping[Item, float]) -> dict[Item, float]:
    """The places in order, none overlapping, with the least sum of squared distances from ``wanted``.

    Neighbours that would overlap become one block, which stands where its members want to be on average.
    """
    blocks: list[tuple[float, int]] = []  # sum of the starts that the members want, and their number
    offsets, at = [], 0.0
    for item, want in zip(row, wanted, strict=True):
        offsets.append(at + widths[item] / 2)
        at += widths[item]
        blocks.append((want - offsets[-1], 1))
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] >= blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1] = (blocks[-1][0] + total, blocks[-1][1] + count)
    starts = (total / count for total, count in blocks for _ in range(count))
    return {item: start + offset for item, start, offset in zip(row, starts, offsets, strict=True)}


def _mean(places: Mapping[Item, float], neighbours: Iterable[Item], otherwise: float) -> float:
    found = [places[item] for item in neighbours]
    return sum(found) / len(found) if found else otherwise
