"""What a model loses with 8 bits, and more bits where that is too much."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, Final

import numpy as np

from intc.ir.graph import Graph, Node
from intc.ir.op import Array
from intc.ops.logic import Equal, Less, LessOrEqual
from intc.ops.reduce import ArgMax
from intc.passes.plan import Choice, Plan
from intc.planning.planner import Goal, Planned, Planner
from intc.planning.search import Table, solve
from intc.planning.sensitivity import Options, Unit, measure_noises, units_of
from intc.planning.target import Target
from intc.report.accuracy import bounded
from intc.report.macs import node_macs

FLOOR: Final = 20.0  # dB
SPARE: Final = 3.0  # dB that calibration samples may flatter
NEAR: Final = 24.0  # dB, below which what little more work buys is taken
CLEAR: Final = 27.0  # dB of two batches or more, after which no other is looked at
AT_ONCE: Final = 33.0  # dB of the first one, after which no other is
SAMPLES: Final = 16  # in batches of BATCH
BATCH: Final = 4
MEASURED: Final = 2  # batches, of every choice alone
ERRATIC: Final = (
    10**0.8
)  # times the median sample's noise: a mean that few samples make, which chose otherwise
HELD: Final = 0.1  # of the gain that was estimated; with less, what is judged hangs on chance
WORTH: Final = 1 / 8  # of the work with 8 bits, which may be spent on more than the floor
STAGES: Final = (Options((), (8, 16)), Options((8, 16), (8, 16), values=(8, 16)))


def lifted(planner: Planner, integer: Graph) -> Planned:
    """8 bits where the outputs of ``integer``, which has them, keep ``NEAR``; else the least noise that
    ``WORTH`` more work buys; where that does not keep ``FLOOR`` a plan that does for the least work, or the
    best that was found. Where a plan gains next to nothing of what was estimated, as where one number decides
    which others count, no estimate tells what unseen samples lose: all nodes at their widest are tried.

    Where the outputs depend on choices, of the largest or by order, few samples show little: all are looked
    at. If few of them make the noise, because they chose otherwise, all nodes are at their widest at once.

    What is judged is the exact integer graph, on ``planner.samples``, unless all outputs are classes. Nothing
    is timed, so that the plan does not depend on the target.
    """
    if not any(planner.graph.type(name).is_float for name in planner.graph.outputs):
        return Planned(Plan())
    planner.tell("accuracy with 8 bits")
    wanted = Target("sqnr", FLOOR + SPARE)
    values, noises = [], list[float]()
    chooses = any(_chooses(planner.graph, n) for n in planner.graph.nodes)
    for i in range(len(planner.samples)):
        outputs = planner.outputs(integer, i)
        values.append(wanted.value(*outputs))
        noises += _each(*outputs)
        if not chooses and wanted.mean(values) >= (CLEAR if i else AT_ONCE):
            return Planned(Plan())
    reached = wanted.mean(values)
    if reached >= NEAR:
        return Planned(Plan())
    plans: list[Plan] = [Plan()]
    judged: list[dict[str, Any]] = [{"plan": "8 bits", "sqnr": round(reached, 6)}]

    def meets(units: list[Unit], picks: list[int]) -> bool:
        plans.append(planner.plan_of(Plan(), units, picks))
        return planner.judge(plans[-1], f"{len(plans[-1].nodes)} nodes wider", wanted, judged)

    blind = chooses and bool(noises) and float(np.mean(noises)) > ERRATIC * float(np.median(noises))
    widest: list[int] = []
    for options in STAGES:
        found = units_of(planner.graph, Plan(), planner.family, options, planner.seen)
        units = [u for u in found if len(u.choices) > 1]
        work = _work_of(planner, units)
        widest = [int(np.argmax(row)) for row in work]
        if blind:
            continue
        table = _table(planner, units, work)
        start = [0] * len(units)
        known = table.total(table.noise, start) * 10 ** (reached / 10)  # the share of the noise explained
        if not known:
            continue
        goal = Goal(replace(wanted, threshold=wanted.threshold - 10 * math.log10(known)))
        near = reached >= wanted.threshold
        for picks in [start] if near else planner.candidates(table, start, goal):
            if near or meets(units, picks):
                limit = (1 + WORTH) * table.total(table.seconds, start)
                more = solve(table, max_seconds=limit) if table.total(table.seconds, picks) < limit else None
                if more is not None and more != picks:
                    meets(units, more)
                return _best(plans, judged)
            blind = judged[-1]["sqnr"] < reached + HELD * (wanted.threshold - reached)
            if blind:
                break
    if not widest:
        return Planned(Plan())
    plans.append(planner.plan_of(Plan(), units, widest))
    planner.judge(plans[-1], "all nodes at their widest", wanted, judged)
    return _best(plans, judged)


def _chooses(graph: Graph, node: Node) -> bool:
    """Whether ``node`` takes the largest of computed numbers, or orders them."""
    if not isinstance(node.op, ArgMax | Less | LessOrEqual | Equal):
        return False
    return all(graph.type(x).is_float and x not in graph.constants for x in node.inputs)


def _each(wanted: list[Array], got: list[Array]) -> list[float]:
    """The noise of each sample, relative to its power, where all outputs have as many rows."""
    counts = {len(a) if a.ndim else 0 for a in wanted}
    if len(counts) != 1:
        return []
    rows = [
        [np.concatenate([a[i].ravel() for a in arrays]).astype(np.float64) for i in range(*counts)]
        for arrays in (wanted, got)
    ]
    return [
        float(((a - b) ** 2).sum() / max((a**2).sum(), np.finfo(np.float32).tiny))
        for a, b in zip(*rows, strict=True)
    ]


def _best(plans: list[Plan], judged: list[dict[str, Any]]) -> Planned:
    """The plan that was judged best."""
    best = max(range(len(plans)), key=lambda i: judged[i]["sqnr"])
    plan, sqnr = plans[best], judged[best]["sqnr"]
    told = (
        f"8 bits give {judged[0]['sqnr']:.1f} dB on calibration data, which may be below {FLOOR:g} on other: "
        f"{len(plan.nodes)} nodes have more, which gives {sqnr:.1f} dB"
    )
    return Planned(plan, {"judged": judged, "told": told} if plan.nodes else {})


def batches(graph: Graph, feeds: Iterable[Mapping[str, Array]]) -> list[Mapping[str, Array]]:
    """At most SAMPLES samples of ``feeds``, in batches of BATCH where the batch size is free."""
    return list(bounded(graph, feeds, SAMPLES, BATCH))


def _work_of(planner: Planner, units: list[Unit]) -> list[list[float]]:
    """The work of every choice of every unit."""
    sizes = planner.graph.bind(planner.samples[0])
    return [[sum(_work(planner.graph, n, c, sizes) for n in u.nodes) for c in u.choices] for u in units]


def _table(planner: Planner, units: list[Unit], work: list[list[float]]) -> Table:
    """The programme's coefficients, with work for seconds."""
    feeds = planner.samples[:MEASURED]
    noises = measure_noises(planner.graph, planner.stats, planner.calibrator, feeds, units, tell=planner.tell)
    noise = [[0.0, *row[1:]] if np.isinf(row[0]) else row for row in noises.table]
    return Table(noise, work, [[0.0] * len(row) for row in work], work)


def _work(graph: Graph, node: Node, choice: Choice, sizes: dict[str, int]) -> float:
    """Multiply-accumulates of ``node``, times the bytes of its operands; four times that where attention is
    not one kernel any more.
    """
    left, right = choice.activations or 8, choice.weights or 8
    if choice.values:
        left = right = choice.values * 2 if choice.values > 8 else 8
    return node_macs(graph, node, sizes) * left * right / 64
