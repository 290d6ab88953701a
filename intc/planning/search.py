"""The integer linear programme (HAWQ-V3, Yao et al. 2021): one choice per unit.

``x[u, c]`` is 1 for the choice taken. Minimise the noise within a latency and a size, or the latency within a
noise, ``sum_c x[u, c] = 1`` for every unit. Solved by HiGHS through scipy, to optimality.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from intc.ir.op import Array

# the weight of the bits beside the goal, so that what gains nothing stays narrow: below the accuracy of a
# timing, and below any noise that matters
TIE: Final = {"seconds": 1e-2, "noise": 1e-6}


@dataclass(frozen=True)
class Table:
    """Noise, seconds, bytes and bits (of activation and weight, times products) of every unit's choices."""

    noise: Sequence[Sequence[float]]
    seconds: Sequence[Sequence[float]]
    size: Sequence[Sequence[float]]
    bits: Sequence[Sequence[float]]

    def total(self, rows: Sequence[Sequence[float]], picks: Sequence[int]) -> float:
        """The sum of the picked entries."""
        return float(sum(row[c] for row, c in zip(rows, picks, strict=True)))


def solve(
    table: Table,
    *,
    max_noise: float | None = None,
    max_seconds: float | None = None,
    max_bytes: float | None = None,
) -> list[int] | None:
    """The best choice of each unit, or None where nothing keeps the limits.

    With ``max_noise`` the least latency, otherwise the least noise.
    """
    noise, seconds, size, bits = (
        np.concatenate([np.asarray(r, np.float64) for r in rows] or [np.zeros(0)])
        for rows in (table.noise, table.seconds, table.size, table.bits)
    )
    if not noise.size:
        return []
    allowed = np.isfinite(noise)
    noise = np.where(allowed, noise, 0.0)
    starts = np.cumsum([0, *(len(row) for row in table.noise)])
    one = np.zeros((len(table.noise), noise.size))
    for u, (a, b) in enumerate(itertools.pairwise(starts)):
        one[u, a:b] = 1
    rules = [LinearConstraint(one, 1, 1)]
    limits = ((noise, max_noise), (seconds, max_seconds), (size, max_bytes))
    rules += [LinearConstraint(_unit(v)[None], -np.inf, m / _scale(v)) for v, m in limits if m is not None]
    goal, tie = (noise, TIE["noise"]) if max_noise is None else (seconds, TIE["seconds"])
    with _quiet():
        found = milp(
            _unit(goal) + tie * _unit(bits),
            constraints=rules,
            integrality=np.ones(noise.size),
            bounds=Bounds(0, allowed.astype(np.float64)),
            options={"time_limit": 60.0},
        )
    if found.x is None:
        return None
    return [int(np.argmax(found.x[a:b])) for a, b in itertools.pairwise(starts)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Nothing reaches standard output: HiGHS writes a line of debugging there, whatever its options."""
    sys.stdout.flush()
    kept, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)


def _scale(values: Array) -> float:
    return float(np.abs(values).max()) or 1.0


def _unit(values: Array) -> Array:
    """``values`` with the largest brought to 1, for the solver's tolerances."""
    return np.asarray(values / _scale(values))
