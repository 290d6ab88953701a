"""The command line: ``intc compile | retarget | run | map | verify | bench | inspect | export | ..``.

Exit status 0: done; 1: a check ran and failed; 2: bad usage or bad input, with one line on stderr.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import intc
from intc.arguments import Command, build_parser, given_sizes, input_override
from intc.errors import CheckFailed, IntcError, UsageError
from intc.files import check_writable, read_npz, replacing, write_text

Tell = Callable[[str], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status."""
    args = build_parser(COMMANDS).parse_args(argv)
    if not args.debug:
        warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of values that are refused further on
    with _noting_interrupts() as interrupts:
        return _status(args, interrupts)


def _status(args: argparse.Namespace, interrupts: list[int]) -> int:
    try:
        if args.json and args.json != "-":
            check_writable(Path(args.json))
        status: int = args.command(args)
        if sys.stdout is not None:
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
        if interrupts:
            return _fail(args, UsageError("interrupted"), 130)
        return _fail(args, error, 2, "internal error, please report it (--debug shows where): ")


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """The signals of Ctrl-C so far: native code passes what they raise on as errors of its own."""
    seen: list[int] = []

    def note(number: int, frame: object) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ours = ours and threading.current_thread() is threading.main_thread()
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _fail(args: argparse.Namespace, error: BaseException, status: int, prefix: str = "") -> int:
    _drop_output()
    if isinstance(error, BrokenPipeError):  # the reader of our output has gone
        return status
    if args.debug:
        traceback.print_exception(error)
        return status
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename or 'output'}: {error.strerror}"
    kind = f"{type(error).__name__}: " if prefix else ""
    print(f"intc: error: {prefix}{kind}{text}", file=sys.stderr)
    return status


def _drop_output() -> None:
    """Output that cannot be written is not tried again when the program ends."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ---------------------------------------------------------------- commands


def compile_command(args: argparse.Namespace) -> int:
    from intc.report.accuracy_text import accuracy_scope, print_worst

    if args.calibration is None and (args.report or args.worst):
        raise UsageError("--report and --worst are measured on calibration data; give --calibration NPZ")
    bits = int(args.bits) if args.bits.isdigit() else args.bits
    output = args.output or args.model.with_suffix(".c" if args.target == "c" else ".intc")
    _check_output(output, args.target, args.model)
    for path in (args.report, args.save_plan):
        if path:
            check_writable(path, args.model)
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
            inputs=dict(input_override(text) for text in args.input) or None,
            sizes=given_sizes(args.size),
            longest=args.longest,
            progress=tell,
            dump_after=args.dump_after,
        )
        report = module.report(None, samples, tell) if samples and module.samples else None
        tell("write the artifact")
        module.passes = None  # the float weights are not needed any more
        result, text = _saved(module, output)
        if args.save_plan:
            module.plan.save(args.save_plan)
    if args.calibration == "random":
        print("intc: warning: ranges come from random data; results will not be accurate", file=sys.stderr)
    dumps = {name: str(graph) for name, graph in module.dumps.items()}
    if args.json != "-":
        print("".join(dumps.values()), end="")
    if report is not None and args.report:
        write_text(args.report, report.html())
    result |= {
        "model_bytes": args.model.stat().st_size,
        "plan": module.plan.as_json(),
        "planning": module.provenance.get("planning"),
        "dumps": dumps,
        "accuracy": report.summary() if report else None,
    }
    told = (result["planning"] or {}).get("told")
    _print(args, result, f"{text}\n{told}" if told else text)
    if report is not None and worst and args.json != "-":
        print_worst(report, worst)
    return 0


def retarget_command(args: argparse.Namespace) -> int:
    _check_output(args.output, args.target, args.artifact)
    with progress() as tell:
        tell("generate code")
        module = intc.open_module(args.artifact, args.target, given_sizes(args.size))
        result, text = _saved(module, args.output)
    return _print(args, result, text)


def run_command(args: argparse.Namespace) -> int:
    import numpy as np

    from intc.loading import load
    from intc.report.data import batches, with_empty_states

    check_writable(args.outputs, args.artifact, args.inputs)
    keys = args.trusted_key or None
    session = load(
        args.artifact, args.threads, trusted_keys=keys, recompile=args.recompile, device=args.device
    )
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
    with replacing(args.outputs) as file:
        np.savez(file, **outputs)  # type: ignore[arg-type]
    shapes = {name: list(array.shape) for name, array in outputs.items()}
    text = "\n".join(f"{args.outputs}: {name} {shape}" for name, shape in shapes.items())
    return _print(args, {"outputs": shapes}, text)


def map_command(args: argparse.Namespace) -> int:
    from intc.integrations.command import map_rows

    result, text = map_rows(args)
    _print(args, result, text)
    return 1 if result["rejected"] else 0


def verify_command(args: argparse.Namespace) -> int:
    from intc.report.tables import verification_text
    from intc.report.verify import verify_artifact

    with progress() as tell:
        data, keys = read_npz(args.data), args.trusted_key or None
        nodes = args.nodes or args.html is not None
        result = verify_artifact(args.artifact, data, args.model, tell, nodes, keys, args.device)
    if args.html:
        from intc.report.verify_html import verification_html

        write_text(args.html, verification_html(args.artifact, result))
    _print(args, result.summary(), verification_text(args.artifact, result))
    return 0 if result.passed else 1


def bench_command(args: argparse.Namespace) -> int:
    from intc.report.bench import Options, bench
    from intc.report.tables import bench_text

    engines = [e for e in args.engines.split(",") if e]
    options = Options(
        args.threads,
        args.batch,
        given_sizes(args.size),
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
    from intc.report.inspect import graph_of, inspect_artifact, inspect_onnx, inspect_text

    artifact = args.file.suffix == ".intc"
    if args.html is None:
        if args.diff and args.after is None:
            raise UsageError("--diff shows what one pass changed; name it with --after PASS")
        before, after = graph_of(args.file, args.after, args.calibration)
        text = inspect_text(before, after, args.diff)
        return _print(args, {"text": text, "nodes": len(after.nodes)}, text.rstrip("\n"))
    check_writable(args.html, args.file)
    with progress() as tell:
        if artifact:
            data = read_npz(args.data) if args.data else None
            found = inspect_artifact(args.file, args.after, data, args.model, tell)
        else:
            found = inspect_onnx(args.file, args.after, args.calibration, args.target, args.samples, tell)
        tell("write the page")
        write_text(args.html, found.html(args.after, args.diff))
    return _print(args, {"html": str(args.html), **found.summary()}, str(args.html))


def export_command(args: argparse.Namespace) -> int:
    if args.triton:
        from intc.export.triton import write_repository

        sizes = {"batch": args.batch, "delay": args.delay, "instances": args.instances}
        config = write_repository(args.artifact, args.triton, **sizes)
        return _print(
            args, {"triton": str(args.triton)}, f"{args.triton}: a model for Triton, see {config.name}"
        )
    from intc.export.onnx_model import onnx_model
    from intc.files import replacing
    from intc.report.reading import read_graph

    with progress() as tell:
        tell("export")
        manifest, graph = read_graph(args.artifact)
        model = onnx_model(graph, [p.name for p in manifest.outputs])
        data = model.SerializeToString()
        with replacing(args.onnx) as file:
            file.write(data)
    result = {"onnx": str(args.onnx), "bytes": len(data), "nodes": len(model.graph.node)}
    return _print(args, result, f"{args.onnx}: {len(data):,} bytes, {len(model.graph.node)} integer nodes")


def info_command(args: argparse.Namespace) -> int:
    from intc.report.inspect import info
    from intc.report.tables import info_text

    result = info(args.artifact)
    return _print(args, result, info_text(result))


def sign_command(args: argparse.Namespace) -> int:
    from intc.artifact.signature import sign

    output = args.output or args.artifact
    public = sign(args.artifact, args.key, output)
    result = {"artifact": str(output), "signed_by": public}
    return _print(args, result, f"{output}: signed by the key {public}")


COMMANDS: dict[str, Command] = {
    "compile": compile_command,
    "retarget": retarget_command,
    "run": run_command,
    "map": map_command,
    "verify": verify_command,
    "bench": bench_command,
    "inspect": inspect_command,
    "export": export_command,
    "info": info_command,
    "sign": sign_command,
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


def _check_output(output: Path, target: str | None, source: Path) -> None:
    """UsageError for a name that the files of ``target`` cannot have, or that surely cannot be written."""
    from intc.codegen.c.write import place_of

    if target == "c":
        place_of(output, "model")
    else:
        check_writable(output, source)


def _saved(module: intc.Module, output: Path) -> tuple[dict[str, Any], str]:
    """Write ``module``; the JSON and the line about it."""
    output.parent.mkdir(parents=True, exist_ok=True)
    files = module.save(output)
    size, target, nodes = sum(f.stat().st_size for f in files), module.lowered.target, len(module.graph.nodes)
    result = {
        "artifact": str(output),
        "files": [str(f) for f in files],
        "bytes": size,
        "target": target.name,
        "nodes": nodes,
        "fused_nodes": len(module.prepared.nodes),
    }
    if target.native:
        return result, f"{output}: {size:,} bytes for target {target.name}, {nodes} integer nodes"
    memory = {name: getattr(module.lowered, name) for name in ("weight_bytes", "arena_bytes")}
    text = (
        f"{', '.join(map(str, files))}: {memory['weight_bytes']:,} bytes of constants, "
        f"{memory['arena_bytes']:,} bytes of working memory, {nodes} integer nodes"
    )
    return {**result, **memory}, text


def _print(args: argparse.Namespace, result: dict[str, Any], text: str) -> int:
    """Print ``text``; for ``--json`` print the JSON of ``result``, for ``--json FILE`` write it too."""
    if args.json == "-":
        print(json.dumps(result, indent=1))
        return 0
    if args.json:
        write_text(Path(args.json), json.dumps(result, indent=1) + "\n")
    print(text)
    return 0
