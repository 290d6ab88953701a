"""The accuracy report as one HTML file; see :mod:`intc.report.page`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any, Final

from intc.report.accuracy import NodeReport, Report
from intc.report.page import asset, chip, document
from intc.report.tally import CAUSES

TOP: Final = 60  # dB shown at most in the chart of accumulated errors
WORST: Final = 10
RANDOM: Final = "Ranges and samples are random numbers: these figures say nothing about real data."
NO_BREAK: Final = "\u2011"  # a hyphen that keeps 2.4e-05 on one line
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
TILES: Final = (
    ("sqnr_db", "SQNR, dB", ".1f"),
    ("cosine_mean", "cosine, mean", ".5f"),
    ("cosine_min", "cosine, smallest", ".5f"),
    ("agreement", "same largest entry", ".1%"),
    ("max_abs_error", "largest error", ".3g"),
)


def report_html(report: Report, plans: Sequence[Mapping[str, Any]] = ()) -> str:
    """The whole document.

    ``plans`` are mappings with ``label``, ``size`` (bytes), ``error`` (less is better) and optionally
    ``latency`` (ms), drawn as a front; without them there is no such section.
    """
    plain = {k: v for k, v in report.settings.items() if not isinstance(v, (Mapping, list))}  # no plan
    settings = {k: v for k, v in plain.items() if k != "model"}
    depth, top = _depth(report.nodes)
    title = str(report.settings.get("model", "model"))
    body = Template(asset("accuracy.html")).substitute(
        title=escape(title),
        samples=report.samples,
        warning=f"<p class='warn'>{RANDOM}</p>" if settings.get("calibration") == "random" else "",
        outputs="".join(_output(name, numbers) for name, numbers in report.outputs.items()),
        mostly=_mostly(report),
        settings="".join(chip(key, str(value)) for key, value in settings.items()),
        plans=_plans(plans) if plans else "",
        depth=depth,
        top=f"{top:g}",
        alone=_alone(report),
        causes=" ".join(f"<span><i class='{cause}'></i>{cause}</span>" for cause in CAUSES),
        kinds="".join(f"<option>{escape(kind)}</option>" for kind in sorted({n.op for n in report.nodes})),
        heads="".join(
            f"<th data-key='{key}' data-first='{first}'{_class(key, phone)}><button>{title}</button></th>"
            for key, title, phone, first in COLUMNS
        ),
        rows="\n".join(_row(i, node) for i, node in enumerate(report.nodes)),
    )
    data = {"nodes": [{**node.summary(), "histogram": node.histogram} for node in report.nodes]}
    return document(f"{title}: accuracy", body, ["accuracy.css"], ["accuracy.js"], data)


# ---------------------------------------------------------------- summary


def _output(name: str, numbers: Mapping[str, float | None]) -> str:
    cells = []
    for key, title, form in TILES:
        value = numbers.get(key)
        text = "exact" if value is None else format(value, form)
        cells.append(f"<div class='tile'><span class='soft'>{title}</span><b>{text}</b></div>")
    return f"<div class='output'><h2>{escape(name)}</h2><div class='tiles'>{''.join(cells)}</div></div>"


def _mostly(report: Report) -> str:
    """The worst nodes counted by operator and cause, as a sentence."""
    worst = report.worst(WORST)
    if not worst:
        return "No node makes an error."
    counts = Counter((n.op, n.cause) for n in worst).most_common()
    listed = "; ".join(f"{n} × <b>{escape(op)}</b>, {escape(cause)}" for (op, cause), n in counts)
    return f"The {len(worst)} largest errors of single nodes: {listed}."


# ---------------------------------------------------------------- charts


def _depth(nodes: Sequence[NodeReport]) -> tuple[str, float]:
    """Accumulated SQNR as bars in the order of computation, isolated SQNR as a line; and the top of the
    scale.
    """
    top = min(TOP, max([10.0, *(10 * -(-_db(n.accumulated_db) // 10) for n in nodes)]))
    bars, points = [], []
    for i, node in enumerate(nodes):
        bars.append(_bar("accumulated", i, _height(node.accumulated_db, top)))
        points.append(f"{i + 0.5:g},{100 - _height(node.isolated_db, top):.4g}")
    line = f"<polyline class='isolated' points='{' '.join(points)}'/>"
    ticks = [(100 * db / top, f"{db} dB") for db in range(0, int(top) + 1, 10 if top <= 40 else 20)]
    return _chart(len(nodes), "".join(bars) + line, ticks), top


def _alone(report: Report) -> str:
    """The relative error that each node makes by itself."""
    worst = {id(n) for n in report.worst(WORST)}
    errors = [0.0 if n.isolated_db is None else min(10 ** (-n.isolated_db / 20), 1.0) for n in report.nodes]
    top = max([*errors, 1e-6])
    bars = (
        _bar("own worst" if id(node) in worst else "own", i, 100 * error / top)
        for i, (node, error) in enumerate(zip(report.nodes, errors, strict=True))
    )
    ticks = [(100 * part, f"{100 * top * part:.2g} %") for part in (0, 0.5, 1)]
    return _chart(len(errors), "".join(bars), ticks)


def _bar(kind: str, index: int, height: float) -> str:
    return (
        f"<rect class='{kind}' x='{index}' y='{100 - height:.4g}' width='.9' height='{height:.4g}'/>"
        if height
        else ""
    )


def _height(db: float | None, top: float) -> float:
    return 100 * min(max(_db(db), 0.0), top) / top


def _db(value: float | None) -> float:
    """For drawing: no error at all is off the scale."""
    return 1000.0 if value is None else value


def _chart(count: int, shapes: str, ticks: Sequence[tuple[float, str]]) -> str:
    return (
        f"<div class='chart' data-nodes='{count}'>{_ticks(ticks)}<svg viewBox='0 0 {max(count, 1)} 100' "
        f"preserveAspectRatio='none' aria-hidden='true'>{shapes}</svg></div>"
    )


def _ticks(ticks: Sequence[tuple[float, str]]) -> str:
    """Horizontal lines at heights in percent, with their labels on the left."""
    return "".join(
        f"<div class='grid' style='bottom:{at:.1f}%'></div>"
        f"<span class='tick' style='bottom:{at:.1f}%'>{text}</span>"
        for at, text in ticks
    )


# ---------------------------------------------------------------- plans


def _plans(plans: Sequence[Mapping[str, Any]]) -> str:
    """Size against error; the plans that no other beats in every respect are joined by a line."""
    sizes, errors = ([float(p[key]) for p in plans] for key in ("size", "error"))
    right, top = max(*sizes, 1.0) * 1.05, max(*errors, 1e-12) * 1.1
    best = {i for i, p in enumerate(plans) if not any(_beats(q, p) for q in plans)}
    places = [(100 * s / right, 100 * e / top) for s, e in zip(sizes, errors, strict=True)]
    line = " ".join(f"{x:.2f},{100 - y:.2f}" for x, y in sorted(places[i] for i in best))
    dots = "".join(
        f"<span class='dot{' best' * (i in best)}' style='left:{x:.2f}%;bottom:{y:.2f}%' "
        f"title='{escape(str(plans[i]['label']))}'></span>"
        for i, (x, y) in enumerate(places)
    )
    rows = "".join(
        f"<tr><td class='name'>{escape(str(p['label']))}{' *' * (i in best)}</td>"
        f"<td>{sizes[i] / 1e6:.2f}</td>"
        f"<td>{'' if p.get('latency') is None else format(float(p['latency']), '.3g')}</td>"
        f"<td>{errors[i]:.4g}</td></tr>"
        for i, p in enumerate(plans)
    )
    ticks = _ticks([(at / 1.1, f"{top / 1.1 * at / 100:.2g}") for at in (0, 50, 100)])
    return (
        "<section class='card'><h2>Plans</h2><p class='soft'>Error against size. Those marked * are beaten "
        "by no other plan in size, latency and error together.</p>"
        f"<div class='chart plans'>{ticks}<svg viewBox='0 0 100 100' preserveAspectRatio='none' "
        f"aria-hidden='true'><polyline class='front' points='{line}'/></svg>{dots}</div>"
        f"<div class='ends soft'><span>0 MB</span><span>{right / 1e6:.3g} MB</span></div>"
        "<table><thead><tr><th class='name'>plan</th><th>MB</th><th>ms</th><th>error</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></section>"
    )


def _beats(a: Mapping[str, Any], b: Mapping[str, Any]) -> bool:
    """Whether plan ``a`` is at least as good as ``b`` in everything both know, and better in something."""
    keys = [k for k in ("size", "latency", "error") if a.get(k) is not None and b.get(k) is not None]
    return all(a[k] <= b[k] for k in keys) and any(a[k] < b[k] for k in keys)


# ---------------------------------------------------------------- table


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
        "scale": "..<wbr>".join(f"{s:.2g}".replace("-", NO_BREAK) for s in dict.fromkeys(node.scale)),
        "cost_share": _percent(node.cost_share) if node.macs else "",
    }
    row = "".join(f"<td{_class(key, phone)}>{cells[key]}</td>" for key, _, phone, _ in COLUMNS)
    return f"<tr data-i='{index}'>{row}</tr>"


def _class(key: str, phone: bool) -> str:
    """The class attribute of a column's cells."""
    return " class='name'" if key == "name" else "" if phone else " class='wide'"


def _split(node: NodeReport) -> str:
    """A bar that the causes of the accumulated error divide."""
    parts = "".join(
        f"<i class='{cause}' style='width:{100 * node.shares[cause]:.0f}%'></i>"
        for cause in CAUSES
        if node.shares[cause] >= 0.005
    )
    return f"<span class='split'>{parts}</span>"


def _decibels(value: float | None) -> str:
    return "exact" if value is None else f"{value:.1f}"


def _percent(value: float) -> str:
    if 0 < value < 0.0001:
        return "&lt;0.01%"
    return f"{100 * value:.2f}%" if value < 0.1 else f"{100 * value:.0f}%"
