"""What integers hold of data that calibration did not show: wide ones more than what was seen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.report.reference import fidelity
from tests.onnx_models import expected, floats, model

UNSEEN = 3.5  # times as large as in calibration
SQUARES = {
    "sums": "c = Mul(i, i) y = ReduceSum<keepdims=0>(c, last)",
    "powers": "c = Pow(i, two) y = ReduceSum<keepdims=0>(c, last)",
    "likelihoods": "c = Mul(i, i) s = ReduceSum<keepdims=0>(c, last) h = Mul(s, half) y = Sub(h, two)",
}
WEIGHTS = {"two": np.float32(2), "half": np.float32(0.5), "last": np.array([1]), "w": floats(16)}


def distance(proto: onnx.ModelProto, seen: np.ndarray, held: np.ndarray, tmp_path: Path) -> float:
    """dB from float on ``held``, with ``seen`` for calibration."""
    onnx.save(proto, tmp_path / "m.onnx")
    module = intc.compile(tmp_path / "m.onnx", {"x": seen}, approximation="shift")
    (found,) = module.session().run(None, {"x": held})
    np.testing.assert_array_equal(found, module.graph.evaluate({"x": held})[0])
    return float(fidelity(found, expected(proto, {"x": held})[0])["sqnr_db"])


@pytest.mark.parametrize("form", SQUARES)
def test_squares_hold_what_their_operands_do(form: str, tmp_path: Path) -> None:
    """A value that is twice as large as was seen, which 16 bits hold, has four times its square."""
    proto = model(f"i = Mul(x, w) {SQUARES[form]}", "float[batch, 16] x", "float[batch] y", WEIGHTS)
    x = floats(64, 16)
    assert distance(proto, x, x[:8] * np.float32(1.9), tmp_path) > 45


def test_joined_and_rescaled_outputs_have_the_room_of_outputs(tmp_path: Path) -> None:
    body = "s = Add(x, w) t = Mul(s, w) p = MatMul(x, v) y = Concat<axis=1>(p, t)"
    weights = {"w": floats(16), "v": floats(16, 16, seed=1) / 4}
    proto = model(body, "float[batch, 16] x", "float[batch, 32] y", weights)
    x = floats(64, 16)
    x[0] *= 2  # what 16 bits of the input hold
    held = np.sign(x) * np.float32(UNSEEN) * np.abs(floats(64, 16)).max()
    assert distance(proto, x, held[:8], tmp_path) > 25


def test_small_variances_keep_their_precision_behind_a_constant(tmp_path: Path) -> None:
    """Of channels that hardly vary 16 bits of the largest variance would leave little."""
    body = (
        "m = ReduceMean<axes=[1]>(x) d = Sub(x, m) c = Mul(d, d) v = ReduceMean<axes=[1], keepdims=0>(c)"
        " u = Mul(v, half) a = Add(u, small) y = Sqrt(a)"
    )
    weights = {**WEIGHTS, "small": np.float32(1e-5)}
    proto = model(body, "float[batch, 64, 8] x", "float[batch, 8] y", weights)
    x = floats(64, 64, 8) * np.float32(2.0) ** -np.arange(8, dtype=np.float32)
    x = np.where(np.arange(8) == 0, x, x / 16).astype(np.float32)
    onnx.save(proto, tmp_path / "m.onnx")
    module = intc.compile(tmp_path / "m.onnx", {"x": x}, approximation="shift")
    found, want = module.graph.evaluate({"x": x})[0], expected(proto, {"x": x})[0]
    assert np.abs(found[:, -3:] / want[:, -3:] - 1).max() < 0.1
