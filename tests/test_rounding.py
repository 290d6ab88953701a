"""Weights rounded by output error, centred inputs and the bias correction."""

from __future__ import annotations

import numpy as np
import pytest

from intc.calibration import collect, open_feeds
from intc.frontend import import_onnx
from intc.ir.graph import Graph, dequantize, quantize_feed
from intc.ops.fused import Linear
from intc.passes import pipeline
from intc.passes.centre import Centre
from intc.passes.integer.rounding import compensated, damped, nearest, output_error
from tests.onnx_models import floats, model
from tests.tiny_encoder import tiny_encoder, tiny_feeds


def problem(k: int, n: int, rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, k)) @ rng.standard_normal((k, k)) * rng.uniform(0.1, 3, k)
    weight = rng.standard_normal((k, n))
    return weight, np.abs(weight).max(axis=0) / 127, x.T @ x / rows


@pytest.mark.parametrize(("k", "n", "rows"), [(1, 1, 4), (40, 7, 500), (130, 33, 50), (64, 1, 2)])
def test_no_output_is_worse_than_nearest(k: int, n: int, rows: int) -> None:
    weight, scale, covariance = problem(k, n, rows)
    found, plain = compensated(weight, scale, 127, covariance), nearest(weight, scale, 127)
    assert np.all(np.abs(found) <= 127) and np.array_equal(found, np.rint(found))
    errors = [output_error(weight, scale, q, damped(covariance)) for q in (found, plain)]
    assert np.all(errors[0] <= errors[1])


def test_correlated_inputs_gain_much_and_independent_ones_nothing() -> None:
    weight, scale, covariance = problem(96, 16, 2000)
    found, plain = compensated(weight, scale, 127, covariance), nearest(weight, scale, 127)
    errors = [output_error(weight, scale, q, covariance).sum() for q in (found, plain)]
    assert errors[0] < 0.6 * errors[1]
    assert np.array_equal(compensated(weight, scale, 127, np.eye(96)), plain)


def test_a_dead_input_is_harmless() -> None:
    weight, scale, _ = problem(8, 3, 10)
    assert np.array_equal(compensated(weight, scale, 127, np.zeros((8, 8))), nearest(weight, scale, 127))


@pytest.fixture(scope="module")
def state() -> tuple[pipeline.Pipeline, dict]:
    canonical = pipeline.canonicalise(import_onnx(tiny_encoder()))
    feeds = open_feeds(canonical.graph, tiny_feeds(32, 24, seed=5))
    return canonical, collect(canonical.graph, feeds, products=True)


def centred(graph: Graph, stats: dict) -> tuple[Graph, dict]:
    stats = dict(stats)
    return Centre(stats).run(graph), stats


def test_centring_keeps_the_function_and_centres(state: tuple[pipeline.Pipeline, dict]) -> None:
    graph, stats = centred(state[0].graph, state[1])
    moved = [n.output for n in graph.nodes if n.output.endswith(".centred")]
    assert len(moved) == 5 + 2 - 1  # every norm and GELU but the last norm, which a gather reads
    feeds = tiny_feeds(3, 17)
    np.testing.assert_allclose(graph.evaluate(feeds)[0], state[0].graph.evaluate(feeds)[0], atol=2e-5)
    seen = collect(graph, open_feeds(graph, tiny_feeds(32, 24, seed=5)), "minmax")
    for name in moved:
        np.testing.assert_allclose(seen[name].low, -seen[name].high, atol=1e-4)
        np.testing.assert_allclose(seen[name].high, stats[name].high, atol=1e-4)
        np.testing.assert_allclose(seen[name].moments.mean, stats[name].moments.mean, atol=1e-3)  # type: ignore[union-attr]


def test_a_norm_that_something_else_reads_stays() -> None:
    weights = {"g": np.ones(8, np.float32), "b": floats(8), "w": floats(8, 4), "c": floats(4)}
    body = "n = LayerNormalization(x, g, b) p = MatMul(n, w) y = Add(p, c)"
    for tail, changed in (("", True), (" z = Softmax(n)", False)):
        outputs = "float[s,4] y" + (", float[s,8] z" if tail else "")
        graph = import_onnx(model(body + tail, "float[s,8] x", outputs, weights))
        stats = collect(graph, [{"x": floats(16, 8) + 1}])
        assert any(n.output.endswith(".centred") for n in Centre(stats).run(graph).nodes) is changed


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_the_mean_error_goes_to_the_bias(rounding: str) -> None:
    """With a skewed input the product's mean error is far below what rounding alone leaves."""
    rng = np.random.default_rng(3)
    weights = {"w": rng.standard_normal((64, 32)).astype(np.float32), "c": floats(32)}
    state = pipeline.canonicalise(
        import_onnx(model("p = MatMul(x, w) y = Add(p, c)", "float[s,64] x", "float[s,32] y", weights))
    )
    x = (4 + rng.standard_normal((4000, 64))).astype(np.float32)
    stats = collect(state.graph, [{"x": x}], "minmax", products=True)
    wanted = state.graph.evaluate({"x": x})[0]
    graph = pipeline.integerise(state, stats, "shift", "minmax", rounding).graph  # type: ignore[arg-type]
    error = (graph.evaluate({"x": x})[0] - wanted).astype(np.float64)
    assert np.abs(error.mean(axis=0)).max() < 0.2 * error.std()
    for value in stats.values():
        value.moments = None
    graph = pipeline.integerise(state, stats, "shift", "minmax", "nearest").graph
    plain = (graph.evaluate({"x": x})[0] - wanted).astype(np.float64)
    assert np.abs(plain.mean(axis=0)).max() > 5 * np.abs(error.mean(axis=0)).max()


def test_the_offset_of_a_gelu_fuses(state: tuple[pipeline.Pipeline, dict]) -> None:
    integer = pipeline.integerise(*state)
    fused = [n.op for n in pipeline.prepare(integer).graph.nodes if isinstance(n.op, Linear)]
    assert sum(op.gelu_offset for op in fused) == sum(op.gelu_frac >= 0 for op in fused) == 2


def test_gptq_is_nearer_to_float_than_nearest_on_other_data() -> None:
    rng = np.random.default_rng(3)
    weights = {"w": rng.standard_normal((64, 32)).astype(np.float32), "c": floats(32)}
    state = pipeline.canonicalise(
        import_onnx(model("p = MatMul(x, w) y = Add(p, c)", "float[s,64] x", "float[s,32] y", weights))
    )
    mix = rng.standard_normal((6, 64))  # few directions: errors in the others are free

    def sample() -> np.ndarray:
        return (rng.standard_normal((2000, 6)) @ mix).astype(np.float32)

    stats = collect(state.graph, [{"x": sample()}], products=True)
    graphs = [pipeline.integerise(state, stats, rounding=r).graph for r in ("gptq", "nearest")]  # type: ignore[arg-type]
    port = graphs[0].values["x"]
    x = quantize_feed(port, sample())  # the same integers for both: what differs is the weights' error
    wanted = state.graph.evaluate({"x": dequantize(port, x)})[0]
    errors = [float(((g.evaluate({"x": x})[0] - wanted) ** 2).sum()) for g in graphs]
    assert errors[0] < 0.5 * errors[1]
