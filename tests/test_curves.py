"""How many points a function's table has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.passes.integer import rules_elementwise
from intc.report.reference import fidelity
from tests.onnx_models import expected, model

ROOT = "m = Abs(x) s = Add(m, small) y = Sqrt(s)"
SWISH = "s = Sigmoid(x) y = Mul(x, s)"


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
    monkeypatch.setattr(rules_elementwise, "BENT", 1.0)
    (coarse,) = compiled(ROOT, tmp_path).graph.evaluate(held)
    assert finer > fidelity(coarse, expected(function(ROOT), held)[0])["sqnr_db"] + 6


def test_a_smooth_function_has_1025(tmp_path: Path) -> None:
    assert points(compiled(SWISH, tmp_path, power=1)) == 1025
