"""Copies of outlier channels: the float function stays, the integer one gets finer."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

import intc
from intc.calibration import collect
from intc.ir.graph import Graph
from intc.ops.matmul import MatMul
from intc.passes.pipeline import Pipeline, equalise
from intc.passes.split_outliers import GROUP, MOST, offsets, repeated
from tests.onnx_models import canonical, model

WIDTH, HIDDEN, CLASSES = 24, 1536, 8
LOUD = (5, 300, 301)


def block(outliers: float) -> onnx.ModelProto:
    """A product that 8 bits hold exactly, GELU, and a product in which the channels LOUD weigh ``outliers``
    times more.
    """
    rng = np.random.default_rng(3)
    first, second = rng.integers(-127, 128, (WIDTH, HIDDEN)) / 512, rng.normal(0, 0.1, (HIDDEN, CLASSES))
    second[list(LOUD)] *= outliers
    body = "h = MatMul (x, w1)  hb = Add (h, b1)  a = Gelu (hb)  o = MatMul (a, w2)  y = Add (o, b2)"
    biases = {"b1": rng.normal(0, 0.5, HIDDEN), "b2": rng.normal(0, 1, CLASSES)}
    weights = {"w1": first, "w2": second, **biases}
    narrow = {name: array.astype(np.float32) for name, array in weights.items()}
    return model(body, f"float[batch, {WIDTH}] x", f"float[batch, {CLASSES}] y", narrow, opset=20)


def samples(count: int, seed: int) -> dict[str, np.ndarray]:
    """Numbers that 8 bits hold exactly."""
    integers = np.random.default_rng(seed).integers(-127, 128, (count, WIDTH))
    return {"x": (integers / 32).astype(np.float32)}


def split(proto: onnx.ModelProto) -> tuple[Graph, Graph]:
    """The canonical graph before and after phase 2."""
    feeds = samples(64, 0)
    graph = canonical(proto, feeds, 1e-3)
    ranges = {name: seen.channels for name, seen in collect(graph, [feeds], "minmax").items()}
    return graph, equalise(Pipeline(graph), ranges).graph


def hidden(graph: Graph) -> int:
    """The channels between the two products."""
    return max(graph.type(n.output).shape[-1] for n in graph.nodes if isinstance(n.op, MatMul))  # type: ignore[type-var, return-value]


def test_the_function_stays() -> None:
    before, after = split(block(40.0))
    assert hidden(before) == HIDDEN < hidden(after) <= HIDDEN * (1 + MOST)
    feeds = samples(32, 1)
    np.testing.assert_allclose(after.evaluate(feeds)[0], before.evaluate(feeds)[0], rtol=1e-4, atol=1e-4)


def test_even_channels_stay_single() -> None:
    before, after = split(block(1.0))
    assert hidden(before) == hidden(after) == HIDDEN


def test_copies_follow_the_weight_of_a_channel() -> None:
    reach = np.ones(HIDDEN)
    reach[[7, 9]] = 100.0, 50.0
    index = repeated(reach, [np.ones((HIDDEN, 3))])
    copies = np.bincount(index)
    assert len(index) == HIDDEN + GROUP and copies[7] + copies[9] == GROUP + 2
    assert 1.8 < copies[7] / copies[9] < 2.2
    assert np.all(np.diff(index) >= 0) and np.delete(copies, [7, 9]).max() == 1


def test_copies_are_rounded_a_share_of_a_step_apart() -> None:
    _, after = split(block(40.0))
    gelu = next(n for n in after.nodes if n.op.name == "gelu")
    found = offsets(after, after.producers(), gelu)
    assert len(found) == hidden(after) and np.count_nonzero(found) >= GROUP
    weight = after.constants[next(n for n in after.nodes if n.op.name == "matmul").inputs[1]]
    for channel in np.flatnonzero(found)[:1]:
        same = [c for c in range(len(found)) if np.array_equal(weight[:, c], weight[:, channel])]
        np.testing.assert_allclose(np.diff(found[same]), 1 / len(same))
        assert found[same].mean() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("outliers", [10.0, 40.0])
def test_integers_are_finer_and_kernels_equal(
    outliers: float, monkeypatch: pytest.MonkeyPatch, tmp_path: pytest.TempPathFactory
) -> None:
    proto, feeds = block(outliers), samples(64, 2)
    path = f"{tmp_path}/block.onnx"
    onnx.save(proto, path)
    want = canonical(proto, feeds, 1e-3).evaluate(feeds)[0]
    errors = []
    for most in (0.0, MOST):
        monkeypatch.setattr("intc.passes.split_outliers.MOST", most)
        eight = {"default": {"activations": 8}}  # else the few columns of the second product read 16
        module = intc.compile(path, calibration=feeds, calibrator="minmax", bits=eight)
        (got,) = module.graph.evaluate(feeds)
        assert np.array_equal(module.run(None, feeds)[0], got)
        errors.append(float(((got - want) ** 2).mean()))
    assert errors[1] < errors[0] / 1.5
