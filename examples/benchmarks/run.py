"""Time intc against other engines, at known accuracy, on this machine.

    python examples/benchmarks/run.py                                  # everything: most of an hour
    python examples/benchmarks/run.py --models deit-tiny,minilm --threads 1 --seconds 2

Needs the extras [bench] and [examples]; installs nothing. Results are rewritten after every model.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import decoding
import measure
from cases import CASES, OVERHEAD, TORCH, case_of
from measure import Failed, isolated
from peers import ENGINES, OWN, REFERENCE, Unavailable
from report import (  # fmt: skip
    FORMAT,
    choose,
    decoding_markdown,
    markdown,
    model_markdown,
    numbers,
    overhead_markdown,
    with_ratios,
    write_json,
    write_markdown,
)

import intc
from intc.arguments import Parser
from intc.cli import Tell, progress
from intc.errors import IntcError, UsageError
from intc.report.reference import fidelity
from intc.runtime.native import cpu_features

HERE = Path(__file__).resolve().parent
PACKAGES = ("apache-tvm", "numpy", "onnx", "onnxruntime", "openvino", "nncf", "torch", "transformers")
EVERY = (*CASES, *decoding.DECODERS, OVERHEAD)
FLAGS = ("avx2", "fma", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def main(argv: Sequence[str] | None = None) -> int:
    """Run; exit status 0 if every chosen model was measured, 1 if one failed, 2 for bad usage."""
    args = parser().parse_args(argv)
    try:
        return run(Plan(args))
    except (IntcError, OSError) as error:
        print(f"benchmarks: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("benchmarks: interrupted; the models measured so far are in the results", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The options."""
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models, engines = ",".join(EVERY), ",".join(ENGINES)
    p.add_argument("--models", default=models, help=f"which of {models} (default all)")
    p.add_argument("--engines", default=engines, help=f"which of {engines} (default all)")
    p.add_argument("--threads", default="1,2", help="numbers of threads (default 1,2)")
    p.add_argument("--batch", default="1,8,32", help="batches for the table of intc by batch")
    p.add_argument("--lengths", default="16,64,128,256,512", help="lengths for the table of intc by length")
    p.add_argument("--seconds", type=float, default=5.0, help="of measurement, an engine or size (default 5)")
    p.add_argument(
        "--folder", type=Path, default=HERE / "build", help="exports and peers' models are kept here"
    )
    p.add_argument("--fresh", action="store_true", help="export and quantise again, whatever is kept")
    p.add_argument("--json", type=Path, metavar="FILE", help="default: results.json in the folder")
    p.add_argument("--markdown", type=Path, metavar="FILE", help="default: results.md in the folder")
    return p


class Plan:
    """The checked options. Raises UsageError for unknown names and for missing extras."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.models = choose(args.models, EVERY, "model")
        self.engines = choose(args.engines, ENGINES, "engine")
        self.threads = numbers(args.threads, "--threads")
        self.batches = numbers(args.batch, "--batch")
        self.lengths = numbers(args.lengths, "--lengths")
        self.seconds: float = args.seconds
        if not 0 < self.seconds < float("inf"):
            raise UsageError(f"--seconds {args.seconds}: expected a positive number")
        self.folder: Path = args.folder.resolve()
        self.fresh: bool = args.fresh
        self.json: Path = args.json or self.folder / "results.json"
        self.markdown: Path = args.markdown or self.folder / "results.md"
        self.log = self.folder / "log.txt"
        missing = sorted({m for name in self.models for m in self._needs(name) if not _installed(m)})
        if missing:
            raise UsageError(f"missing {', '.join(missing)}; run: pip install -e '.[bench,examples]'")

    def _needs(self, name: str) -> tuple[str, ...]:
        exported = (self.folder / name / "onnx").exists() and not self.fresh
        if name in decoding.DECODERS:
            return () if exported else TORCH
        case = case_of(name)
        return case.sample_needs if exported else (*case.export_needs, *case.sample_needs)


def run(plan: Plan) -> int:
    """Measure all of `plan`, printing and saving each model's tables as soon as they are there."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    plan.log.write_text("")
    result: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": versions(),
        "options": {"threads": plan.threads, "batches": plan.batches, "lengths": plan.lengths}
        | {"seconds": plan.seconds, "engines": plan.engines},
        "peak": None,
        "models": {},
        "decoding": {},
    }
    with progress() as tell:
        tell("measure the core's peak")
        try:
            result["peak"] = isolated(plan.log, measure.peak, "native")
        except IntcError as error:
            print(f"peak of the core: not measured ({error})", file=sys.stderr)
        print(markdown(result), flush=True)
        for name in plan.models:
            if name in decoding.DECODERS:
                result["decoding"][name] = measure_decoding(plan, name, tell)
                print(decoding_markdown(name, result["decoding"][name]), flush=True)
            elif name == OVERHEAD:
                result["overhead"] = measure_overhead(plan, tell)
                print(overhead_markdown(result["overhead"]), flush=True)
            else:
                result["models"][name] = measure_model(plan, name, result["peak"], tell)
                print(model_markdown(name, result["models"][name]), flush=True)
            write_json(plan.json, result)
            write_markdown(plan.markdown, result)
    print(f"{plan.json}, {plan.markdown}")
    parts = (*result["models"].values(), *result["decoding"].values(), result.get("overhead", {}))
    return int(any(_failed(part) for part in parts))


def _failed(part: dict[str, Any]) -> bool:
    engines = part.get("engines", {}).values()
    return any(p.get("reason") for p in (part, *part.get("runs", []))) or any(
        e["status"] == "failed" for e in engines
    )


def measure_model(plan: Plan, name: str, peak: float | None, tell: Tell) -> dict[str, Any]:
    """One model: every engine prepared and compared with fp32, then all timed together, then intc's scaling.

    A step that fails leaves its `reason`; the others go on.
    """
    case = case_of(name)
    model: dict[str, Any] = {"length": case.length, "engines": {}, "runs": [], "scaling": []}
    tell(f"{name}: export")
    try:
        onnx = isolated(plan.log, measure.export, name, plan.folder, plan.fresh)
    except IntcError as error:
        return model | {"reason": f"export: {error}"}
    prepared = prepare_engines(plan, name, onnx, model["engines"], tell)
    if not prepared:
        return model | {"reason": "no engine could run it"}
    macs = prepared.get(OWN, {}).get("macs", 0)
    model["gmac"] = macs / 1e9
    paths = {e: p["path"] for e, p in prepared.items()}
    for threads in plan.threads:
        tell(f"{name}: {len(paths)} engines, {threads} thread(s)")
        entry: dict[str, Any] = {"threads": threads, "batch": 1}
        try:
            times = isolated(plan.log, measure.compare, name, paths, threads, macs, plan.seconds)
            entry["engines"] = with_ratios(times, peak, threads)
        except IntcError as error:
            entry["reason"] = str(error)
        model["runs"].append(entry)
    if OWN in paths:
        model["scaling"] = measure_scaling(plan, name, onnx, paths[OWN], peak, tell)
    return model


def prepare_engines(
    plan: Plan, name: str, onnx: Path, states: dict[str, Any], tell: Tell
) -> dict[str, dict[str, Any]]:
    """What `measure.prepare` returned for each engine that runs; `states` gets every engine's status."""
    outputs, prepared = None, {}
    for engine in dict.fromkeys((REFERENCE, *plan.engines)):  # the reference first: errors are against it
        tell(f"{name}: prepare {engine}")
        try:
            found = isolated(plan.log, measure.prepare, name, engine, onnx, plan.fresh)
        except (Unavailable, Failed) as error:
            kind = "unavailable" if isinstance(error, Unavailable) else "failed"
            states[engine] = {"status": kind, "reason": str(error)}
            continue
        if engine == REFERENCE:
            outputs = found["outputs"]
        if engine not in plan.engines:
            continue
        states[engine] = {"status": "ran", "settings": ENGINES[engine].settings}
        if outputs is not None and engine != REFERENCE:
            states[engine]["error"] = fidelity(found["outputs"], outputs)
        prepared[engine] = found
    return {engine: prepared[engine] for engine in plan.engines if engine in prepared}


def measure_scaling(
    plan: Plan, name: str, onnx: Path, path: Path, peak: float | None, tell: Tell
) -> list[dict[str, Any]]:
    """intc by batch at the model's own length, and, for a text model, by length at batch 1."""
    own = case_of(name).length
    series = {"batch": [(batch, own) for batch in plan.batches]}
    if own is not None:
        series["length"] = [(1, length) for length in plan.lengths]
    rows = []
    for threads in plan.threads:
        for what, sizes in series.items():
            tell(f"{name}: intc by {what}, {threads} thread(s)")
            try:
                found = isolated(plan.log, measure.scale, name, onnx, path, threads, sizes, plan.seconds)
            except IntcError as error:
                reason = {"threads": threads, "reason": str(error)}
                found = [{"batch": batch, "length": length} | reason for batch, length in sizes]
            for row in found:
                speed = row.get("gmac_per_s")
                row["share_of_peak"] = speed / (peak * threads) if peak and speed else None
            rows += [{"scaling": what} | row for row in found]
    return rows


def measure_overhead(plan: Plan, tell: Tell) -> dict[str, Any]:
    """The tiny model's calls, for every number of threads."""
    tell("overhead of a call")
    try:
        onnx = isolated(plan.log, measure.export, OVERHEAD, plan.folder, plan.fresh)
        path = isolated(plan.log, measure.prepare, OVERHEAD, OWN, onnx, plan.fresh)["path"]
        runs = [
            {"threads": n, "ways": isolated(plan.log, measure.overhead, path, n, plan.seconds)}
            for n in plan.threads
        ]
    except IntcError as error:
        return {"reason": str(error)}
    return {"runs": runs}


def measure_decoding(plan: Plan, name: str, tell: Tell) -> dict[str, Any]:
    """Seconds a token of every engine, for every number of threads."""
    tell(f"{name}: export and compile")
    try:
        onnx = isolated(plan.log, decoding.export, name, plan.folder, plan.fresh)
        path = isolated(plan.log, decoding.compiled, onnx)
        runs = []
        for threads in plan.threads:
            tell(f"{name}: decoding, {threads} thread(s)")
            found = isolated(plan.log, decoding.seconds, onnx, path, threads)
            runs.append({"threads": threads, "seconds": found})
    except IntcError as error:
        return {"reason": str(error)}
    return {"past": decoding.PAST, "runs": runs}


def machine() -> dict[str, Any]:
    """Processor, the flags that decide which kernels run, and the cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in cpu_features()],
        "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(),
        "load_before": os.getloadavg()[0],
    }


def versions() -> dict[str, str]:
    """Versions of Python, intc and every package that takes part; those not installed say so."""
    found = {"python": platform.python_version(), "intc": intc.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


if __name__ == "__main__":
    sys.exit(main())
