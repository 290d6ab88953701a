"""What an artifact says about itself: the manifest, its strict JSON form, and the names of the members.

Sizes are an ``int`` or the text of a polynomial over the manifest's symbols and quotients of such polynomials
rounded down, such as ``"4*batch*seq + 64"`` or ``"floor((seq + 1)/2)"``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from intc.artifact.container import Container
from intc.artifact.fields import (
    Size,
    multiple,
    read_count,
    read_digest,
    read_distinct,
    read_integer,
    read_real,
    read_size,
    read_symbol,
    read_text,
)
from intc.artifact.tensors import INT4, MAX_RANK
from intc.errors import ArtifactCorrupt, ArtifactVersion

FORMAT: Final = "intc"
VERSION: Final = 7
MANIFEST: Final = "manifest.json"
GRAPH: Final = "graph.intc.txt"
WEIGHTS: Final = "weights.safetensors"
CERTIFICATE: Final = "certificate.json"
KERNELS: Final = "kernels/{target}.so"
GPU_KERNELS: Final = "kernels/cuda.fatbin"
MAX_MANIFEST: Final = 2**24
MAX_CAUSE: Final = 200  # characters of a message about a damaged manifest
RANGES: Final = {
    "bool": (0, 1),
    "uint8": (0, 2**8 - 1),
    "int8": (-(2**7), 2**7 - 1),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}

PortType: TypeAlias = tuple[tuple[Size, ...], str, int, int]
Scale: TypeAlias = float | tuple[float, ...] | None


@dataclass(frozen=True)
class Port:
    """An input or output: real value = integer * ``scale``; integers lie in [``lo``, ``hi``].

    ``lowest``: what ``lo`` stands for instead in an output of which the model sets entries to minus infinity.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: str
    scale: Scale
    lo: int
    hi: int
    lowest: float | None = None

    @property
    def type(self) -> PortType:
        """Shape, element type and interval."""
        return self.shape, self.dtype, self.lo, self.hi


@dataclass(frozen=True)
class Packed:
    """One entry of the constants blob: ``tensor`` of the weights, zero-padded, reshaped and transposed.

    Empty ``reshape`` means the tensor as it is; ``dtype`` is that of the packed elements if it is another,
    ``"int4"`` two values per byte.
    """

    tensor: str
    pad: tuple[int, ...] = ()
    reshape: tuple[int, ...] = ()
    perm: tuple[int, ...] = ()
    dtype: str = ""


@dataclass(frozen=True)
class Choice:
    """A way to start a GPU kernel: blocks along each axis of ``grid`` as (size, how much of it a block does).

    Up to ``splits`` blocks along z share the sum of each block, in ``zeros`` bytes of memory a block.
    ``work`` says how long a block takes compared with those of other choices, where it is not 0; it is a
    choice where every size of ``limits`` is at most what stands beside it, and on no other ``architecture``
    (90 for sm_90) unless that is 0.
    """

    kernel: str
    grid: tuple[tuple[Size, int], ...]
    threads: int
    shared: int
    splits: int
    zeros: int
    work: int
    architecture: int
    limits: tuple[tuple[Size, int], ...]


@dataclass(frozen=True)
class Launch:
    """One stage on a GPU, by that of ``choices`` which takes the least time at the sizes of a run.

    ``args`` are (kind, which, offset): addresses in ``constants``, a ``slot``, an ``input`` or ``output``,
    the ``scratch`` or ``zeros`` area, ``offset`` bytes further on; or the numbers ``int32`` and ``int64``,
    whose value is ``which``.
    """

    choices: tuple[Choice, ...]
    args: tuple[tuple[str, Size, int], ...]


ARGUMENTS: Final = ("constants", "slot", "input", "output", "scratch", "zeros", "int32", "int64")


@dataclass(frozen=True)
class Program:
    """How to call the kernels: entry point, arena slots, scratch memory per task, the constants blob; for a
    GPU the kernels to launch.
    """

    entry: str
    slots: tuple[Size, ...]
    scratch: tuple[Size, ...]
    constants: tuple[Packed, ...]
    launches: tuple[Launch, ...] = ()


@dataclass(frozen=True)
class Interface:
    """All that kernels take for granted about a call; its digest is part of their entry point's name.

    So a manifest that disagrees with its kernels about the place or extent of any memory, about a range of
    inputs or about CPU features names a function that they do not have. ``inputs`` and ``outputs`` hold
    (shape, element type, lo, hi); ``states`` numbers of inputs and outputs; ``constants`` bytes of the
    blob's entries.
    """

    inputs: tuple[PortType, ...]
    outputs: tuple[PortType, ...]
    symbols: tuple[str, ...]
    limits: tuple[tuple[Size, int], ...]
    states: tuple[tuple[int, int], ...]
    features: tuple[str, ...]
    slots: tuple[Size, ...]
    scratch: tuple[Size, ...]
    constants: tuple[int, ...]

    @property
    def entry(self) -> str:
        """The entry point's name."""
        return f"main_{hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()[:32]}"


@dataclass(frozen=True)
class Manifest:
    """All that the runtime knows of an artifact; ``members`` maps every other member to (size, SHA-256).

    ``limits`` holds the largest value of symbolic sizes, such as the length of the position table. ``states``
    pairs an input that a decoder carries from run to run with the output that continues it, along the one
    axis in which they differ; the input may be empty there.
    """

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    symbols: tuple[str, ...]
    limits: tuple[tuple[Size, int], ...]
    target: str
    features: tuple[str, ...]
    program: Program
    states: tuple[tuple[str, str], ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)
    members: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def kernels(self) -> str:
        """The name of the member with the native code."""
        return GPU_KERNELS if self.gpu else KERNELS.format(target=self.target)

    @property
    def gpu(self) -> bool:
        """Whether the kernels are a GPU's."""
        return self.target.partition(":")[0] == "cuda"

    def interface(self, constants: Sequence[int]) -> Interface:
        """What this manifest says of the kernels' calls, with entries of the blob of so many bytes."""
        inputs, outputs = ([p.name for p in side] for side in (self.inputs, self.outputs))
        return Interface(
            tuple(p.type for p in self.inputs),
            tuple(p.type for p in self.outputs),
            self.symbols,
            self.limits,
            tuple((inputs.index(source), outputs.index(target)) for source, target in self.states),
            self.features,
            self.program.slots,
            self.program.scratch,
            tuple(constants),
        )


def encode(manifest: Manifest) -> bytes:
    """The JSON text of ``manifest``; equal manifests have equal texts."""
    body = {"format": FORMAT, "version": VERSION, **asdict(manifest)}
    return (json.dumps(body, indent=1) + "\n").encode()


def read_manifest(container: Container) -> Manifest:
    """The manifest of ``container``; ArtifactVersion for another format, ArtifactCorrupt for anything odd."""
    if container.entries.get(MANIFEST) is None:
        raise container.corrupt(f"member '{MANIFEST}' is missing")
    if container.entries[MANIFEST].size > MAX_MANIFEST:
        raise container.corrupt(f"'{MANIFEST}' is larger than {MAX_MANIFEST} bytes")
    return decode(container.checked_crc(MANIFEST), container.path)


def decode(data: bytes, path: Path) -> Manifest:
    """The inverse of :func:`encode`; every field is checked."""
    try:
        body = json.loads(data.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        raise ArtifactCorrupt(f"{path}: '{MANIFEST}' is not JSON") from None
    if not isinstance(body, dict) or body.get("format") != FORMAT:
        raise ArtifactCorrupt(f"{path}: '{MANIFEST}' does not describe an intc artifact")
    if body.get("version") != VERSION:
        raise ArtifactVersion(
            f"{path}: format version {str(body.get('version'))[:20]!r}, this runtime reads version {VERSION};"
            " recompile the model, or use the intc release that wrote the file"
        )
    try:
        return _manifest(body)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:MAX_CAUSE]
        raise ArtifactCorrupt(f"{path}: '{MANIFEST}' is damaged ({cause})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a key occurs twice")
    return out


def _manifest(body: dict[str, Any]) -> Manifest:
    symbols = read_distinct(tuple(read_symbol(s) for s in body["symbols"]))
    program = body["program"]
    members = {read_text(k): (read_count(v[0]), read_digest(v[1])) for k, v in body["members"].items()}
    manifest = Manifest(
        inputs=tuple(_port(p, symbols) for p in body["inputs"]),
        outputs=tuple(_port(p, symbols) for p in body["outputs"]),
        symbols=symbols,
        limits=tuple((read_size(size, symbols), read_count(largest)) for size, largest in body["limits"]),
        target=read_text(body["target"]),
        features=tuple(read_text(f) for f in body["features"]),
        program=Program(
            entry=read_text(program["entry"]),
            slots=tuple(read_size(s, symbols) for s in program["slots"]),
            scratch=tuple(read_size(s, symbols) for s in program["scratch"]),
            constants=tuple(_packed(c) for c in program["constants"]),
            launches=tuple(_launch(launch, symbols) for launch in program.get("launches", ())),
        ),
        states=tuple((read_text(source), read_text(target)) for source, target in body["states"]),
        provenance=dict(body["provenance"]),
        members=members,
    )
    told = {m[1] for p in manifest.inputs for d in p.shape if isinstance(d, str) and (m := multiple(d))}
    if not told.issuperset(symbols):
        raise ValueError(f"no input has one of the sizes {symbols} for itself")
    for side in (manifest.inputs, manifest.outputs):
        read_distinct(tuple(port.name for port in side))
    for port in manifest.inputs:
        if isinstance(port.scale, tuple):
            raise ValueError(f"input {port.name!r} has several scales")
    _check_states(manifest)
    for name in (GRAPH, WEIGHTS, CERTIFICATE, manifest.kernels):
        if name not in members:
            raise ValueError(f"member {name} is not listed")
    _check_arguments(manifest)
    return manifest


def _launch(spec: dict[str, Any], symbols: tuple[str, ...]) -> Launch:
    choices = []
    for c in spec["choices"]:
        grid = tuple((read_size(size, symbols), read_count(each)) for size, each in c["grid"])
        if not 1 <= len(grid) <= 3 or not all(each for _, each in grid):
            raise ValueError(f"grid {grid!r}")
        names = ("threads", "shared", "splits", "zeros", "work", "architecture")
        numbers = {name: read_count(c[name]) for name in names}
        limits = tuple((read_size(size, symbols), read_count(most)) for size, most in c["limits"])
        choices.append(Choice(read_text(c["kernel"]), grid, limits=limits, **numbers))
    if not choices:
        raise ValueError("a launch without a kernel")
    args = []
    for kind, which, offset in spec["args"]:
        number = read_integer(which) if type(which) is int else read_size(which, symbols)
        args.append((read_text(kind), number, read_count(offset)))
    return Launch(tuple(choices), tuple(args))


def _check_arguments(manifest: Manifest) -> None:
    """Every address of a launch lies in memory that there is."""
    program = manifest.program
    counts = {
        "slot": len(program.slots),
        "input": len(manifest.inputs),
        "output": len(manifest.outputs),
        "constants": 1,
        "scratch": 1,
        "zeros": 1,
    }
    for launch in program.launches:
        for kind, which, _ in launch.args:
            if kind not in ARGUMENTS or (
                kind in counts and not (isinstance(which, int) and 0 <= which < counts[kind])
            ):
                raise ValueError(f"argument {kind!r} {which!r}")


def _check_states(manifest: Manifest) -> None:
    """A state's tensors are of bytes and grow along one axis, by sizes that are the same for all of them."""
    inputs, outputs = ({p.name: p for p in side} for side in (manifest.inputs, manifest.outputs))
    read_distinct(tuple(source for source, _ in manifest.states))
    read_distinct(tuple(target for _, target in manifest.states))
    found = set()
    for source, target in manifest.states:
        before, after = inputs[source], outputs[target]
        pairs = list(zip(before.shape, after.shape, strict=True))
        grown = [pair for pair in pairs if pair[0] != pair[1]]
        sequences = {a for a, b in pairs if a == b and isinstance(a, str)}
        if len(grown) != 1 or len(sequences) > 1 or grown[0][0] not in manifest.symbols:
            raise ValueError(f"output {target!r} does not continue {source!r}")
        if {before.dtype, after.dtype} not in ({"int8"}, {"uint8"}):
            raise ValueError(f"state {source!r} does not consist of bytes")
        found.add((*grown, *sequences))
    if len(found) > 1:
        raise ValueError("the tensors of a state have different lengths")


def _port(spec: dict[str, Any], symbols: tuple[str, ...]) -> Port:
    scale = spec["scale"]
    if isinstance(scale, list):
        scale = tuple(read_real(s) for s in scale)
    elif scale is not None:
        scale = read_real(scale)
    lo, hi = read_integer(spec["lo"]), read_integer(spec["hi"])
    low, high = RANGES[read_text(spec["dtype"])]
    if not low <= lo <= hi <= high:
        raise ValueError(f"interval [{lo}, {hi}] of {spec['dtype']}")
    shape = tuple(read_size(s, symbols) for s in spec["shape"])
    if len(shape) > MAX_RANK or (isinstance(scale, tuple) and (len(scale),) != shape[-1:]):
        raise ValueError(f"shape {shape} or scales of {spec['name']!r}")
    lowest = spec["lowest"]
    if lowest is not None and (type(lowest) is not float or not math.isfinite(lowest) or scale is None):
        raise ValueError(f"lowest number {lowest!r} of {spec['name']!r}")
    return Port(read_text(spec["name"]), shape, spec["dtype"], scale, lo, hi, lowest)


def _packed(spec: dict[str, Any]) -> Packed:
    pad, reshape, perm = (tuple(read_count(n) for n in spec[k]) for k in ("pad", "reshape", "perm"))
    if len(reshape) != len(perm) or sorted(perm) != list(range(len(perm))):
        raise ValueError(f"packing of {spec['tensor']!r}")
    if len(pad) > MAX_RANK or len(reshape) > MAX_RANK:
        raise ValueError(f"packing of {spec['tensor']!r}")
    if spec["dtype"] not in ("", INT4, *RANGES) or (spec["dtype"] == INT4 and not reshape):
        raise ValueError(f"element type {spec['dtype']!r}")
    return Packed(read_text(spec["tensor"]), pad, reshape, perm, spec["dtype"])
