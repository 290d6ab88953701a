"""How many points a function's table has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.passes.integer import rules_curve
from intc.report.reference import fidelity
from tests.onnx_models import expected, floats, model

ROOT = "m = Abs(x) s = Add(m, small) y = Sqrt(s)"
MISH = "s = Softplus(x) t = Tanh(s) y = Mul(x, t)"


def function(body: str) -> onnx.ModelProto:
    return model(body, "float[batch, 64] x", "float[batch, 64] y", {"small": np.float32([1e-5])})


def numbers(count: int, seed: int, power: int = 5) -> dict[str, np.ndarray]:
    """Normal ones to a power, a high one of which leaves most of them far smaller than the largest."""
    return {"x": (np.random.default_rng(seed).normal(size=(count, 64)) ** power).astype(np.float32)}


def compiled(body: str, folder: Path, power: int = 5) -> intc.Module:
    onnx.save(function(body), folder / "m.onnx")
    return intc.compile(folder / "m.onnx", numbers(64, 1, power))


def points(module: intc.Module) -> int:
    (node,) = (n for n in module.graph.nodes if n.op.name == "curve")
    (size,) = module.graph.type(node.inputs[1]).shape
    assert isinstance(size, int)
    return size


def test_a_function_that_bends_where_values_are_gets_more_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, held = compiled(ROOT, tmp_path), numbers(32, 2)
    assert points(module) == 16385
    (found,) = module.session().run(None, held)
    np.testing.assert_array_equal(found, module.graph.evaluate(held)[0])
    finer = fidelity(found, expected(function(ROOT), held)[0])["sqnr_db"]
    monkeypatch.setattr(rules_curve, "BENT", 1.0)
    (coarse,) = compiled(ROOT, tmp_path).graph.evaluate(held)
    assert finer > fidelity(coarse, expected(function(ROOT), held)[0])["sqnr_db"] + 6


def test_a_smooth_function_has_1025(tmp_path: Path) -> None:
    assert points(compiled(MISH, tmp_path, power=1)) == 1025


# a root or a logarithm tells small means apart, which 16 bits of what they are means of would not
SMALL_MEANS = {
    "generalised means": "c = Max(x, small) q = Pow(c, three) m = ReduceMean<axes=[1]>(q) y = Pow(m, third)",
    "logarithms of means": (
        "c = Max(x, small) q = Pow(c, three) m = ReduceMean<axes=[1]>(q) a = Add(m, small) y = Log(a)"
    ),
}


@pytest.mark.parametrize("form", SMALL_MEANS)
def test_small_means_keep_their_precision_in_front_of_roots_and_logarithms(form: str, tmp_path: Path) -> None:
    weights = {"small": np.float32(1e-6), "three": np.float32(3), "third": np.float32(1 / 3)}
    proto = model(SMALL_MEANS[form], "float[batch, 32, 64] x", "float[a, b] y", weights)
    onnx.save(proto, tmp_path / "m.onnx")
    rng = np.random.default_rng(5)
    calibration, held = (
        {"x": (rng.normal(size=(n, 32, 64)) + rng.uniform(-4, 1, size=(n, 1, 64))).astype(np.float32)}
        for n in (64, 32)
    )
    module = intc.compile(tmp_path / "m.onnx", calibration)
    (found,) = module.session().run(None, held)
    np.testing.assert_array_equal(found, module.graph.evaluate(held)[0])
    assert fidelity(found, expected(proto, held)[0])["sqnr_db"] > 45


def test_a_function_that_is_zero_wherever_it_is_read(tmp_path: Path) -> None:
    """A running maximum that starts at -1e38, as RWKV has it."""
    body = "m = Max(x, least) d = Sub(least, m) e = Exp(d) y = Mul(e, x)"
    proto = model(body, "float[batch, 64] x", "float[batch, 64] y", {"least": np.float32([-1e38])})
    onnx.save(proto, tmp_path / "m.onnx")
    feeds = numbers(32, 1, 1)
    module = intc.compile(tmp_path / "m.onnx", feeds)
    (found,) = module.session().run(None, feeds)
    assert not found.any() and not module.graph.evaluate(feeds)[0].any()


def test_a_curve_covers_what_calibration_did_not_show(tmp_path: Path) -> None:
    """Means of cubes of other data are half as large again; their root is nearly flat there."""
    weights = {"small": np.float32(1e-6), "three": np.float32(3), "third": np.float32(1 / 3)}
    proto = model(SMALL_MEANS["generalised means"], "float[batch, 32, 64] x", "float[a, b] y", weights)
    onnx.save(proto, tmp_path / "m.onnx")
    held = {"x": np.random.default_rng(5).normal(size=(64, 32, 64)).astype(np.float32)}
    module = intc.compile(tmp_path / "m.onnx", {"x": held["x"] * np.float32(0.85)})
    (found,) = module.session().run(None, held)
    np.testing.assert_array_equal(found, module.graph.evaluate(held)[0])
    assert fidelity(found, expected(proto, held)[0])["sqnr_db"] > 60


def test_weights_that_are_divided_by_the_sums_of_their_columns_keep_small_ones(tmp_path: Path) -> None:
    """Of a column that no row attends to, 16 bits of softmax would leave nothing (point transformers)."""
    proto = model(
        "q = MatMul(x, w) k = Transpose<perm=[0, 2, 1]>(x) e = MatMul(q, k) a = Softmax<axis=-1>(e)"
        " t = ReduceSum<keepdims=1>(a, axes) u = Add(t, small) y = Div(a, u)",
        "float[batch, 12, 16] x",
        "float[batch, n, m] y",
        {"axes": np.array([1]), "small": np.float32([1e-9]), "w": floats(16, 16)},
    )
    onnx.save(proto, tmp_path / "m.onnx")
    first, held = (
        {"x": r.normal(size=(48, 12, 16), scale=0.7).astype(np.float32)}
        for r in map(np.random.default_rng, (1, 2))
    )
    module = intc.compile(tmp_path / "m.onnx", first)
    (found,) = module.session().run(None, held)
    np.testing.assert_array_equal(found, module.graph.evaluate(held)[0])
    assert fidelity(found, expected(proto, held)[0])["sqnr_db"] > 30
