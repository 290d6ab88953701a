"""Where the integer model differs from the float one, value by value, and why.

Both graphs run in lockstep on the same samples. Every integer value that stands for a real quantity (it has a
scale, and the float graph has a value of its name) is compared with that quantity as soon as both exist, and
dropped after its last reader: what is held is what the two models hold, never all activations.
:mod:`intc.report.tally` says which errors are told apart.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from intc.calibration.readers import Feeds, open_feeds
from intc.ir.dims import Dim, Poly
from intc.ir.graph import Graph, dequantize, quantize_feed
from intc.ir.op import Array
from intc.ops.movement import Gather
from intc.passes.integer.families import FAMILIES
from intc.report.macs import node_macs
from intc.report.matching import centres, has_row_sums, matches, operator
from intc.report.reference import fidelity_of
from intc.report.tally import OWN, Tally

SCHEMA: Final = 1
SAMPLES: Final = 8
BATCH: Final = 4
WIDTH: Final = {"bool": 1, "uint8": 8, "int8": 8, "int16": 16, "int32": 32, "int64": 64}
_FAMILY: Final = re.compile(r"shift(?=_|max)|poly|ivit|ibert|lut|table")


@dataclass(frozen=True)
class NodeReport:
    """One value of the integer graph. dB and cosine are None where there is no error, or no signal.

    ``stored_db``, ``isolated_db`` and ``accumulated_db`` are signal-to-error ratios; ``clip_rate`` the share
    of elements at an end of the interval, ``outside`` the share of float elements beyond it; ``range_used``
    the share of the interval that occurred; ``shares`` divides the accumulated error among its causes.
    ``histogram`` counts the float value in units of the scale, evenly between its ``lo`` and ``hi``.
    """

    name: str
    op: str
    source: str
    family: str
    dtype: str
    width: int
    interval: tuple[int, int]
    scale: tuple[float, float]
    channels: int
    stored_db: float | None
    isolated_db: float | None
    accumulated_db: float | None
    cosine: float | None
    max_error: float
    max_error_isolated: float
    clip_rate: float
    outside: float
    range_used: float
    float_range: tuple[float, float]
    macs: int
    cost_share: float
    shares: dict[str, float]
    histogram: dict[str, Any] = field(repr=False)

    @property
    def cause(self) -> str:
        """The largest part of the node's own error, in words."""
        own = {cause: self.shares[cause] for cause in OWN}
        if not any(own.values()):
            return "no error of its own"
        computing = f"{self.family} approximation, operands" if self.family else "rounded operands"
        words = {"rounding": f"rounding to {self.width} bits", "computing": computing}
        largest = max(OWN, key=lambda c: own[c])
        return words.get(largest, largest)

    def summary(self) -> dict[str, Any]:
        """The JSON form, without the histogram."""
        out = {k: v for k, v in vars(self).items() if k != "histogram"}
        return {
            **out,
            "interval": [*self.interval],
            "scale": [*self.scale],
            "cause": self.cause,
            "float_range": [*self.float_range],
        }


@dataclass(frozen=True)
class Report:
    """Every compared value in the order of computation, and the outputs' fidelity by name.

    ``settings`` is what the model was compiled from and with.
    """

    settings: dict[str, Any]
    samples: int
    outputs: dict[str, dict[str, float | None]]
    nodes: tuple[NodeReport, ...]

    def worst(self, count: int = 10) -> list[NodeReport]:
        """The nodes with the smallest isolated SQNR."""
        own = [n for n in self.nodes if n.isolated_db is not None]
        return sorted(own, key=lambda n: n.isolated_db or 0.0)[:count]

    def html(self, plans: Sequence[Mapping[str, Any]] = ()) -> str:
        """One self-contained document; see :func:`intc.report.accuracy_html.report_html`."""
        from intc.report.accuracy_html import report_html

        return report_html(self, plans)

    def summary(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "schema": SCHEMA,
            "settings": self.settings,
            "samples": self.samples,
            "outputs": self.outputs,
            "nodes": [node.summary() for node in self.nodes],
        }


def measure(
    source: Graph,
    integer: Graph,
    batches: Iterable[Mapping[str, Array]],
    output_names: Iterable[str],
    settings: Mapping[str, Any],
    tell: Callable[[str], None] | None = None,
) -> Report:
    """Compare ``integer`` with the canonical float graph ``source`` that it was made from."""
    matched = matches(source, integer)
    producers = integer.producers()
    middles = centres(integer, matched)
    tallies = {
        name: Tally(integer.values[name], has_row_sums(producers.get(name)), middles.get(real, 0.0))
        for name, real in matched.items()
    }
    results: dict[str, list[tuple[Array, Array]]] = {name: [] for name in output_names}
    samples = 0
    for number, feeds in enumerate(batches, start=1):
        if tell:
            tell(f"accuracy (batch {number})")
        floats, integers = _lockstep(source, integer, feeds, matched, tallies)
        for name, x, q in zip(results, source.outputs, integer.outputs, strict=True):
            results[name].append((dequantize(integer.values[q], integers[q]), floats[x]))
        samples += samples_in(source, feeds)
    total = sum(t.macs for t in tallies.values())
    theirs = {node.output: node.source for node in source.nodes}
    ours = {node.output: node.source for node in integer.nodes}
    nodes = []
    for name, tally in tallies.items():
        origin = ours.get(name, "") or theirs.get(matched[name], "")
        op = operator(integer, name, matched, producers)
        nodes.append(_node_report(tally, op, origin, samples, total))
    return Report(
        dict(settings), samples, {n: _fidelity(pairs) for n, pairs in results.items()}, tuple(nodes)
    )


def bounded(
    graph: Graph, feeds: Feeds, samples: int = SAMPLES, batch: int = BATCH
) -> Iterator[dict[str, Array]]:
    """Checked batches of at most ``batch`` samples of ``feeds`` for ``graph``, ``samples`` samples in all.

    Where the model's batch size is fixed, whole batches of that size, one at least.
    """
    taken = 0
    for feed in open_feeds(graph, feeds, batch):
        start = 0
        while start < samples_in(graph, feed):
            if taken >= samples:
                return
            part = cut(graph, feed, start, min(batch, samples - taken))
            start += samples_in(graph, part)
            taken += samples_in(graph, part)
            yield part


def cut(graph: Graph, feed: Mapping[str, Array], start: int, count: int) -> dict[str, Array]:
    """``count`` samples of a batch from ``start`` on; all of it where it has no samples of its own."""
    size, rows = batch_size(graph), slice(start, start + count)
    if size is None:
        return dict(feed)
    return {
        name: array[rows] if graph.type(name).shape[:1] == (size,) else array for name, array in feed.items()
    }


def samples_in(graph: Graph, feed: Mapping[str, Array]) -> int:
    """The number of samples of a batch, which lie along the first input's first axis."""
    first = feed[graph.inputs[0]]
    return len(first) if first.ndim and not _linked(graph) else 1


def batch_size(graph: Graph) -> Dim | None:
    """The free size of the first input's first axis, along which samples lie; None where it is fixed, or
    rows are linked.
    """
    first = graph.type(graph.inputs[0]).shape
    return first[0] if first and isinstance(first[0], Poly) and not _linked(graph) else None


def _linked(graph: Graph) -> bool:
    """Whether an input says which rows along the first input's first axis are read: edges between nodes, not
    samples.
    """
    first, live = graph.type(graph.inputs[0]).shape[:1], set(graph.inputs)
    for node in graph.nodes:
        if isinstance(node.op, Gather) and node.inputs[1] in live:
            axis = node.op.axis
            if graph.type(node.inputs[0]).shape[axis : axis + 1] == first and node.inputs[0] in live:
                return True
        if not live.isdisjoint(node.inputs):
            live.add(node.output)
    return False


# ---------------------------------------------------------------- evaluation


class _Held(dict[str, Array]):
    """Arrays by name, each forgotten after its last read; ``reads`` says how often each is read."""

    def __init__(self, constants: Mapping[str, Array], reads: Counter[str]) -> None:
        super().__init__(constants)
        self._constants, self._reads = constants, reads

    def store(self, name: str, array: Array) -> None:
        if self._reads[name]:
            self[name] = array

    def read(self, name: str) -> Array:
        array = self[name]
        if name not in self._constants:
            self._reads[name] -= 1
            if not self._reads[name]:
                del self[name]
        return array


class _FloatWalk:
    """The float graph on one feed, computed no further than asked; each ``taken`` value is read once more."""

    def __init__(self, graph: Graph, feeds: Mapping[str, Array], taken: Iterable[str]) -> None:
        self._held = _Held(graph.constants, _reads(graph) + Counter(taken))
        self._sizes, self._nodes = graph.bind(feeds), iter(graph.nodes)
        for name in graph.inputs:
            self._held.store(name, np.asarray(feeds[name]))

    def take(self, name: str) -> Array:
        while name not in self._held:
            node = next(self._nodes)
            inputs = [self._held.read(x) for x in node.inputs]
            self._held.store(node.output, node.op.evaluate(*inputs, sizes=self._sizes))
        return self._held.read(name)


def _reads(graph: Graph) -> Counter[str]:
    return Counter([*(x for node in graph.nodes for x in node.inputs), *graph.outputs])


def _lockstep(
    source: Graph,
    integer: Graph,
    feeds: Mapping[str, Array],
    matched: Mapping[str, str],
    tallies: Mapping[str, Tally],
) -> tuple[dict[str, Array], dict[str, Array]]:
    """One batch through both graphs; returns the float and the integer outputs by name.

    ``alone`` holds, beside each integer value, the integers that its real quantity would ideally be; a value
    that stands for none is computed from such ideal operands.
    """
    walk = _FloatWalk(source, feeds, matched.values())
    sizes = integer.bind(feeds)
    live, alone = (_Held(integer.constants, _reads(integer)) for _ in range(2))
    macs: Counter[str] = Counter()  # of values that stand for nothing: counted where they become something

    def arrive(name: str, actual: Array, isolated: Array) -> None:
        if name in matched:
            isolated = tallies[name].add(walk.take(matched[name]), actual, isolated)
        live.store(name, actual)
        alone.store(name, isolated)

    for name in integer.inputs:
        quantised = quantize_feed(integer.values[name], np.asarray(feeds[name]))
        arrive(name, quantised, quantised)
    for node in integer.nodes:
        inputs = [live.read(x) for x in node.inputs]
        ideal = [alone.read(x) for x in node.inputs]
        actual = node.op.evaluate(*inputs, sizes=sizes)
        same = all(a is b for a, b in zip(inputs, ideal, strict=True))
        isolated = actual if same else node.op.evaluate(*ideal, sizes=sizes)
        macs[node.output] = node_macs(integer, node, sizes) + sum(macs.pop(x, 0) for x in node.inputs)
        if node.output in matched:
            tallies[node.output].macs += macs.pop(node.output)
        arrive(node.output, actual, isolated)
    return {x: walk.take(x) for x in dict.fromkeys(source.outputs)}, {q: live[q] for q in integer.outputs}


def _fidelity(pairs: list[tuple[Array, Array]]) -> dict[str, float | None]:
    return {k: v if np.isfinite(v) else None for k, v in fidelity_of(pairs).items()}


def _family(op: str) -> str:
    """The family that ``op`` approximates in; empty where it approximates nothing."""
    if found := _FAMILY.match(op):
        return {"table": "lut"}.get(found[0], found[0])
    return next((name for name, family in FAMILIES.items() if op in (o.name for o in family.ops)), "")


def _node_report(tally: Tally, op: str, source: str, samples: int, total: int) -> NodeReport:
    value = tally.value
    low, high = tally.span or (0.0, 1.0)
    return NodeReport(
        name=value.name,
        op=op,
        source=source,
        family=_family(op),
        dtype=value.type.dtype,
        width=WIDTH[value.type.dtype],
        interval=value.type.interval,
        scale=tally.scale if tally.count else (0.0, 0.0),
        channels=len(value.scale) if isinstance(value.scale, tuple) else 1,
        stored_db=tally.decibels(tally.stored),
        isolated_db=tally.decibels(tally.isolated),
        accumulated_db=tally.decibels(tally.accumulated),
        cosine=tally.cosine,
        max_error=tally.worst,
        max_error_isolated=tally.worst_isolated,
        clip_rate=tally.at_ends / max(tally.count, 1),
        outside=tally.outside / max(tally.count, 1),
        range_used=tally.used,
        float_range=(tally.float_lo, tally.float_hi) if tally.count else (0.0, 0.0),
        macs=tally.macs // max(samples, 1),
        cost_share=tally.macs / total if total else 0.0,
        shares=tally.shares(),
        histogram={"lo": low, "hi": high, "counts": tally.bins.tolist()},
    )
