"""``intc inspect`` and ``intc info``: graphs as text or as a page, and what a manifest says."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from intc.api import compile, derived, equalised
from intc.artifact import schema
from intc.artifact.container import Container
from intc.artifact.schema import Port
from intc.artifact.signature import signer_of
from intc.calibration import collect, is_quantised, open_feeds, widened
from intc.calibration.readers import Feeds
from intc.errors import UsageError
from intc.frontend import import_onnx
from intc.ir.diff import diff_graphs
from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.ir.text import print_graph
from intc.module import Progress
from intc.passes import pipeline as phases
from intc.passes.pipeline import Pipeline
from intc.report.accuracy import SAMPLES
from intc.report.certificate import stored_certificate
from intc.report.data import batches, with_empty_states
from intc.report.inspection import Inspection, graphs_of, inspection_of
from intc.report.nodes import check_nodes
from intc.report.reading import read_graph
from intc.report.verify import SINGLES
from intc.runtime.state import held_by

UNCALIBRATED: Final = (
    "The passes from equalise_heads on need the ranges of values: give calibration data (--calibration NPZ)."
)


def graph_of(
    path: Path,
    after: str | None = None,
    calibration: Feeds | None = None,
    inputs: Mapping[str, Any] | None = None,
) -> tuple[Graph, Graph]:
    """A graph and the one before it: an artifact's; an ONNX file as imported; or around the pass ``after``.

    The passes from ``integerise`` on need calibration data, as :func:`intc.compile` does. UsageError for an
    unknown pass.
    """
    if path.suffix == ".intc":
        _refuse_after(path, after)
        graph = read_graph(path)[1]
        return graph, graph
    source = import_onnx(path, inputs)
    if after is None:
        return source, source
    snapshot = _run_to(source, after, calibration)[after]
    return snapshot.before, snapshot.graph


def _refuse_after(path: Path, after: str | None) -> None:
    if after is not None:
        raise UsageError(f"{path}: --after needs the ONNX file; an artifact holds the final graph only")


def _run_to(source: Graph, after: str, calibration: Feeds | None) -> Pipeline:
    """The passes up to the end of the phase that ``after`` belongs to."""
    if after not in phases.PASS_NAMES:
        raise UsageError(f"no pass '{after}'; the passes are {', '.join(phases.PASS_NAMES)}")
    state: Pipeline = phases.canonicalise(source)
    if any(s.name == after for s in state):
        return state
    if calibration is None and is_quantised(state.graph):
        state, stats = derived(state)
    else:
        state, feeds = equalised(state, open_feeds(state.graph, calibration))
        stats = widened(collect(state.graph, feeds, products=True), state.graph)
    return phases.prepare(phases.integerise(state, stats))


def inspect_text(before: Graph, after: Graph, diff: bool) -> str:
    """The graph's text, or the difference to the one before."""
    return (diff_graphs(before, after) or "no difference") + "\n" if diff else print_graph(after)


def inspect_onnx(
    path: Path,
    after: str | None = None,
    calibration: Feeds | None = None,
    target: str = "native",
    samples: int = SAMPLES,
    tell: Progress | None = None,
) -> Inspection:
    """The graphs of the ONNX file ``path`` as far as they can be made: up to the pass ``after``; all, with
    kernels and errors on ``samples`` samples, with calibration data or for a model that arrives quantised;
    else those before ranges are needed.
    """
    if after is not None:
        state = _run_to(import_onnx(path), after, calibration)
        end = [s.name for s in state].index(after) + 1
        return Inspection(path.name, graphs_of(replace(state, snapshots=state.snapshots[:end])))
    if calibration is None:
        state = phases.canonicalise(import_onnx(path))
        if not is_quantised(state.graph):
            return Inspection(path.name, graphs_of(state), notes=(UNCALIBRATED,))
    return compile(path, calibration, target, progress=tell).inspect(samples=samples, progress=tell)


def inspect_artifact(
    path: Path,
    after: str | None = None,
    data: Mapping[str, Array] | None = None,
    model: Path | None = None,
    tell: Progress | None = None,
) -> Inspection:
    """What artifact ``path`` holds: its graph, certificate and kernels.

    With ``data``, every kernel's result on the first few samples against the reference, and with the float
    ``model`` too, against its values.
    """
    _refuse_after(path, after)
    if model is not None and data is None:
        raise UsageError("--model is compared with on data; give --data NPZ")
    tell = tell or (lambda step: None)
    tell("read")
    manifest, graph = read_graph(path)
    container = Container(path)
    tell("kernels")
    library = bytes(container.member(manifest.kernels))
    found = inspection_of(graph, manifest.target, library, manifest.provenance)
    checked = {}
    if data is not None:
        tell("every node")
        few = next(iter(batches(with_empty_states(data, manifest), manifest.inputs, SINGLES)))
        checked = {c.name: c.summary() for c in check_nodes(graph, manifest.target, few, model)}
    outputs = stored_certificate(container)
    for key in ("outputs", "sha256"):
        outputs = outputs.get(key) if isinstance(outputs, dict) else None
    facts = {**found.facts, "certificate: outputs on fixed inputs": str(outputs or "missing")}
    return replace(found, title=path.name, graphs={"artifact": graph}, facts=facts, checked=checked)


def info(path: Path) -> dict[str, Any]:
    """What an artifact is: ports, target, sizes, digest, provenance, operators; it is checked, not run."""
    manifest, graph = read_graph(path)
    container = Container(path)
    return {
        "file": str(path),
        "bytes": len(container.data),
        "format_version": schema.VERSION,
        "digest": hashlib.sha256(container.member(schema.MANIFEST)).hexdigest(),
        "signed_by": signer_of(container),
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
        "lowest": port.lowest,
    }
