"""Histograms over a stream, and the magnitude that each calibrator reads from them.

Each channel covers ``[-limit, limit]`` with bins of equal width, each closed at the end that is farther from
zero. ``limit`` is the least power of two that no value exceeds. A value beyond doubles it, which merges pairs
of bins: counts are integers, and depend on the values alone, not on their order or on how they were divided
among histograms that were merged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

import numpy as np

from intc.ir.op import Array

Calibrator: TypeAlias = Literal["minmax", "percentile", "entropy", "mse"]
CALIBRATORS: Final[tuple[str, ...]] = ("minmax", "percentile", "entropy", "mse")
PERCENTILE: Final = 99.99
LEVELS: Final = 128  # magnitudes that 8 signed bits represent
ENTROPY_STEPS: Final = 64
BLOCK: Final = 2**15  # values that are counted at a time, so that what is computed of them stays in the cache


@dataclass
class Histogram:
    """``counts`` [C, bins] int64 and ``limit`` [C]; ``8*C*(bins + 1)`` bytes."""

    bins: int
    limit: Array = field(default_factory=lambda: np.zeros(0))
    counts: Array = field(default_factory=lambda: np.zeros((0, 0), np.int64))

    def update(self, rows: Array) -> None:
        """Count the values of ``rows`` [R, C]."""
        peak = np.maximum(rows.max(axis=0), -rows.min(axis=0)).astype(np.float64)
        if self.limit.size == 0:
            self.limit = np.where(peak > 0, 2.0 ** np.ceil(np.log2(np.maximum(peak, 2.0**-100))), 0.0)
            self.counts = np.zeros((rows.shape[1], self.bins), np.int64)
        first = (self.limit == 0) & (peak > 0)  # all zeros so far, all counted in the bin that starts at zero
        self.limit[first] = 2.0 ** np.ceil(np.log2(np.maximum(peak[first], 2.0**-100)))
        _cover(self.limit, self.counts, peak)
        scale = self.bins // 2 / np.where(self.limit > 0, self.limit, 1.0)
        middle = self.bins // 2 + np.arange(rows.shape[1]) * self.bins
        length = max(BLOCK, 4 * self.counts.size) // rows.shape[1]
        for start in range(0, len(rows), length):
            steps = np.multiply(rows[start : start + length], scale, dtype=np.float64)
            place = np.floor(steps)
            index = place.astype(np.int64)
            index -= (place == steps) & (steps > 0)  # the end that is farther from zero belongs to the bin
            index += middle
            counts = np.bincount(index.ravel(), minlength=self.counts.size)
            self.counts += counts.reshape(self.counts.shape)

    def merge(self, other: Histogram) -> None:
        """As if all values of ``other``, of as many channels and bins, had been counted here."""
        if other.limit.size == 0:
            return
        if self.limit.size == 0:
            self.limit, self.counts = other.limit.copy(), other.counts.copy()
            return
        limit, theirs = np.maximum(self.limit, other.limit), other.counts.copy()
        for held, counts in ((self.limit, self.counts), (other.limit.copy(), theirs)):
            held[held == 0] = limit[held == 0]
            _cover(held, counts, limit)
        self.counts += theirs

    def magnitudes(self, calibrator: Calibrator) -> Array:
        """The magnitude [C] to represent."""
        width = np.where(self.limit > 0, self.limit, 1.0) * (2 / self.bins)
        return np.asarray(CHOICES[calibrator](self._folded()) * width)

    def _folded(self) -> Array:
        half = self.bins // 2
        return np.asarray(self.counts[:, half:] + self.counts[:, :half][:, ::-1])

    def beyond(self, limits: Array) -> Array:
        """The mean squares [C] of by how much magnitudes exceed ``limits`` [C]."""
        middles, total = self._middles(), np.maximum(self.counts.sum(axis=1), 1)
        excess = np.maximum(np.abs(middles) * self.limit[:, None] - limits[:, None], 0.0)
        return np.asarray((self.counts * excess**2).sum(axis=1) / total)

    def excesses(self, share: float) -> Array:
        """By how much [C] the magnitudes in the largest ``share`` exceed the least of them, on average."""
        half = self.bins // 2
        folded = self._folded()[:, ::-1]
        above = np.cumsum(folded, axis=1)
        inside = above <= np.maximum(np.ceil(above[:, -1:] * share), 1)
        edges = np.arange(half, 0, -1) - 0.5
        taken = np.where(inside, folded, 0)
        count = np.maximum(taken.sum(axis=1), 1)
        least = half - inside.sum(axis=1)
        mean = (taken @ edges) / count - least
        return np.asarray(np.maximum(mean, 0.5) * self.limit * (2 / self.bins))

    def powers(self) -> Array:
        """The mean squares [C], as far as bins tell."""
        total = np.maximum(self.counts.sum(axis=1), 1)
        return np.asarray(self.counts @ self._middles() ** 2 / total * self.limit**2)

    def _middles(self) -> Array:
        """Those of the bins, where the limit is 1."""
        return np.asarray((np.arange(self.bins) - self.bins // 2 + 0.5) * (2 / self.bins))


def _cover(limit: Array, counts: Array, peak: Array) -> None:
    """Double the ranges, in place, until none of ``peak`` [C] is beyond them."""
    while np.any(small := peak > limit):
        counts[small] = _doubled(counts[small])
        limit[small] *= 2


def _doubled(counts: Array) -> Array:
    """The same counts over twice the range."""
    rows, bins = counts.shape
    quarter = np.zeros((rows, bins // 4), np.int64)
    return np.concatenate([quarter, counts.reshape(rows, -1, 2).sum(axis=2), quarter], axis=1)


def _percentile(counts: Array) -> Array:
    """The upper edge of the bin that holds the percentile."""
    total = np.maximum(counts.sum(axis=1), 1)
    return np.asarray((np.cumsum(counts, axis=1) < total[:, None] * (PERCENTILE / 100)).sum(axis=1) + 1.0)


def _mse(counts: Array) -> Array:
    """The edge t with the least ``sum_{x<=t} (t/127)^2 / 12 + sum_{x>t} (x - t)^2``."""
    edges, middle = np.arange(1, counts.shape[1] + 1.0), np.arange(counts.shape[1]) + 0.5
    inside = np.cumsum(counts, axis=1).astype(np.float64)
    beyond = [np.cumsum((counts * middle**p)[:, ::-1], axis=1)[:, ::-1] for p in (0, 1, 2)]
    n, first, second = (np.pad(b[:, 1:], ((0, 0), (0, 1))) for b in beyond)
    step = edges / (LEVELS - 1)
    cost = inside * step**2 / 12 + second - 2 * edges * first + edges**2 * n
    return np.asarray(edges[cost.argmin(axis=1)])


def _entropy(counts: Array) -> Array:
    """The edge with the least KL divergence of the clipped from the 8-bit distribution."""
    size = counts.shape[1]
    if size <= LEVELS:
        return np.full(len(counts), float(size))
    edges = np.unique(np.linspace(LEVELS, size, ENTROPY_STEPS).round().astype(int))
    return np.asarray(edges[np.argmin([divergence(counts, int(edge)) for edge in edges], axis=0)], np.float64)


def divergence(counts: Array, edge: int) -> Array:
    """KL divergence [C] of the counts clipped at bin ``edge`` from the same in ``LEVELS`` equal steps."""
    kept = counts[:, :edge].astype(np.float64)
    clipped = kept.copy()
    clipped[:, -1] += counts[:, edge:].sum(axis=1)
    level = np.arange(edge) * LEVELS // edge
    starts = np.searchsorted(level, np.arange(LEVELS))
    occupied = kept > 0
    mass, filled = (np.add.reduceat(a, starts, axis=1) for a in (kept, occupied.astype(np.float64)))
    coarse = np.where(occupied, (mass / np.maximum(filled, 1))[:, level], 0.0)
    p = clipped / np.maximum(clipped.sum(axis=1, keepdims=True), 1)
    q = coarse / np.maximum(coarse.sum(axis=1, keepdims=True), 1)
    ratio = np.where(p > 0, p, 1) / np.maximum(np.where(p > 0, q, 1), 1e-12)
    return np.asarray((p * np.log(ratio)).sum(axis=1))


CHOICES: Final[dict[str, Callable[[Array], Array]]] = {
    "percentile": _percentile,
    "mse": _mse,
    "entropy": _entropy,
}
