"""The accuracy report as one HTML file that needs no network, no server and no other file.

Names and settings come from the model and are untrusted: they are escaped here, the script only ever handles
them as text, and the page's own policy forbids every request and every script but this file's.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any, Final

from intc.report.accuracy import NodeReport, Report
from intc.report.tally import CAUSES

TOP: Final = 60  # dB shown at most in the chart of accumulated errors
WORST: Final = 10
COLUMNS: Final = (  # field, title, whether a phone shows it, direction of the first click
    ("index", "#", False, "up"),
    ("name", "node", True, "up"),
    ("accumulated_db", "accum.", True, "up"),
    ("isolated_db", "isolated", True, "up"),
    ("stored_db", "stored", False, "up"),
    ("cause", "own error", False, "up"),
    ("max_error", "largest error", False, "down"),
    ("clip_rate", "clipped", False, "down"),
    ("range_used", "range", False, "up"),
    ("width", "bits", False, "up"),
    ("scale", "scale", False, "down"),
    ("cost_share", "cost", False, "down"),
)
EXPLANATION: Final = (
    "All ratios are signal to error in dB, 20 dB for a factor of ten. <b>Accumulated</b>: the value in the integer "
    "model against the float one, errors of everything before it included. <b>Isolated</b>: the node on operands "
    "that hold their exact float values in their own formats. <b>Stored</b>: the exact value rounded to the node's "
    "format, the least that any computation leaves. Data movement has no error of its own and is left out."
)


def report_html(report: Report, plans: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole document. ``plans``: mappings with ``label``, ``size`` (bytes), ``error`` (less is better) and
    optionally ``latency`` (ms), drawn as a front; nothing is drawn without them.
    """
    style, script = _asset("accuracy.css"), _asset("accuracy.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    title = escape(str(report.settings.get("model", "model")))
    parts = (
        f"<h1>{title}</h1><p class='soft'>How far the integer model is from the float one, and where that comes "
        f"from. Measured on {report.samples} sample{'s' * (report.samples != 1)}.</p>",
        _summary(report),
        _plans(plans) if plans else "",
        _depth(report.nodes),
        _own(report),
        _table(report.nodes),
        "<dialog></dialog>",
        f"<script type='application/json' id='nodes'>{_json(report.nodes)}</script>",
    )
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{title}: accuracy</title><style>{style}</style></head><body><main>{''.join(parts)}</main>"
        f"<script>{script}</script></body></html>\n"
    )


def _asset(name: str) -> str:
    return resources.files("intc.report").joinpath(name).read_text(encoding="utf-8")


def _json(nodes: Iterable[NodeReport]) -> str:
    """The nodes for the script; no character that could end the element or start a comment survives."""
    data = [{**node.summary(), "histogram": node.histogram} for node in nodes]
    text = json.dumps(data, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


# ---------------------------------------------------------------- summary


def _summary(report: Report) -> str:
    outputs = "".join(_output(name, numbers) for name, numbers in report.outputs.items())
    settings = {k: v for k, v in report.settings.items() if k != "model"}
    chips = "".join(f"<span><b>{escape(k)}</b>{escape(str(v))}</span>" for k, v in settings.items())
    warning = (
        "<p class='warn'>Ranges and samples are random numbers: these figures say nothing about real data.</p>"
        if report.settings.get("calibration") == "random"
        else ""
    )
    return (
        f"<section class='card'>{warning}{outputs}<p class='mostly'>{_mostly(report)}</p>"
        f"<div class='chips'>{chips}</div></section>"
    )


def _mostly(report: Report) -> str:
    """The worst nodes counted by operator and cause, as a sentence."""
    worst = report.worst(WORST)
    if not worst:
        return "No node makes an error."
    counts = Counter((n.op, n.cause) for n in worst).most_common()
    listed = "; ".join(
        f"{count} \u00d7 <b>{escape(op)}</b>, {escape(cause)}" for (op, cause), count in counts
    )
    return f"The {len(worst)} largest errors of single nodes: {listed}."


def _output(name: str, numbers: Mapping[str, float | None]) -> str:
    def number(key: str, form: str) -> str:
        value = numbers.get(key)
        return "exact" if value is None else format(value, form)

    tiles = (
        ("SQNR, dB", number("sqnr_db", ".1f")),
        ("cosine, mean", number("cosine_mean", ".5f")),
        ("cosine, smallest", number("cosine_min", ".5f")),
        ("same largest entry", number("agreement", ".1%")),
        ("largest error", number("max_abs_error", ".3g")),
    )
    cells = "".join(f"<div class='tile'><span class='soft'>{k}</span><b>{v}</b></div>" for k, v in tiles)
    return f"<div class='output'><h2>{escape(name)}</h2><div class='tiles'>{cells}</div></div>"


# ---------------------------------------------------------------- charts


def _depth(nodes: Sequence[NodeReport]) -> str:
    """Accumulated SQNR as bars in the order of computation, isolated SQNR as a line above."""
    heights = [_db(n.accumulated_db) for n in nodes]
    top = min(TOP, max(10, *(10 * -(-h // 10) for h in heights))) if heights else 10
    bars = "".join(
        f"<rect class='accumulated' x='{i}' y='{_short(100 - y)}' width='.9' height='{_short(y)}'/>"
        for i, y in ((i, 100 * min(max(h, 0), top) / top) for i, h in enumerate(heights))
    )
    line = " ".join(
        f"{i + 0.5:g},{_short(100 - 100 * min(max(_db(n.isolated_db), 0), top) / top)}"
        for i, n in enumerate(nodes)
    )
    ticks = [(100 * db / top, f"{db:g} dB") for db in range(0, int(top) + 1, 10 if top <= 40 else 20)]
    chart = _chart(len(nodes), f"{bars}<polyline class='isolated' points='{line}'/>", ticks)
    return (
        "<section class='card'><h2>Error by depth</h2><p class='soft key'><i style='background:var(--accent)'></i>"
        "accumulated SQNR, all errors so far<i style='background:var(--computing)'></i>isolated SQNR, the node "
        f"alone. Input on the left, output on the right; higher is better, cut off at {top:g} dB.</p>{chart}"
        "<p class='readout'>Point at the chart to read a node, click it for details.</p></section>"
    )


def _own(report: Report) -> str:
    """The relative error that each node makes by itself, in percent of its value's magnitude."""
    nodes, worst = report.nodes, {id(n) for n in report.worst(WORST)}
    errors = [0.0 if n.isolated_db is None else min(10 ** (-n.isolated_db / 20), 1.0) for n in nodes]
    top = max([*errors, 1e-6])
    bars = "".join(
        f"<rect class='own{' worst' * (id(n) in worst)}' x='{i}' y='{_short(100 - 100 * e / top)}' width='.9' "
        f"height='{_short(100 * e / top)}'/>"
        for i, (n, e) in enumerate(zip(nodes, errors, strict=True))
    )
    ticks = [(100 * part, f"{100 * top * part:.2g} %") for part in (0, 0.5, 1)]
    return (
        "<section class='card'><h2>Error of each node alone</h2><p class='soft'>Root mean square, in percent of the "
        f"value's own; the {min(WORST, len(worst))} largest are red.</p>{_chart(len(nodes), bars, ticks)}"
        "<p class='readout'></p></section>"
    )


def _chart(count: int, shapes: str, ticks: Sequence[tuple[float, str]]) -> str:
    marks = "".join(
        f"<div class='grid' style='bottom:{at:.1f}%'></div><span class='tick' style='bottom:{at:.1f}%'>{text}</span>"
        for at, text in ticks
    )
    return (
        f"<div class='chart' data-nodes>{marks}<svg viewBox='0 0 {max(count, 1)} 100' preserveAspectRatio='none' "
        f"aria-hidden='true'>{shapes}</svg></div>"
    )


def _plans(plans: Sequence[Mapping[str, Any]]) -> str:
    """Size against error, the plans that no other beats in every respect joined by a line."""
    sizes, errors = ([float(p[key]) for p in plans] for key in ("size", "error"))
    largest, highest = max(*sizes, 1.0) * 1.05, max(*errors, 1e-12) * 1.1
    best = [i for i, p in enumerate(plans) if not any(_beats(q, p) for q in plans)]
    places = [(100 * s / largest, 100 * e / highest) for s, e in zip(sizes, errors, strict=True)]
    front = sorted(places[i] for i in best)
    line = " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in front)
    dots = "".join(
        f"<span class='dot{' best' * (i in best)}' style='left:{x:.2f}%;bottom:{y:.2f}%' "
        f"title='{escape(str(plans[i]['label']))}'></span>"
        for i, (x, y) in enumerate(places)
    )
    rows = "".join(
        f"<tr><td class='name'>{escape(str(p['label']))}{' *' * (i in best)}</td><td>{float(p['size']) / 1e6:.2f}</td>"
        f"<td>{'' if p.get('latency') is None else format(float(p['latency']), '.3g')}</td>"
        f"<td>{float(p['error']):.4g}</td></tr>"
        for i, p in enumerate(plans)
    )
    ticks = "".join(
        f"<div class='grid' style='bottom:{at / 1.1:.1f}%'></div><span class='tick' style='bottom:{at / 1.1:.1f}%'>"
        f"{highest / 1.1 * at / 100:.2g}</span>"
        for at in (0, 50, 100)
    )
    return (
        "<section class='card'><h2>Plans</h2><p class='soft'>Error against size; no other plan is at least as good in "
        "size, latency and error as those marked *.</p>"
        f"<div class='chart plans'>{ticks}<svg viewBox='0 0 100 100' preserveAspectRatio='none' aria-hidden='true'>"
        f"<polyline class='front' points='{line}'/></svg>{dots}</div>"
        f"<div class='ends soft'><span>0 MB</span><span>{largest / 1e6:.3g} MB</span></div>"
        "<table><thead><tr><th class='name'>plan</th><th>MB</th><th>ms</th><th>error</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _beats(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether plan ``a`` is at least as good as ``b`` in everything both know, and better in something."""
    keys = [k for k in ("size", "latency", "error") if a.get(k) is not None and b.get(k) is not None]
    return all(a[k] <= b[k] for k in keys) and any(a[k] < b[k] for k in keys)


# ---------------------------------------------------------------- table


def _table(nodes: Sequence[NodeReport]) -> str:
    heads = "".join(
        f"<th data-key='{key}' data-first='{first}' class='{'name' * (key == 'name')} {'wide' * (not phone)}'>"
        f"<button>{title}</button></th>"
        for key, title, phone, first in COLUMNS
    )
    kinds = "".join(f"<option>{escape(kind)}</option>" for kind in sorted({n.op for n in nodes}))
    keys = "".join(f"<i class='{cause}'></i>{cause}" for cause in CAUSES)
    return (
        f"<section class='card'><h2>Nodes</h2><p class='soft'>{EXPLANATION}</p><p class='soft key'>Parts of the "
        f"accumulated error: {keys}</p><div class='tools'><input id='search' type='search' "
        "placeholder='filter by name, operator, cause' aria-label='filter'><select id='kind' aria-label='operator'>"
        f"<option value=''>all operators</option>{kinds}</select></div><p class='soft' id='shown'></p>"
        f"<table id='table'><thead><tr>{heads}</tr></thead>"
        f"<tbody>{''.join(_row(i, n) for i, n in enumerate(nodes))}</tbody></table></section>"
    )


def _row(index: int, node: NodeReport) -> str:
    origin = f" from {escape(node.source)}" if node.source and node.source != node.name else ""
    cells = {
        "index": str(index + 1),
        "name": f"<button>{escape(node.name)}</button><small>{escape(node.op)}{origin}</small>{_split(node)}",
        "accumulated_db": _decibels(node.accumulated_db),
        "isolated_db": _decibels(node.isolated_db),
        "stored_db": _decibels(node.stored_db),
        "cause": escape(node.cause),
        "max_error": f"{node.max_error:.3g}",
        "clip_rate": _percent(node.clip_rate),
        "range_used": _percent(node.range_used),
        "width": str(node.width),
        "scale": "..".join(f"{s:.2g}" for s in dict.fromkeys(node.scale)),
        "cost_share": _percent(node.cost_share) if node.macs else "",
    }
    return (
        f"<tr data-i='{index}'>"
        + "".join(
            f"<td class='{'name' * (key == 'name')} {'wide' * (not phone)}'>{cells[key]}</td>"
            for key, _, phone, _ in COLUMNS
        )
        + "</tr>"
    )


def _split(node: NodeReport) -> str:
    parts = "".join(
        f"<i class='{c}' style='width:{100 * node.shares[c]:.0f}%'></i>"
        for c in CAUSES
        if node.shares[c] >= 0.005
    )
    return f"<span class='split'>{parts}</span>"


def _db(value: float | None) -> float:
    """For drawing: no error at all is off the scale."""
    return 1000.0 if value is None else value


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"


def _percent(value: float) -> str:
    if 0 < value < 0.0001:
        return "&lt;0.01%"
    return f"{100 * value:.2f}%" if value < 0.1 else f"{100 * value:.0f}%"


def _short(value: float) -> str:
    return f"{value:.4g}"
