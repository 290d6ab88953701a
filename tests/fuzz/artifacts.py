"""Mutated artifacts. Digests are computed again after most edits, so that they get past that check.

Foreign code is never run: kernels are loaded and called only where the file holds the genuine ones.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

import intc
from intc.artifact import container, schema
from intc.artifact.container import Container
from intc.errors import ArtifactError, IntcError
from intc.ops import OPS
from intc.report.data import random_feeds
from intc.report.inspect import info
from intc.runtime import Session, native
from tests.fuzz.edits import TEXTS, edit_bytes, edit_json, edit_lines, number
from tests.small import small_module

Members = list[tuple[str, bytes]]
EXAMPLES = Path(__file__).parents[2] / "examples"
WORDS = (
    *OPS,
    "int8",
    "int32",
    "int64",
    "float32",
    "bool",
    "batch",
    "true",
    "none",
    "inf",
    "nan",
    "@",
    "const",
)


def prepare(folder: Path) -> None:
    """Write the real artifacts that :class:`Artifacts` mutates."""
    small_module().save(folder / "small.intc")
    for name in ("digits/digits_vit", "decoder/llama_characters"):
        model = EXAMPLES / f"{name}.onnx"
        module = intc.compile(model, calibration="random", rounding="nearest", calibrator="minmax")
        module.save(folder / f"{model.stem}.intc")


def members_of(path: Path) -> Members:
    read = Container(path)
    return [(name, bytes(read.member(name))) for name in read.entries]


class Artifacts:
    """The target: see :class:`tests.fuzz.watch.Target`."""

    def __init__(self, folder: Path) -> None:
        self.seeds = {path.stem: members_of(path) for path in sorted(folder.glob("*.intc"))}
        self.names = [*self.seeds, *["small"] * 24]
        self.kernels: dict[bytes, Callable[..., Any]] = {}
        self.trusted = {data for parts in self.seeds.values() for name, data in parts if name.endswith(".so")}
        self.load_kernels = native.load_kernels
        native.load_kernels = self._load_kernels

    def _load_kernels(self, path: Path, code: memoryview, entry: str) -> Callable[..., Any]:
        """The function of genuine code, which stays loaded; none of other code."""
        data = bytes(code)
        if data not in self.trusted:
            raise ArtifactError(f"{path}: foreign code is not run")
        key = hashlib.sha256(data + entry.encode()).digest()
        if key not in self.kernels:
            self.kernels[key] = self.load_kernels(path, code, entry)
        return self.kernels[key]

    def write(self, rng: Random, folder: Path) -> Path:
        members = list(self.seeds[rng.choice(self.names)])
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            if rng.random() < 0.01:
                members = mixed(rng, members, self.seeds[rng.choice(self.names)])
            members = rng.choice(EDITS)(rng, members)
        data = sealed(members, rng.random() < 0.97)
        if rng.random() < 0.15:
            data = rng.choice((edit_bytes, edit_headers))(rng, data)
        path = folder / "case.intc"
        path.write_bytes(data)
        return path

    def read(self, path: Path) -> None:
        errors: list[IntcError] = []
        for way in (self._run, info):  # the latter parses the graph
            try:
                way(path)
            except IntcError as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _run(self, path: Path) -> None:
        session = Session(path)
        sizes = dict.fromkeys(session.manifest.symbols, 2)
        feeds = random_feeds(session.manifest.inputs, sizes)
        with np.errstate(all="ignore"):
            session.run(None, feeds)
            if session.manifest.states:
                held = {source for source, _ in session.manifest.states}
                rest = {name: array for name, array in feeds.items() if name not in held}
                session.run(None, rest, state=session.create_state(2))


# ---------------------------------------------------------------- edits of members


def sealed(members: Members, digests: bool) -> bytes:
    """A container of ``members``; with ``digests`` the manifest is told their sizes and digests."""
    if digests:
        members = _sealed_manifest(members)
    entries, end = container.place([(name, len(data), zlib.crc32(data)) for name, data in members])
    parts = [part for e, (_, data) in zip(entries, members, strict=True) for part in (_header(e), data)]
    return b"".join((*parts, container.directory(entries, end)))


def _header(entry: container.Entry) -> bytes:
    return container.local_header(entry)


def _sealed_manifest(members: Members) -> Members:
    try:
        body = json.loads(dict(members)[schema.MANIFEST])
        listed = body["members"]
        for name, data in members:
            if name in listed:
                listed[name] = [len(data), hashlib.sha256(data).hexdigest()]
        text = json.dumps(body).encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        return members
    return [(n, text if n == schema.MANIFEST else d) for n, d in members]


def replace(members: Members, name: str, edit: Callable[[bytes], bytes]) -> Members:
    return [(n, edit(d) if n == name else d) for n, d in members]


def json_of(rng: Random, data: bytes) -> bytes:
    """JSON text with an edit of its values, or now and then of its characters."""
    if rng.random() < 0.1:
        return edit_bytes(rng, data)
    if rng.random() < 0.05:
        return data.replace(b"{", rng.choice((b'{"format": "intc", ', b'{"x": ' + b"[" * 10**5)), 1)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return edit_bytes(rng, data)
    for _ in range(rng.choice((1, 1, 2, 4))):
        value = edit_json(rng, value)
    try:
        return json.dumps(value).encode()
    except (ValueError, RecursionError):
        return data


def edit_manifest(rng: Random, members: Members) -> Members:
    return replace(members, schema.MANIFEST, lambda data: json_of(rng, data))


def edit_port(rng: Random, members: Members) -> Members:
    """One part of the manifest that loading must bind to the kernels."""

    def edit(data: bytes) -> bytes:
        try:
            body = json.loads(data)
            part = rng.choice(("inputs", "outputs", "symbols", "limits", "states", "program", "features"))
            body[part] = edit_json(rng, body[part])
            return json.dumps(body).encode()
        except (ValueError, KeyError, TypeError, RecursionError):
            return data

    return replace(members, schema.MANIFEST, edit)


def edit_weights(rng: Random, members: Members) -> Members:
    def edit(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header, rest = data[8 : 8 + length], data[8 + length :]
        match rng.randrange(5):
            case 0:
                return (number(rng) % 2**64).to_bytes(8, "little") + header + rest
            case 1:
                return data[: 8 + length] + edit_bytes(rng, rest)
            case 2:
                return edit_bytes(rng, data)
            case _:
                text = json_of(rng, header)
                return len(text).to_bytes(8, "little") + text + rest

    return replace(members, schema.WEIGHTS, edit)


def edit_graph(rng: Random, members: Members) -> Members:
    def edit(data: bytes) -> bytes:
        if rng.random() < 0.05:
            return edit_bytes(rng, data)
        return edit_lines(rng, data.decode(errors="replace"), WORDS).encode()

    return replace(members, schema.GRAPH, edit)


def edit_certificate(rng: Random, members: Members) -> Members:
    return replace(members, schema.CERTIFICATE, lambda data: json_of(rng, data))


def edit_kernels(rng: Random, members: Members) -> Members:
    return [(n, edit_bytes(rng, d) if n.endswith(".so") else d) for n, d in members]


def edit_members(rng: Random, members: Members) -> Members:
    """Members removed, repeated, exchanged, renamed or added."""
    out = list(members)
    i, j = rng.randrange(len(out)), rng.randrange(len(out))
    match rng.randrange(6):
        case 0 if len(out) > 1:
            del out[i]
        case 1:
            out.insert(j, out[i])
        case 2:
            out[i], out[j] = out[j], out[i]
        case 3:
            name = rng.choice(
                (*[t for t in TEXTS if t.isascii() and len(t) < 1000], out[j][0], "kernels/x.so")
            )
            out[i] = (name, out[i][1])
        case 4:
            out += [(f"extra{k}", b"") for k in range(rng.choice((1, 2, 100)))]
        case _:
            out[i] = (out[i][0], out[j][1])
    return out


def mixed(rng: Random, members: Members, other: Members) -> Members:
    """One member taken from another artifact."""
    name, data = rng.choice(other)
    return replace(members, name, lambda _: data)


EDITS = (
    *[edit_manifest] * 4,
    *[edit_port] * 4,
    *[edit_weights] * 3,
    *[edit_graph] * 4,
    edit_certificate,
    edit_kernels,
    edit_members,
)


def edit_headers(rng: Random, data: bytes) -> bytes:
    """A number in a header, the directory or the end record replaced."""
    out = bytearray(data)
    marks = [b"PK\1\2", b"PK\3\4", b"PK\5\6"]
    mark = rng.choice(marks)
    at = out.rfind(mark) if rng.random() < 0.5 else out.find(mark)
    if at >= 0:
        place = at + rng.randrange(0, 46, 2)
        size = rng.choice((2, 4))
        value = rng.choice((number(rng), int.from_bytes(out[place : place + size], "little") + 1))
        out[place : place + size] = (value % 256**size).to_bytes(size, "little")
    return bytes(out)
