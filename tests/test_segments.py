"""Sums and extremes of the rows that go to one place (edges of graphs): as onnxruntime computes them, and
exact once compiled.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from intc.report.accuracy import cut, samples_in
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, floats, model

RNG = np.random.default_rng(59)
NODES, EDGES = 12, 40
FLAT: Feeds = {"x": floats(NODES, 6), "e": RNG.integers(0, NODES - 2, (2, EDGES))}
MANY: Feeds = {"x": floats(3, NODES, 6), "e": RNG.integers(0, NODES - 2, (3, 2, EDGES))}
WEIGHTS: Feeds = {
    "zero": np.int64(0), "one": np.int64(1), "last": np.array([-1]), "none": np.float32(0),
    "unit": np.float32(1), "high": np.float32(3.4028235e38), "low": np.float32(-3.4028235e38),
    "begin": np.float32(-1e9), "w": floats(6, 6) / 2, "less": np.array([-NODES]),
}  # fmt: skip
# rows of the nodes that edges come from, at the nodes that they go to; `d` is zeros [nodes, 6]
FROM = (
    "f = Gather<axis=0>(e, zero) t = Gather<axis=0>(e, one) h = MatMul(x, w) m = Gather<axis=0>(h, f)"
    " s = Shape(x) d = Expand(none, s) u = Unsqueeze(t, last) q = Shape(m) i = Expand(u, q)"
)
FORMS = {
    "sum": 'y = ScatterElements<axis=0, reduction="add">(d, i, m)',
    "sum of rows": 'y = ScatterND<reduction="add">(d, u, m)',
    "sum at places from the end": 'v = Add(u, less) y = ScatterND<reduction="add">(d, v, m)',
    "sum with the row itself": 'y = ScatterElements<axis=0, reduction="add">(x, i, m)',
    "mean": (
        "l = Shape(t) o = Expand(unit, l) z = Gather<axis=1>(d, zero)"
        ' n = ScatterElements<axis=0, reduction="add">(z, t, o) c = Max(n, unit) k = Unsqueeze(c, last)'
        ' a = ScatterND<reduction="add">(d, u, m) y = Div(a, k)'
    ),
    "maximum": 'y = ScatterElements<axis=0, reduction="max">(d, i, m)',
    "minimum of the rows alone": (
        "c = Expand(high, q) b = ScatterElements<axis=0, reduction=\"max\">(d, i, c)"
        ' y = ScatterElements<axis=0, reduction="min">(b, i, m)'
    ),
    "maximum of the rows alone": (
        "c = Expand(low, q) b = ScatterElements<axis=0, reduction=\"min\">(d, i, c)"
        ' y = ScatterElements<axis=0, reduction="max">(b, i, m)'
    ),
    "softmax over the edges of a node": (
        "g = ReduceSum<keepdims=0>(m, last) l = Gather<axis=1>(d, zero) o = Shape(l) b = Expand(begin, o)"
        ' n = ScatterElements<axis=0, reduction="max">(b, t, g) k = Gather(n, t) r = Sub(g, k) p = Exp(r)'
        ' z = ScatterElements<axis=0, reduction="add">(l, t, p) c = Gather(z, t) a = Div(p, c)'
        ' v = Unsqueeze(a, last) j = Mul(m, v) y = ScatterND<reduction="add">(d, u, j)'
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_rows_at_the_nodes_that_edges_go_to(form: str, tmp_path: Path) -> None:
    inputs = "float[nodes, 6] x, int64[2, edges] e"
    proto = model(f"{FROM} {FORMS[form]}", inputs, "float[a, b] y", WEIGHTS, opset=18)
    canonical(proto, FLAT)
    module = compiled(proto, [FLAT], tmp_path, rounding="nearest")
    assert distance(module, proto, FLAT) < 0.03
    other = {"x": floats(9, 6), "e": RNG.integers(0, 9, (2, 5))}
    assert np.array_equal(module.session().run(None, other)[0], module.graph.evaluate(other)[0])


@pytest.mark.parametrize("reduction", ["add", "max", "min"])
@pytest.mark.parametrize("repeated", [True, False])
def test_places_of_every_sample(reduction: str, repeated: bool, tmp_path: Path) -> None:
    """Places that are alike for all channels, and places of each channel's own."""
    body = (
        "t = Gather<axis=1>(e, one) u = Unsqueeze(t, last) m = Gather<axis=1>(x, rows) q = Shape(m)"
        f' i = Expand(u, q) y = ScatterElements<axis=1, reduction="{reduction}">(x, i, m)'
    )
    if not repeated:
        body = body.replace("i = Expand(u, q)", "k = Expand(u, q) j = Mul(k, odd) i = Add(j, odd)")
    weights = {**WEIGHTS, "rows": RNG.integers(0, NODES, EDGES), "odd": np.array([0, 1, 1, 0, 1, 0])}
    inputs = f"float[batch, {NODES}, 6] x, int64[batch, 2, {EDGES}] e"
    proto = model(body, inputs, "float[a, b, c] y", weights, opset=18)
    canonical(proto, MANY)
    assert distance(compiled(proto, MANY, tmp_path, rounding="nearest"), proto, MANY) < 0.03


def test_nodes_of_a_graph_are_no_samples() -> None:
    inputs = "float[nodes, 6] x, int64[2, edges] e"
    graph = import_onnx(model(f"{FROM} {FORMS['sum']}", inputs, "float[a, b] y", WEIGHTS, opset=18))
    assert samples_in(graph, FLAT) == 1
    assert cut(graph, FLAT, 0, 4)["x"] is FLAT["x"]


def test_products_of_rows_are_refused() -> None:
    body = f'{FROM} y = ScatterElements<axis=0, reduction="mul">(d, i, m)'
    proto = model(body, "float[nodes, 6] x, int64[2, edges] e", "float[a, b] y", WEIGHTS, opset=18)
    with pytest.raises(UnsupportedModel, match="products at computed places"):
        import_onnx(proto)
