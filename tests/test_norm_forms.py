"""Norms as people write them: which spellings become one operator, and which do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.errors import UnsupportedModel
from tests.onnx_models import Feeds, canonical, floats, model, operators

MOMENT = "q = Mul(x, x) v = ReduceMean<axes=[-1]>(q) e = Add(v, eps)"
RMS_NORMS = {
    "weight before the division": MOMENT + " r = Sqrt(e) w = Mul(gamma, x) y = Div(w, r)",
    "weight times the reciprocal": MOMENT + " r = Sqrt(e) i = Reciprocal(r) w = Mul(gamma, i) y = Mul(x, w)",
    "power, weight between": MOMENT + " i = Pow(e, minus_half) w = Mul(x, gamma) y = Mul(w, i)",
    "scaled norm, bounded": "q = Mul(x, x) s = ReduceSum<keepdims=1>(q, last) n = Sqrt(s) k = Mul(n, scale)"
    " b = Max(k, tiny) d = Div(x, b) y = Mul(d, gamma)",
    "scaled norm": "n = ReduceL2<axes=[-1], keepdims=1>(x) k = Mul(n, scale) p = Add(k, tiny) d = Div(x, p)"
    " y = Mul(gamma, d)",
    "scale on top": "n = ReduceL2<axes=[-1], keepdims=1>(x) m = Max(n, tiny) d = Div(x, m) k = Mul(d, root)"
    " y = Mul(k, gamma)",
}
CENTRED = "m = ReduceMean<axes=[-1]>(x) d = Sub(x, m)"
DEVIATION = (
    "m2 = ReduceMean<axes=[-1]>(x) d2 = Sub(x, m2) q = Mul(d2, d2) v = ReduceMean<axes=[-1]>(q)"
    " t = Mul(v, count) u = Div(t, fewer) s = Sqrt(u)"
)
LAYER_NORMS = {
    "weight first, eps outside the root": f"{CENTRED} {DEVIATION} p = Add(s, tiny) w = Mul(gamma, d)"
    " n = Div(w, p) y = Add(n, beta)",
    "no eps": f"{CENTRED} {DEVIATION} n = Div(d, s) g = Mul(n, gamma) y = Add(beta, g)",
    "sum of squares": f"{CENTRED} q = Mul(d, d) v = ReduceSum<keepdims=1>(q, last) u = Div(v, fewer)"
    " e = Add(u, eps) s = Sqrt(e) n = Div(d, s) g = Mul(n, gamma) y = Add(beta, g)",
}
NUMBERS: Feeds = {
    "eps": np.float32(1e-3),
    "tiny": np.float32(1e-6),
    "minus_half": np.float32(-0.5),
    "last": np.array([-1]),
    "scale": np.float32(8**-0.5),
    "root": np.float32(8**0.5),
    "count": np.float32(8),
    "fewer": np.float32(7),
}


def _operators(body: str, shape: str, weights: Feeds, x: np.ndarray) -> dict[str, int]:
    used = {name: array for name, array in (NUMBERS | weights).items() if f"{name}" in body}
    return operators(canonical(model(body, f"float{shape} x", f"float{shape} y", used), {"x": x}))


@pytest.mark.parametrize("form", RMS_NORMS)
def test_rms_norm(form: str) -> None:
    found = _operators(RMS_NORMS[form], "[batch, s, 8]", {"gamma": floats(8)}, floats(2, 3, 8))
    assert found == {"layer_norm": 1}


@pytest.mark.parametrize("form", LAYER_NORMS)
def test_layer_norm_by_a_deviation(form: str) -> None:
    weights: Feeds = {"gamma": floats(8), "beta": floats(8, seed=1)}
    assert _operators(LAYER_NORMS[form], "[batch, s, 8]", weights, floats(2, 3, 8)) == {"layer_norm": 1}


def test_norm_over_channels_of_an_image() -> None:
    body = (
        "m = ReduceMean<axes=[1]>(x) d = Sub(x, m) q = Mul(d, d) v = ReduceMean<axes=[1]>(q) e = Add(v, eps)"
        " s = Sqrt(e) n = Div(d, s) g = Mul(gamma, n) y = Add(g, beta)"
    )
    weights: Feeds = {"gamma": floats(6, 1, 1), "beta": floats(6, 1, 1, seed=1)}
    found = _operators(body, "[batch, 6, h, w]", weights, floats(2, 6, 3, 5))
    assert found == {"layer_norm": 1, "transpose": 2}


NOT_NORMS = {
    "a large number beside the root": MOMENT + " r = Sqrt(e) p = Add(r, root) y = Div(x, p)",
    "weights along another axis": MOMENT + " r = Sqrt(e) w = Mul(x, rows) y = Div(w, r)",
    "a computed weight": MOMENT + " r = Sqrt(e) a = Abs(x) w = Mul(x, a) y = Div(w, r)",
    "another value": MOMENT + " r = Sqrt(e) a = Abs(x) y = Div(a, r)",
    "the root on top": MOMENT + " r = Sqrt(e) y = Mul(x, r)",
    "two roots": MOMENT + " r = Sqrt(e) n = Div(x, r) y = Div(n, r)",
}


@pytest.mark.parametrize("form", NOT_NORMS)
def test_what_is_no_norm(form: str) -> None:
    found = _operators(NOT_NORMS[form], "[batch, 3, 8]", {"rows": floats(3, 1)}, floats(2, 3, 8))
    assert found.get("layer_norm", 0) == (form == "two roots")


def test_means_of_two_axes_are_no_norm() -> None:
    body = "q = Mul(x, x) v = ReduceMean<axes=[1, 2]>(q) e = Add(v, eps) r = Sqrt(e) y = Div(x, r)"
    assert "layer_norm" not in _operators(body, "[batch, 3, 8]", {}, floats(2, 3, 8))


def test_rows_longer_than_32768(tmp_path: Path) -> None:
    """PoolFormer and the like normalise whole images: such rows are read in fewer bits."""
    x, gamma, beta = floats(2, 40000), floats(40000, seed=1), floats(40000, seed=2)
    weights: Feeds = {"gamma": gamma, "beta": beta}
    proto = model("y = LayerNormalization(x, gamma, beta)", "float[b, 40000] x", "float[b, 40000] y", weights)
    onnx.save(proto, tmp_path / "long.onnx")
    module = intc.compile(tmp_path / "long.onnx", {"x": x})
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5) * gamma + beta
    (ours,) = module.graph.evaluate({"x": x})
    noise = np.square(want - ours).sum()
    assert 10 * np.log10(np.square(want).sum() / noise) > 60


def test_a_norm_of_values_that_vanish(tmp_path: Path) -> None:
    """As some networks are before they are trained: refused with the node and the likely cause."""
    weights = {"g": np.ones(16, np.float32), "w": floats(16, 16)}
    body = "n = LayerNormalization(x, g) y = MatMul(n, w)"
    path = tmp_path / "vanishing.onnx"
    onnx.save(model(body, "float[batch, 16] x", "float[batch, 16] y", weights), path)
    with pytest.raises(UnsupportedModel, match=r"gives at most \de-\d+ of its weights.*trained"):
        intc.compile(path, {"x": floats(32, 16) * np.float32(1e-9)})
