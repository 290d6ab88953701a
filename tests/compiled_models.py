"""Small ONNX models compiled, and how far their kernels are from onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

import intc
from tests.onnx_models import Feeds, expected


def compiled(proto: onnx.ModelProto, calibration: Any, folder: Path, **options: Any) -> intc.Module:
    """``proto``, saved in ``folder`` and compiled with ``options``."""
    onnx.save(proto, folder / "m.onnx")
    return intc.compile(folder / "m.onnx", calibration, **options)


def distance(module: intc.Module, proto: onnx.ModelProto, feeds: Feeds) -> float:
    """The largest relative distance of an output from onnxruntime's, of kernels that equal the reference."""
    largest = 0.0
    for found, exact, want in zip(
        module.session().run(None, feeds), module.graph.evaluate(feeds), expected(proto, feeds), strict=True
    ):
        assert np.array_equal(found, exact)
        assert found.shape == want.shape
        largest = max(largest, float(np.linalg.norm(found - want) / np.linalg.norm(want)))
    return largest


def error(proto: onnx.ModelProto, feeds: Feeds, folder: Path) -> float:
    """The compiled model's distance from fp32; its kernels equal the reference at another size, too."""
    module = compiled(proto, feeds, folder, rounding="nearest")
    some = {name: array[:1, :7] for name, array in feeds.items()}
    assert np.array_equal(module.session().run(None, some)[0], module.graph.evaluate(some)[0])
    return distance(module, proto, feeds)
