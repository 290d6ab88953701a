"""Which of the zoo's models compile, verify bit for bit, and how far they are from fp32, beside int8 peers.

    python examples/zoo/run.py                                   # every family, both exporters
    python examples/zoo/run.py llama swin --exporters dynamo --no-peers

Needs torch, transformers and onnxscript: `pip install -e '.[bench,examples]'`. Writes a Markdown table and
JSON; exit status 1 unless every model is verified and accurate.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import subprocess
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from intc.files import write_text

HERE = Path(__file__).resolve().parent
sys.path += [str(HERE.parent / "accuracy"), str(HERE.parent)]
FOLDER = HERE / "build"  # exports are kept here until the sources of the networks change
EXPORTERS = ("legacy", "dynamo")
OPSETS = {"legacy": 17, "dynamo": 18}
SAMPLES = 64  # calibration
BEHIND = 1.5  # dB that intc may be behind the best peer
LOWEST = 20.0  # dB; below it only where it is ahead of every peer by as much
PEERS = ("ORT dynamic", "ORT static", "NNCF")


@dataclass
class Row:
    """One model: `status` is "ok", "exporter failed", "refused", "wrong bits", "inaccurate" or "crashed".

    `sqnr` is in dB, `peers` has that of every peer that quantises the model.
    """

    family: str
    exporter: str
    status: str
    detail: str = ""
    sqnr: float | None = None
    peers: dict[str, float] = field(default_factory=dict)


def _in_process(family: str, exporters: list[str], flags: list[str]) -> list[Row]:
    """The rows of one family, from a process of its own, which may crash."""
    command = [sys.executable, __file__, family, "--exporters", ",".join(exporters), "--child", *flags]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    rows = [Row(**json.loads(line)) for line in result.stdout.splitlines() if line.startswith("{")]
    died = f"exit status {result.returncode}: {(result.stderr.strip().splitlines() or [''])[-1][:200]}"
    return rows + [Row(family, e, "crashed", died) for e in exporters[len(rows) :]]


def measure(family: str, exporter: str, peers: bool) -> Row:
    """Export, compile, verify and compare one model; never raises."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    path = FOLDER / f"{family}-{exporter}.onnx"
    try:
        if not path.exists() or path.stat().st_mtime < _changed():
            path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                export(family, exporter, path)
    except Exception as error:
        path.unlink(missing_ok=True)
        return Row(family, exporter, "exporter failed", _line(error))
    try:
        return _compiled(family, exporter, path, peers)
    except Exception as error:
        trace = traceback.format_exc().splitlines()[-3:]
        return Row(
            family, exporter, "crashed", f"{type(error).__name__}: {_line(error)} ({trace[0].strip()})"
        )


def _changed() -> float:
    """When the sources of the zoo changed last."""
    return max(source.stat().st_mtime for source in (*HERE.glob("[!r]*.py"), HERE.parent / "models.py"))


def export(family: str, exporter: str, path: Path) -> Path:
    """Write the zoo's `family` to `path` with one output, `output`."""
    import torch
    from families import ZOO, network

    case = ZOO[family]
    feeds = case.feeds(2, np.random.default_rng(3))
    model = _positional(network(family), list(feeds), case.pick)
    tensors = tuple(torch.from_numpy(value) for value in feeds.values())
    common: dict[str, Any] = {"input_names": list(feeds), "output_names": ["output"],
                              "opset_version": OPSETS[exporter]}  # fmt: skip
    if exporter == "legacy":
        torch.onnx.export(model, tensors, str(path), dynamo=False, dynamic_axes=case.axes, **common)
        return path
    auto = torch.export.Dim.AUTO
    shapes = tuple(dict.fromkeys(case.axes[name], auto) for name in feeds)
    torch.onnx.export(
        model, tensors, str(path), dynamo=True, verbose=False, dynamic_shapes=(shapes,), **common
    )
    return path


def _positional(model: Any, names: list[str], pick: str) -> Any:
    """`model` with positional inputs and one tensor as its output."""
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: Any) -> Any:
            out = self.model(**dict(zip(names, tensors, strict=True)))
            return getattr(out, pick) if pick else out if isinstance(out, torch.Tensor) else out[0]

    return Positional().eval()


def _compiled(family: str, exporter: str, path: Path, peers: bool) -> Row:
    import onnxruntime
    from families import ZOO

    import intc
    from intc.errors import IntcError

    case = ZOO[family]
    calibration = case.feeds(SAMPLES, np.random.default_rng(1))
    held_out = case.feeds(48, np.random.default_rng(2))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        reference = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [i.name for i in reference.get_inputs()]
        calibration, held_out = ({n: f[n] for n in names} for f in (calibration, held_out))
        expected = reference.run(None, held_out)[0]
    except Exception as error:
        return Row(family, exporter, "exporter failed", f"onnxruntime does not run the file: {_line(error)}")
    try:
        module = intc.compile(path, calibration)
    except IntcError as error:
        return Row(family, exporter, "refused", str(error).replace("\n", "; "))
    session = module.session()
    for feeds in _variants(held_out, case.axes):
        if not _takes(reference, feeds):
            continue  # the exporter wrote a length into the file
        (exact,) = module.graph.evaluate(feeds)
        (found,) = session.run(None, feeds)
        if not np.array_equal(exact, found):
            return Row(family, exporter, "wrong bits")
    row = Row(family, exporter, "ok", sqnr=_sqnr(session.run(None, held_out)[0], expected))
    if peers:
        row.peers = _peers(family, path, calibration, held_out, expected)
    best = max(row.peers.values(), default=-np.inf)
    assert row.sqnr is not None
    ahead = np.isfinite(best) and row.sqnr >= best + BEHIND
    if row.sqnr < best - BEHIND or (row.sqnr < LOWEST and not ahead):
        row.status = "inaccurate"
    return row


def _peers(
    family: str, path: Path, calibration: Mapping[str, Any], held_out: Mapping[str, Any], expected: Any
) -> dict[str, float]:
    """The SQNR of every peer that quantises the file; kept beside the exports, one for both exporters."""
    from engines import openvino_nncf, ort_dynamic, ort_static

    engines = dict(zip(PEERS, (ort_dynamic, ort_static, openvino_nncf), strict=True))
    kept = FOLDER / f"{family}-peers.json"
    if kept.exists() and kept.stat().st_mtime > _changed():
        return dict(json.loads(kept.read_text()))
    figures = {}
    for name, engine in engines.items():
        with contextlib.suppress(Exception):
            figures[name] = _sqnr(engine(path, calibration)(held_out), expected)
    write_text(kept, json.dumps(figures))
    return figures


def _variants(feeds: dict[str, Any], axes: dict[str, dict[int, str]]) -> Iterator[dict[str, Any]]:
    """All samples, and one sample (cut to fewer tokens where lengths are dynamic)."""
    yield feeds
    yield {n: a[:1, : a.shape[1] - 3] if 1 in axes[n] else a[:1] for n, a in feeds.items()}


def _takes(reference: Any, feeds: dict[str, Any]) -> bool:
    """Whether onnxruntime runs the file on ``feeds``."""
    try:
        reference.run(None, feeds)
    except Exception:
        return False
    return True


def _sqnr(found: Any, expected: Any) -> float:
    error = float(((found.astype(np.float64) - expected) ** 2).sum())
    signal = float((expected.astype(np.float64) ** 2).sum())
    return 10 * float(np.log10(signal / max(error, 1e-30)))


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def main() -> int:
    from families import ZOO

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("families", nargs="*", metavar="FAMILY", help=", ".join(ZOO))
    parser.add_argument("--exporters", default=",".join(EXPORTERS))
    parser.add_argument("--no-peers", action="store_true", help="do not quantise with the peers")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time (default 2)")
    parser.add_argument("-o", "--output", type=Path, default=FOLDER / "zoo.json")
    options = parser.parse_args()
    unknown = set(options.families) - set(ZOO)
    if unknown:
        parser.error(f"no family {', '.join(sorted(unknown))}")
    exporters = options.exporters.split(",")
    if options.child:
        for exporter in exporters:
            row = measure(options.families[0], exporter, not options.no_peers)
            print(json.dumps(asdict(row)), flush=True)
        return 0
    rows: dict[tuple[str, str], Row] = {}
    families = options.families or list(ZOO)
    with ThreadPoolExecutor(options.jobs) as pool:
        peers = [] if not options.no_peers else ["--no-peers"]
        waiting = [pool.submit(_in_process, f, exporters, peers) for f in families]
        for done in as_completed(waiting):
            for row in done.result():
                rows[row.family, row.exporter] = row
                print(_text(row), flush=True)
    work = [(f, e) for f in families for e in exporters]
    ordered = [rows[key] for key in work]
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps([asdict(r) for r in ordered], indent=1))
    options.output.with_suffix(".md").write_text(_markdown(ordered))
    made = [r for r in ordered if r.status != "exporter failed"]
    good = sum(r.status == "ok" for r in made)
    print(
        f"{good} of {len(made)} exported models are exact and accurate: {options.output.with_suffix('.md')}"
    )
    return 0 if good == len(made) else 1


def _text(row: Row) -> str:
    measured = {} if row.sqnr is None else {"intc": row.sqnr, **row.peers}
    figures = " ".join(f"{name} {value:.1f}" for name, value in measured.items())
    return f"{row.family:18} {row.exporter:7} {row.status:16} {figures} {row.detail}"


def _markdown(rows: list[Row]) -> str:
    """One line a family: what each exporter's file gave, and the figures of the first that was measured."""

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    exporters = list(dict.fromkeys(r.exporter for r in rows))
    lines = [
        f"| family | {' | '.join(exporters)} | intc, dB | {', dB | '.join(PEERS)}, dB |",
        "| --- |" + " --- |" * (len(exporters) + 1 + len(PEERS)),
    ]
    for family in dict.fromkeys(r.family for r in rows):
        mine = {r.exporter: r for r in rows if r.family == family}
        results = [mine[e].status if e in mine else "" for e in exporters]
        best = next((r for r in mine.values() if r.sqnr is not None), Row(family, "", ""))
        figures = [cell(best.sqnr), *(cell(best.peers.get(name)) for name in PEERS)]
        lines.append(f"| {' | '.join([family, *results, *figures])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
