"""What is measured. Each function runs in a process of its own, so that none inherits another's threads."""

from __future__ import annotations

import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from cases import OVERHEAD, batch_of, case_of
from peers import ENGINES, OWN, Unavailable, one_by_one, rebuilt

from intc.artifact.reader import open_artifact
from intc.errors import IntcError
from intc.frontend import import_onnx
from intc.report.bench import interleave, native_call, summary
from intc.report.macs import count_macs
from intc.report.threads import settle, working_threads
from intc.runtime import load


class Failed(IntcError):
    """A measurement did not come to its end; the message is its cause in one line."""


def isolated(log: Path, function: Callable[..., Any], *args: Any) -> Any:
    """`function(*args)` in a new process whose output goes to the end of `log`.

    Raises Unavailable as the function does, and Failed for everything else, a crash of the process included.
    """
    with ProcessPoolExecutor(1, get_context("spawn"), _redirect, (str(log),)) as pool:
        try:
            kind, value = pool.submit(_caught, function, *args).result()
        except BrokenProcessPool:
            raise Failed(f"its process died (a crash, or no memory left); see {log}") from None
    if kind == "result":
        return value
    raise (Unavailable if kind == "unavailable" else Failed)(value)


def _redirect(log: str) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)


def _caught(function: Callable[..., Any], *args: Any) -> tuple[str, Any]:
    try:
        return "result", function(*args)
    except Unavailable as error:
        return "unavailable", str(error)
    except BaseException as error:
        traceback.print_exc()
        sys.stderr.flush()
        return "failed", f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


# ---------------------------------------------------------------- steps


def export(name: str, folder: Path, fresh: bool) -> Path:
    """The ONNX file of case `name`, written on the first call."""
    place = folder / name / "onnx"
    if fresh or not place.exists():
        rebuilt(place, lambda empty: case_of(name).export(empty / "model.onnx"))
    return place / "model.onnx"


def prepare(name: str, engine: str, onnx: Path, fresh: bool) -> dict[str, Any]:
    """Build `engine`'s model of case `name`, load it, and run the held-out samples one by one.

    `path` is the model, `outputs` what accuracy is measured on; for intc also `macs` of one inference, as the
    ONNX file has them, and the `target` it was compiled for.
    """
    chosen = ENGINES[engine]
    chosen.check()
    case = case_of(name)
    samples = case.samples(case.length)
    path = chosen.model(onnx, samples.calibration, onnx.parents[1] / engine, fresh)
    run = chosen.load(path, 1, batch_of(samples.held_out, 1))
    outputs = [case.compared(np.asarray(run(feeds)[0]), feeds) for feeds in one_by_one(samples.held_out)]
    result = {"path": path, "outputs": np.concatenate(outputs)}
    if engine == OWN:
        graph = import_onnx(onnx)
        macs = count_macs(graph, graph.bind(batch_of(samples.held_out, 1)))
        result |= {"macs": macs, "target": open_artifact(path).manifest.target}
    return result


def compare(
    name: str, paths: Mapping[str, Path], threads: int, macs: int, seconds: float
) -> dict[str, dict[str, Any]]:
    """All engines in `paths` interleaved on one held-out sample, about `seconds` each."""
    case = case_of(name)
    feeds = batch_of(case.samples(case.length).held_out, 1)
    runs = {e: partial(ENGINES[e].load(path, threads, feeds), feeds) for e, path in paths.items()}
    used = {}
    for engine, run in runs.items():
        settle()
        used[engine] = working_threads(run)
    clocks = {engine: Clock(run) for engine, run in runs.items()}
    times = interleave(clocks, seconds * len(runs), settle)
    return {
        e: {**summary(t, macs), "threads_used": used[e], "on_cpu": clocks[e].processor / clocks[e].wall}
        for e, t in times.items()
    }


class Clock:
    """`run`, with the seconds of all its calls by the wall and on processors, all threads together."""

    def __init__(self, run: Callable[[], list[Any]]) -> None:
        self.run, self.wall, self.processor = run, 0.0, 0.0

    def __call__(self) -> list[Any]:
        wall, processor = time.perf_counter(), time.process_time()
        outputs = self.run()
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor
        return outputs


def scale(
    name: str, onnx: Path, path: Path, threads: int, sizes: Sequence[tuple[int, int | None]], seconds: float
) -> list[dict[str, Any]]:
    """intc at every (batch, length) of `sizes`, interleaved; a size that the model refuses has a `reason`."""
    graph, session, case = import_onnx(onnx), load(path, threads=threads), case_of(name)
    rows: list[dict[str, Any]] = []
    runs, macs = {}, {}
    for index, (batch, length) in enumerate(sizes):
        rows.append({"threads": threads, "batch": batch, "length": length})
        try:
            feeds = batch_of(case.samples(length).held_out, batch)
            run = partial(session.run, None, feeds)
            run()
        except IntcError as error:
            rows[-1]["reason"] = str(error)
            continue
        runs[str(index)], macs[str(index)] = run, count_macs(graph, graph.bind(feeds))
    for key, times in (interleave(runs, seconds * len(runs)) if runs else {}).items():
        rows[int(key)] |= summary(times, macs[key])
    return rows


def overhead(path: Path, threads: int, seconds: float) -> dict[str, Any]:
    """The same inference of a tiny model by the bare native call and by `session.run`."""
    feeds = batch_of(case_of(OVERHEAD).samples(None).held_out, 1)
    session = load(path, threads=threads)
    integers = [place.copy() for place in session.prepare(feeds).inputs]
    whole = dict(zip((p.name for p in session.manifest.inputs), integers, strict=True))
    ways = {
        "native call": native_call(session, feeds),
        "session.run, integers": partial(session.run, None, whole, raw=True),
        "session.run, floats": partial(session.run, None, feeds),
    }
    assert np.array_equal(ways["native call"]()[0], ways["session.run, integers"]()[0])
    times = interleave(ways, seconds * len(ways))
    return {way: summary(t, 0) for way, t in times.items()}


def peak(target: str) -> float | None:
    """GMAC/s of one core for `target`, at most."""
    from intc.report.peak import peak_gmacs

    return peak_gmacs(target)
