"""What is counted of one value while the float and the integer model run side by side.

With ``x`` the float value, ``s`` the scale and ``[lo, hi]`` the interval of the integers, three errors are
kept, each of which contains the one before:

- *stored*: ``x`` itself rounded to the format, ``s * clip(round(x / s), lo, hi)``, which nothing can avoid;
- *isolated*: the node evaluated on operands that hold their exact float values in their own formats;
- *accumulated*: the value in the integer model, errors of everything before it included.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from intc.ir.graph import Value
from intc.ir.op import Array

BINS: Final = 48
CHUNK: Final = 1 << 15  # elements compared at a time
STRIDE: Final = 3  # the histogram counts every third element
OWN: Final = ("rounding", "saturation", "computing")
CAUSES: Final = (*OWN, "inherited")
TINY: Final = float(np.finfo(np.float64).tiny)


@dataclass
class Tally:
    """Sums over all elements and batches of one value; sums of squares are in real units."""

    value: Value
    row_sums: bool = False  # the scale is one over the sum of the row, as of softmax weights
    centre: Array | float = 0.0  # what integer 0 stands for, per channel
    scale: tuple[float, float] = (math.inf, 0.0)  # the smallest and largest magnitude that occurred
    count: int = 0
    macs: int = 0
    signal: float = 0.0
    power: float = 0.0
    product: float = 0.0
    stored: float = 0.0
    saturation: float = 0.0
    isolated: float = 0.0
    accumulated: float = 0.0
    worst: float = 0.0
    worst_isolated: float = 0.0
    at_ends: int = 0
    outside: int = 0
    float_lo: float = math.inf
    float_hi: float = -math.inf
    lo: int = 2**63
    hi: int = -(2**63)
    bins: Array = field(default_factory=lambda: np.zeros(BINS, np.int64))
    span: tuple[float, float] | None = None

    def add(self, x: Array, actual: Array, alone: Array) -> Array:
        """Fold in one batch: float values, the integer model's, and the isolated integers; all of one shape.

        Returns the integers that hold ``x`` best, which is what later nodes read in isolation.
        """
        best = np.empty(x.shape, actual.dtype)
        if x.size == 0:
            return best
        width = x.shape[-1] if x.ndim else 1
        rows = [array.reshape(-1, width) for array in (x, actual, alone, best)]
        step = max(1, CHUNK // width)
        for start in range(0, len(rows[0]), step):
            part, ours, ideal, out = (array[start : start + step] for array in rows)
            out[:] = self._add(part.astype(np.float64), ours, ideal)
        return best

    def _add(self, real: Array, actual: Array, alone: Array) -> Array:
        """Fold in rows of one batch, few enough for the processor's cache."""
        lo, hi = self.value.type.interval
        unit = self._unit(real)
        steps = (real - self.centre) / unit
        kept = np.clip(steps, lo, hi)
        best = np.rint(kept)
        self.count += real.size
        self._ranges(real, steps, actual)
        self.stored += _square(best * self._scale(best) + self.centre - real)
        if not self.row_sums and (steps.max() > hi or steps.min() < lo):
            self.saturation += _square((kept - steps) * unit)
            self.outside += int(np.count_nonzero((steps > hi + 0.5) | (steps < lo - 0.5)))
        scale = self._scale(actual)
        size = np.abs(scale)
        self.scale = (min(self.scale[0], float(size.min())), max(self.scale[1], float(size.max())))
        ours = actual * scale + self.centre
        self.signal += _square(real)
        self.power += _square(ours)
        self.product += float(np.vdot(ours, real))
        error = ours - real
        self.accumulated += _square(error)
        self.worst = max(self.worst, float(error.max()), -float(error.min()))
        error = alone * self._scale(alone) + self.centre - real
        self.isolated += _square(error)
        self.worst_isolated = max(self.worst_isolated, float(error.max()), -float(error.min()))
        return best

    def _scale(self, integers: Array) -> Array:
        """What one unit of these integers stands for."""
        if not self.row_sums:
            return np.asarray(self.value.scale, np.float64)
        return np.asarray(1.0 / np.maximum(integers.sum(axis=-1, keepdims=True, dtype=np.float64), 1.0))

    def _unit(self, real: Array) -> Array:
        """The scale at which integers hold ``real`` best; of weights, the largest of a row is the top."""
        if not self.row_sums:
            return np.asarray(self.value.scale, np.float64)
        top = real.max(axis=-1, keepdims=True) / self.value.type.interval[1]
        return np.where(top > 0, top, 1.0)

    def _ranges(self, real: Array, steps: Array, actual: Array) -> None:
        lo, hi = self.value.type.interval
        self.float_lo, self.float_hi = (
            min(self.float_lo, float(real.min())),
            max(self.float_hi, float(real.max())),
        )
        self.lo, self.hi = min(self.lo, int(actual.min())), max(self.hi, int(actual.max()))
        ends = set() if self.row_sums else {lo, hi} - {0}  # zero is a value, not a limit that cuts off
        for end in ends:
            self.at_ends += int(np.count_nonzero(actual == end))
        if self.span is None:
            self.span = _span(lo, hi, steps)
        low, high = self.span
        sample = steps.ravel()[::STRIDE]
        place = np.clip((sample - low) * (BINS / (high - low)), 0, BINS - 1).astype(np.int64)
        self.bins += np.bincount(place, minlength=BINS)

    # ------------------------------------------------------------ results

    @property
    def cosine(self) -> float | None:
        """Of all elements as one vector; None where one of the two is zero everywhere."""
        norm = math.sqrt(self.signal) * math.sqrt(self.power)
        return min(1.0, self.product / norm) if norm else None

    @property
    def used(self) -> float:
        """The share of the interval between the smallest and the largest integer that occurred."""
        lo, hi = self.value.type.interval
        return (self.hi - self.lo + 1) / (hi - lo + 1) if self.count else 0.0

    def decibels(self, noise: float) -> float | None:
        """Signal to ``noise``, one of this object's sums; None where there is no noise at all."""
        return None if noise == 0 else 10 * math.log10(max(self.signal, TINY) / noise)

    def shares(self) -> dict[str, float]:
        """How the accumulated error's power divides among :data:`CAUSES`; all zero where there is none.

        Each cause is what its stage adds to the stage before; where errors cancel, less than nothing counts
        as nothing.
        """
        parts = (
            max(self.stored - self.saturation, 0.0),
            self.saturation,
            max(self.isolated - self.stored, 0.0),
            max(self.accumulated - self.isolated, 0.0),
        )
        total = sum(parts)
        return {cause: part / total if total else 0.0 for cause, part in zip(CAUSES, parts, strict=True)}


def _square(array: Array) -> float:
    return float(np.vdot(array, array))


def _span(lo: int, hi: int, steps: Array) -> tuple[float, float]:
    """What a histogram covers, in steps: the interval and a margin, or the first batch where the interval is
    a proof and not a limit (32 bits).
    """
    if hi - lo < 1 << 16:
        margin = max((hi - lo) * 0.08, 1.0)
        return lo - margin, hi + margin
    low, high = float(steps.min()), float(steps.max())
    margin = max((high - low) * 0.25, 1.0)
    return low - margin, high + margin
