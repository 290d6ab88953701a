"""The exported model in onnxruntime: an independent engine gives the bits of ``evaluate``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import intc
from intc.export.onnx_model import onnx_model
from intc.ir.dims import floor_div, symbol
from intc.ir.graph import Builder, Graph
from intc.ir.op import Array
from intc.ir.types import TensorType
from intc.ops.im2col import Im2col
from intc.ops.movement import Reshape
from intc.report.probe import probe_feeds
from intc.report.reading import read_graph
from tests.kernel_cases import Case
from tests.native import random_feed
from tests.test_kernels_generic import GROUPS
from tests.tiny_encoder import tiny_encoder, tiny_feeds

EXAMPLES = Path(intc.__file__).parents[1] / "examples"
# What no intermediate of a model in ONNX may be: the graph holds integers and conditions only.
FLOATS = {
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.DOUBLE,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
}


def run(model: onnx.ModelProto, feeds: dict[str, Array]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return list(session.run(None, feeds))


def compare(graph: Graph, feeds: dict[str, Array], output_names: Sequence[str] = ()) -> onnx.ModelProto:
    """Equal types, shapes and elements of every output."""
    model = onnx_model(graph, output_names)
    want = graph.run(feeds)
    for name, got in zip(graph.outputs, run(model, feeds), strict=True):
        assert got.dtype == want[name].dtype
        np.testing.assert_array_equal(got, want[name], err_msg=name)
    return model


def graph_of(case: Case) -> tuple[Graph, dict[str, Array]]:
    b = Builder("case")
    sizes = b.input("sizes", TensorType(tuple(symbol(s) for s in case.sizes), "bool"))
    names = []
    for i, item in enumerate(case.inputs):
        given = isinstance(item, TensorType)
        names.append(b.input(f"x{i}", item) if given else b.constant(f"c{i}", item))  # type: ignore[arg-type]
    b.output(b.emit(case.op, *names, name="y"))
    graph, rng = b.finish(), np.random.default_rng(3)
    assert sizes in graph.inputs
    return graph, {name: random_feed(graph.type(name), case.sizes, rng) for name in graph.inputs}


@pytest.mark.parametrize("group", GROUPS)
def test_every_operator(group: str) -> None:
    for case in GROUPS[group]():
        try:
            compare(*graph_of(case))
        except Exception as error:
            raise AssertionError(f"{case.op} on {[str(t)[:60] for t in case.inputs]}") from error


def types_in(model: onnx.ModelProto) -> set[int]:
    """The element types of every tensor."""
    known = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    values = [*known.input, *known.output, *known.value_info]
    return {v.type.tensor_type.elem_type for v in values} | {t.data_type for t in known.initializer}


def exported(artifact: Path, out: Path) -> onnx.ModelProto:
    command = [sys.executable, "-m", "intc", "export", str(artifact), "--onnx", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parent, check=False)
    assert done.returncode == 0, done.stderr
    return onnx.load(out)


@pytest.mark.parametrize("name", ["digits/digits_vit", "accuracy/characters", "accuracy/classifier"])
def test_trained_models(name: str, tmp_path: Path) -> None:
    source = EXAMPLES / f"{name}.onnx"
    module = intc.compile(source, "random", rounding="nearest")
    module.save(tmp_path / "model.intc")
    model = exported(tmp_path / "model.intc", tmp_path / "model.onnx")
    assert not types_in(model) & FLOATS
    graph = module.prepared
    feeds = probe_feeds(graph)
    want = graph.run(feeds)
    for value, public, got in zip(graph.outputs, module.output_names, run(model, feeds), strict=True):
        assert public in [o.name for o in model.graph.output]
        np.testing.assert_array_equal(got, want[value])
    for ours, theirs in zip(module.run(None, feeds, raw=True), run(model, feeds), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("approximation", ["shift", "ivit", "ibert", "lut"])
def test_every_family_of_an_encoder(approximation: str, tmp_path: Path) -> None:
    onnx.save(tiny_encoder(layers=1), tmp_path / "encoder.onnx")
    feeds = tiny_feeds(16, 12)
    module = intc.compile(tmp_path / "encoder.onnx", feeds, approximation=approximation, rounding="nearest")
    compare(module.graph, probe_feeds(module.graph))
    model = compare(module.prepared, tiny_feeds(3, 9, 5), module.output_names)
    assert model.metadata_props[0].key == "intc"
    assert '"logits": ' in model.metadata_props[0].value


def test_windows_over_images_of_any_size() -> None:
    b = Builder("free")
    x = b.input("x", TensorType((1, 3, symbol("height"), 8), "int8"))
    y = b.emit(Im2col((3, 2), (2, 1), (1, 0, 1, 1), (1, 2)), x)
    b.output(b.emit(Reshape((floor_div(symbol("height") + 1, 2), 7, 18)), y))
    graph = b.finish()
    for height in (1, 4, 7):
        compare(graph, probe_feeds(graph, {"height": height}))


def test_an_unwritable_file_is_refused(artifact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "intc", "export", str(artifact), "--onnx", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=EXAMPLES.parent, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    _, graph = read_graph(artifact)
    compare(graph, probe_feeds(graph))
