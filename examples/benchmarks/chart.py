"""Draw a benchmark's results: speed and error of every engine, by model.

python examples/benchmarks/chart.py examples/benchmarks/build/results.json -o speed.svg
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
from report import OWN, REFERENCE, Result, read_json

from intc.errors import IntcError, UsageError
from intc.files import replacing

COLOURS: Final = {OWN: "#1f6feb", REFERENCE: "#b8bec6"}
OTHERS: Final = ("#e08a2c", "#5aa469", "#9b6fc4", "#c4595f")
STYLE: Final = {"font.size": 9, "font.family": "sans-serif", "svg.hashsalt": "intc", "svg.fonttype": "none"}


def bars(ax: Any, names: list[str], series: dict[str, list[float | None]], label: str) -> None:
    """Horizontal bars, a group for each of ``names``, each with its value behind it."""
    height = 0.8 / len(series)
    others = iter(OTHERS)
    for place, (engine, values) in enumerate(series.items()):
        colour = COLOURS.get(engine) or next(others)
        at = [row + (place - (len(series) - 1) / 2) * height for row in range(len(names))]
        drawn = ax.barh(at, [value or 0 for value in values], height, color=colour, label=engine)
        texts = [label.format(value) if value else "" for value in values]
        ax.bar_label(drawn, texts, padding=2, fontsize=7.5)
    ax.set_yticks(range(len(names)), names)
    ax.margins(x=0.14)
    ax.spines[["top", "right"]].set_visible(False)


def draw(result: Result, threads: int, path: Path) -> None:
    """Times as fast as the reference, and distance from it in dB, of all models measured with ``threads``."""
    runs = {
        name: run["engines"]
        for name, model in result["models"].items()
        for run in model.get("runs", [])
        if run["threads"] == threads and run["batch"] == 1 and "engines" in run
    }
    if not runs:
        raise UsageError(f"no results of {threads} thread(s), batch 1")
    engines = sorted(
        {engine for run in runs.values() for engine in run}, key=lambda e: (e == REFERENCE, e != OWN, e)
    )
    speed = {e: [run.get(e, {}).get("to_fp32") for run in runs.values()] for e in engines}
    states = [result["models"][name]["engines"] for name in runs]
    error = {
        e: [(state.get(e, {}).get("error") or {}).get("sqnr_db") for state in states]
        for e in engines
        if e != REFERENCE
    }
    with mpl.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 0.9 + 0.55 * len(runs)), sharey=True)
        bars(left, list(runs), speed, "{:.2f}")
        bars(right, list(runs), error, "{:.0f}")
        left.invert_yaxis()
        left.set_title(f"speed, times {REFERENCE}", fontsize=9)
        right.set_title("signal over error of the outputs, dB", fontsize=9)
        handles, labels = left.get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=len(labels), frameon=False)
        figure.tight_layout(rect=(0, 0.28 / figure.get_size_inches()[1], 1, 1))
        with replacing(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})
        plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", type=Path, help="the JSON that run.py wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="an SVG file")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    try:
        draw(read_json(options.results), options.threads, options.output)
    except IntcError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
