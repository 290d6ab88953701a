"""How fine the steps of operands and weights are where that costs nothing, or next to nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.ir.graph import Graph
from intc.passes import pipeline
from intc.passes.integer import noise, rules
from intc.passes.integer.context import Context
from intc.passes.integer.rounding import nearest
from intc.passes.integer.widths import weight_scales
from intc.report.reference import fidelity
from tests.onnx_models import Feeds, canonical, expected, floats, model
from tests.test_floor import calibrated
from tests.test_noise import WIDTH, assert_exact, distance, drawn, integers, operand, written

UNEVEN = np.exp2(np.arange(WIDTH, dtype=np.float32) % 5)  # by what channels differ
JOINED = (
    "a = MatMul(x, u) g = MatMul(x, v) s = Sigmoid(g) p = Mul(a, s) t = Concat<axis=1>(p, a) y = MatMul(t, w)"
)
HEADS = (
    "a = MatMul(x, u) r = Reshape(a, split) t = Transpose<perm=[0, 1, 3, 2]>(r) f = Reshape(t, whole)"
    " y = MatMul(f, w)"
)
SHAPES: Feeds = {"split": np.array([0, 0, 4, 8]), "whole": np.array([0, 0, WIDTH])}
HADAMARD = np.array([[1.0]], np.float32)
for _ in range(5):
    HADAMARD = np.block([[HADAMARD, HADAMARD], [HADAMARD, -HADAMARD]]) / np.float32(np.sqrt(2))


def uneven(body: str, spread: np.ndarray = UNEVEN) -> onnx.ModelProto:
    """Channels of ``a`` that are as large as ``spread``, and weights that make up for it."""
    weights = drawn("u v w")
    order = np.arange(WIDTH).reshape(4, 8).T.ravel() if body == HEADS else np.arange(WIDTH)
    rows = weights["w"] / spread[order][:, None]
    parts = SHAPES if body == HEADS else {"v": weights["v"]}
    proto = written(body, {"u": weights["u"] * spread, "w": rows, **parts})
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "rows"
    return proto


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No operand has 16 bits for its noise."""
    monkeypatch.setattr(noise, "LOUD", 1e9)
    monkeypatch.setattr(noise, "MOST", 2.0)


def scales(graph: Graph, product: str) -> int:
    """How many scales the operand of ``product`` has."""
    (node,) = [n for n in graph.nodes if n.output == product]
    return np.size(graph.values[node.inputs[0]].scale)


@pytest.mark.usefixtures("narrow")
def test_channels_keep_their_scales_where_movement_does_not_mix_them(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = uneven(JOINED)
    state = integers(proto)
    assert operand(state.graph, "y") == "int8" and scales(state.graph, "y") == WIDTH
    assert_exact(state)
    monkeypatch.setattr(rules, "keeps_channels", lambda graph, node: False)
    monkeypatch.setattr(rules, "WORTH_MOVING", 0.0)
    alike = integers(proto).graph
    assert scales(alike, "y") == 1
    assert distance(proto, state.graph) > distance(proto, alike) + 5


@pytest.mark.usefixtures("narrow")
def test_what_mixes_channels_moves_16_bits_where_they_differ_much(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = uneven(HEADS)
    state = integers(proto)
    moved = next(n for n in state.graph.nodes if n.op.name == "transpose")
    assert state.graph.type(moved.output).dtype == "int16" and operand(state.graph, "y") == "int8"
    assert_exact(state)
    even = integers(uneven(HEADS, np.ones(WIDTH, np.float32))).graph
    moved = next(n for n in even.nodes if n.op.name == "transpose")
    assert even.type(moved.output).dtype == "int8"
    monkeypatch.setattr(rules, "WORTH_MOVING", 0.0)
    assert distance(proto, state.graph) > distance(proto, integers(proto).graph) + 5


@pytest.mark.usefixtures("narrow")
def test_what_attention_gives_has_one_scale_as_its_kernel_does() -> None:
    body = (
        "k = Transpose<perm=[0, 2, 1]>(x) s = MatMul(x, k) p = Softmax<axis=-1>(s) a = MatMul(x, u)"
        " c = MatMul(p, a) t = Concat<axis=1>(c, a) y = MatMul(t, w)"
    )
    assert scales(integers(uneven(body)).graph, "y") == 1


def test_one_scale_where_those_of_channels_would_be_coarser() -> None:
    """Few rows leave room for what they did not show; a clipped value needs none."""
    ends: Feeds = {"zero": np.float32(0), "one": np.float32(1)}
    body = "a = MatMul(x, u) c = Clip(a, zero, one) t = Transpose<perm=[1, 0, 2]>(c) y = MatMul(t, w)"
    shape = f"float[batch, 2, {WIDTH}] x"
    proto = model(body, shape, f"float[b, s, {WIDTH}] y", {**drawn("u w"), **ends})
    state, seen = calibrated(proto, {"x": floats(24, 2, WIDTH)})
    graph = pipeline.integerise(state, seen, rounding="nearest").graph
    assert operand(graph, "y") == "uint8" and scales(graph, "y") == 1


@pytest.mark.parametrize("imaginary", ["zeros", "numbers"])
def test_transforms_of_real_numbers_multiply_nothing_by_zeros(imaginary: str) -> None:
    parts = {"zeros": np.zeros((4, 16, 1)), "numbers": floats(4, 16, 1)}[imaginary].astype(np.float32)
    body = "u = Unsqueeze(x, last) c = Concat<axis=-1>(u, parts) y = DFT<axis=1>(c)"
    weights: Feeds = {"last": np.array([-1]), "parts": parts}
    proto = model(body, "float[4, 16] x", "float[a, b, c] y", weights, opset=18)
    graph = canonical(proto, {"x": floats(4, 16)})
    (node,) = [n for n in graph.nodes if n.op.name == "matmul"]
    assert graph.constants[node.inputs[1]].shape == (16 if imaginary == "zeros" else 32, 32)


@pytest.mark.parametrize(
    ("matrix", "dtype"),
    [(HADAMARD, "int16"), (np.eye(WIDTH, dtype=np.float32)[::-1], "int8"), (drawn("w")["w"], "int8")],
    ids=["transform", "permutation", "weights"],
)
def test_a_change_of_basis_reads_16_bits(matrix: np.ndarray, dtype: str) -> None:
    proto = written("a = MatMul(x, u) b = Tanh(a) y = MatMul(b, w)", {**drawn("u"), "w": matrix})
    assert operand(integers(proto).graph, "y") == dtype


def test_short_columns_have_the_scale_that_suits_what_they_multiply() -> None:
    rng = np.random.default_rng(4)
    weight, mixed = rng.normal(size=(8, 400)), rng.normal(size=(8, 8))
    covariance = mixed @ mixed.T

    def error(scale: np.ndarray) -> float:
        off = nearest(weight, scale, 127) * scale - weight
        return float(np.einsum("kn,kj,jn->", off, covariance, off))

    assert error(weight_scales(weight, 127, covariance)) < 0.4 * error(weight_scales(weight, 127))
    long = rng.normal(size=(400, 8))
    assert np.array_equal(weight_scales(long, 127, np.eye(400)), weight_scales(long, 127))


def test_a_cheap_product_that_loses_most_reads_16_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """It multiplies what two computed values give: an eighth of the work, nearly all of the noise."""
    monkeypatch.setattr(noise, "LOUD", 1e9)
    gate = "a = MatMul(x, u) b = MatMul(x, v) p = Mul(a, b) "
    small = {**drawn("u v"), "w": drawn("w")["w"][:, :8]}
    cheap, dear = (written(gate + "y = MatMul(p, w)", w) for w in (small, drawn("u v w")))
    assert operand(integers(dear).graph, "y") == "int8"
    assert operand(integers(cheap).graph, "y") == "int16"
    monkeypatch.setattr(noise, "MOST", 2.0)
    assert operand(integers(cheap).graph, "y") == "int8"


@pytest.mark.parametrize(("hidden", "limit"), [(WIDTH, noise.LOUD), (8 * WIDTH, noise.MODEST)])
def test_less_is_too_loud_in_cheap_products_of_computed_values(hidden: int, limit: float) -> None:
    body = (
        "b = MatMul(x, u) h = Relu(b) a = MatMul(h, v) t = Transpose<perm=[0, 2, 1]>(a) s = MatMul(a, t)"
        " y = MatMul(s, a)"
    )
    weights: Feeds = {"u": floats(WIDTH, hidden, seed=1), "v": floats(hidden, WIDTH, seed=2)}
    state, seen = calibrated(written(body, weights), {"x": floats(8, 12, WIDTH)})
    (product,) = [n for n in state.graph.nodes if n.output == "s"]
    assert noise.limit(state.graph, seen, product) == limit


def test_a_table_of_two_rows_has_16_bits() -> None:
    tables: Feeds = {"long": floats(9, WIDTH), "two": floats(2, WIDTH)}
    body = "a = Gather(long, i) b = Gather(two, j) y = Add(a, b)"
    proto = model(body, "int64[batch] i, int64[batch] j", f"float[b, {WIDTH}] y", tables)
    rng = np.random.default_rng(1)
    state, seen = calibrated(proto, {"i": rng.integers(0, 9, 64), "j": rng.integers(0, 2, 64)})
    graph = pipeline.integerise(state, seen, rounding="nearest").graph
    tables_read = [n.inputs[0] for n in graph.nodes if n.op.name == "gather"]
    assert [graph.type(x).dtype for x in tables_read] == ["int16", "int16"]


@pytest.mark.parametrize("function", ["a = HardSwish(h)", "a = Gelu(h)"])
def test_16_bits_have_a_middle_of_their_own(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is subtracted from a GELU is the middle of the codes that read it, not of 8 bits, which reach
    further where rare values are large.
    """
    monkeypatch.setattr(Context, "room", lambda *_: 20.0)
    proto = model(
        f"h = MatMul(x, u) {function} y = MatMul(a, w)",
        "float[batch, 32] x",
        "float[batch, 8] y",
        {
            "u": floats(32, 64, seed=1),
            "w": floats(64, 8, seed=2) * np.exp2(-np.arange(64, dtype=np.float32) % 9)[:, None],
        },
        opset=20,
    )
    onnx.save(proto, tmp_path / "m.onnx")
    feeds = {"x": floats(64, 32, seed=3)}
    (found,) = intc.compile(tmp_path / "m.onnx", feeds, bits=16).session().run(None, feeds)
    assert fidelity(found, expected(proto, feeds)[0])["sqnr_db"] > 45
