"""From a start and a goal to a plan: measure, solve, judge the integer graph itself, tighten, repeat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any, Final

import numpy as np

from intc.calibration.histogram import Calibrator
from intc.calibration.observers import Statistics
from intc.codegen.targets import Target as Processor
from intc.errors import AccuracyNotReached, UsageError
from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.passes.integer.families import FAMILIES
from intc.passes.integer.noise import Seen
from intc.passes.integer.rounding import Rounding
from intc.passes.integerise import Integerise
from intc.passes.plan import ACTIVATION_BITS, WEIGHT_BITS, Choice, Plan, Resolved, is_linear
from intc.planning.latency import costs
from intc.planning.padding import Where
from intc.planning.search import Table, solve
from intc.planning.sensitivity import (
    MEASURES,
    Measure,
    Options,
    Probe,
    Tell,
    Unit,
    measure_noises,
    units_of,
)
from intc.planning.target import Predicate, Target
from intc.report.accuracy import batch_size, cut, samples_in

MEASURED_SAMPLES: Final = 2
JUDGED_SAMPLES: Final = 8
OTHERS: Final = 4
ROUNDS: Final = 16
TIGHTEN: Final = 0.7  # of the noise budget, after a plan that missed the target


@dataclass(frozen=True)
class Goal:
    """``target``: what must be reached, at the least latency; without one the least noise is sought within
    ``max_slowdown`` (times the start's latency). ``max_bytes`` bounds the weights of the products.
    """

    target: Target | Predicate | None = None
    max_slowdown: float = 1.1
    max_bytes: int | None = None


@dataclass(frozen=True)
class Search:
    """How ``bits="auto"`` and accuracy targets search: limits as in :class:`Goal`, ``families`` the
    approximations to try for softmax and GELU, ``sensitivity`` as in :class:`Options`; ``weights`` and
    ``activations`` the widths to try of products, the former for ``bits="auto"`` alone.
    """

    max_slowdown: float = 1.1
    max_bytes: int | None = None
    families: tuple[str, ...] = ()
    sensitivity: Measure = "output"
    weights: tuple[int, ...] = (4, 8)
    activations: tuple[int, ...] = ACTIVATION_BITS

    def __post_init__(self) -> None:
        if self.sensitivity not in MEASURES:
            raise UsageError(f"sensitivity '{self.sensitivity}' is not one of {', '.join(MEASURES)}")
        wrong = next((f for f in self.families if f not in FAMILIES), None)
        if wrong:
            raise UsageError(f"approximation '{wrong}' is not one of {', '.join(FAMILIES)}")
        for name, allowed in (("weights", WEIGHT_BITS), ("activations", ACTIVATION_BITS)):
            if not set(getattr(self, name)) <= set(allowed):
                raise UsageError(f"{name}={getattr(self, name)}: expected some of {allowed}")
        if not self.max_slowdown >= 1:
            raise UsageError(
                f"max_slowdown={self.max_slowdown}: expected 1 or more, times the latency at 8 bits"
            )
        if self.max_bytes is not None and self.max_bytes < 1:
            raise UsageError(f"max_bytes={self.max_bytes}: expected a positive number of bytes")


@dataclass(frozen=True)
class Planned:
    """The plan with what is known of it: a row per judged plan, and the predictions of the programme."""

    plan: Plan
    report: dict[str, Any] = field(default_factory=dict)


@dataclass
class Planner:
    """Everything that is needed to judge a plan of one canonical graph."""

    graph: Graph
    stats: dict[str, Statistics]
    samples: Sequence[Mapping[str, Array]]
    processor: Processor
    family: str = "auto"
    calibrator: Calibrator = "mse"
    rounding: Rounding = "gptq"
    tell: Tell = lambda step: None
    floats: list[tuple[list[Where], list[Array]]] = field(default_factory=list)

    @property
    def seen(self) -> Seen:
        """What calibration saw."""
        return Seen(self.stats, self.calibrator)

    def search(self, start: Plan | None, search: Search, target: Target | Predicate | None) -> Planned:
        """Every width and family (``start`` None: ``bits="auto"``), or ``start`` widened where needed."""
        weights = search.weights if start is None else ()
        options = Options(weights, search.activations, search.families, search.sensitivity)
        return self.run(start or Plan(), options, Goal(target, search.max_slowdown, search.max_bytes))

    def run(self, start: Plan, options: Options, goal: Goal) -> Planned:
        """A plan that reaches ``goal``; AccuracyNotReached with every plan judged, if none does."""
        tried: list[dict[str, float | str]] = []
        if (
            goal.target is not None
            and goal.max_bytes is None
            and self.judge(start, "start", goal.target, tried)
        ):
            return Planned(start, {"judged": tried})
        units = units_of(self.graph, start, self.family, options, self.seen)
        table, complete = self.table(units, options)
        base = [0] * len(units)
        report: dict[str, Any] = {"judged": tried, "complete": complete}
        for picks in self.candidates(table, base, goal):
            plan = self.plan_of(start, units, picks)
            report["predicted"] = self.summary(table, picks, base)
            if goal.target is None:
                return Planned(plan, report)
            if self.judge(plan, f"plan {len(tried)}", goal.target, tried):
                return Planned(plan, report)
        if goal.target is None:
            raise UsageError(f"no plan keeps the limits {_limits(goal)}; raise them")
        raise AccuracyNotReached(_failure(self.graph.name, goal, tried), tried)

    def table(self, units: Sequence[Unit], options: Options) -> tuple[Table, bool]:
        """The programme's coefficients."""
        feeds = self.samples[:MEASURED_SAMPLES]
        seconds = costs(
            Probe(self.graph, self.stats, self.calibrator, feeds[0]), units, self.processor, self.tell
        )
        noises = measure_noises(
            self.graph, self.stats, self.calibrator, feeds, units, options.measure, self.tell
        )
        noise = [[0.0, *row[1:]] if np.isinf(row[0]) else row for row in noises.table]
        size = [[self.weight_bytes(u, c) for c in u.choices] for u in units]
        bits = [[self.bit_work(u, c) for c in u.choices] for u in units]
        return Table(noise, seconds, size, bits), noises.complete

    def candidates(self, table: Table, base: list[int], goal: Goal) -> Any:
        """Solutions in order of falling noise."""
        latency = table.total(table.seconds, base) * goal.max_slowdown
        if goal.target is None:
            picks = solve(table, max_seconds=latency, max_bytes=goal.max_bytes)
            yield from [] if picks is None else [picks]
            return
        start = table.total(table.noise, base)
        budget = min(goal.target.noise, start) if isinstance(goal.target, Target) else start
        last: list[int] | None = base if goal.max_bytes is None else None
        for _ in range(ROUNDS):
            picks = solve(table, max_noise=budget, max_bytes=goal.max_bytes)
            if picks is None:
                break
            if picks != last:
                yield picks
            last, budget = picks, min(budget, table.total(table.noise, picks)) * TIGHTEN
        picks = solve(table, max_bytes=goal.max_bytes)  # the least noise there is
        if picks is not None and picks != last:
            yield picks

    def judge(
        self, plan: Plan, name: str, target: Target | Predicate, tried: list[dict[str, float | str]]
    ) -> bool:
        """Whether the integer graph of ``plan`` meets ``target``; a row is added to ``tried``."""
        self.tell(f"judge {name}")
        graph = Integerise(self.stats, self.family, self.calibrator, self.rounding, plan).run(self.graph)
        if not isinstance(target, Target):
            met = bool(target(graph.evaluate))
            tried.append({"plan": name, "met": str(met)})
            return met
        value = target.mean([target.value(*self.outputs(graph, i)) for i in range(len(self.samples))])
        tried.append({"plan": name, target.metric: round(value, 6)})
        return value >= target.threshold

    def outputs(self, integer: Graph, sample: int) -> tuple[list[Array], list[Array]]:
        """What counts of the float outputs of a sample, and of those of the ``integer`` graph."""
        kept, wanted = self.wanted(sample)
        got = integer.evaluate(self.samples[sample])
        pairs = [(a, b[where]) for a, b, where in zip(wanted, got, kept, strict=True)]
        real = [pair for pair in pairs if pair[0].dtype.kind == "f"] or pairs
        return [a for a, _ in real], [b for _, b in real]

    def wanted(self, sample: int) -> tuple[list[Where], list[Array]]:
        """The positions that count of each output of a sample, and the float outputs there."""
        for feeds in self.samples[len(self.floats) : sample + 1]:
            probe = Probe(self.graph, self.stats, self.calibrator, feeds)
            kept = [probe.counted.get(n, ...) for n in self.graph.outputs]
            outputs = (probe.values[n] for n in self.graph.outputs)
            self.floats.append((kept, [a[where] for where, a in zip(kept, outputs, strict=True)]))
        return self.floats[sample]

    def plan_of(self, start: Plan, units: Sequence[Unit], picks: Sequence[int]) -> Plan:
        """``start`` with the picked choices of the units that change."""
        nodes: dict[str, Choice] = {}
        for unit, c in zip(units, picks, strict=True):
            if c:
                nodes |= unit.plan(c)
        return Plan({**start.nodes, **nodes}, start.default)

    def products(self, unit: Unit) -> list[tuple[int, int]]:
        """K and N of every product in ``unit``."""
        return [self.graph.constants[n.inputs[1]].shape for n in unit.nodes if is_linear(self.graph, n)]

    def weight_bytes(self, unit: Unit, choice: Choice) -> float:
        return sum(k * n for k, n in self.products(unit)) * (choice.weights or 8) / 8

    def bit_work(self, unit: Unit, choice: Choice) -> float:
        bits = (choice.weights or 8) + (choice.activations or 8)
        return float(sum(k * n for k, n in self.products(unit)) * bits)

    def summary(self, table: Table, picks: Sequence[int], base: Sequence[int]) -> dict[str, float]:
        """What the programme expects of ``picks``."""
        seconds = table.total(table.seconds, base)
        return {
            "noise": table.total(table.noise, picks),
            "noise_of_start": table.total(table.noise, base),
            "latency_ratio": table.total(table.seconds, picks) / seconds if seconds else 1.0,
            "weight_bytes": table.total(table.size, picks),
        }


def singly(graph: Graph, feeds: Iterable[Mapping[str, Array]]) -> list[Mapping[str, Array]]:
    """The samples of ``feeds`` one by one where the batch size is free, at most JUDGED_SAMPLES."""
    every = [graph.type(name).shape[0] for name in graph.inputs if graph.type(name).rank]
    free = batch_size(graph) is not None and not any(isinstance(size, int) for size in every)
    out: list[Mapping[str, Array]] = []
    for batch in feeds:
        count = min((len(a) for a in batch.values() if a.ndim), default=1)
        out += [{n: a[i : i + 1] for n, a in batch.items()} for i in range(count)] if free else [batch]
    return out[:JUDGED_SAMPLES]


def held_apart(graph: Graph, feeds: Iterable[dict[str, Array]]) -> Iterator[dict[str, Array]]:
    """``feeds`` for calibration without the first JUDGED_SAMPLES, which judge plans; all of them where fewer
    than OTHERS times as many would be left.
    """
    feeds, count = iter(feeds), 0
    waiting: list[dict[str, Array]] = []
    while count < JUDGED_SAMPLES * (1 + OTHERS):
        feed = next(feeds, None)
        if feed is None:
            yield from waiting
            return
        waiting.append(feed)
        count += samples_in(graph, feed)
    apart = 0
    for feed in chain(waiting, feeds):
        size, first = samples_in(graph, feed), JUDGED_SAMPLES - apart
        if first <= 0:
            yield feed
        elif first < size:
            rest = cut(graph, feed, first, size)
            if samples_in(graph, rest) < size:  # else the model's batch size is fixed
                yield rest
        apart += size


def wide_share(graph: Graph, plan: Plan) -> float:
    """The share of the products' weights, hence of their multiply-accumulates per row, that read more than 8
    bits.
    """
    resolved: Resolved = plan.resolve(graph)
    work = {True: 0, False: 0}
    for node in graph.nodes:
        if is_linear(graph, node):
            k, n = graph.constants[node.inputs[1]].shape
            work[resolved.activations(node, k) > 8] += k * n
    return work[True] / max(sum(work.values()), 1)


def _limits(goal: Goal) -> str:
    return ", ".join(f"{k}={v}" for k, v in asdict(goal).items() if v is not None)


def _failure(name: str, goal: Goal, tried: Sequence[Mapping[str, float | str]]) -> str:
    rows = "; ".join(" ".join(f"{k} {v}" for k, v in row.items()) for row in tried)
    wanted = str(goal.target) if isinstance(goal.target, Target) else "the given predicate"
    return f"{name}: no plan reaches {wanted} (judged: {rows}); lower the target or allow more"
