"""Masks that hide some keys more than others, and softmax spelt by exponentials of logarithms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.frontend import import_onnx
from intc.ops.softmax import Softmax
from intc.passes import pipeline
from tests.compiled_models import compiled, distance
from tests.onnx_models import expected, floats, model

INPUTS = "float[batch, 6, 8] q, float[batch, 6, 8] v, bool[batch, 6, 6] a, bool[batch, 6, 6] c"
SCORES = "t = Transpose<perm=[0, 2, 1]>(q) s = MatMul(q, t)"
NUMBERS = {"low": np.float32([-1e9]), "self": np.float32([-5e4]), "minus": np.float32([-np.inf])}
LEVELS = {
    "the outer hides less": "f = Where(c, s, low) m = Where(a, f, self)",
    "the inner hides less": "f = Where(c, s, self) m = Where(a, f, low)",
    "the inner hides all": "f = Where(c, s, minus) m = Where(a, f, self)",
    "three of two": "f = Where(c, s, low) g = Where(a, f, self) n = Not(c) m = Where(n, g, low)",
    "turned": "n = Not(a) f = Where(c, s, low) m = Where(n, self, f)",
}


def feeds() -> dict[str, np.ndarray]:
    """Of the rows of the first sample one keeps nothing, and one nothing and hides all alike."""
    rng = np.random.default_rng(3)
    a, c = (rng.random((8, 6, 6)) < 0.7 for _ in range(2))
    a[0, 1], c[0, 1] = np.arange(6) % 3 > 0, np.arange(6) % 3 == 0
    c[0, 2] = False
    a[0, 2] = np.arange(6) > 3
    return {"q": floats(8, 6, 8), "v": floats(8, 6, 8, seed=1), "a": a, "c": c}


@pytest.mark.parametrize("form", LEVELS)
def test_rows_that_keep_nothing_have_what_is_hidden_the_least(form: str, tmp_path: Path) -> None:
    body = f"{SCORES} {LEVELS[form]} p = Softmax<axis=-1>(m) y = MatMul(p, v)"
    proto = model(body, INPUTS, "float[batch, 6, 8] y", NUMBERS)
    data = feeds()
    (found,) = pipeline.canonicalise(import_onnx(proto)).graph.run(data).values()
    np.testing.assert_allclose(found, expected(proto, data)[0], atol=1e-5)
    assert distance(compiled(proto, data, tmp_path), proto, data) < 0.05


EXPONENTIALS = {
    "LogSoftmax": "l = LogSoftmax<axis=-1>(s) p = Exp(l)",
    "ReduceLogSumExp": "l = ReduceLogSumExp<axes=[2]>(s) d = Sub(s, l) p = Exp(d)",
    "operator by operator": ("e = Exp(s) u = ReduceSum(e, last) l = Log(u) d = Sub(s, l) p = Exp(d)"),
    "less the maximum": (
        "x = ReduceMax<axes=[2]>(s) h = Sub(s, x) e = Exp(h) u = ReduceSum(e, last) g = Log(u) l = Add(x, g)"
        " d = Sub(s, l) p = Exp(d)"
    ),
}


@pytest.mark.parametrize("form", EXPONENTIALS)
def test_the_exponential_of_a_logarithm_of_softmax_is_softmax(form: str) -> None:
    body = f"{SCORES} {EXPONENTIALS[form]} y = MatMul(p, v)"
    proto = model(body, INPUTS, "float[batch, 6, 8] y", {"last": np.array([2])})
    graph = pipeline.canonicalise(import_onnx(proto)).graph
    assert [n.op.name for n in graph.nodes if isinstance(n.op, Softmax) or "exp" in str(n.op)] == ["softmax"]
    (found,) = graph.run(feeds()).values()
    np.testing.assert_allclose(found, expected(proto, feeds())[0], atol=1e-5)


def test_the_exponential_of_something_else_stays() -> None:
    body = f"{SCORES} l = ReduceLogSumExp<axes=[2]>(s) d = Sub(v, l) y = Exp(d)"
    graph = pipeline.canonicalise(import_onnx(model(body, INPUTS, "float[batch, 6, 8] y", {}))).graph
    assert not any(isinstance(n.op, Softmax) for n in graph.nodes)
