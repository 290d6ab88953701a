"""The accuracy report on a terminal: the outputs, and the nodes with the largest errors of their own."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.table import Table
from rich.text import Text

from intc.errors import UsageError
from intc.report.accuracy import Report
from intc.report.tables import fidelity_text

PIPE_WIDTH = 140


def accuracy_scope(samples: int | None, worst: int | None, page: bool, json: str | None) -> tuple[int, int]:
    """How many samples ``intc compile`` measures on and how many nodes it lists; few where nobody asked.

    ``samples`` and ``worst`` as given or None; ``page``: a report is wanted; ``json`` goes to a file, or to
    stdout ("-").
    """
    listed = bool(worst)
    asked = page or bool(json) or listed
    if worst is None:
        worst = 10 if sys.stdout.isatty() and json != "-" else 0
    if samples is None:
        samples = 8 if asked else 2
    if (page or listed) and not samples:
        raise UsageError("--report-samples 0 leaves nothing to report; give 1 or more")
    return samples if asked or worst else 0, worst


def print_worst(report: Report, count: int) -> None:
    """Print the outputs' fidelity and the ``count`` worst nodes to stdout."""
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)
    for name, numbers in report.outputs.items():
        exact = {k: float("inf") if v is None else v for k, v in numbers.items()}
        line = f"{name} against float, {report.samples} sample(s): {fidelity_text(exact)}"
        console.print(Text(line), soft_wrap=True)
    console.print(worst_table(report, count))


def worst_table(report: Report, count: int) -> Table:
    """The nodes with the smallest isolated SQNR, dB; names are text, never markup."""
    table = Table(title="largest errors of single nodes", title_justify="left", box=None, pad_edge=False)
    table.add_column("node", overflow="fold")
    table.add_column("operator")
    for title in ("isolated", "accumulated", "clipped", "bits"):
        table.add_column(title, justify="right")
    table.add_column("own error")
    for node in report.worst(count):
        numbers = (node.isolated_db, node.accumulated_db)
        table.add_row(
            Text(node.name),
            Text(node.op),
            *("exact" if db is None else f"{db:.1f} dB" for db in numbers),
            f"{node.clip_rate:.2%}",
            str(node.width),
            Text(node.cause),
        )
    return table
