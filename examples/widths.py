"""Accuracy, size and speed of one model under several plans, timed in turns in one run.

python examples/widths.py deit-tiny.onnx --calibration images.npz
python examples/widths.py minilm.onnx --minilm          # real sentences; needs the [examples] extra
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import intc
from intc.frontend import import_onnx
from intc.passes.pipeline import canonicalise
from intc.planning.planner import wide_share
from intc.planning.target import Target
from intc.report.bench import interleave
from intc.report.reference import Reference

Feeds = dict[str, NDArray[Any]]
Scores = Callable[[Callable[[Feeds], NDArray[Any]]], dict[str, float]]
EVALUATED = 4
PLANS: dict[str, dict[str, Any]] = {
    "8 bits": {},
    "16-bit activations": {"bits": 16},
    "4-bit weights": {"bits": {"default": {"weights": 4}}},
    "4-bit weights, 16-bit activations": {"bits": {"default": {"weights": 4, "activations": 16}}},
    "auto": {"bits": "auto"},
}


def images(path: Path, model: Path) -> tuple[Feeds, Feeds, Scores]:
    """Calibration feeds, one feed to time, the distance from float on the last samples of an .npz file."""
    with np.load(path) as file:
        data = {name: file[name] for name in file.files}
    held = {n: a[-EVALUATED:] for n, a in data.items()}
    wanted = Reference(model).run(held)

    def scores(run: Callable[[Feeds], NDArray[Any]]) -> dict[str, float]:
        got = [run(held)]
        return {m: Target(m, 0).value(wanted[:1], got) for m in ("sqnr", "cosine")}

    return {n: a[:-EVALUATED] for n, a in data.items()}, {n: a[:1] for n, a in held.items()}, scores


def sentences(model: Path) -> tuple[Feeds, Feeds, Scores]:
    """The same for MiniLM, with the measures of its demo on 256 sentences that were not calibrated on."""
    sys.path.insert(0, str(Path(__file__).parent / "minilm"))
    from corpus import split, tokenise
    from demo import accuracy, encode, float_encoder

    parts = split()
    texts = [entry.text for entry in parts.evaluation]
    wanted = encode(float_encoder(model, 1), texts)
    calibration = tokenise([entry.text for entry in parts.calibration])

    def scores(run: Callable[[Feeds], NDArray[Any]]) -> dict[str, float]:
        return accuracy(wanted, encode(run, texts))

    return calibration, {n: a[:1] for n, a in calibration.items()}, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, help="an .npz file; its last samples are for evaluation")
    parser.add_argument("--minilm", action="store_true")
    parser.add_argument(
        "--target", action="append", default=[], help="auto with this accuracy target as well"
    )
    parser.add_argument("--max-bytes", action="append", type=int, default=[], help="auto within this as well")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    calibration, one, scores = (
        sentences(options.model) if options.minilm else images(options.calibration, options.model)
    )
    plans = PLANS | {f"8 bits, {t}": {"accuracy_target": t} for t in options.target}
    plans |= {f"auto, {t}": {"bits": "auto", "accuracy_target": t} for t in options.target}
    for size in options.max_bytes:
        plans[f"auto, {size / 1e6:g} MB"] = {"bits": "auto", "search": intc.Search(1.1, size)}
    console = Console()
    graph = canonicalise(import_onnx(options.model)).graph
    rows: dict[str, dict[str, float | str]] = {}
    engines: dict[str, Callable[[], Any]] = {}
    with tempfile.TemporaryDirectory() as folder, console.status("compile") as status:
        for name, keywords in plans.items():
            try:
                module = intc.compile(
                    options.model,
                    calibration,
                    **keywords,
                    progress=lambda s, n=name: status.update(f"{n}: {s}"),
                )
            except intc.errors.AccuracyNotReached as error:
                console.print(f"{name}: {error}")
                continue
            path = Path(folder) / f"{len(rows)}.intc"
            module.save(path)
            session = intc.load(path)
            engines[name] = lambda s=session: s.run(None, one)
            rows[name] = {k: f"{v:.4f}" for k, v in scores(lambda f, s=session: s.run(None, f)[0]).items()}
            rows[name]["MB"] = f"{path.stat().st_size / 1e6:.2f}"
            rows[name]["above 8 bits"] = f"{wide_share(graph, module.plan):.0%}"
        status.update("time")
        times = interleave(engines, options.seconds)
    base = statistics.median(times["8 bits"])
    for name, row in rows.items():
        middle = statistics.median(times[name])
        row["ms"], row["of 8 bits"] = f"{middle * 1e3:.2f}", f"{middle / base:.2f}"
    table = Table(
        "plan", *rows["8 bits"], title=f"{options.model.name}, 1 thread, batch 1, {len(plans)} plans"
    )
    for name, row in rows.items():
        table.add_row(name, *map(str, row.values()))
    console.print(table)


if __name__ == "__main__":
    main()
