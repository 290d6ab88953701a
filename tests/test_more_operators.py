"""Operators at the edge of models: log-probabilities, positions looked up in constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from tests.onnx_models import Feeds, canonical, expected, floats, model, operators


def test_log_probabilities(tmp_path: Path) -> None:
    weights: Feeds = {"w": floats(8, 6)}
    proto = model(
        "m = MatMul(x, w) y = LogSoftmax(m)", "float[batch, seq, 8] x", "float[b2, s2, 6] y", weights
    )
    feeds: Feeds = {"x": floats(32, 5, 8)}
    onnx.save(proto, tmp_path / "m.onnx")
    module = intc.compile(tmp_path / "m.onnx", feeds)
    (found,), (exact,) = module.session().run(None, feeds), module.graph.evaluate(feeds)
    assert np.array_equal(found, exact)
    want = expected(proto, feeds)[0]
    assert np.linalg.norm(found - want) < 0.02 * np.linalg.norm(want)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_elements_of_long_constants(axis: int) -> None:
    """More than the 64 choices that the reference implementation has."""
    table, index = floats(90, 90), np.random.default_rng(3).integers(-90, 90, (7, 5))
    body = f"g = GatherElements<axis={axis}>(table, index) y = Add(x, g)"
    proto = model(body, "float[7, 5] x", "float[7, 5] y", {"table": table, "index": index})
    graph = canonical(proto, {"x": floats(7, 5)})
    assert operators(graph) == {"add": 1}
    with pytest.raises(UnsupportedModel, match="an index lies outside the 90 entries"):
        import_onnx(model(body, "float[7, 5] x", "float[7, 5] y", {"table": table, "index": index + 90}))
