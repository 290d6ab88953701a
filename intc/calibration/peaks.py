"""How far the largest samples stand out: by how much one that was not seen may exceed them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from intc.ir.op import Array

KEPT: Final = 9
SHARE: Final = 8  # one of so many samples belongs to the tail


@dataclass
class Peaks:
    """The KEPT highest, in falling order, of the largest magnitudes of ``count`` samples; ``channels`` [2, C]
    the two highest of each index of the last axis.
    """

    count: int = 0
    highest: Array = field(default_factory=lambda: np.zeros(0))
    channels: Array = field(default_factory=lambda: np.zeros((2, 0)))

    def update(self, samples: Array) -> None:
        """Fold in ``samples`` [S, ..]."""
        largest = np.abs(samples).reshape(len(samples), -1, samples.shape[-1]).max(axis=1).astype(np.float64)
        self.merge(Peaks(len(samples), largest.max(axis=1), largest))

    def merge(self, other: Peaks) -> None:
        """Fold in the magnitudes of other samples."""
        self.count += other.count
        self.highest = np.sort(np.concatenate([self.highest, other.highest]))[: -KEPT - 1 : -1]
        width = max(self.channels.shape[1], other.channels.shape[1])
        empty = np.zeros((2, width))  # of parts that have seen nothing yet
        both = [c if c.size else empty for c in (self.channels, other.channels, empty)]
        self.channels = np.sort(np.concatenate(both), axis=0)[:-3:-1]

    @property
    def exponent(self) -> float:
        """g of a tail ``P(magnitude > x) ~ x**(-1/g)``, in which the largest of r times as many samples is
        ``r**g`` times as large: the mean of ``log(magnitude / the highest outside the tail)`` (Hill 1975). 0
        where there are few samples.
        """
        tail = min(KEPT - 1, self.count // SHARE)
        if tail < 2 or self.highest[tail] <= 0:
            return 0.0
        return float(np.log(self.highest[:tail] / self.highest[tail]).mean())
