"""Weights rounded by output error, and the bias correction."""

from __future__ import annotations

import numpy as np
import pytest

from intc.calibration import collect
from intc.frontend import import_onnx
from intc.ir.graph import dequantize, quantize_feed
from intc.passes import pipeline
from intc.passes.integer.rounding import compensated, damped, nearest, output_error
from tests.onnx_models import floats, model


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
