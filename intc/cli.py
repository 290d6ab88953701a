"""The command line: ``intc compile | run | verify | bench | inspect | info``.

Exit status 0: done; 1: a check ran and failed; 2: bad usage or bad input, with one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import intc
from intc.arguments import Command, build_parser
from intc.errors import CheckFailed, IntcError, UsageError

Tell = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = build_parser(COMMANDS).parse_args(argv)
    try:
        status: int = args.command(args)
        sys.stdout.flush()
        return status
    except CheckFailed as error:
        return _fail(args, error, 1)
    except IntcError as error:
        return _fail(args, error, 2)
    except (OSError, MemoryError) as error:
        return _fail(args, error, 2)
    except KeyboardInterrupt:
        return _fail(args, UsageError("interrupted"), 130)
    except Exception as error:
        return _fail(args, error, 2, "internal error, please report it (--debug shows where): ")


def _fail(args: argparse.Namespace, error: BaseException, status: int, prefix: str = "") -> int:
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status
    if args.debug:
        traceback.print_exception(error)
        return status
    text = " ".join(str(error).split()) or type(error).__name__
    kind = f"{type(error).__name__}: " if prefix else ""
    print(f"intc: error: {prefix}{kind}{text}", file=sys.stderr)
    return status


# ---------------------------------------------------------------- commands


def compile_command(args: argparse.Namespace) -> int:
    from intc.report.accuracy_text import accuracy_scope, print_worst

    if args.calibration is None:
        raise UsageError(
            f"{args.model}: no calibration data; give --calibration data.npz (one array per input, samples "
            "along axis 0), or --calibration random for trials of speed only"
        )
    bits = int(args.bits) if args.bits.isdigit() else args.bits
    output = args.output or args.model.with_suffix(".intc")
    families = tuple(f for f in args.families.split(",") if f)
    samples, worst = accuracy_scope(args.report_samples, args.worst, bool(args.report), args.json)
    with progress() as tell:
        tell("load the compiler")
        module = intc.compile(
            args.model,
            args.calibration,
            args.target,
            approximation=args.approximation,
            bits=bits,
            accuracy_target=args.accuracy_target,
            search=intc.Search(args.max_slowdown, args.max_bytes, families, args.sensitivity),
            calibrator=args.calibrator,
            rounding=args.rounding,
            calibration_cache=args.calibration_cache,
            inputs=dict(_input_override(text) for text in args.input) or None,
            progress=tell,
            dump_after=args.dump_after,
        )
        report = module.report(None, samples, tell) if samples else None
        tell("write the artifact")
        output.parent.mkdir(parents=True, exist_ok=True)
        module.passes = None  # the float weights are not needed any more
        module.save(output)
        if args.save_plan:
            module.plan.save(args.save_plan)
    if args.calibration == "random":
        print("intc: warning: ranges come from random data; results will not be accurate", file=sys.stderr)
    dumps = {name: str(graph) for name, graph in module.dumps.items()}
    if args.json != "-":
        print("".join(dumps.values()), end="")
    if report is not None and args.report:
        from intc.files import write_text

        write_text(args.report, report.html())
    size, source = output.stat().st_size, args.model.stat().st_size
    target = module.lowered.target.name
    result = {
        "artifact": str(output),
        "bytes": size,
        "model_bytes": source,
        "target": target,
        "nodes": len(module.graph.nodes),
        "fused_nodes": len(module.prepared.nodes),
        "plan": module.plan.as_json(),
        "planning": module.provenance.get("planning"),
        "dumps": dumps,
        "accuracy": report.summary() if report else None,
    }
    text = f"{output}: {size:,} bytes for target {target}, {len(module.graph.nodes)} integer nodes"
    _print(args, result, text)
    if report is not None and worst and args.json != "-":
        print_worst(report, worst)
    return 0


def run_command(args: argparse.Namespace) -> int:
    import numpy as np

    from intc.report.data import batches, read_npz, with_empty_states
    from intc.runtime import load

    session = load(args.artifact, threads=args.threads, device=args.device)
    feeds = with_empty_states(read_npz(args.inputs), session.manifest)
    ports = session.manifest.inputs
    unknown = sorted(set(feeds) - {p.name for p in ports})
    if unknown:
        taken = ", ".join(p.name for p in ports)
        raise UsageError(f"{args.inputs}: '{unknown[0]}' is not an input; the model takes {taken}")
    parts = [session.run(None, group, raw=args.raw) for group in batches(feeds, ports, args.batch)]
    names = [p.name for p in session.get_outputs()]
    outputs = {name: np.concatenate([part[i] for part in parts]) for i, name in enumerate(names)}
    args.outputs.parent.mkdir(parents=True, exist_ok=True)
    with open(args.outputs, "wb") as file:
        np.savez(file, **outputs)  # type: ignore[arg-type]
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    text = "\n".join(f"{args.outputs}: {name} {shape}" for name, shape in shapes.items())
    return _print(args, {"outputs": shapes}, text)


def verify_command(args: argparse.Namespace) -> int:
    from intc.report.data import read_npz
    from intc.report.tables import verification_text
    from intc.report.verify import verify_artifact

    with progress() as tell:
        result = verify_artifact(args.artifact, read_npz(args.data), args.model, tell, args.device)
    _print(args, result.summary(), verification_text(args.artifact, result))
    return 0 if result.passed else 1


def bench_command(args: argparse.Namespace) -> int:
    from intc.report.bench import Options, bench
    from intc.report.data import read_npz
    from intc.report.tables import bench_text

    sizes = {}
    for text in args.size:
        name, _, number = text.partition("=")
        if not number.isdigit() or int(number) < 1:
            raise UsageError(f"--size {text}: expected SYMBOL=N with N >= 1")
        sizes[name] = int(number)
    engines = [e for e in args.engines.split(",") if e]
    options = Options(
        args.threads,
        args.batch,
        sizes,
        args.vs,
        engines,
        args.seconds,
        not args.no_peak,
        args.profile,
        args.device,
    )
    with progress() as tell:
        tell(f"measure for {args.seconds:g} s")
        result = bench(args.artifact, options, read_npz(args.inputs) if args.inputs else None)
    return _print(args, result, bench_text(result))


def inspect_command(args: argparse.Namespace) -> int:
    from intc.report.inspect import graph_of, inspect_html, inspect_text

    before, after = graph_of(args.file, args.after, args.calibration)
    if args.html:
        args.html.write_text(inspect_html(str(args.file), before, after, args.diff), encoding="utf-8")
        return _print(args, {"html": str(args.html), "nodes": len(after.nodes)}, str(args.html))
    text = inspect_text(before, after, args.diff)
    return _print(args, {"text": text, "nodes": len(after.nodes)}, text.rstrip("\n"))


def info_command(args: argparse.Namespace) -> int:
    from intc.report.inspect import info
    from intc.report.tables import info_text

    result = info(args.artifact)
    return _print(args, result, info_text(result))


COMMANDS: dict[str, Command] = {
    "compile": compile_command,
    "run": run_command,
    "verify": verify_command,
    "bench": bench_command,
    "inspect": inspect_command,
    "info": info_command,
}


# ---------------------------------------------------------------- helpers


@contextmanager
def progress() -> Iterator[Tell]:
    """A function that shows the current step on a terminal and does nothing in a pipe."""
    if not sys.stderr.isatty():
        yield lambda step: None
        return
    from rich.console import Console

    with Console(stderr=True).status("start") as status:
        yield lambda step: status.update(step)


def _input_override(text: str) -> tuple[str, Any]:
    """``NAME=SIZE,SIZE,..`` or ``NAME=uint8``, an element type."""
    from intc.ir.types import DTYPES

    name, separator, given = text.partition("=")
    sizes = tuple(int(d) if d.isdigit() else d for d in given.split(",") if d)
    if not name or not separator or not sizes:
        raise UsageError(f"--input {text}: expected NAME=SIZE,SIZE,.. or NAME=TYPE")
    return name, given if given in DTYPES else sizes


def _print(args: argparse.Namespace, result: dict[str, Any], text: str) -> int:
    """Print ``text``; for ``--json`` print the JSON of ``result``, for ``--json FILE`` write it too."""
    if args.json == "-":
        print(json.dumps(result, indent=1))
        return 0
    if args.json:
        Path(args.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(text)
    return 0
