"""``intc verify``: kernels equal the reference, nothing is float, nothing overflows; and the accuracy."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from intc.artifact.container import Container
from intc.artifact.schema import Manifest
from intc.errors import FeedError
from intc.ir.graph import Graph, Value, dequantize, quantize_feed
from intc.ir.verify import float_operators, float_values
from intc.report.data import Feeds, batches, count, with_empty_states
from intc.report.reading import read_graph
from intc.report.reference import Reference, fidelity
from intc.runtime import Session

Array = NDArray[Any]
BATCH: Final = 16
SINGLES: Final = 4  # samples that are also run one at a time
_ARITHMETIC: Final = (
    "add|sub|mul|div|sqrt|rcp|rsqrt|min|max|dp|hadd|hsub|addsub|comi|ucomi|round|rndscale|scalef"
)
FLOAT_INSTRUCTION: Final = re.compile(
    rf"v?(?:(?:{_ARITHMETIC}|fn?m(?:add|sub)\d*|getexp|getmant|rcp14|rsqrt14)[sp][sdh]"
    r"|cvt\w+)|f(?:add|sub|mul|div|ild|ist|sqrt)\w*"
)
GPU_FLOAT_INSTRUCTION: Final = re.compile(
    r"[FDH](ADD|MUL|FMA|MNMX|SET|SETP|SEL|CHK|SWZADD|RND|MMA)[0-9]?|[QH]GMMA|MUFU|I2F|F2I|F2F|I2FP|F2FP|FRND"
)
MOVED_CONSTANT: Final = re.compile(r"HFMA2(\.MMA)? R\d+, -RZ, RZ, [^R]*$")


@dataclass
class Verification:
    """The result; ``passed`` needs bit-exact kernels, a float-free graph and library, and no overflow.

    ``float_instructions`` is None where no disassembler is installed; ``fidelity`` is by output, where a
    float model was given.
    """

    samples: int = 0
    runs: list[dict[str, Any]] = field(default_factory=list)
    float_values: list[str] = field(default_factory=list)
    float_operators: list[str] = field(default_factory=list)
    float_instructions: list[str] | None = None
    outside_interval: list[str] = field(default_factory=list)
    fidelity: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def bit_exact(self) -> bool:
        return bool(self.runs) and all(not r["differences"] for r in self.runs)

    @property
    def float_free(self) -> bool:
        return not (self.float_values or self.float_operators or self.float_instructions)

    @property
    def overflow_free(self) -> bool:
        return not self.outside_interval

    @property
    def passed(self) -> bool:
        return self.bit_exact and self.float_free and self.overflow_free

    def summary(self) -> dict[str, Any]:
        """The JSON form."""
        verdicts = ("passed", "bit_exact", "float_free", "overflow_free")
        return {**{k: getattr(self, k) for k in verdicts}, **asdict(self)}


def verify_artifact(
    path: str | Path,
    data: Mapping[str, Array],
    model: str | Path | None = None,
    tell: Callable[[str], None] = lambda step: None,
    device: str | None = None,
) -> Verification:
    """Check the artifact at ``path`` on ``data`` (samples along axis 0): batches, singles, 1 and 2 threads,
    or on a GPU.

    The graph is parsed from the artifact, which re-derives every type and interval. With ``model`` the
    outputs are compared with the float model's as well.
    """
    manifest, graph = read_graph(path)
    data = with_empty_states(data, manifest)
    result = Verification(samples=count(data, manifest.inputs))
    result.float_values, result.float_operators = float_values(graph), float_operators(graph)
    result.float_instructions = float_instructions(path, manifest)
    groups = list(batches(data, manifest.inputs, BATCH))
    tell("reference")
    expected = [reference(graph, feeds, result.outside_interval) for feeds in groups]
    further = _continued(manifest, graph, groups[0], expected[0])
    if further is not None:
        groups.append(further)
        expected.append(reference(graph, further, result.outside_interval))
    for threads in (1,) if manifest.gpu else (1, 2):
        tell(f"kernels, {threads} thread(s)")
        session = Session(path, threads=threads, device=device)
        result.runs.append(_compare(session, groups, expected, threads))
        if not isinstance(manifest.inputs[0].shape[0], int):
            singles = list(batches(groups[0], manifest.inputs, 1))[:SINGLES]
            rows = [[a[i : i + 1] for a in expected[0]] for i in range(len(singles))]
            result.runs.append(_compare(session, singles, rows, threads))
    if model is not None:
        tell("float model")
        result.fidelity = _fidelity(manifest, graph, expected, Reference(model), groups)
    return result


def _continued(manifest: Manifest, graph: Graph, feeds: Feeds, outputs: list[Array]) -> Feeds | None:
    """``feeds`` once more, behind the states that they led to; None where the model has none, or no room."""
    if not manifest.states:
        return None
    names = [p.name for p in manifest.outputs]
    again = {**feeds, **{source: outputs[names.index(target)] for source, target in manifest.states}}
    try:
        graph.bind(again)
    except FeedError:
        return None
    return again


def reference(graph: Graph, feeds: Feeds, outside: list[str]) -> list[Array]:
    """The exact integer outputs; names of values that leave their interval are appended to ``outside``."""

    def observe(value: Value, array: Array) -> None:
        lo, hi = value.type.interval
        if array.size and (int(array.min()) < lo or int(array.max()) > hi) and value.name not in outside:
            outside.append(value.name)

    raw = {name: quantize_feed(graph.values[name], feeds[name]) for name in graph.inputs}
    results = graph.run(raw, observe)
    return [results[name] for name in graph.outputs]


def _compare(
    session: Session, groups: list[Feeds], expected: list[list[Array]], threads: int
) -> dict[str, Any]:
    """One line of the report: how many output elements differ, and in which outputs."""
    names = [p.name for p in session.get_outputs()]
    different: dict[str, int] = {}
    for feeds, want in zip(groups, expected, strict=True):
        for name, got, exact in zip(names, session.run(None, feeds, raw=True), want, strict=True):
            wrong = int(np.count_nonzero(got != exact)) if got.shape == exact.shape else exact.size
            if wrong:
                different[name] = different.get(name, 0) + wrong
    batch = len(next(iter(groups[0].values())))
    return {
        "threads": threads,
        "device": session.device,
        "batch": batch,
        "batches": len(groups),
        "differences": different,
    }


def _fidelity(
    manifest: Manifest, graph: Graph, expected: list[list[Array]], model: Reference, groups: list[Feeds]
) -> dict[str, dict[str, float]]:
    theirs = [dict(zip(model.outputs, model.run(feeds), strict=True)) for feeds in groups]
    out = {}
    for i, port in enumerate(manifest.outputs):
        if any(port.name not in t for t in theirs):
            continue
        value = graph.values[graph.outputs[i]]
        ours = [dequantize(value, e[i]) for e in expected]
        real = [t[port.name] for t in theirs]
        out[port.name] = fidelity(_rows(ours), _rows(real))
    return out


def _rows(arrays: list[Array]) -> Array:
    return np.concatenate([a.reshape(-1, a.shape[-1]) for a in arrays])


def float_instructions(path: str | Path, manifest: Manifest) -> list[str] | None:
    """The distinct floating-point arithmetic instructions in the kernel library; None without a disassembler:
    ``objdump``, or for a GPU ``cuobjdump``.
    """
    code = Container(Path(path)).member(manifest.kernels)
    if manifest.gpu:
        return gpu_float_instructions(code)
    tool = shutil.which("objdump") or shutil.which("llvm-objdump")
    listing = _disassembled(tool, ("-d", "--no-show-raw-insn"), code)
    if listing is None:
        return None
    mnemonics = set(re.findall(r"^\s*[0-9a-f]+:\s+(\w+)", listing, re.MULTILINE))
    return sorted(m for m in mnemonics if FLOAT_INSTRUCTION.fullmatch(m))


def gpu_float_instructions(code: bytes | memoryview, tool: str | None = None) -> list[str] | None:
    """The distinct floating-point instructions in a fat binary or cubin; None without ``cuobjdump``.

    What only moves a constant is left out: the assembler writes ``HFMA2 R, -RZ, RZ, c, c`` for one.
    """
    listing = _disassembled(tool or shutil.which("cuobjdump"), ("-sass",), code)
    if listing is None:
        return None
    lines = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([^;]+);", listing, re.MULTILINE)
    if not lines:
        return None
    names = {line.split()[0].split(".")[0] for line in lines if not MOVED_CONSTANT.match(line)}
    return sorted(name for name in names if GPU_FLOAT_INSTRUCTION.fullmatch(name))


def _disassembled(tool: str | None, options: tuple[str, ...], code: bytes | memoryview) -> str | None:
    if tool is None:
        return None
    with tempfile.TemporaryDirectory(prefix="intc-") as folder:
        file = Path(folder) / "kernels"
        file.write_bytes(code)
        listing = subprocess.run([tool, *options, str(file)], capture_output=True, text=True, check=False)
    return None if listing.returncode else listing.stdout
