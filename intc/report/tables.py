"""The texts that the commands print."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intc.report.verify import Verification


def table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two blanks apart; the first column is indented by two."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(f"  {line.rstrip()}" for line in lines)


def verification_text(path: Path, result: Verification) -> str:
    """The verdicts, one line each, and the accuracy where a float model was given."""
    lines = [f"{path}: {'PASSED' if result.passed else 'FAILED'} on {result.samples} sample(s)"]
    for run in result.runs:
        verdict = "equal" if not run["differences"] else f"DIFFERENT elements {run['differences']}"
        engine = run["device"] or f"{run['threads']} thread(s)"
        where = f"kernels, {engine}, batch {run['batch']}"
        lines.append(f"  {where}: {verdict} ({run['batches']} batches)")
    same = {*result.digests} == {result.digest}
    lines.append(
        f"  outputs on fixed inputs: {result.digest[:16]}.. {'everywhere' if same else 'NOT everywhere'}"
    )
    floats = [*result.float_values, *result.float_operators, *(result.float_instructions or [])]
    checked = "graph and machine code"
    if result.float_instructions is None:
        checked = f"graph; the kernels' instructions were NOT read: {result.unread}"
    lines.append(f"  float-free ({checked}): {'yes' if not floats else 'NO: ' + ', '.join(floats[:5])}")
    outside = result.outside_interval
    lines.append(f"  overflow-free: {'yes' if not outside else 'NO: ' + ', '.join(outside[:5])}")
    wrong = ", ".join(result.certificate)
    lines.append(f"  certificate: {f'WRONG in {wrong}' if wrong else 'as the artifact implies'}")
    if result.nodes:
        first = result.first_divergence
        unlike = (
            f"first DIFFERENT in '{first}'" if first else "equal, compiled again with all values as outputs"
        )
        lines.append(f"  kernels of {len(result.nodes)} nodes: {unlike}")
    for name, numbers in result.fidelity.items():
        lines.append(f"  {name} against float: {fidelity_text(numbers)}")
    return "\n".join(lines)


def fidelity_text(numbers: Mapping[str, float]) -> str:
    """One line of accuracy."""
    return (
        f"SQNR {numbers['sqnr_db']:.1f} dB, "
        f"cosine {numbers['cosine_mean']:.5f} (min {numbers['cosine_min']:.5f}), "
        f"same largest entry {numbers['agreement']:.2%}, largest error {numbers['max_abs_error']:.3g}"
    )


def bench_text(result: Mapping[str, Any]) -> str:
    """The timing table, the share of peak and the output error."""
    sizes = ", ".join(f"{k} {v}" for k, v in result["sizes"].items()) or "fixed sizes"
    rows = [["engine", "median ms", "quartiles", "GMAC/s", "intc is"]]
    for name, times in result["engines"].items():
        ratio = result["speedup"].get(name)
        quartiles = f"{times['quartile_low_ms']:.3f} .. {times['quartile_high_ms']:.3f}"
        faster = "" if ratio is None else f"{ratio:.2f}x as fast"
        rows.append([name, f"{times['median_ms']:.3f}", quartiles, f"{times['gmac_per_s']:.1f}", faster])
    on_cpu = result["device"] == "cpu"
    where = f"{result['threads']} thread(s)" if on_cpu else result["device"]
    lines = [
        f"{result['artifact']} ({result['target']}), {where}, {sizes}",
        table(rows),
    ]
    if "device_ms" in result:
        device = result["device_ms"]
        lines.append(f"  on the device alone: {device['median']:.3f} ms, median of graph replays")
    peak = result.get("peak")
    if peak:
        lines.append(
            f"  {peak['share']:.0%} of the measured peak, {peak['core_gmac_per_s']:.0f} GMAC/s a core"
        )
    if "profile" in result:
        lines.append(
            profile_text(result["profile"], peak["core_gmac_per_s"] * result["threads"] if peak else None)
        )
    for name, numbers in result.get("error", {}).items():
        lines.append(f"  {name} against onnxruntime: {fidelity_text(numbers)}")
    return "\n".join(lines)


def profile_text(stages: Sequence[Mapping[str, Any]], peak: float | None) -> str:
    """The roofline table: one line for each kernel, the costliest first; ``peak`` in GMAC/s."""
    total = sum(stage["seconds"] for stage in stages)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for stage in stages:
        groups.setdefault(stage["kernel"], []).append(stage)
    rows = [["kernel", "stages", "ms", "share", "GMAC/s", "of peak", "MB", "GB/s", "such as"]]
    for kernel, members in sorted(groups.items(), key=lambda g: -sum(s["seconds"] for s in g[1])):
        seconds, macs, moved = (sum(s[key] for s in members) for key in ("seconds", "macs", "bytes"))
        speed = macs / seconds / 1e9
        rows.append(
            [
                kernel,
                str(len(members)),
                f"{seconds * 1e3:.3f}",
                f"{seconds / total:.1%}",
                f"{speed:.1f}" if macs else "",
                f"{speed / peak:.0%}" if macs and peak else "",
                f"{moved / 1e6:.2f}",
                f"{moved / seconds / 1e9:.1f}",
                members[0]["node"],
            ]
        )
    return f"  stages: {total * 1e3:.3f} ms\n" + table(rows)


def info_text(result: Mapping[str, Any]) -> str:
    """What an artifact is, for reading."""
    lines = [
        f"{result['file']}: {result['bytes']:,} bytes, target {result['target']}, digest {result['digest']}"
    ]
    if result["signed_by"]:
        lines.append(f"  signed by the key {result['signed_by']} (checked with --trusted-key only)")
    for kind in ("inputs", "outputs"):
        for port in result[kind]:
            shape = ", ".join(map(str, port["shape"]))
            scale = port["scale"]
            scale = f"{len(scale)} scales" if isinstance(scale, list) else scale
            lowest = "" if port["lowest"] is None else f", the least stands for {port['lowest']:g}"
            integers = f"{port['dtype']}[{shape}] in {port['interval']}, scale {scale}{lowest}"
            lines.append(f"  {kind[:-1]} {port['name']}: {integers}")
    if result["states"]:
        tensors = f"{len(result['states'])} tensors, {result['state_bytes']:,} bytes a position"
        lines.append(f"  state: {tensors} of a sequence (Session.create_state)")
    lines.append("  operators: " + ", ".join(f"{n} {name}" for name, n in result["operators"].items()))
    lines.append("  members: " + ", ".join(f"{name} {size:,}" for name, size in result["members"].items()))
    lines.append("  made from: " + ", ".join(f"{k} {v}" for k, v in result["provenance"].items()))
    lines.append("  needs: " + (", ".join(result["features"]) or "nothing special"))
    return "\n".join(lines)
