"""A whole encoder through every stage: fused graph, kernels and artifact give the reference's bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import intc
from intc.calibration import collect, open_feeds
from intc.errors import CalibrationError, FeedError, UnsupportedModel, UsageError
from intc.frontend import import_onnx
from intc.ir.verify import float_operators, float_values, verify
from intc.module import Module
from intc.passes import pipeline
from tests.tiny_encoder import tiny_encoder, tiny_feeds

FAMILIES = ("auto", "shift", "ivit", "ibert", "lut")


def sqnr(wanted: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((wanted**2).sum() / ((wanted - got) ** 2).sum()))


def reference(feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(tiny_encoder().SerializeToString())
    return np.asarray(session.run(None, feeds)[0])


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    onnx.save(tiny_encoder(), path)
    return path


@pytest.fixture(scope="module")
def module(model_file: Path) -> Module:
    return intc.compile(model_file, calibration=tiny_feeds(32, 24, seed=5))


@pytest.fixture(scope="module")
def state() -> tuple[pipeline.Pipeline, dict]:
    canonical = pipeline.canonicalise(import_onnx(tiny_encoder()))
    return canonical, collect(canonical.graph, open_feeds(canonical.graph, tiny_feeds(32, 24, seed=5)))


def test_canonical_graph_has_the_recovered_operators(state: tuple[pipeline.Pipeline, dict]) -> None:
    graph = state[0].graph
    names = [node.op.name for node in graph.nodes]
    assert names.count("gelu") == 2 and names.count("softmax") == 2 and names.count("layer_norm") == 5
    assert all(len(n.inputs) == 2 for n in graph.nodes if n.op.name == "softmax"), "the mask is an input"
    feeds = tiny_feeds(3, 17)
    np.testing.assert_allclose(graph.evaluate(feeds)[0], reference(feeds), atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_integer_and_fusion_keeps_its_bits(
    state: tuple[pipeline.Pipeline, dict], family: str
) -> None:
    integer = pipeline.integerise(*state, family)
    prepared = pipeline.prepare(integer)
    for graph in (integer.graph, prepared.graph):
        verify(graph)
        assert not float_values(graph) and not float_operators(graph)
    for batch, length in ((1, 24), (3, 7)):
        feeds = tiny_feeds(batch, length)
        got = integer.graph.evaluate(feeds)[0]
        assert np.array_equal(got, prepared.graph.evaluate(feeds)[0])
        # ivit and ibert are parity modes for models trained with them; shift and lut are for accuracy
        assert sqnr(reference(feeds), got) > (20 if family in ("auto", "shift", "lut") else 3), family


def test_the_default_family_fuses_completely(state: tuple[pipeline.Pipeline, dict]) -> None:
    names = [n.op.name for n in pipeline.prepare(pipeline.integerise(*state)).graph.nodes]
    assert names.count("attention") == 2
    # query and key in 16 bits merged, value, output, fc1, fc2 a layer; pooler and classifier
    assert names.count("linear") == 2 * 5 + 2
    assert "matmul" not in names and "shiftmax" not in names


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("batch", "length"), [(1, 24), (3, 7), (2, 40), (5, 1)])
def test_kernels_equal_the_reference(module: Module, threads: int, batch: int, length: int) -> None:
    feeds = tiny_feeds(batch, length)
    (got,) = module.session(threads).run(None, feeds)
    assert np.array_equal(got, module.graph.evaluate(feeds)[0])


def test_batches_do_not_influence_each_other(module: Module) -> None:
    feeds = tiny_feeds(4, 15)
    (whole,) = module.run(None, feeds)
    rows = [module.run(None, {k: v[i : i + 1] for k, v in feeds.items()})[0] for i in range(4)]
    assert np.array_equal(whole, np.concatenate(rows))


def test_masked_tokens_change_nothing(module: Module) -> None:
    feeds = tiny_feeds(1, 12)
    changed = {k: v.copy() for k, v in feeds.items()}
    changed["input_ids"][0, -4:] = (changed["input_ids"][0, -4:] + 7) % 50
    assert np.array_equal(module.run(None, feeds)[0], module.run(None, changed)[0])


def test_unfused_graph_compiles_to_the_same_bits(module: Module) -> None:
    from intc.codegen.lower import lower

    plain = Module(module.graph, module.graph, lower(module.graph, "native"), module.output_names)
    feeds = tiny_feeds(2, 9)
    assert np.array_equal(plain.run(None, feeds)[0], module.run(None, feeds)[0])


def test_longer_sequences_than_the_position_table_are_refused(module: Module) -> None:
    feeds = tiny_feeds(1, 41)
    for run in (lambda: module.run(None, feeds), lambda: module.graph.evaluate(feeds)):
        with pytest.raises(FeedError, match="sequence is 41; the model takes at most 40"):
            run()


def test_no_calibration_is_refused_and_random_must_be_named(model_file: Path) -> None:
    with pytest.raises(CalibrationError, match="no calibration data"):
        intc.compile(model_file)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "input 'input_ids' is missing"),
        ({"input_ids": np.zeros((0, 4), np.int64), "attention_mask": np.zeros((0, 4), np.int64)}, "empty"),
        (
            {"input_ids": np.zeros((2, 4), np.int64), "attention_mask": np.zeros((3, 4), np.int64)},
            "different numbers",
        ),
        ({"input_ids": np.zeros((2, 4)), "attention_mask": np.zeros((2, 4), np.int64)}, "has type float64"),
        ([], "empty"),
        (["x"], "not a dict"),
        ("missing.npz", "no such file"),
    ],
)
def test_bad_calibration_is_refused_by_name(model_file: Path, data: object, message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        intc.compile(model_file, calibration=data)  # type: ignore[arg-type]


def test_unknown_choices_are_refused(model_file: Path) -> None:
    for bad in ({"target": "pdp11"}, {"approximation": "magic"}, {"bits": 3}, {"calibrator": "guess"}):
        with pytest.raises(UsageError):
            intc.compile(model_file, calibration=tiny_feeds(2, 5), **bad)  # type: ignore[arg-type]


def test_every_unsupported_node_is_listed_at_once(tmp_path: Path) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(tiny_encoder())
    for node in proto.graph.node:
        if node.op_type == "Erf":
            node.op_type = "Bernoulli"
    path = tmp_path / "odd.onnx"
    onnx.save(proto, path)
    with pytest.raises(UnsupportedModel) as caught:
        intc.compile(path, calibration=tiny_feeds(2, 5))
    assert [op for _, op, _ in caught.value.problems] == ["Bernoulli", "Bernoulli"]


def test_percentile_calibration_clips_outliers(model_file: Path) -> None:
    feeds = tiny_feeds(8, 16)
    module = intc.compile(model_file, calibration=feeds, calibrator="percentile")
    assert sqnr(reference(feeds), module.run(None, feeds)[0]) > 15


def test_byte_images_with_the_normalisation_inside(tmp_path: Path) -> None:
    """``(x / 255 - mean) / std`` before the first convolution folds into it; the kernels read the bytes."""
    rng = np.random.default_rng(4)
    text = """<ir_version: 8, opset_import: ["" : 17]>
    camera (float[batch,3,16,16] image) => (float[batch,8,4,4] features) {
        unit = Div(image, full)
        centred = Sub(unit, mean)
        normal = Div(centred, std)
        features = Conv <kernel_shape = [4, 4], strides = [4, 4]> (normal, w, b)
    }"""
    proto = onnx.parser.parse_model(text)
    weights = {
        "full": np.float32(255),
        "mean": np.array([0.485, 0.456, 0.406], np.float32).reshape(1, 3, 1, 1),
        "std": np.array([0.229, 0.224, 0.225], np.float32).reshape(1, 3, 1, 1),
        "w": (0.1 * rng.standard_normal((8, 3, 4, 4))).astype(np.float32),
        "b": rng.standard_normal(8).astype(np.float32),
    }
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in weights.items())
    path = tmp_path / "camera.onnx"
    onnx.save(proto, path)
    images = rng.integers(0, 256, (8, 3, 16, 16)).astype(np.uint8)
    module = intc.compile(path, calibration={"image": images}, inputs={"image": "uint8"})
    assert module.graph.type("image").dtype == "uint8"
    assert [n.op.name for n in module.prepared.nodes][:2] == ["im2col", "linear"]
    (got,) = module.run(None, {"image": images})
    assert np.array_equal(got, module.graph.evaluate({"image": images})[0])
    wanted = onnxruntime.InferenceSession(path).run(None, {"image": images.astype(np.float32)})[0]
    assert sqnr(wanted, got) > 35
