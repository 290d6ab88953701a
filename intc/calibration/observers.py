"""What calibration keeps of a value: its range, its per-channel range and a histogram; never the activations.

Memory bound: for each observed value one float per channel and, when a calibrator needs it, ``BINS`` integer
counts: at most ``8*C + 8*BINS`` bytes a value, whatever the number of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from intc.errors import CalibrationError, UsageError
from intc.ir.graph import Graph, Value
from intc.ir.op import Array

Calibrator: TypeAlias = Literal["minmax", "percentile"]
CALIBRATORS: tuple[str, ...] = ("minmax", "percentile")
BINS = 2048
PERCENTILE = 99.99


@dataclass
class Statistics:
    """Ranges of one value over all samples; ``channels`` is the largest magnitude per index of the last
    axis.
    """

    lo: float = np.inf
    hi: float = -np.inf
    channels: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    counts: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    limit: float = 0.0  # the histogram covers [0, limit] of |x|

    @property
    def magnitude(self) -> float:
        """The largest |x| seen."""
        return max(abs(self.lo), abs(self.hi))

    def update(self, array: Array, histogram: bool) -> None:
        """Fold in one batch of a finite float array."""
        if array.size == 0:
            return
        flat = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
        top, bottom = flat.max(axis=0), flat.min(axis=0)
        self.lo, self.hi = min(self.lo, float(bottom.min())), max(self.hi, float(top.max()))
        channels = np.maximum(np.abs(top), np.abs(bottom))
        if self.channels.size == 0:
            self.channels = channels
        elif self.channels.size == channels.size:
            self.channels = np.maximum(self.channels, channels)
        else:  # the last axis is a dynamic one: no per-channel meaning
            self.channels = np.full(1, max(float(self.channels.max()), float(channels.max())), np.float32)
        if histogram:
            self._count(np.abs(flat))

    def _count(self, magnitudes: Array) -> None:
        peak = float(magnitudes.max())
        if self.counts.size == 0:
            self.counts, self.limit = np.zeros(BINS, np.int64), peak or 1.0
        while peak > self.limit:  # double the range: pairs of bins merge exactly
            self.counts = np.concatenate(
                [self.counts.reshape(-1, 2).sum(axis=1), np.zeros(BINS // 2, np.int64)]
            )
            self.limit *= 2
        bins = np.minimum((magnitudes.ravel() * (BINS / self.limit)).astype(np.int64), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    def range(self, calibrator: Calibrator) -> float:
        """The magnitude to represent: the largest, or the upper edge of the percentile's bin."""
        if calibrator == "minmax" or self.counts.size == 0:
            return self.magnitude
        covered = np.cumsum(self.counts) / max(int(self.counts.sum()), 1)
        edge = (int(np.searchsorted(covered, PERCENTILE / 100)) + 1) * self.limit / BINS
        return min(edge, self.magnitude)


def collect(
    graph: Graph,
    batches: Iterable[Mapping[str, Array]],
    calibrator: Calibrator = "minmax",
    progress: Callable[[int], None] | None = None,
) -> dict[str, Statistics]:
    """Run ``graph`` (float) over ``batches`` and return the statistics of every float value it computes or
    takes.

    ``progress`` is called with the number of batches done. CalibrationError names the value that turns NaN or
    infinite.
    """
    if calibrator not in CALIBRATORS:
        raise UsageError(f"calibrator '{calibrator}' is not one of {', '.join(CALIBRATORS)}")
    stats: dict[str, Statistics] = {}

    def observe(value: Value, array: Array) -> None:
        if not value.type.is_float:
            return
        if not np.isfinite(array.max(initial=0)) or not np.isfinite(array.min(initial=0)):
            raise CalibrationError(f"value '{value.name}' becomes NaN or infinite on the calibration data")
        stats.setdefault(value.name, Statistics()).update(array, calibrator != "minmax")

    done = 0
    for done, batch in enumerate(batches, start=1):
        graph.run(batch, observe)
        if progress:
            progress(done)
    if not done:
        raise CalibrationError("the calibration data is empty")
    return stats
