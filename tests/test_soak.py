"""A short soak (``make soak`` runs long ones): threads, sessions, changing shapes, runs that are cut off."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import intc
from examples.soak import Case, soak
from tests.small import small_feeds, small_graph


def small_case(artifact: Path) -> Case:
    feeds = [small_feeds(batch, batch) for batch in (1, 2, 5, 60, 300)]
    exact = [small_graph().evaluate(f) for f in feeds]
    return Case(artifact, [intc.load(artifact, threads=n) for n in (1, 2)], feeds, exact)


def test_a_short_soak(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert soak([small_case(artifact)], minutes=0.08, threads=4) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "0 faults" in said
    for what in ("runs", "runs cut off", "feeds refused", "sessions opened"):
        assert f" {what}," in said or f" {what};" in said


def test_a_soak_notices_other_bits(artifact: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = small_case(artifact)
    case.exact[2][0] = case.exact[2][0] + np.float32(0.001)
    assert soak([case], minutes=0.01, threads=2) == 1
    assert "other bits at size 2" in capsys.readouterr().out
