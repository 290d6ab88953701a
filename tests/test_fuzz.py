"""A short run of the fuzzers (``make fuzz`` runs long ones), and what their supervisor must notice."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.fuzz import models, watch
from tests.fuzz.artifacts import Artifacts
from tests.fuzz.faults import Faulty
from tests.fuzz.models import Compilations, Models
from tests.small import small_module


def test_hostile_artifacts(tmp_path: Path) -> None:
    small_module().save(tmp_path / "small.intc")
    result = watch.run(partial(Artifacts, tmp_path), 77, range(250))
    assert result.bad == []
    assert result.cases == 250
    assert {"ArtifactCorrupt", "read"} <= set(result.outcomes)


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the models that are mutated."""
    folder = tmp_path_factory.mktemp("models")
    models.prepare(folder)
    return folder


def test_hostile_models(seeds: Path) -> None:
    result = watch.run(partial(Models, seeds), 77, range(150))
    assert result.bad == []
    assert result.cases == 150
    assert {"ImportFailure", "UnsupportedModel", "read"} <= set(result.outcomes)


def test_hostile_models_compiled(seeds: Path) -> None:
    result = watch.run(partial(Compilations, seeds), 77, range(12))
    assert result.bad == []
    assert {"ImportFailure", "read"} <= set(result.outcomes)


def test_the_supervisor_notices() -> None:
    result = watch.run(Faulty, 0, range(7), seconds=0.3)
    assert result.outcomes == {"GraphError": 2, "BAD": 5}  # after the crash, a new process starts over
    expected = (
        "case 1: ValueError",
        "case 2: MemoryError",
        "case 3: Hang",
        "case 4: the process died of signal 6",
    )
    for cause, start in zip(result.bad, expected, strict=False):
        assert cause.startswith(start)


def test_cases_are_reproducible(seeds: Path, tmp_path: Path) -> None:
    (tmp_path / "case").mkdir()
    target = Models(seeds)
    for index in range(20):
        first = target.write(watch.random_of(5, index), tmp_path / "case").read_bytes()
        assert target.write(watch.random_of(5, index), tmp_path / "case").read_bytes() == first
