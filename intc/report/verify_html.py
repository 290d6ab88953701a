"""``intc verify --html``: the verdicts and a table of every node, as one self-contained page."""

from __future__ import annotations

from html import escape
from pathlib import Path

from intc.report.nodes import NodeCheck
from intc.report.page import document
from intc.report.tables import verification_text
from intc.report.verify import Verification

HEADINGS = (
    "value",
    "operator",
    "kernel differs in",
    "by at most",
    "SQNR to float, dB",
    "cosine",
    "at an end",
    "type",
    "seen",
    "interval",
    "ONNX node",
)
NAMES = ("value", "operator", "ONNX node")  # the columns of text


def verification_html(path: Path, result: Verification) -> str:
    """A page: what ``intc verify`` prints, then every node in order of computation."""
    rows = "".join(_row(node) for node in result.nodes)
    heads = "".join(f"<th{_kind(h)}>{escape(h)}</th>" for h in HEADINGS)
    verdict = f"<pre>{escape(verification_text(path, result))}</pre>"
    table = f"<table class='grid'><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>"
    body = f"<h1>{escape(str(path))}</h1><section class='card wider'>{verdict}</section>"
    body += f"<section class='card wider'><h2>Nodes</h2>{table}</section>"
    return document(f"{path}: verification", body)


def _row(node: NodeCheck) -> str:
    floats = ("" if v is None else f"{v:.{n}f}" for v, n in ((node.sqnr_db, 1), (node.cosine, 5)))
    cells = (
        node.name,
        node.op,
        str(node.differences),
        str(node.largest),
        *floats,
        f"{node.saturated:.2%}",
        node.dtype,
        f"{node.seen[0]} .. {node.seen[1]}",
        f"{node.interval[0]} .. {node.interval[1]}",
        node.source,
    )
    mark = " class='warn'" if node.differences else ""
    line = (f"<td{_kind(h)}>{escape(cell)}</td>" for h, cell in zip(HEADINGS, cells, strict=True))
    return f"<tr{mark}>{''.join(line)}</tr>"


def _kind(heading: str) -> str:
    return " class='name'" if heading in NAMES else ""
