"""``intc inspect`` and ``intc info``: graphs as text or HTML, and what a manifest says."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from intc.api import derived, equalised
from intc.artifact import schema
from intc.artifact.container import Container
from intc.artifact.schema import Port
from intc.calibration import collect, is_quantised, open_feeds, widened
from intc.calibration.readers import Feeds
from intc.errors import UsageError
from intc.frontend import import_onnx
from intc.ir.display import diff_html, graph_html, page
from intc.ir.graph import Graph
from intc.ir.text import diff_graphs, print_graph
from intc.passes import pipeline as phases
from intc.passes.base import Snapshot
from intc.passes.pipeline import Pipeline
from intc.report.reading import read_graph
from intc.runtime.state import held_by


def graph_of(
    path: Path,
    after: str | None = None,
    calibration: Feeds | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> tuple[Graph, Graph]:
    """A graph and the one before it: an artifact's; an ONNX file as imported; or around the pass ``after``.

    The passes from ``integerise`` on need calibration data as :func:`intc.compile` does. UsageError for an
    unknown pass.
    """
    if path.suffix == ".intc":
        if after is not None:
            raise UsageError(f"{path}: --after needs the ONNX file; an artifact holds the final graph only")
        graph = read_graph(path)[1]
        return graph, graph
    source = import_onnx(path, inputs)
    if after is None:
        return source, source
    snapshot = _run_to(source, after, calibration)
    return snapshot.before, snapshot.graph


def _run_to(source: Graph, after: str, calibration: Feeds | None) -> Snapshot:
    if after not in phases.PASS_NAMES:
        raise UsageError(f"no pass '{after}'; the passes are {', '.join(phases.PASS_NAMES)}")
    state: Pipeline = phases.canonicalise(source)
    if not any(s.name == after for s in state.snapshots):
        if calibration is None and is_quantised(state.graph):
            state, stats = derived(state)
        else:
            state, feeds = equalised(state, open_feeds(state.graph, calibration))
            stats = widened(collect(state.graph, feeds, products=True), state.graph)
        state = phases.prepare(phases.integerise(state, stats))
    return next(s for s in state.snapshots if s.name == after)


def inspect_text(before: Graph, after: Graph, diff: bool) -> str:
    """The graph's text, or the difference to the one before."""
    return (diff_graphs(before, after) or "no difference") + "\n" if diff else print_graph(after)


def inspect_html(title: str, before: Graph, after: Graph, diff: bool) -> str:
    """The same as a document."""
    return page(title, diff_html(before, after) if diff else graph_html(after))


def info(path: Path) -> dict[str, Any]:
    """What an artifact is: ports, target, sizes, digest, provenance, operators; it is checked, not run."""
    manifest, graph = read_graph(path)
    container = Container(path)
    return {
        "file": str(path),
        "bytes": len(container.data),
        "format_version": schema.VERSION,
        "digest": hashlib.sha256(container.member(schema.MANIFEST)).hexdigest(),
        "target": manifest.target,
        "features": list(manifest.features),
        "inputs": [_port(p) for p in manifest.inputs],
        "outputs": [_port(p) for p in manifest.outputs],
        "states": [list(pair) for pair in manifest.states],
        "state_bytes": sum(math.prod(held.shape(1, 1)) for held in held_by(manifest)),
        "symbols": list(manifest.symbols),
        "operators": dict(Counter(node.op.name for node in graph.nodes).most_common()),
        "members": {name: size for name, (size, _) in manifest.members.items()},
        "provenance": manifest.provenance,
    }


def _port(port: Port) -> dict[str, Any]:
    scale = list(port.scale) if isinstance(port.scale, tuple) else port.scale
    interval = [port.lo, port.hi]
    return {
        "name": port.name,
        "shape": list(port.shape),
        "dtype": port.dtype,
        "scale": scale,
        "interval": interval,
    }
