"""The artifact file: canonical layout, exact contents, and one refusal for every kind of damage."""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

import intc
from intc.artifact import container, schema, tensors
from intc.artifact.container import Container
from intc.errors import ArtifactCorrupt, ArtifactError, ArtifactVersion, UsageError, WrongTarget
from intc.ir.text import print_graph
from intc.module import narrowed, open_module
from intc.report.reading import read_graph
from intc.runtime import native
from intc.runtime.constants import Blob
from tests.artifacts import edit_manifest, members, refused, rewritten
from tests.small import small_feeds, small_graph, small_module


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


def test_another_version(artifact: Path, tmp_path: Path) -> None:
    for version in (1, schema.VERSION - 1, schema.VERSION + 1, 0, str(schema.VERSION), None):
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


def test_an_interruption_while_kernels_load_is_not_taken_for_damage(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Timeout(Exception):
        """Raised in the loading thread by whoever waits for it."""

    def load(*_: Any, **__: Any) -> None:
        raise Timeout

    monkeypatch.setattr(native.ffi(), "load_module", load)
    with pytest.raises(Timeout):
        intc.load(artifact)


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
