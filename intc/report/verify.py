"""``intc verify``: kernels equal the reference, nothing is float, nothing overflows; and the accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from intc.artifact.container import Container
from intc.artifact.schema import Manifest
from intc.artifact.signature import Key
from intc.codegen.cuda import machine_code as gpu
from intc.codegen.machine_code import machine_code
from intc.errors import FeedError
from intc.ir.graph import Graph, Value, dequantize, quantize_feed
from intc.ir.verify import float_operators, float_values
from intc.report.certificate import certificate, disagreements, stored_certificate
from intc.report.data import Feeds, batches, count, with_empty_states
from intc.report.nodes import NodeCheck, check_nodes, first_divergence
from intc.report.probe import digest, probe_digest, probe_feeds
from intc.report.reading import read_graph
from intc.report.reference import Reference, fidelity
from intc.runtime import Session

Array = NDArray[Any]
BATCH: Final = 16
SINGLES: Final = 4  # samples that are also run one at a time


@dataclass
class Verification:
    """The result; ``passed`` needs bit-exact kernels, a float-free graph and library, no overflow, and a
    certificate that says what the artifact implies.

    ``digest`` is that of the exact outputs on the graph's probe, ``digests`` those of the kernels by thread
    count. ``float_instructions`` is None for kernels that were not disassembled, and ``unread`` says why;
    ``certificate`` lists the parts that disagree; ``fidelity`` is by output, where a float model was given.
    ``nodes`` and the name of the first value in which they differ are there where every node was looked at.
    """

    samples: int = 0
    digest: str = ""
    digests: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    float_values: list[str] = field(default_factory=list)
    float_operators: list[str] = field(default_factory=list)
    float_instructions: list[str] | None = None
    unread: str = ""
    outside_interval: list[str] = field(default_factory=list)
    certificate: list[str] = field(default_factory=list)
    fidelity: dict[str, dict[str, float]] = field(default_factory=dict)
    nodes: list[NodeCheck] = field(default_factory=list)
    first_divergence: str | None = None

    @property
    def bit_exact(self) -> bool:
        exact = bool(self.runs) and all(not r["differences"] for r in self.runs)
        return exact and {*self.digests} == {self.digest} and self.first_divergence is None

    @property
    def float_free(self) -> bool:
        return not (self.float_values or self.float_operators or self.float_instructions)

    @property
    def overflow_free(self) -> bool:
        return not self.outside_interval

    @property
    def passed(self) -> bool:
        return self.bit_exact and self.float_free and self.overflow_free and not self.certificate

    def summary(self) -> dict[str, Any]:
        """The JSON form."""
        verdicts = ("passed", "bit_exact", "float_free", "overflow_free")
        nodes = [node.summary() for node in self.nodes]
        return {**{k: getattr(self, k) for k in verdicts}, **asdict(self), "nodes": nodes}


def verify_artifact(
    path: str | Path,
    data: Mapping[str, Array],
    model: str | Path | None = None,
    tell: Callable[[str], None] = lambda step: None,
    nodes: bool = False,
    trusted_keys: Sequence[Key] | None = None,
    device: str | None = None,
) -> Verification:
    """Check the artifact at ``path`` on ``data`` (samples along axis 0): batches, singles, 1 and 2 threads,
    or on a GPU.

    The graph is parsed from the artifact, which re-derives every type and interval. With ``model`` the
    outputs are compared with the float model's as well. With ``nodes``, or where an output differs, every
    node is looked at on the first samples (:mod:`intc.report.nodes`).
    """
    manifest, graph = read_graph(path, trusted_keys=trusted_keys)
    data = with_empty_states(data, manifest)
    result = Verification(samples=count(data, manifest.inputs), digest=probe_digest(graph))
    result.float_values, result.float_operators = float_values(graph), float_operators(graph)
    container = Container(Path(path))
    kernels = bytes(container.member(manifest.kernels))
    tell("machine code")
    code = gpu.gpu_code(kernels) if manifest.gpu else machine_code(kernels)
    if code is None:
        result.unread = _why_unread(manifest)
    else:
        result.float_instructions = list(code.floats)
    stored = stored_certificate(container)
    tell("certificate")
    result.certificate = disagreements(stored, certificate(graph, code), manifest.gpu)
    groups = list(batches(data, manifest.inputs, BATCH))
    alone = Session(path, trusted_keys=trusted_keys, device=device)
    for feeds in groups:
        alone.prepare(feeds)  # refuses what no session takes
    tell("reference")
    expected = [reference(graph, feeds, result.outside_interval) for feeds in groups]
    further = _continued(manifest, graph, groups[0], expected[0])
    if further is not None:
        groups.append(further)
        expected.append(reference(graph, further, result.outside_interval))
    for threads in (1,) if manifest.gpu else (1, 2):
        tell(f"kernels, {threads} thread(s)")
        session = alone if threads == 1 else Session(path, threads=threads, trusted_keys=trusted_keys)
        result.digests.append(_digest_of(session, graph))
        result.runs.append(_compare(session, groups, expected, threads))
        if not isinstance(manifest.inputs[0].shape[0], int):
            singles = list(batches(groups[0], manifest.inputs, 1))[:SINGLES]
            rows = [[a[i : i + 1] for a in expected[0]] for i in range(len(singles))]
            result.runs.append(_compare(session, singles, rows, threads))
    if model is not None:
        tell("float model")
        result.fidelity = _fidelity(manifest, graph, expected, Reference(model), groups)
    if nodes or not result.bit_exact:
        tell("every node")
        few = next(iter(batches(groups[0], manifest.inputs, SINGLES)))
        result.nodes = check_nodes(graph, manifest.target, few, model)
        result.first_divergence = first_divergence(result.nodes)
    return result


def _why_unread(manifest: Manifest) -> str:
    """Why the kernels were not disassembled."""
    if not manifest.gpu:
        return "they are for another processor"
    return gpu.MISSING if gpu.disassembler() is None else "cuobjdump finds no code of a GPU in them"


def _digest_of(session: Session, graph: Graph) -> str:
    """The digest of the kernels' outputs on the graph's probe."""
    names = [port.name for port in session.manifest.inputs]
    feeds = dict(zip(names, probe_feeds(graph).values(), strict=True))
    return digest(session.run(None, feeds, raw=True))


def _continued(manifest: Manifest, graph: Graph, feeds: Feeds, outputs: list[Array]) -> Feeds | None:
    """``feeds`` once more, behind the states that they led to; None where the model has none, or no room."""
    if not manifest.states:
        return None
    names = [p.name for p in manifest.outputs]
    again = {**feeds, **{source: outputs[names.index(target)] for source, target in manifest.states}}
    try:
        graph.bind(again)
    except FeedError:
        return None
    return again


def reference(graph: Graph, feeds: Feeds, outside: list[str]) -> list[Array]:
    """The exact integer outputs; names of values that leave their interval are appended to ``outside``."""

    def observe(value: Value, array: Array) -> None:
        lo, hi = value.type.interval
        if array.size and (int(array.min()) < lo or int(array.max()) > hi) and value.name not in outside:
            outside.append(value.name)

    raw = {name: quantize_feed(graph.values[name], feeds[name]) for name in graph.inputs}
    results = graph.run(raw, observe)
    return [results[name] for name in graph.outputs]


def _compare(
    session: Session, groups: list[Feeds], expected: list[list[Array]], threads: int
) -> dict[str, Any]:
    """One line of the report: how many output elements differ, and in which outputs. On a GPU everything
    runs twice, since sizes are captured when they come again.
    """
    names = [p.name for p in session.get_outputs()]
    different: dict[str, int] = {}
    pairs = list(zip(groups, expected, strict=True))
    for feeds, want in pairs * (2 if session.gpu else 1):
        for name, got, exact in zip(names, session.run(None, feeds, raw=True), want, strict=True):
            wrong = int(np.count_nonzero(got != exact)) if got.shape == exact.shape else exact.size
            if wrong:
                different[name] = different.get(name, 0) + wrong
    batch = len(next(iter(groups[0].values())))
    return {
        "threads": threads,
        "device": session.device,
        "batch": batch,
        "batches": len(groups),
        "differences": different,
    }


def _fidelity(
    manifest: Manifest, graph: Graph, expected: list[list[Array]], model: Reference, groups: list[Feeds]
) -> dict[str, dict[str, float]]:
    theirs = [dict(zip(model.outputs, model.run(feeds), strict=True)) for feeds in groups]
    out = {}
    for i, port in enumerate(manifest.outputs):
        if any(port.name not in t for t in theirs):
            continue
        value = graph.values[graph.outputs[i]]
        ours = [dequantize(value, e[i]) for e in expected]
        real = [t[port.name] for t in theirs]
        out[port.name] = fidelity(_rows(ours), _rows(real))
    return out


def _rows(arrays: list[Array]) -> Array:
    return np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])
