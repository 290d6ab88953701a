"""Two graphs side by side: their lines paired by what they declare, and the unified diff of their texts."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterator, Sequence
from html import escape
from itertools import groupby, zip_longest
from typing import Any, Final, TypeAlias

from intc.ir.graph import Graph
from intc.ir.text import format_lines, print_graph

Key: TypeAlias = tuple[str, str]  # a kind of line, and the name that it declares
Pair: TypeAlias = tuple[int | None, int | None]
ROWS: Final = 300  # rows that a notebook shows of one diff
STYLE: Final = (
    "<style>.intc-diff{font:12px/1.5 ui-monospace,monospace}"
    ".intc-diff table{border-collapse:collapse;width:100%;table-layout:fixed}"
    ".intc-diff td,.intc-diff th{text-align:left!important;vertical-align:top;white-space:pre-wrap;"
    "overflow-wrap:anywhere;padding:1px 8px;border:1px solid #8883}"
    ".intc-diff .add{background:#2ea04333}.intc-diff .del{background:#f8514933}"
    ".intc-diff .edit{background:#d2992233}.intc-diff .equal{opacity:.6}</style>"
)


class Diff(str):
    """A unified diff of two graphs, empty where they are equal; a notebook shows it side by side."""

    before: Graph
    after: Graph

    def _repr_html_(self) -> str:
        return diff_html(self.before, self.after)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(str(self) or "no difference")


def diff_graphs(before: Graph, after: Graph, context: int = 1) -> Diff:
    """What leads from the text of ``before`` to that of ``after``."""
    old, new = print_graph(before).splitlines(), print_graph(after).splitlines()
    diff = Diff("\n".join(difflib.unified_diff(old, new, "before", "after", lineterm="", n=context)))
    diff.before, diff.after = before, after
    return diff


def aligned(before: Sequence[Hashable], after: Sequence[Hashable]) -> Iterator[Pair]:
    """The positions that stand side by side, in the order of both: equal names, and what lies between them.

    >>> list(aligned("abbc", "adc"))
    [(0, 0), (1, 1), (2, None), (3, 2)]
    """
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for _, i, i_end, j, j_end in matcher.get_opcodes():
        yield from zip_longest(range(i, i_end), range(j, j_end))


def compared_lines(graph: Graph) -> list[tuple[Key, str]]:
    """What each line declares and its text, in the order in which graphs are compared: constants last."""
    return sorted(format_lines(graph).items(), key=lambda line: line[0][0] == "constant")


def diff_html(before: Graph, after: Graph) -> str:
    """The two texts side by side; lines that are equal are counted."""
    old, new = compared_lines(before), compared_lines(after)
    pairs = [
        (old[i] if i is not None else None, new[j] if j is not None else None)
        for i, j in aligned([key for key, _ in old], [key for key, _ in new])
    ]
    rows: list[str] = []
    for equal, group in groupby(pairs, key=lambda pair: pair[0] == pair[1]):
        if equal:
            rows.append(f"<tr><td colspan='2' class='equal'>{len(list(group))} equal</td></tr>")
            continue
        for left, right in group:
            edited = left is not None and right is not None and left[0] == right[0]
            old_kind, new_kind = ("edit", "edit") if edited else ("del", "add")
            rows.append(f"<tr>{_cell(left, old_kind)}{_cell(right, new_kind)}</tr>")
    more = f"<p>{len(rows) - ROWS} more rows; str() of it has all</p>" if len(rows) > ROWS else ""
    table = f"<table><tr><th>before</th><th>after</th></tr>{''.join(rows[:ROWS])}</table>{more}"
    return f"{STYLE}<div class='intc-diff'>{table if before is not after else 'no difference'}</div>"


def _cell(line: tuple[Hashable, str] | None, kind: str) -> str:
    return f"<td class='{kind}'>{escape(line[1])}</td>" if line else "<td></td>"
