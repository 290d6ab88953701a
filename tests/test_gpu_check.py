"""The files that `examples/gpu_check.py` carries to a machine with a GPU, and its results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intc.codegen.lower import lower
from intc.module import Module
from intc.report.verify import verify_artifact
from tests.emulated import emulation
from tests.small import small_feeds, small_graph

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import gpu_check

    monkeypatch.setattr(gpu_check, "LARGE", 200)
    return gpu_check


def test_artifacts_come_back_byte_for_byte(gpu_check: Any, tmp_path: Path) -> None:
    source = small_graph()
    graph = gpu_check.with_drawn_constants(source)
    assert not np.array_equal(graph.constants["w"], source.constants["w"])
    assert graph.type("w") == source.type("w")
    with emulation():
        module = Module(graph, graph, lower(graph, "cuda"), tuple(graph.outputs))
        module.save(tmp_path / "there.intc")
        expected = [np.arange(6, dtype=np.int8).reshape(2, 3)]
        gpu_check.pack(tmp_path / "there.intc", tmp_path / "small.npz", expected)
        (back,) = gpu_check.unpack(tmp_path / "small.npz", tmp_path / "back.intc")
        assert np.array_equal(back, expected[0])
        assert (tmp_path / "back.intc").read_bytes() == (tmp_path / "there.intc").read_bytes()
        with np.load(tmp_path / "small.npz") as data:
            assert "weight/w" not in data.files
        assert verify_artifact(tmp_path / "back.intc", small_feeds(5), device="cuda:0").passed


def test_results_are_kept_when_time_runs_out(gpu_check: Any, tmp_path: Path) -> None:
    results = gpu_check.Results(tmp_path / "gpu.json", minutes=1)
    results.attempt(lambda: {"median": 1.0}, "models", "a", "check")

    def fails() -> Any:
        raise RuntimeError("out of memory\nwith more lines")

    results.attempt(fails, "models", "a", "batch 1", "torch")
    results.end = 0.0
    results.attempt(fails, "models", "a", "batch 8", "torch")
    found = json.loads((tmp_path / "gpu.json").read_text())["models"]["a"]
    assert found["check"] == {"median": 1.0}
    assert found["batch 1"]["torch"] == "failed: out of memory"
    assert found["batch 8"]["torch"] == "not run: out of time"


def test_drawn_numbers_reach_both_ends(gpu_check: Any) -> None:
    numbers = gpu_check.drawn((300, 70), "int8", -127, 127)
    assert (numbers.min(), numbers.max(), numbers.dtype) == (-127, 127, np.int8)
    assert abs(float(numbers.mean())) < 2
    assert 25 < float(numbers.std()) < 45
    assert len(np.unique(numbers)) > 200
