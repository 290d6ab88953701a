"""Constants of large models in a file instead of memory."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

import intc
from intc.ir import spool
from intc.ir.graph import Graph
from intc.ir.spool import spooled, spooling, trim
from intc.module import Module
from tests.tiny_encoder import tiny_feeds


@pytest.fixture
def tiny_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything that has an element counts as large."""
    monkeypatch.setattr(spool, "LARGE", 1)
    monkeypatch.setattr(spool, "IN_MEMORY", 0)


def _constants(module: Module) -> list[tuple[Graph, str]]:
    assert module.passes is not None
    return [(s.graph, name) for s in module.passes for name in s.graph.constants]


def test_a_model_compiles_to_the_same_module_from_a_file(
    encoder_onnx: Path, encoder: Module, tiny_limits: None
) -> None:
    """As the fixture, in memory."""
    data, kept = tiny_feeds(8, 24, seed=1), encoder
    filed = intc.compile(encoder_onnx, data, rounding="nearest", calibrator="minmax")
    assert str(filed.graph) == str(kept.graph)
    assert {name for name, a in filed.graph.constants.items() if not spool._is_mapped(a)} == set()
    assert not any(map(spool._is_mapped, kept.graph.constants.values()))
    for (one, name), (other, same) in zip(_constants(filed), _constants(kept), strict=True):
        assert name == same
        np.testing.assert_array_equal(one.constants[name], other.constants[name])


def test_without_room_on_the_disk_constants_stay_in_memory(
    monkeypatch: pytest.MonkeyPatch, tiny_limits: None
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    array = np.arange(5)
    assert spooling(lambda: spooled(array))() is array


def test_constants_of_many_shapes_and_of_more_than_a_segment(
    monkeypatch: pytest.MonkeyPatch, tiny_limits: None
) -> None:
    monkeypatch.setattr(spool, "SEGMENT", mmap.ALLOCATIONGRANULARITY)
    rng = np.random.default_rng(0)
    shapes = [(3, 5), (100, 70), (7,), (1, 2, 3), (4096,)]
    arrays = [rng.integers(-99, 99, shape).astype(t) for shape in shapes for t in ("int8", "f4", "i8", "?")]
    turned = [array.T for array in arrays]
    views = spooling(lambda: [spooled(array) for array in (*arrays, *turned)])()
    for array, view in zip((*arrays, *turned), views, strict=True):
        assert spool._is_mapped(view) and view.dtype == array.dtype
        np.testing.assert_array_equal(view, array)
    assert spooled(views[0]) is views[0]
    again = spooling(lambda: spooled(views[1].T))()
    assert again.base is not None and np.shares_memory(again, views[1])


def test_pages_that_were_read_can_be_given_back(monkeypatch: pytest.MonkeyPatch, tiny_limits: None) -> None:
    view = spooling(lambda: spooled(np.ones(2**25, np.int8)))()
    before = spool._resident()
    assert view.sum(dtype=np.int64) == 2**25
    assert spool._resident() >= before + 2**24
    monkeypatch.setattr(spool, "RESIDENT", 0)
    trim()
    assert spool._resident() < before + 2**24
    assert view.sum(dtype=np.int64) == 2**25


def test_outside_a_compilation_and_below_the_limit_nothing_moves() -> None:
    array = np.ones(2**21)
    assert spooled(array) is array
    assert spooling(lambda: spooled(array))() is array
