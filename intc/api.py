"""The Python front door: ``compile`` turns an ONNX model into a :class:`~intc.module.Module`."""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import intc
from intc.calibration import (
    Observer,
    collect,
    collect_cached,
    count_batches,
    derive,
    is_quantised,
    open_feeds,
    widened,
)
from intc.calibration.observers import Statistics
from intc.calibration.readers import Feeds
from intc.codegen.c.source import require_fixed
from intc.codegen.cuda import compiler as cuda_compiler
from intc.codegen.targets import resolve
from intc.errors import CalibrationError, ImportFailure, UsageError
from intc.frontend import LONGEST, import_onnx
from intc.integrations.calibration import ParquetFeeds
from intc.ir.bound import bound
from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.ir.spool import spooling
from intc.ir.verify import verify
from intc.module import Module, Progress, lower_for
from intc.passes import pipeline as phases
from intc.passes.integer.rounding import ROUNDINGS
from intc.passes.pipeline import Pipeline
from intc.passes.plan import Plan, PlanLike, read_plan
from intc.planning import floor
from intc.planning.planner import Planner, Search, held_apart, singly
from intc.planning.target import Predicate, parse_target
from intc.report.accuracy import cut, samples_in


@spooling
def compile(
    model: str | os.PathLike[str],
    calibration: Feeds | None = None,
    target: str = "native",
    *,
    approximation: str = "auto",
    bits: PlanLike = 8,
    calibrator: str = "mse",
    rounding: str = "gptq",
    calibration_cache: str | os.PathLike[str] | None = None,
    accuracy_target: str | Predicate | None = None,
    search: Search | None = None,
    inputs: Mapping[str, Any] | None = None,
    sizes: Mapping[str, int] | None = None,
    longest: int = LONGEST,
    progress: Progress | None = None,
    dump_after: str | Sequence[str] = (),
) -> Module:
    """The ONNX file ``model`` as an integer-only module with kernels for ``target``.

    - ``calibration``: a .npz path, a dict of stacked arrays, an iterable of ``{name: array}`` or rows of
      Parquet files (:class:`intc.integrations.calibration.ParquetFeeds`); the ranges of all values are taken
      from it (``"random"`` invents data, for trials of speed only). A model that arrives quantised may do
      without: CalibrationError names the values whose ranges its scales do not give.
    - ``target``: as on the command line (docs/cli.md).
    - ``approximation``: the family of formulas for softmax, GELU and their like (docs/architecture.md).
    - ``bits``: 8, 16 (activations), ``"auto"``, or a plan, as a path, a dict or a :class:`Plan`.
    - ``calibrator``: how 8-bit ranges are chosen: minmax, percentile, entropy or mse.
    - ``rounding``: how weights become integers: nearest or gptq.
    - ``calibration_cache``: an .npz file in which statistics are kept, to be taken up again.
    - ``accuracy_target``: ``"sqnr>=30"``, ``"cosine>=0.998"`` or ``predicate(run)``, where ``run(feeds)``
      gives the outputs of a candidate; widths grow until it holds, else AccuracyNotReached.
    - ``search``: limits and steers ``bits="auto"`` and the accuracy target (docs/plan.md).
    - ``inputs``: overrides shapes or types of inputs by name.
    - ``sizes``: free sizes of the kernels to fix, such as ``{"batch": 1}``, which target ``c`` asks for;
      calibration and ``Module.graph`` keep them free.
    - ``longest``: how many positions tables of functions of them (rotary angles, relative biases) cover;
      longer inputs are refused.
    - ``progress``: is told each step.
    - ``dump_after``: passes; the graph after each is kept in ``Module.dumps``.

    Raises UnsupportedModel (listing every node), CalibrationError, QuantizationError, CodegenError,
    UsageError.
    """
    plan = None if isinstance(bits, str) and bits == "auto" else read_plan(bits)
    goal = parse_target(accuracy_target) if isinstance(accuracy_target, str) else accuracy_target
    processor = resolve(target)
    if processor.gpu:
        cuda_compiler.require()
    wanted = [dump_after] if isinstance(dump_after, str) else list(dump_after)
    for name in wanted:
        if name not in phases.PASS_NAMES:
            raise UsageError(f"no pass '{name}'; the passes are {', '.join(phases.PASS_NAMES)}")
    tell = progress or (lambda step: None)
    if not isinstance(model, str | os.PathLike):
        raise UsageError(f"model: the path of an ONNX file, not {type(model).__name__}; onnx.save writes one")
    path = Path(model)
    tell("import")
    source = import_onnx(path, inputs, longest)
    if not source.inputs:
        raise ImportFailure(f"{path}: the model has no inputs: its outputs are constants")
    fixed = bound(source, sizes or {})
    if not processor.native:
        require_fixed(fixed)
    state = phases.canonicalise(source, tell)
    tell("calibrate")
    samples: list[dict[str, Array]] = []
    if calibration is None and is_quantised(state.graph):
        if plan is None or goal is not None:
            raise CalibrationError(
                "bits='auto' and accuracy targets are judged on calibration data; give some"
            )
        state, stats = derived(state, tell)
    else:
        state, feeds = equalised(state, open_feeds(state.graph, calibration), tell)
        feeds = _kept(state.graph, feeds, samples)
        feeds = feeds if goal is None else held_apart(state.graph, feeds)
        total = count_batches(state.graph, calibration)
        stats = _calibrate(
            state.graph,
            path,
            _by_blocks(calibration, goal, calibration_cache) or feeds,
            total,
            calibrator,
            rounding,
            calibration_cache,
            goal is not None,
            tell,
        )
        stats = widened(stats, state.graph)
    planned: dict[str, Any] = {}
    how: tuple[Any, Any, Any, Any] = (approximation, calibrator, rounding, tell)
    untouched = plan == Plan() and goal is None and approximation == "auto"
    if plan is None or goal is not None:
        planner = Planner(state.graph, stats, singly(state.graph, samples), processor, *how)
        found = planner.search(plan, search or Search(), goal)
        plan, planned = found.plan, {"planning": found.report}
    assert plan is not None
    canonical, state = state, phases.integerise(state, stats, *how, plan)
    if untouched and samples and _origin(calibration) == "data":
        judged = floor.batches(canonical.graph, samples)
        found = floor.lifted(Planner(canonical.graph, stats, judged, processor, *how), state.graph)
        if found.plan != plan:
            plan, planned = found.plan, {"planning": found.report}
            state = phases.integerise(canonical, stats, *how, plan)
    integer = state.graph
    state = phases.prepare(state, tell)
    verify(state.graph)
    tell("generate code")
    provenance = {
        "model": path.name,
        "model_sha256": _file_digest(path),
        "approximation": approximation,
        "plan": plan.as_json(),
        **planned,
        "calibrator": calibrator,
        "rounding": rounding,
        "calibration": _origin(calibration),
    }
    prepared = bound(state.graph, sizes or {})
    lowered = lower_for(prepared, target, source.outputs)
    dumps = {name: state.after(name) for name in wanted}
    return Module(integer, prepared, lowered, tuple(source.outputs), provenance, state, dumps, samples)


def _origin(calibration: Feeds | None) -> str:
    """Where ranges come from: "data", "random" data, or the "model"."""
    if calibration is None:
        return "model"
    return "random" if isinstance(calibration, str) and calibration == "random" else "data"


def _by_blocks(calibration: Feeds | None, goal: object, cache: object) -> ParquetFeeds | None:
    """``calibration`` where its blocks are observed apart; UsageError for what needs its feeds in a row."""
    if not isinstance(calibration, ParquetFeeds):
        return None
    if goal is not None or cache is not None:
        raise UsageError(
            "accuracy targets and calibration caches do not take Parquet files; give an .npz file"
        )
    return calibration


def derived(state: Pipeline, tell: Progress | None = None) -> tuple[Pipeline, dict[str, Statistics]]:
    """``state`` with phase 2 passed without data, and the statistics that follow from the model."""
    state = phases.equalise(state, {}, tell)
    return state, derive(state.graph)


def equalised(
    state: Pipeline, feeds: Iterator[dict[str, Array]], tell: Progress | None = None
) -> tuple[Pipeline, Iterator[dict[str, Array]]]:
    """``state`` with phase 2 done on the first of ``feeds``, and all of ``feeds``."""
    first = next(feeds)
    stats = collect(state.graph, [first], "minmax")
    ranges = {name: seen.channels for name, seen in stats.items()}
    return phases.equalise(state, ranges, tell), itertools.chain([first], feeds)


def _calibrate(
    graph: Graph,
    model: Path,
    batches: Iterable[dict[str, Array]],
    total: int | None,
    calibrator: str,
    rounding: str,
    cache: str | os.PathLike[str] | None,
    apart: bool,
    tell: Progress,
) -> dict[str, Statistics]:
    """The statistics of ``graph`` over ``total`` batches, from ``cache`` as far as it holds them.

    ``apart``: some samples are kept out to judge plans, so the cache is another.
    """
    if rounding not in ROUNDINGS:
        raise UsageError(f"rounding '{rounding}' is not one of {', '.join(ROUNDINGS)}")
    start = time.monotonic()

    def progress(done: int) -> None:
        left = (
            ""
            if total is None
            else f" of {total}, {(time.monotonic() - start) / done * (total - done):.0f} s left"
        )
        tell(f"calibrate (batch {done}{left})")

    products = rounding != "nearest"
    if isinstance(batches, ParquetFeeds):
        return batches.statistics(graph, calibrator, products, progress)  # type: ignore[arg-type]
    if cache is None:
        return collect(graph, batches, calibrator, progress, products)  # type: ignore[arg-type]
    observer = Observer(graph, calibrator, products)  # type: ignore[arg-type]
    shapes = [str(graph.type(x)) for x in graph.inputs]
    key = f"{_file_digest(model)} {calibrator} {rounding} {intc.__version__} {shapes}{' apart' * apart}"
    return collect_cached(observer, batches, cache, key, progress)


def _kept(
    graph: Graph, feeds: Iterable[dict[str, Array]], kept: list[dict[str, Array]]
) -> Iterator[dict[str, Array]]:
    """``feeds``, of which the first floor.SAMPLES samples are copied to ``kept`` on the way."""
    count = 0
    for feed in feeds:
        if count < floor.SAMPLES:
            part = cut(graph, feed, 0, floor.SAMPLES - count)
            kept.append({name: array.copy() for name, array in part.items()})
            count += samples_in(graph, part)
        yield feed


def _file_digest(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
