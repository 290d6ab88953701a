"""``intc bench --profile``: where an inference spends its time, stage by stage, against the core's peak.

For a CPU the artifact's graph is compiled once more with a cycle counter read after every stage; the kernels
are the same. On a GPU every kernel of the artifact is timed alone, between events of the device.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from intc.codegen.lower import lower, outlined, staged
from intc.codegen.program import nbytes
from intc.codegen.targets import resolve
from intc.errors import UsageError
from intc.ir.dims import evaluate
from intc.ir.graph import Graph, Node
from intc.ir.op import Array
from intc.module import Module
from intc.report.data import Feeds
from intc.report.macs import node_macs
from intc.report.reading import read_graph
from intc.runtime import Session
from intc.runtime.native import aligned_like
from intc.runtime.workspace import address

WARM_UP: Final = 2


@dataclass(frozen=True)
class StageTime:
    """One stage: its median time, multiply-accumulates and the bytes of its operands and result."""

    kernel: str
    node: str
    output: str
    seconds: float
    macs: int
    bytes: int


class _Counted(Session):
    """A session of a library with cycle counts; ``ticks`` are those of the last run."""

    ticks: Array

    def call_arguments(self, addresses: Sequence[ctypes.c_void_p], symbols: Sequence[int]) -> tuple[Any, ...]:
        return (*super().call_arguments(addresses, symbols), ctypes.c_void_p(address(self.ticks)))


def profile(path: str | Path, feeds: Feeds, threads: int, seconds: float) -> list[StageTime]:
    """The stages in order. With several threads a stage's time ends when the first of them has finished."""
    manifest, graph = read_graph(path)
    lowered = lower(graph, manifest.target, ticks=True)
    with tempfile.TemporaryDirectory(prefix="intc-") as folder:
        file = Path(folder) / "profile.intc"
        names = tuple(p.name for p in manifest.outputs)
        Module(graph, graph, lowered, names, dict(manifest.provenance)).save(file)
        session = _Counted(file, threads=threads)
    session.ticks = aligned_like((len(lowered.stages) + 1,), "int64")
    rounds: list[Array] = []
    for _ in range(WARM_UP):
        session.run(None, feeds)
    first, start = int(session.ticks[-1]), time.perf_counter()
    while time.perf_counter() < start + seconds or len(rounds) < 3:
        session.run(None, feeds)
        rounds.append(np.diff(session.ticks))
    rate = (time.perf_counter() - start) / (int(session.ticks[-1]) - first)
    inside = outlined(graph, lowered.target).within
    times = (np.median(rounds, axis=0) * rate).tolist()
    return stage_times(graph, inside, lowered.stages, times, graph.bind(feeds))


def gpu_profile(path: str | Path, session: Session, sizes: Mapping[str, int]) -> list[StageTime]:
    """The kernels in order, on the inputs of the session's last run at these sizes. UsageError where this
    version of intc would launch others than the artifact does.
    """
    manifest, graph = read_graph(path)
    program, _ = staged(graph, resolve(manifest.target))
    ours = [[choice.kernel for choice in stage.launches] for stage in program.stages]
    if ours != [[choice.kernel for choice in launch.choices] for launch in manifest.program.launches]:
        raise UsageError(f"{path}: compiled by another version of intc; recompile it to see its stages")
    assert session.gpu
    captured = session.gpu.graph([sizes[s] for s in manifest.symbols])
    stages = [
        (work.choice.kernel, stage.source, stage.writes)
        for work, stage in zip(captured.work, program.stages, strict=True)
    ]
    times = [ms / 1e3 for ms in captured.profile()]
    return stage_times(graph, program.within, stages, times, sizes)


def stage_times(
    graph: Graph,
    inside: frozenset[str],
    stages: Sequence[tuple[str, str, tuple[str, ...]]],
    times: Sequence[float],
    sizes: Mapping[str, int],
) -> list[StageTime]:
    """``stages`` are (kernel, source, outputs); no memory holds the values ``inside``."""
    producers, found = graph.producers(), []
    for (kernel, source, outputs), seconds in zip(stages, times, strict=True):
        nodes = [producers[name] for name in outputs if name in producers]  # none: a copy to a graph output
        computed = {n.output: n for node in nodes for n in _computed(producers, node, inside)}
        macs = sum(node_macs(graph, n, sizes) for n in computed.values())
        read = [x for node in nodes for x in _operands(producers, node, inside)]
        moved = _moved(graph, [*read, *outputs], sizes) if nodes else 0
        found.append(StageTime(kernel, source or outputs[0], outputs[0], seconds, macs, moved))
    return found


def _computed(nodes: Mapping[str, Node], node: Node, inside: frozenset[str]) -> Iterator[Node]:
    """``node`` and what computes the values ``inside`` its kernel."""
    yield node
    for x in node.inputs:
        if x in inside:
            yield from _computed(nodes, nodes[x], inside)


def _operands(nodes: Mapping[str, Node], node: Node, inside: frozenset[str]) -> Iterator[str]:
    """What the kernel that computes ``node`` and the values ``inside`` it reads."""
    for x in node.inputs:
        if x in inside:
            yield from _operands(nodes, nodes[x], inside)
        else:
            yield x


def _moved(graph: Graph, names: Sequence[str], sizes: Mapping[str, int]) -> int:
    """Bytes of these values, each counted once."""
    return sum(int(evaluate(nbytes(graph.type(n)), sizes)) for n in dict.fromkeys(names))
