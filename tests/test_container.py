"""The container of an artifact: truncated, altered, or with members that lie, it is refused by name."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import intc
from intc.artifact import schema
from intc.artifact.container import Container
from intc.errors import ArtifactCorrupt, ArtifactVersion, UsageError
from tests.artifacts import members, refused, rewritten


@pytest.mark.parametrize("keep", [0, 1, 3, 30, 100, 0.5, -1, -22, -23])
def test_truncated(artifact: Path, tmp_path: Path, keep: float) -> None:
    data = artifact.read_bytes()
    cut = int(len(data) * keep) if isinstance(keep, float) else keep
    (tmp_path / "cut.intc").write_bytes(data[:cut])
    refused(tmp_path / "cut.intc", ArtifactCorrupt, "truncated|not an intc artifact|cannot be|directory")


def test_data_after_the_end(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "long.intc").write_bytes(artifact.read_bytes() + b"more")
    refused(tmp_path / "long.intc", ArtifactCorrupt, "data follows")


def test_not_an_artifact(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\x07" + bytes(500))
    refused(tmp_path / "model.onnx", ArtifactCorrupt, "not an intc artifact")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    refused(tmp_path / "other.zip", ArtifactCorrupt, "'manifest.json' is missing")
    with pytest.raises(UsageError, match="no such file"):
        intc.load(tmp_path / "none.intc")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_any_altered_byte_is_refused(artifact: Path, tmp_path: Path, where: float, flip: int) -> None:
    data = bytearray(artifact.read_bytes())
    data[int(where * len(data))] ^= flip
    (tmp_path / "bad.intc").write_bytes(data)
    with pytest.raises((ArtifactCorrupt, ArtifactVersion)):
        intc.load(tmp_path / "bad.intc")


def test_every_byte_outside_the_members_counts(artifact: Path, tmp_path: Path) -> None:
    data = artifact.read_bytes()
    inside = np.zeros(len(data), bool)
    for entry in Container(artifact).entries.values():
        inside[entry.start : entry.start + entry.size] = True
    for at in np.flatnonzero(~inside):
        bad = bytearray(data)
        bad[at] ^= 0x20
        (tmp_path / "bad.intc").write_bytes(bad)
        with pytest.raises(ArtifactCorrupt):
            intc.load(tmp_path / "bad.intc")


def zip_with(path: Path, parts: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> Path:
    with (
        pytest.warns(UserWarning) if len(dict(parts)) < len(parts) else _nothing(),
        zipfile.ZipFile(path, "w", method) as file,
    ):
        for name, data in parts:
            file.writestr(name, data)
    return path


class _nothing:
    def __enter__(self) -> None: ...
    def __exit__(self, *args: object) -> None: ...


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("/etc/passwd", "plain relative path"),
        ("../up", "plain relative path"),
        ("a/../../up", "plain relative path"),
        ("c:\\x", "plain relative path"),
        ("a//b", "plain relative path"),
        ("x" * 300, "plain relative path"),
        ("é", "plain relative path"),
        (schema.GRAPH, "occurs twice"),
        ("extra", "'extra' is not in the manifest"),
    ],
)
def test_odd_members(artifact: Path, tmp_path: Path, name: str, pattern: str) -> None:
    parts = [*members(artifact).items(), (name, b"data")]
    refused(zip_with(tmp_path / "odd.intc", parts), ArtifactCorrupt, pattern)


def test_too_many_members(artifact: Path, tmp_path: Path) -> None:
    parts = [*members(artifact).items(), *((f"m{i}", b"") for i in range(100))]
    refused(zip_with(tmp_path / "many.intc", parts), ArtifactCorrupt, "members")


def test_compressed_members(artifact: Path, tmp_path: Path) -> None:
    parts = list(members(artifact).items())
    refused(zip_with(tmp_path / "z.intc", parts, zipfile.ZIP_DEFLATED), ArtifactCorrupt, "compressed")


def test_another_tool_s_layout(artifact: Path, tmp_path: Path) -> None:
    refused(
        zip_with(tmp_path / "z.intc", list(members(artifact).items())), ArtifactCorrupt, "headers or padding"
    )


@pytest.mark.parametrize("claimed", [0, 10**6, 2**32 - 1])
@pytest.mark.parametrize("both", [True, False])
def test_sizes_that_lie(artifact: Path, tmp_path: Path, claimed: int, both: bool) -> None:
    data = bytearray(artifact.read_bytes())
    at = data.rindex(b"PK\1\2")  # the last member's directory entry
    header = struct.unpack_from("<I", data, at + 42)[0]
    for place in [at + 20, at + 24] + ([header + 18, header + 22] if both else []):
        struct.pack_into("<I", data, place, claimed)
    (tmp_path / "lie.intc").write_bytes(data)
    refused(tmp_path / "lie.intc", ArtifactCorrupt, "sizes|bytes")


def test_overlapping_members(artifact: Path, tmp_path: Path) -> None:
    data = bytearray(artifact.read_bytes())
    entries = list(Container(artifact).entries.values())
    at = data.rindex(b"PK\1\2")
    struct.pack_into("<I", data, at + 42, entries[0].header)
    (tmp_path / "lap.intc").write_bytes(data)
    refused(tmp_path / "lap.intc", ArtifactCorrupt, "no header of its own")


@pytest.mark.parametrize("name", [schema.MANIFEST, schema.GRAPH, schema.WEIGHTS, schema.CERTIFICATE])
def test_missing_members(artifact: Path, tmp_path: Path, name: str) -> None:
    bad = rewritten(artifact, tmp_path / "bad.intc", lambda parts: parts.pop(name) and None)
    refused(bad, ArtifactCorrupt, f"'{name}' is missing")


@pytest.mark.parametrize("name", [schema.GRAPH, schema.WEIGHTS, schema.CERTIFICATE])
def test_replaced_members(artifact: Path, tmp_path: Path, name: str) -> None:
    def alter(parts: dict[str, bytes]) -> None:
        parts[name] = parts[name][:-1] + bytes([parts[name][-1] ^ 1])

    refused(rewritten(artifact, tmp_path / "bad.intc", alter), ArtifactCorrupt, f"'{name}' is altered")

    def shorten(parts: dict[str, bytes]) -> None:
        parts[name] = parts[name][:-1]

    refused(rewritten(artifact, tmp_path / "bad.intc", shorten), ArtifactCorrupt, "the manifest says")
