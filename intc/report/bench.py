"""``intc bench``: the artifact against float engines, interleaved: medians and the share of the peak."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from intc.artifact.schema import Manifest
from intc.errors import UsageError
from intc.report.data import Feeds, random_feeds
from intc.report.macs import count_macs
from intc.report.reading import read_graph
from intc.report.reference import Reference, fidelity
from intc.report.threads import settle
from intc.runtime import Session
from intc.runtime.native import call

if TYPE_CHECKING:
    from intc.report.peak import Peak

Engine: TypeAlias = Callable[[], Any]
ENGINES: Final = ("onnxruntime", "openvino")
DEFAULT_SIZE: Final = 128  # of every symbol but the batch, where the user names none
ROUND_SECONDS: Final = 0.03  # each engine runs about this long in every round
DEVICE_ROUNDS: Final = 15


@dataclass(frozen=True)
class Options:
    """``engines`` run beside intc where ``model`` is given; ``sizes`` binds symbols; ``seconds`` in all;
    ``profile`` adds the time of every stage; ``device`` is a GPU."""

    threads: int = 1
    batch: int = 1
    sizes: Mapping[str, int] | None = None
    model: str | Path | None = None
    engines: Sequence[str] = ("onnxruntime",)
    seconds: float = 6.0
    peak: bool = True
    profile: bool = False
    device: str | None = None


def bench(path: str | Path, options: Options, data: Feeds | None = None) -> dict[str, Any]:
    """Medians and quartiles in ms an inference, ratios, GMAC/s, share of peak; on ``data`` the error."""
    manifest, graph = read_graph(path)
    sizes = bind_sizes(manifest, options)
    feeds = data if data is not None else random_feeds(manifest.inputs, sizes)
    if data is not None:
        sizes = graph.bind(feeds)
    session = Session(path, threads=options.threads, device=options.device)
    engines: dict[str, Engine] = {"intc": lambda: session.run(None, feeds)}
    engines |= _float_engines(options, feeds)
    peak = _peak(manifest.target) if options.peak and not session.device else None
    turns = {**engines, "peak": peak.call} if peak else engines
    times = interleave(turns, options.seconds, settle if options.threads > 1 else None)
    limit = statistics.median(times.pop("peak")) if peak else None
    macs = count_macs(graph, sizes)
    result: dict[str, Any] = {
        "artifact": str(path),
        "target": manifest.target,
        "threads": options.threads,
        "device": session.device or "cpu",
        "sizes": dict(sizes),
        "gmac": macs / 1e9,
        "engines": {name: summary(t, macs) for name, t in times.items()},
    }
    own = statistics.median(times["intc"])
    result["speedup"] = {name: statistics.median(t) / own for name, t in times.items() if name != "intc"}
    if peak and limit:
        core = peak.macs / limit / 1e9
        share = macs / own / 1e9 / (core * options.threads)
        result["peak"] = {"core_gmac_per_s": core, "share": share}
    if session.device:
        result["device_ms"] = device_time(session, [sizes[s] for s in manifest.symbols])
    if options.profile:
        from intc.report.profile import gpu_profile, profile

        stages = (
            gpu_profile(path, session, sizes)
            if session.gpu
            else profile(path, feeds, options.threads, options.seconds / 2)
        )
        result["profile"] = [asdict(stage) for stage in stages]
    if data is not None and "onnxruntime" in engines:
        result["error"] = _errors(manifest, engines)
    return result


def device_time(session: Session, symbols: Sequence[int]) -> dict[str, float]:
    """Milliseconds of the network on the GPU alone: replays of its graph between events of the device."""
    assert session.gpu
    graph = session.gpu.graph(symbols)
    repeats = max(1, min(1000, int(1e3 * ROUND_SECONDS / max(graph.milliseconds(3), 1e-3))))
    times = [graph.milliseconds(repeats) for _ in range(DEVICE_ROUNDS)]
    return {"median": statistics.median(times), "best": min(times), "replays": repeats * DEVICE_ROUNDS}


def bind_sizes(manifest: Manifest, options: Options) -> dict[str, int]:
    """Every symbol's size: the leading one of the first input is the batch; UsageError for unknown names."""
    sizes = dict(options.sizes or {})
    for name in sizes:
        if name not in manifest.symbols:
            known = ", ".join(manifest.symbols) or "none"
            raise UsageError(f"size '{name}' is not a symbol of the model; it has {known}")
    leading = manifest.inputs[0].shape[0]
    if isinstance(leading, int) and options.batch not in (1, leading):
        raise UsageError(f"batch {options.batch}: the model's batch size is fixed at {leading}")
    return {s: sizes.get(s, options.batch if s == leading else DEFAULT_SIZE) for s in manifest.symbols}


def interleave(
    engines: Mapping[str, Engine], seconds: float, between: Callable[[], object] | None = None
) -> dict[str, list[float]]:
    """Seconds an inference of every engine, one number a round; engines take turns, in alternating order.

    ``between`` is called before every turn, for instance to wait until the threads of the engine before are
    asleep; the turn then begins with one call that is not timed.
    """
    repeats = {name: _repeats(run) for name, run in engines.items()}
    times: dict[str, list[float]] = {name: [] for name in engines}
    order = list(engines)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[order[0]]) < 3:
        for name in order:
            if between:
                between()
                engines[name]()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                engines[name]()
            times[name].append((time.perf_counter() - start) / repeats[name])
        order.reverse()
    return times


def _repeats(run: Engine) -> int:
    for _ in range(2):
        run()
    start = time.perf_counter()
    run()
    return max(1, min(1000, int(ROUND_SECONDS / (time.perf_counter() - start))))


def summary(times: Sequence[float], macs: int) -> dict[str, float]:
    """Median, quartiles and best in ms, the number of rounds, and GMAC/s at the median."""
    low, middle, high = (float(q) for q in np.quantile(times, (0.25, 0.5, 0.75)))
    return {
        "median_ms": middle * 1e3,
        "quartile_low_ms": low * 1e3,
        "quartile_high_ms": high * 1e3,
        "best_ms": min(times) * 1e3,
        "rounds": len(times),
        "gmac_per_s": macs / middle / 1e9,
    }


def _float_engines(options: Options, feeds: Feeds) -> dict[str, Engine]:
    if unknown := [name for name in options.engines if name not in ENGINES]:
        raise UsageError(f"engine '{unknown[0]}' is not one of {', '.join(ENGINES)}")
    if options.model is None:
        return {}
    engines: dict[str, Engine] = {}
    for name in options.engines:
        if name == "onnxruntime":
            model = Reference(options.model, options.threads)
            engines[name] = lambda model=model: model.run(feeds)  # type: ignore[misc]
        else:
            compiled = openvino_model(options.model, options.threads, feeds)
            engines[name] = lambda compiled=compiled: compiled(feeds)  # type: ignore[misc]
    return engines


def openvino_model(
    path: str | Path, threads: int, feeds: Feeds, precision: str | None = "f32"
) -> Callable[[Feeds], list[Any]]:
    """The model in OpenVINO on the CPU, its shapes fixed to those of ``feeds``, one stream.

    ``precision`` is that of its float operators (None: OpenVINO chooses, bf16 where the CPU has it).
    Raises UsageError where openvino is not installed.
    """
    try:
        import openvino
    except ImportError:
        raise UsageError("engine 'openvino' is not installed; pip install openvino") from None
    core = openvino.Core()
    model = core.read_model(str(path))
    model.reshape({name: list(array.shape) for name, array in feeds.items()})
    config = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}
    config["ENABLE_CPU_PINNING"] = False  # a pinned thread waits where its core is taken and another is free
    if precision:
        config["INFERENCE_PRECISION_HINT"] = precision
    request = core.compile_model(model, "CPU", config).create_infer_request()
    return lambda given: [np.array(a) for a in request.infer(given, share_inputs=True).values()]


def native_call(session: Session, feeds: Feeds) -> Engine:
    """Only the native call of ``session.run(None, feeds)``: integers, buffers and addresses are ready."""
    workspace = session.prepare(feeds)

    def run() -> list[Any]:
        call(session.entry, workspace.call, session.threads)
        return workspace.outputs

    return run


def _peak(target: str) -> Peak | None:
    from intc.report.peak import peak_of  # imports the compiler

    return peak_of(target)


def _errors(manifest: Manifest, engines: Mapping[str, Engine]) -> dict[str, dict[str, float]]:
    ours, theirs = engines["intc"](), engines["onnxruntime"]()
    ports = manifest.outputs
    return {
        p.name: fidelity(a, b) for p, a, b in zip(ports, ours, theirs, strict=False) if a.shape == b.shape
    }
