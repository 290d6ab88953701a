"""The results as JSON and as Markdown. Nothing here measures or needs an engine.

A result is a dict: `machine`, `versions`, `date`, `options`, `peak` (GMAC/s of one core, or None), `models`
(by name: `engines` with status and error, `runs` of all engines by number of threads, `scaling` of intc by
batch and length), `decoding` (by name: `runs` of decoders token by token) and `overhead` (runs of a tiny
model).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from intc.errors import UsageError
from intc.files import write_text

OWN, REFERENCE = "intc", "onnxruntime-fp32"
FORMAT = 1
BUSY = 0.9  # an engine that had less than this of one processor waited for other programs
Result = dict[str, Any]


def choose(text: str, known: Iterable[str], what: str) -> list[str]:
    """The names in the comma-separated `text`, each once; UsageError for one that is not `known`."""
    names, known = list(dict.fromkeys(n.strip() for n in text.split(",") if n.strip())), list(known)
    for name in names:
        if name not in known:
            raise UsageError(f"{what} '{name}' is not one of {', '.join(known)}")
    if not names:
        raise UsageError(f"no {what} named; choose from {', '.join(known)}")
    return names


def numbers(text: str, option: str) -> list[int]:
    """The ascending positive integers in the comma-separated `text`; UsageError for anything else."""
    parts = [p.strip() for p in text.split(",") if p.strip()]
    for part in parts:
        if not (part.isascii() and part.isdigit()) or int(part) < 1:
            raise UsageError(f"{option} {text}: '{part}' is not a positive number")
    if not parts:
        raise UsageError(f"{option}: no number given")
    return sorted({int(p) for p in parts})


def with_ratios(engines: Mapping[str, Result], core_peak: float | None, threads: int) -> dict[str, Result]:
    """`engines` with `to_best_peer`, `to_fp32` (times as fast as) and `share_of_peak`; None where unknown.

    The best peer is the fastest engine that is not intc.
    """
    peers = [t["median_ms"] for name, t in engines.items() if name != OWN]
    best = min(peers, default=None)
    fp32 = engines.get(REFERENCE, {}).get("median_ms")
    return {
        name: {
            **t,
            "to_best_peer": best / t["median_ms"] if best else None,
            "to_fp32": fp32 / t["median_ms"] if fp32 else None,
            "share_of_peak": t["gmac_per_s"] / (core_peak * threads)
            if core_peak and t["gmac_per_s"]
            else None,
        }
        for name, t in engines.items()
    }


def write_json(path: Path, result: Result) -> None:
    """`result` at `path`, replaced in one step; numbers that JSON does not know become null."""
    write_text(path, json.dumps(_plain(result), indent=1, allow_nan=False) + "\n")


def read_json(path: Path) -> Result:
    """A result that :func:`write_json` wrote; UsageError where `path` holds none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a benchmark result ({error})") from None
    if not isinstance(result, dict) or result.get("format") != FORMAT:
        raise UsageError(f"{path}: not a benchmark result of format {FORMAT}")
    return result


def write_markdown(path: Path, result: Result) -> None:
    """:func:`markdown` at `path`, replaced in one step."""
    write_text(path, markdown(result))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


# ---------------------------------------------------------------- Markdown


def markdown(result: Result) -> str:
    """The whole result as a document."""
    parts = [_header(result)]
    for name, model in result["models"].items():
        parts.append(model_markdown(name, model))
    for name, decoder in result.get("decoding", {}).items():
        parts.append(decoding_markdown(name, decoder))
    if result.get("overhead"):
        parts.append(overhead_markdown(result["overhead"]))
    return "\n".join(parts)


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with padded columns; `rows[0]` are the headings, all but the first right-aligned."""
    widths = [max(3, *(len(row[i]) for row in rows)) for i in range(len(rows[0]))]
    lines = [[c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]
             for row in rows]  # fmt: skip
    lines.insert(1, ["-" * (w - 1) + ":" if i else "-" * w for i, w in enumerate(widths)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def model_markdown(name: str, model: Result) -> str:
    """The tables of one model: engines by number of threads, then intc by batch and by length."""
    length = f", length {model['length']}" if model.get("length") else ""
    parts = [f"## {name}{length}\n"]
    if model.get("reason"):
        parts.append(f"Not measured: {model['reason']}\n")
    for run in model.get("runs", []):
        parts.append(f"{_threads(run['threads'])}, batch {run['batch']}:\n")
        if run.get("reason"):
            parts.append(f"Not measured: {run['reason']}\n")
        else:
            parts.append(table(_engine_rows(run["engines"], model["engines"])))
            parts += _thread_notes(run)
    absent = {e: s for e, s in model.get("engines", {}).items() if s["status"] != "ran"}
    parts += [f"- {engine}: {state['status']} ({state['reason']})\n" for engine, state in absent.items()]
    parts += _scaling(model.get("scaling", []))
    return "\n".join(parts)


def _engine_rows(times: Mapping[str, Result], states: Mapping[str, Result]) -> list[list[str]]:
    head = ["engine", "ms", "quartiles", "x best peer", "x fp32", "GMAC/s", "of peak", "SQNR dB", "cosine"]
    rows = [head]
    for engine, t in times.items():
        error = states[engine].get("error")
        quartiles = f"{t['quartile_low_ms']:.3g} .. {t['quartile_high_ms']:.3g}"
        ratios = [_cell(t["to_best_peer"], ".2f"), _cell(t["to_fp32"], ".2f")]
        speed = [_cell(t["gmac_per_s"] or None, ".1f"), _cell(t["share_of_peak"], ".0%")]
        accuracy = ["reference", ""]
        if engine != REFERENCE:
            sqnr, cosine = (error or {}).get("sqnr_db"), (error or {}).get("cosine_mean")
            exact = error and (sqnr is None or math.isinf(sqnr))
            accuracy = ["equal" if exact else _cell(sqnr, ".1f"), _cell(cosine, ".5f")]
        rows.append([engine, _ms(t["median_ms"]), quartiles, *ratios, *speed, *accuracy])
    return rows


def _thread_notes(run: Result) -> list[str]:
    odd = {
        e: t["threads_used"]
        for e, t in run["engines"].items()
        if t.get("threads_used") not in (None, run["threads"])
    }
    notes = [f"- {engine}: {used} of {_threads(run['threads'])} worked\n" for engine, used in odd.items()]
    starved = {e: t["on_cpu"] for e, t in run["engines"].items() if t.get("on_cpu", 1.0) < BUSY}
    if starved:
        shares = ", ".join(f"{engine} {share:.0%}" for engine, share in starved.items())
        notes.append(f"- not comparable, the machine was busy; time on a processor: {shares}\n")
    return notes


def _scaling(rows: Sequence[Result]) -> list[str]:
    """Per-batch and per-length tables: cost of one sample, or of one token, relative to the first row."""
    parts = []
    for what, heading in (("batch", "of one sample"), ("length", "of one token")):
        chosen = [row for row in rows if row["scaling"] == what]
        for threads in dict.fromkeys(row["threads"] for row in chosen):
            lines, first = [[what, "ms", "GMAC/s", "of peak", f"cost {heading}"]], None
            for row in (row for row in chosen if row["threads"] == threads):
                if row.get("reason"):
                    lines.append([str(row[what]), "-", "-", "-", row["reason"]])
                    continue
                cost = row["median_ms"] / row[what]
                first = first or cost
                lines.append([
                    str(row[what]), _ms(row["median_ms"]), f"{row['gmac_per_s']:.1f}",
                    _cell(row["share_of_peak"], ".0%"), f"{cost / first:.2f}",
                ])  # fmt: skip
            parts += [f"intc by {what}, {_threads(threads)}:\n", table(lines)]
    return parts


def decoding_markdown(name: str, decoder: Result) -> str:
    """Tokens a second of every engine, by number of threads."""
    if decoder.get("reason"):
        return f"## {name}, decoding\n\nNot measured: {decoder['reason']}\n"
    parts = [f"## {name}, decoding behind {decoder['past']} positions\n"]
    for run in decoder["runs"]:
        own, *_ = run["seconds"].values()
        rows = [["engine", "ms a token", "tokens/s", "intc is faster by"]]
        for i, (engine, seconds) in enumerate(run["seconds"].items()):
            ratio = f"{seconds / own:.2f}x" if i else ""
            rows.append([engine, _ms(seconds * 1e3), f"{1 / seconds:.0f}", ratio])
        parts += [f"{_threads(run['threads'])}:\n", table(rows)]
    return "\n".join(parts)


def overhead_markdown(overhead: Result) -> str:
    """What a call costs beside the arithmetic."""
    parts = ["## Overhead of a call\n", "Two-layer ViT, batch 1, medians in us:\n"]
    if overhead.get("reason"):
        return "\n".join([parts[0], f"Not measured: {overhead['reason']}\n"])
    for run in overhead["runs"]:
        base = run["ways"]["native call"]["median_ms"]
        rows = [["way", "us", "beyond the native call"]]
        for way, t in run["ways"].items():
            rows.append([way, f"{t['median_ms'] * 1e3:.1f}", f"{(t['median_ms'] - base) * 1e3:.1f}"])
        parts += [f"{_threads(run['threads'])}:\n", table(rows)]
    return "\n".join(parts)


def _header(result: Result) -> str:
    machine, versions = result["machine"], result["versions"]
    peak = result.get("peak")
    lines = [
        "# Benchmarks\n",
        f"{machine['cpu']}, {machine['cores']} cores, {', '.join(machine['flags']) or 'no vector flags'}; "
        f"{result['date']}.",
        f"int8 peak of one core: {peak:.1f} GMAC/s." if peak else "int8 peak of one core: not measured.",
        ", ".join(f"{name} {version}" for name, version in versions.items()) + ".\n",
    ]
    return "\n".join(lines)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _ms(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _threads(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
