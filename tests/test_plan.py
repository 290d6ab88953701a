"""Plans: their file, what they refuse, and what they make of a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import intc
from intc.calibration import collect, open_feeds
from intc.errors import UsageError
from intc.frontend import import_onnx
from intc.ops.fused import Attention, Linear
from intc.passes import pipeline
from intc.passes.plan import Choice, Plan, planned, proven_bits, read_plan
from tests.onnx_models import model
from tests.tiny_encoder import tiny_encoder, tiny_feeds


@pytest.fixture(scope="module")
def state() -> tuple[pipeline.Pipeline, dict]:
    canonical = pipeline.canonicalise(import_onnx(tiny_encoder()))
    return canonical, collect(canonical.graph, open_feeds(canonical.graph, tiny_feeds(32, 24, seed=5)))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    onnx.save(tiny_encoder(), path)
    return path


def products(state: tuple[pipeline.Pipeline, dict]) -> list[str]:
    return [n.output for n, _ in planned(state[0].graph) if n.op.name == "matmul"]


def prepared(state: tuple[pipeline.Pipeline, dict], plan: Plan) -> Any:
    return pipeline.prepare(pipeline.integerise(*state, plan=plan)).graph


def error(graph: Any, feeds: dict[str, np.ndarray]) -> float:
    session = onnxruntime.InferenceSession(tiny_encoder().SerializeToString())
    return float(((graph.evaluate(feeds)[0] - session.run(None, feeds)[0]) ** 2).mean())


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    plan = Plan({"a": Choice(4, 16), "s": Choice(approximation="lut")}, Choice(activations=16))
    plan.save(tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan == read_plan(plan.as_json())
    assert [p.name for p in tmp_path.iterdir()] == ["plan.json"]
    assert read_plan(8) == Plan() and read_plan({"a": {"weights": 4}}) == Plan({"a": Choice(4)})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"a": {"weights": 5}}, "node 'a': weights 5 is not supported; one of 4, 8, 16"),
        ({"a": {"activations": True}}, "activations True"),
        ({"a": {"bits": 8}}, "unknown key 'bits'"),
        ({"a": 8}, "node 'a': expected an object"),
        ({"nodes": []}, "nodes must be an object"),
        ({"intc_plan": 2, "nodes": {}}, "version 2"),
        ({"nodes": {}, "extra": 1}, "unknown key 'extra'"),
        ({"default": {"approximation": "magic"}}, "default: approximation 'magic'"),
        ({"a": {"weights": [4]}}, "weights [4]"),
    ],
)
def test_malformed_plans_are_refused(body: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(body))
    for plan in (body, str(tmp_path / "plan.json")):
        with pytest.raises(UsageError) as caught:
            read_plan(plan)
        assert message in str(caught.value)


@pytest.mark.parametrize("text", ["{", '{"a": {}, "a": {}}', "[" * 100000, "[]"])
def test_files_that_are_no_plan(text: str, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(UsageError, match="plan"):
        read_plan(str(tmp_path / "plan.json"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_plan(str(tmp_path / "absent.json"))


def test_unknown_nodes_and_fields_are_named(state: tuple[pipeline.Pipeline, dict]) -> None:
    graph = state[0].graph
    name = products(state)[0]
    with pytest.raises(UsageError, match=f"did you mean '{name}'"):
        Plan({f"{name}x": Choice(4)}).resolve(graph)
    with pytest.raises(UsageError, match="matmul, which takes weights and activations, not approximation"):
        Plan({name: Choice(approximation="lut")}).resolve(graph)


def test_widths_are_what_fits_in_32_bits() -> None:
    for k in (1, 300, 384, 385, 768, 3072, 60000):
        for limit in (7, 127):
            bits = proven_bits(16, k, limit)
            fits = [k * limit * (2 ** (b - 1) - 1) + 2**29 < 2**31 for b in (bits, bits + 1)]
            assert 8 <= bits <= 16 and (fits[0] or bits == 8) and (bits == 16 or not fits[1])


def test_products_of_one_row_a_sample_read_sixteen_bits(
    state: tuple[pipeline.Pipeline, dict],
) -> None:
    """The classifier of the first token; a plan that says 8 bits means it, too."""
    graph = state[0].graph
    nodes = {n.output: n for n, _ in planned(graph) if n.op.name == "matmul"}
    short = {name for name in nodes if graph.type(name).rank == 2}
    assert short
    for plan, bits in ((Plan(), 16), (Plan(default=Choice(activations=8)), 8)):
        resolved = plan.resolve(graph)
        assert {resolved.activations(nodes[n], 64) for n in short} == {bits}
        assert {resolved.activations(nodes[n], 64) for n in set(nodes) - short} == {8}


def test_wide_integers_hold_more_than_was_seen(tmp_path: Path) -> None:
    """Inputs and outputs of almost twice what calibration showed are not clipped."""
    rng = np.random.default_rng(8)
    weights = {"w": rng.normal(size=(16, 16)).astype(np.float32) / 4}
    proto = model("y = MatMul(x, w)", "float[batch, seq, 16] x", "float[b, s, c] y", weights)
    onnx.save(proto, tmp_path / "m.onnx")
    x = rng.normal(size=(32, 9, 16)).astype(np.float32)
    module = intc.compile(tmp_path / "m.onnx", {"x": x}, bits=16, rounding="nearest")
    (near,), (far,) = (module.graph.evaluate({"x": k * x}) for k in (1, 1.9))
    np.testing.assert_allclose(far, 1.9 * near, atol=0.02 * np.abs(near).max())


def test_sixteen_bit_activations_stay_fused_and_are_nearer(state: tuple[pipeline.Pipeline, dict]) -> None:
    feeds = tiny_feeds(64, 20)
    narrow, wide = (prepared(state, Plan(default=Choice(activations=bits))) for bits in (8, 16))
    for name in ("attention", "matmul"):
        assert [n.op.name for n in wide.nodes].count(name) == [n.op.name for n in narrow.nodes].count(name)
    linears = [n for n in wide.nodes if isinstance(n.op, Linear)]
    assert {wide.type(n.inputs[0]).dtype for n in linears} == {"int16"}
    attentions = [n for n in wide.nodes if isinstance(n.op, Attention)]
    assert {n.op.dtype for n in attentions} == {"int16"}
    operands = {tuple(wide.type(x).dtype for x in n.inputs[:3]) for n in attentions}
    assert operands == {("int16", "int16", "int8")}
    assert all(n.inputs[0] == n.inputs[1] for n in attentions)  # one linear makes queries and keys
    assert error(wide, feeds) < 0.7 * error(narrow, feeds)


def test_one_node_changes_alone(state: tuple[pipeline.Pipeline, dict]) -> None:
    first, *_, last = products(state)
    eight = Choice(activations=8)
    graph = prepared(state, Plan({last: Choice(activations=16)}, eight))
    wide = [n for n in graph.nodes if isinstance(n.op, Linear) and graph.type(n.inputs[0]).dtype == "int16"]
    assert len(wide) == 1 and wide[0].inputs[0].startswith("Tanh")
    mixed = prepared(
        state, Plan({first: Choice(activations=16)}, eight)
    )  # its siblings read the same tensor in 8
    assert [n.op.name for n in mixed.nodes].count("attention") == 2


def test_four_bit_weights_are_not_merged_into_wider_ones(state: tuple[pipeline.Pipeline, dict]) -> None:
    query = products(state)[0]
    graph = prepared(state, Plan({query: Choice(weights=4)}))
    weights = [graph.constants[n.inputs[1]] for n in graph.nodes if isinstance(n.op, Linear)]
    narrow = [w.shape for w in weights if np.abs(w).max() <= 7]
    assert narrow == [(48, 48)] and (48, 96) in [w.shape for w in weights]


def test_a_family_for_one_softmax(state: tuple[pipeline.Pipeline, dict]) -> None:
    softmax = next(n.output for n, _ in planned(state[0].graph) if n.op.name == "softmax")
    names = [n.op.name for n in prepared(state, Plan({softmax: Choice(approximation="lut")})).nodes]
    assert names.count("lut_softmax") == 1 and names.count("attention") == 1


@pytest.mark.parametrize("default", [Choice(8, 16), Choice(4, 8), Choice(4, 16)])
def test_kernels_equal_the_reference(model_file: Path, default: Choice, tmp_path: Path) -> None:
    module = intc.compile(model_file, tiny_feeds(32, 24, seed=5), bits=Plan(default=default))
    feeds = tiny_feeds(3, 17)
    assert np.array_equal(module.run(None, feeds)[0], module.graph.evaluate(feeds)[0])
    module.save(tmp_path / "m.intc")
    again = intc.open_module(tmp_path / "m.intc")
    assert again.plan == module.plan == Plan(default=default)
    assert np.array_equal(again.run(None, feeds)[0], module.run(None, feeds)[0])


def test_an_input_that_is_not_only_read_by_products_has_sixteen_bits(tmp_path: Path) -> None:
    """A residual stream that starts at the input is as fine as one that starts at a product."""
    weights = {"w": np.eye(8, dtype=np.float32), "r": np.eye(8, dtype=np.float32) / 3}
    x = np.random.default_rng(2).normal(size=(200, 5, 8)).astype(np.float32)
    for body, dtype in (
        ("m = MatMul(x, w) y = Relu(m)", "int8"),
        ("m = MatMul(x, r) y = Add(x, m)", "int16"),
    ):
        onnx.save(model(body, "float[batch, seq, 8] x", "float[b, s, c] y", weights), tmp_path / "m.onnx")
        graph = intc.compile(tmp_path / "m.onnx", {"x": x}).graph
        assert graph.type("x").dtype == dtype
