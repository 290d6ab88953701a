"""The committed segmenter: class maps out, calibrated on one image, nearly those of fp32."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

import intc

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "segmentation"


@pytest.mark.parametrize("rounding", ["nearest", "gptq"])
def test_one_calibration_image(monkeypatch: pytest.MonkeyPatch, rounding: str) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    from scenes import scenes

    monkeypatch.delitem(sys.modules, "scenes")
    module = intc.compile(FOLDER / "segmenter.onnx", {"image": scenes(1, seed=3)[0]}, rounding=rounding)
    images, labels = scenes(24, seed=2)
    found = module.run(None, {"image": images})[0]
    assert found.dtype == np.int64 and found.shape == labels.shape
    np.testing.assert_array_equal(found[:3], module.graph.evaluate({"image": images[:3]})[0])
    wanted = onnxruntime.InferenceSession(FOLDER / "segmenter.onnx").run(None, {"image": images})[0]
    assert (found == wanted).mean() > 0.97
    assert (found == labels).mean() > (wanted == labels).mean() - 0.02
