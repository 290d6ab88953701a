"""Logarithms of running sums of exponentials, of which one sample's last may be a billion times its first."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.frontend import import_onnx
from intc.passes.scan_log_sums import ScanLogSums
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, expected, model, operators

BODY = "e = Exp(x) s = CumSum{}(e, axis) y = Log(s)"


def drawn(count: int, length: int, seed: int) -> Feeds:
    rng = np.random.default_rng(seed)
    rising = np.linspace(0, 30, length)[:, None] * rng.choice([-1, 1], size=(count, 1, 1))
    return {"x": (rising + rng.normal(size=(count, length, 8))).astype(np.float32)}


@pytest.mark.parametrize("length", [2, 6])
@pytest.mark.parametrize("reverse", [0, 1])
def test_scans_keep_the_first_beside_the_last(length: int, reverse: int, tmp_path: Path) -> None:
    shape = f"float[batch, {length}, 8]"
    proto = model(BODY.format(f"<reverse={reverse}>"), f"{shape} x", f"{shape} y", {"axis": np.array(1)})
    held = drawn(8, length, 2)
    graph = ScanLogSums().run(import_onnx(proto))
    assert not operators(graph).keys() & {"exp", "cum_sum", "log"}
    np.testing.assert_allclose(graph.evaluate(held)[0], expected(proto, held)[0], rtol=1e-5, atol=1e-5)
    module = compiled(proto, drawn(64, length, 1), tmp_path)
    assert distance(module, proto, held) < 1e-3


@pytest.mark.parametrize("form", ["<exclusive=1>", ""])
def test_others_stay(form: str) -> None:
    """What has no first term, and axes of any size."""
    shape = "float[batch, 7, 8]" if form else "float[batch, length, 8]"
    graph = import_onnx(model(BODY.format(form), f"{shape} x", f"{shape} y", {"axis": np.array(1)}))
    assert ScanLogSums().run(graph) is graph
