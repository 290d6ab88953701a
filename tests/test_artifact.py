"""The artifact file: canonical layout, exact contents, and one refusal for every kind of damage."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import intc
from intc.artifact import container, schema, tensors
from intc.artifact.container import Container
from intc.artifact.writer import write_members
from intc.errors import ArtifactCorrupt, ArtifactError, ArtifactVersion, UsageError, WrongTarget
from intc.ir.text import print_graph
from intc.module import narrowed, open_module
from intc.report.reading import read_graph
from intc.runtime.constants import Blob
from tests.small import small_feeds, small_graph, small_module


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def rewritten(path: Path, out: Path, edit: Callable[[dict[str, bytes]], None]) -> Path:
    """A well-formed container with edited members."""
    parts = members(path)
    edit(parts)
    write_members(out, parts)
    return out


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, bytes]], None]:
    def edit(parts: dict[str, bytes]) -> None:
        body = json.loads(parts[schema.MANIFEST])
        change(body)
        parts[schema.MANIFEST] = json.dumps(body).encode()

    return edit


def test_it_is_a_plain_stored_aligned_zip(artifact: Path) -> None:
    with zipfile.ZipFile(artifact) as file:
        assert file.testzip() is None
        names = file.namelist()
        assert all(info.compress_type == zipfile.ZIP_STORED for info in file.infolist())
    assert names[:3] == [schema.MANIFEST, schema.GRAPH, schema.CERTIFICATE]
    assert set(names[3:]) == {schema.WEIGHTS, f"kernels/{small_module().lowered.target.name}.so"}
    assert all(entry.start % container.ALIGN == 0 for entry in Container(artifact).entries.values())


def test_the_contents_are_the_graph(artifact: Path) -> None:
    manifest, graph = read_graph(artifact)
    assert print_graph(graph) == print_graph(small_graph())
    assert [p.name for p in manifest.inputs] == ["x", "ids"]
    feeds = small_feeds(3)
    for ours, theirs in zip(graph.evaluate(feeds), small_graph().evaluate(feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_weights_are_readable_by_the_library(artifact: Path) -> None:
    stored = safetensors.numpy.load(members(artifact)[schema.WEIGHTS])
    np.testing.assert_array_equal(stored["w"], small_graph().constants["w"])


def test_the_certificate_proves_integers(artifact: Path) -> None:
    certificate = json.loads(members(artifact)[schema.CERTIFICATE])
    assert certificate["float_values"] == []
    assert certificate["float_operators"] == []
    assert certificate["intervals"]["x"] == ["int8", -127, 127]


def test_saving_twice_gives_equal_files(artifact: Path, tmp_path: Path) -> None:
    small_module().save(tmp_path / "again.intc")
    assert (tmp_path / "again.intc").read_bytes() == artifact.read_bytes()


def test_the_graph_can_be_compiled_again(artifact: Path, tmp_path: Path) -> None:
    for target in ("x86-64-v2", None):
        module = open_module(artifact, target)
        module.save(tmp_path / "second.intc")
        feeds = small_feeds(5)
        for ours, exact in zip(module.run(None, feeds), small_graph().evaluate(feeds), strict=True):
            np.testing.assert_array_equal(ours, exact)


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "int64", "uint8", "bool", "float32"])
def test_narrowed_constants_keep_their_values(dtype: str) -> None:
    limits = np.iinfo(dtype) if dtype[0] in "iu" else None
    for lo, hi in (
        (0, 1),
        (-5, 127),
        (0, 200),
        (-300, 5),
        (-70000, 3),
        (limits and limits.min, limits and limits.max),
    ):
        if limits is None or lo < limits.min or hi > limits.max:
            continue
        array = np.array([lo, hi], dtype)
        small = narrowed(array)
        np.testing.assert_array_equal(small.astype(dtype), array)
        assert np.can_cast(small.dtype, array.dtype)
        assert small.nbytes <= array.nbytes


def test_failed_writes_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written"):
        small_module().save(tmp_path / "missing" / "x.intc")
    (tmp_path / "x.intc").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        small_module().save(tmp_path / "x.intc")
    assert [p.name for p in tmp_path.iterdir()] == ["x.intc"]


# ---------------------------------------------------------------- damage


def refused(path: Path, error: type[ArtifactError], pattern: str) -> None:
    with pytest.raises(error) as caught:
        intc.load(path)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert message.startswith(str(path))
    assert "\n" not in message


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


def test_another_version(artifact: Path, tmp_path: Path) -> None:
    for version in (1, 2, 4, 0, "2", None):
        edit = edit_manifest(lambda body, version=version: body.update(version=version))  # type: ignore[misc]
        refused(rewritten(artifact, tmp_path / "v.intc", edit), ArtifactVersion, "format version")


def test_another_cpu(artifact: Path, tmp_path: Path) -> None:
    edit = edit_manifest(lambda body: body["features"].append("avx99"))  # type: ignore[attr-defined]
    refused(rewritten(artifact, tmp_path / "t.intc", edit), WrongTarget, "lacks avx99.*--target native")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "zip"),
        ("inputs", None),
        ("inputs", [{}]),
        ("symbols", [1]),
        ("target", 3),
        ("members", {"x": [1, "short"]}),
        ("program", {"entry": "main", "slots": ["batch*seq"], "scratch": [], "constants": []}),
        ("program", {"entry": "main", "slots": [-1], "scratch": [], "constants": []}),
        ("program", []),
        ("features", "avx"),
        ("symbols", ["batch", "batch"]),
        ("symbols", ["1"]),
        ("states", [["x", "logits"]]),
        ("states", [["ids", "ids"]]),
    ],
)
def test_damaged_manifests(artifact: Path, tmp_path: Path, key: str, value: object) -> None:
    edit = edit_manifest(lambda body: body.update({key: value}))
    with pytest.raises(ArtifactError) as caught:
        intc.load(rewritten(artifact, tmp_path / "bad.intc", edit))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b'{"format": "intc", "format": "intc"}', b"\xff", b"[" * 10**5]
)
def test_manifests_that_are_no_json_object(artifact: Path, tmp_path: Path, text: bytes) -> None:
    bad = rewritten(artifact, tmp_path / "bad.intc", lambda parts: parts.update({schema.MANIFEST: text}))
    refused(bad, ArtifactCorrupt, "manifest.json")


def test_a_demanded_digest(artifact: Path) -> None:
    digest = intc.load(artifact).digest
    intc.load(artifact, sha256=digest)
    with pytest.raises(ArtifactCorrupt, match="not the 00"):
        intc.load(artifact, sha256="00" * 32)


# ---------------------------------------------------------------- lies about the kernels

LIES = {
    "shape of an input": lambda body: body["inputs"][0].update(shape=["batch", 25]),
    "type of an input": lambda body: body["inputs"][0].update(dtype="int16"),
    "range of indices": lambda body: body["inputs"][1].update(hi=10**6),
    "shape of an output": lambda body: body["outputs"][0].update(shape=["batch", 9]),
    "fewer outputs": lambda body: body["outputs"].pop(),
    "order of inputs": lambda body: body["inputs"].reverse(),
    "smaller slots": lambda body: body["program"].update(slots=[0] * len(body["program"]["slots"])),
    "fewer slots": lambda body: body["program"].update(slots=[]),
    "limits": lambda body: body.update(limits=[]),
    "features": lambda body: body.update(features=[]),
    "fewer constants": lambda body: body["program"]["constants"].pop(),
    "another constant": lambda body: body["program"]["constants"][0].update(tensor="table"),
    "entry": lambda body: body["program"].update(entry="main"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_manifest_that_its_kernels_do_not_fit(artifact: Path, tmp_path: Path, lie: str) -> None:
    bad = rewritten(artifact, tmp_path / "lie.intc", edit_manifest(LIES[lie]))
    refused(bad, ArtifactCorrupt, "not those that the kernels need|does not have the shape|cannot be packed")


def test_a_manifest_that_names_what_its_kernels_should_be_called(artifact: Path, tmp_path: Path) -> None:
    """The lie told consistently: the library has no function of that name."""
    manifest, _ = read_graph(artifact)
    sizes = Blob(artifact, manifest.program.constants, weights_of(artifact)).sizes
    assert manifest.interface(sizes).entry == manifest.program.entry
    lie = replace(manifest, limits=())

    def edit(body: dict[str, Any]) -> None:
        body.update(limits=[])
        body["program"].update(entry=lie.interface(sizes).entry)

    refused(
        rewritten(artifact, tmp_path / "lie.intc", edit_manifest(edit)), ArtifactCorrupt, "cannot be loaded"
    )


def weights_of(path: Path) -> dict[str, np.ndarray]:
    return tensors.decode(Container(path).member(schema.WEIGHTS), "")


def test_a_graph_of_another_model(artifact: Path, tmp_path: Path) -> None:
    for old, new in ((b"in [0, 49]", b"in [0, 48]"), (b'graph "small"', b"graph small"), (b"ids", b"\xff")):

        def edit(parts: dict[str, bytes], old: bytes = old, new: bytes = new) -> None:
            assert old in parts[schema.GRAPH]
            parts[schema.GRAPH] = parts[schema.GRAPH].replace(old, new)
            body = json.loads(parts[schema.MANIFEST])
            text = parts[schema.GRAPH]
            body["members"][schema.GRAPH] = [len(text), hashlib.sha256(text).hexdigest()]
            parts[schema.MANIFEST] = json.dumps(body).encode()

        bad = rewritten(artifact, tmp_path / "bad.intc", edit)
        with pytest.raises(
            ArtifactCorrupt, match=r"graph\.intc\.txt' (is damaged|has other inputs)"
        ) as caught:
            read_graph(bad)
        assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- weights


def test_tensors_round_trip_and_are_aligned() -> None:
    rng = np.random.default_rng(0)
    arrays = {
        f"{d}.{i}": rng.integers(0, 2, (i, 3)).astype(d) for d in tensors.DTYPES.values() for i in range(3)
    }
    data = tensors.encode(arrays)
    read = tensors.decode(memoryview(data), "here")
    theirs = safetensors.numpy.load(data)
    assert set(read) == set(theirs) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == theirs[name].dtype == array.dtype
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert start % 64 == 0
    assert all(h["data_offsets"][0] % arrays[n].dtype.itemsize == 0 for n, h in header.items())


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 3]}},
        {"a": {"dtype": "I8", "shape": [3], "data_offsets": [0, 2]}},
        {"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}},
        {"a": {"dtype": "I8", "shape": [9], "data_offsets": [0, 9]}},
        {"a": {"dtype": "F8", "shape": [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "I8", "shape": [-4], "data_offsets": [0, -4]}},
        {"a": {"dtype": "I8", "shape": [1] * 40 + [4], "data_offsets": [0, 4]}},
        {"a": {"dtype": "I8", "shape": [4], "data_offsets": [1, 5]}},
        {"a": {"dtype": "I8", "shape": [4], "data_offsets": [0, 4, 8]}},
        {"a": 7},
        [],
    ],
)
def test_lying_tensor_headers(header: object) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(ArtifactCorrupt, match="here"):
        tensors.decode(memoryview(len(text).to_bytes(8, "little") + text + bytes(4)), "here")


@given(st.binary(max_size=60))
def test_arbitrary_bytes_are_no_tensors(data: bytes) -> None:
    try:
        tensors.decode(memoryview(data), "here")
    except ArtifactCorrupt as error:
        assert "\n" not in str(error)
