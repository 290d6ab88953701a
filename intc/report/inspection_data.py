"""The data of an inspection's page as JSON: each line once, and each graph as lines and places."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from intc.ir.diff import Key, Pair, aligned, compared_lines
from intc.ir.dims import format_shape
from intc.ir.graph import Graph, Node, Scale
from intc.ir.layout import layout
from intc.ir.op import Array
from intc.ir.text import format_attributes, format_lines
from intc.ops.fused import Attention, Linear
from intc.passes.unfuse import Unfuse
from intc.report.formula import formula
from intc.report.inspection import Inspection

BINS: Final = 48
SAMPLED: Final = 1 << 17  # elements of a constant that its histogram counts
FUSED: Final = (Linear, Attention)
VALUES: Final = ("input", "constant", "node")  # kinds of lines that declare a value


def inspection_data(inspection: Inspection) -> dict[str, Any]:
    """What the scripts of the page read: see :class:`Lines` for ``lines``, :func:`_graph` for ``passes``."""
    lines = Lines()
    passes: list[dict[str, Any]] = []
    for name, graph in inspection.graphs.items():
        rows = lines.add(graph)
        if passes and rows == passes[-1]["rows"]:
            passes.append({**passes[-1], "name": name, "changed": False, "pairs": [[0, 0, len(rows)]]})
            continue
        before = passes[-1]["rows"] if passes else rows
        pairs = runs(aligned([lines.keys[i] for i in before], [lines.keys[i] for i in rows]))
        passes.append({"name": name, "changed": bool(passes), "pairs": pairs, "rows": rows, **_places(graph)})
    last = list(inspection.graphs.values())[-1]
    return {
        "passes": passes,
        "parts": _parts(last, lines),
        "lines": lines.records,
        "formulas": list(lines.formulas),
        "measured": inspection.measured,
        "checked": inspection.checked,
        "proofs": inspection.proofs,
        "standsFor": inspection.stands_for,
        "kernels": inspection.listings.kernels,
        "holders": inspection.listings.holders,
        "sizes": {
            kernel: {language: text.count("\n") + 1 for language, text in texts.items()}
            for kernel, texts in inspection.listings.sources.items()
        },
    }


class Lines:
    """Every line of the graphs' text forms once: ``records`` for the page and ``keys``, what they declare.

    Lines are one if text, scales per channel, and the content of constants are equal. ``formulas`` are the
    texts that records refer to by number.
    """

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.keys: list[Key] = []
        self.formulas: dict[str, int] = {}
        self._numbers: dict[Any, int] = {}
        self._digests: dict[int, tuple[Array, str]] = {}  # by address, and what keeps the address taken

    def add(self, graph: Graph) -> list[int]:
        """The numbers of the graph's lines, in order."""
        nodes = graph.producers()
        return [
            self.number(graph, key, text, nodes[key[1]] if key[0] == "node" else None)
            for key, text in compared_lines(graph)
        ]

    def number(self, graph: Graph, key: Key, text: str, node: Node | None) -> int:
        """The number of one line, which becomes a record if it is new."""
        kind, name = key
        scale = graph.values[name].scale if kind in VALUES else None
        single = tuple(
            int(graph.constants[x].reshape(-1)[0])
            for x in (node.inputs if node else ())
            if x in graph.constants and graph.constants[x].size == 1 and graph.constants[x].dtype.kind != "f"
        )  # stands in the formula
        content = self._digest(graph.constants[name]) if kind == "constant" else ""
        identity = (key, text, scale, single, content)
        number = self._numbers.setdefault(identity, len(self.records))
        if number == len(self.records):
            self.keys.append(key)
            self.records.append({"text": text, **self._record(graph, kind, name, node)})
        return number

    def _record(self, graph: Graph, kind: str, name: str, node: Node | None) -> dict[str, Any]:
        if kind not in VALUES:
            return {"kind": kind}
        value, type_ = graph.values[name], graph.type(name)
        record: dict[str, Any] = {
            "name": name,
            "kind": kind,
            "dtype": type_.dtype,
            "shape": format_shape(type_.shape),
        }
        if not type_.is_float:
            record["interval"] = [*type_.interval]
        if value.scale is not None:
            record["scale"] = _scale(value.scale)
        if node:
            text = formula(graph, node)
            record |= {"op": node.op.name, "inputs": [*node.inputs], "source": node.source}
            record |= {"attributes": format_attributes(node.op).strip(" {}")}
            record["formula"] = self.formulas.setdefault(text, len(self.formulas))
        if kind == "constant" and (counts := distribution(graph.constants[name])):
            record["histogram"] = counts
        return record

    def _digest(self, array: Array) -> str:
        """Of the content; an array that several graphs share is read once."""
        if id(array) not in self._digests:
            content = hashlib.sha256(np.ascontiguousarray(array).data).hexdigest()
            self._digests[id(array)] = array, content
        return self._digests[id(array)][1]


def _scale(scale: Scale) -> list[float]:
    """The smallest and the largest, and how many there are."""
    scales = scale if isinstance(scale, tuple) else (scale,)
    numbers = [float(s) for s in scales if s is not None]
    return [min(numbers), max(numbers), len(numbers)]


def distribution(array: Array) -> dict[str, Any] | None:
    """Counts of a constant's elements, or of every k-th of a large one; None of few or equal elements."""
    if array.size <= BINS or array.dtype == np.bool_:
        return None
    low, high = float(array.min()), float(array.max())
    if not (math.isfinite(low) and math.isfinite(high) and low < high and math.isfinite(high - low)):
        return None
    stride = -(-array.size // SAMPLED)
    counts, _ = np.histogram(array.reshape(-1)[::stride].astype(np.float64), BINS, (low, high))
    return {"lo": low, "hi": high, "counts": counts.tolist(), "every": stride}


def runs(pairs: Iterable[Pair]) -> list[list[int | None]]:
    """``[i, j, n]`` for n pairs that go on by one; a side that is None stays so."""
    out: list[list[Any]] = []
    for i, j in pairs:
        if out:
            first, second, count = out[-1]
            if i == (None if first is None else first + count) and j == (
                None if second is None else second + count
            ):
                out[-1][2] += 1
                continue
        out.append([i, j, 1])
    return out


def _places(graph: Graph) -> dict[str, Any]:
    """Where the values stand: ``places`` as name, column and row, ``lanes`` by name."""
    drawn = layout(graph)
    return {
        "places": [[name, round(x, 3), y] for name, (x, y) in drawn.places.items()],
        "lanes": {name: [round(x, 3) for x in lane] for name, lane in drawn.lanes.items()},
    }


def _parts(graph: Graph, lines: Lines) -> dict[str, list[int]]:
    """By fused value, the lines of the operators that it means, in order."""
    fused = {node.output for node in graph.nodes if isinstance(node.op, FUSED)}
    if not fused:
        return {}
    plain = Unfuse().run(graph)
    texts = format_lines(plain)
    out: dict[str, list[int]] = {}
    pending: list[int] = []
    for node in plain.nodes:
        if node.output in graph.values and node.output not in fused:
            continue
        key = ("node", node.output)
        pending.append(lines.number(plain, key, texts[key], node))
        if node.output in fused:
            out[node.output], pending = pending, []
    return out
