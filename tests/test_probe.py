"""The same bits everywhere: one digest for every instruction set, thread count and batch split."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.artifact import schema, tensors
from intc.artifact.container import Container
from intc.artifact.writer import write_artifact
from intc.codegen.targets import TARGETS, host_features
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.elementwise import Add
from intc.report.probe import digest, probe_digest, probe_feeds, probe_sizes
from intc.report.reading import read_graph
from intc.report.verify import verify_artifact
from tests.small import small_feeds, small_graph, small_module
from tests.tiny_encoder import tiny_encoder, tiny_feeds

HERE = [t.name for t in TARGETS if host_features().issuperset(t.features)]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with attention, LayerNorm, GELU, masks and free batch and sequence lengths."""
    folder = tmp_path_factory.mktemp("encoder")
    onnx.save(tiny_encoder(), folder / "encoder.onnx")
    module = intc.compile(folder / "encoder.onnx", tiny_feeds(16, 12), rounding="nearest")
    module.save(folder / "encoder.intc")
    return folder / "encoder.intc"


@cache
def stored(path: Path) -> dict[str, object]:
    certificate = json.loads(bytes(Container(path).member(schema.CERTIFICATE)))
    return dict(certificate["outputs"])


@pytest.mark.parametrize("target", HERE)
def test_every_target_and_thread_count_gives_the_digest(encoder: Path, target: str, tmp_path: Path) -> None:
    module = intc.open_module(encoder, target)
    module.save(tmp_path / "again.intc")
    assert stored(tmp_path / "again.intc") == stored(encoder)
    feeds = probe_feeds(module.graph)
    for threads in (1, 2, 3, 5):
        session = intc.load(tmp_path / "again.intc", threads=threads)
        assert digest(session.run(None, feeds, raw=True)) == stored(encoder)["sha256"]


def test_every_batch_split_gives_the_digest(encoder: Path) -> None:
    _, graph = read_graph(encoder)
    sizes = {**probe_sizes(graph), "batch": 7}
    feeds, session = probe_feeds(graph, sizes), intc.load(encoder, threads=2)
    whole = digest(session.run(None, feeds, raw=True))
    assert whole == digest(graph.run(feeds).values())
    for step in (1, 2, 3, 6):
        cuts = [slice(i, i + step) for i in range(0, 7, step)]
        parts = [session.run(None, {n: a[c] for n, a in feeds.items()}, raw=True) for c in cuts]
        assert digest([np.concatenate(p) for p in zip(*parts, strict=True)]) == whole


def test_inputs_are_fixed_by_name_and_type_alone() -> None:
    feeds = probe_feeds(small_graph())
    assert probe_sizes(small_graph()) == {"batch": 2}
    for name, lo, hi in (("x", -127, 127), ("ids", 0, 49)):
        drawn = hashlib.shake_256(name.encode()).digest(16)
        numbers = [int.from_bytes(drawn[i : i + 8], "little") % (hi - lo + 1) + lo for i in (0, 8)]
        assert feeds[name].reshape(-1)[:2].tolist() == numbers


def test_whole_intervals_are_used() -> None:
    b = Builder("types")
    for dtype, lo, hi in (("int64", None, None), ("int64", -3, 4), ("uint8", None, None), ("bool", 0, 1)):
        b.input(f"{dtype}{lo}", TensorType((4000,), dtype, lo, hi))  # type: ignore[arg-type]
    feeds = probe_feeds(b.graph)
    for name, array in feeds.items():
        lo, hi = b.graph.type(name).interval
        assert array.dtype == b.graph.type(name).dtype
        assert lo <= int(array.min()) <= lo + (hi - lo) // 100
        assert hi - (hi - lo) // 100 <= int(array.max()) <= hi


def test_sizes_keep_the_limits() -> None:
    graph: Graph = small_graph()
    assert probe_sizes(graph) == {"batch": 2}
    b = Builder("fixed")
    x = b.input("x", TensorType((3,), "int8"))
    b.output(b.emit(Add(), x, x))
    assert probe_sizes(b.finish()) == {}


def test_verify_finds_another_digest(artifact: Path, tmp_path: Path) -> None:
    good = verify_artifact(artifact, small_feeds(3))
    assert good.digests == [good.digest] * 2
    assert good.digest == stored(artifact)["sha256"]
    manifest, _ = read_graph(artifact)
    container = Container(artifact)
    certificate = json.loads(bytes(container.member(schema.CERTIFICATE)))
    certificate["outputs"]["sha256"] = "0" * 64
    weights = tensors.decode(container.member(schema.WEIGHTS), "")
    text, kernels = (bytes(container.member(n)) for n in (schema.GRAPH, manifest.kernels))
    write_artifact(tmp_path / "bad.intc", manifest, text.decode(), weights, kernels, certificate)
    result = verify_artifact(tmp_path / "bad.intc", small_feeds(3))
    assert result.certificate == ["outputs"]
    assert not result.passed


def test_a_digest_tells_types_shapes_and_bits_apart() -> None:
    array = np.arange(6, dtype=np.int16)
    others = [array.astype(np.int32), array.reshape(2, 3), array[::-1], array + np.int16(1)]
    assert len({digest([a]) for a in (array, *others)}) == 5
    assert digest([array]) == digest([array.astype(">i2").astype(np.int16)])
    assert small_module().certificate["outputs"]["sha256"] == probe_digest(small_graph())
