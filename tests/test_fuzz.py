"""A short run of the fuzzers (``make fuzz`` runs long ones), and what their supervisor must notice."""

from __future__ import annotations

from functools import partial
from pathlib import Path

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


def test_hostile_models(tmp_path: Path) -> None:
    models.prepare(tmp_path)
    result = watch.run(partial(Models, tmp_path), 77, range(150))
    assert result.bad == []
    assert result.cases == 150
    assert {"ImportFailure", "UnsupportedModel", "read"} <= set(result.outcomes)


def test_hostile_models_compiled(tmp_path: Path) -> None:
    models.prepare(tmp_path)
    result = watch.run(partial(Compilations, tmp_path), 77, range(20))
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


def test_cases_are_reproducible(tmp_path: Path) -> None:
    models.prepare(tmp_path)
    (tmp_path / "case").mkdir()
    target = Models(tmp_path)
    for index in range(20):
        first = target.write(watch.random_of(5, index), tmp_path / "case").read_bytes()
        assert target.write(watch.random_of(5, index), tmp_path / "case").read_bytes() == first
