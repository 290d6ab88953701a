"""Second moments of the input of a matrix product: what its output error is measured with.

For rounding error ``D`` of the weights, the mean squared output error is ``tr(D^T H D)`` with ``H = E[x
x^T]``; with the mean error folded into the bias, ``H`` is the covariance. Memory: ``16*K`` bytes for each
distinct input of ``K`` channels and, where products are wanted, ``4*K^2`` more (up to ``WIDEST`` channels),
whatever the number of samples. Rows beyond ``ROWS`` of a batch are thinned evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from intc.ir.op import Array

ROWS = 1024
WIDEST = 8192


@dataclass
class Moments:
    """Sums over rows x [K] of ``x - origin`` and of its outer product; ``origin`` is the first batch's mean,
    which keeps the float32 products free of cancellation. Without ``wide`` only the mean is kept.
    """

    wide: bool = True
    rows: int = 0
    origin: Array = field(default_factory=lambda: np.zeros(0))
    total: Array = field(default_factory=lambda: np.zeros(0))
    products: Array = field(default_factory=lambda: np.zeros((0, 0), np.float32))

    def update(self, rows: Array) -> None:
        """Fold in ``rows`` [R, K]."""
        rows = rows[:: -(-len(rows) // ROWS) or 1]
        if not len(rows):
            return
        if not self.rows:
            width = rows.shape[1]
            self.origin = rows.mean(axis=0, dtype=np.float64)
            self.wide = self.wide and width <= WIDEST
            self.total = np.zeros(width)
            self.products = np.zeros((width, width) if self.wide else (0, 0), np.float32)
        centred = (rows - self.origin).astype(np.float32)
        self.rows += len(rows)
        self.total += centred.sum(axis=0, dtype=np.float64)
        if self.wide:
            self.products += centred.T @ centred

    def merge(self, other: Moments) -> None:
        """Fold in the sums of ``other``, moved to this origin. In floats: merge parts in one order always."""
        if not other.rows:
            return
        if not self.rows:
            self.wide, self.rows, self.origin = other.wide, other.rows, other.origin.copy()
            self.total, self.products = other.total.copy(), other.products.copy()
            return
        shift = other.origin - self.origin
        if self.wide:
            cross = np.outer(other.total, shift)
            moved = cross + cross.T + other.rows * np.outer(shift, shift)
            self.products += other.products + moved.astype(np.float32)
        self.total += other.total + other.rows * shift
        self.rows += other.rows

    @property
    def mean(self) -> Array:
        """E[x], [K]."""
        return np.asarray(self.origin + self.total / max(self.rows, 1))

    def covariance(self) -> Array | None:
        """E[(x - E x)(x - E x)^T], [K, K] in float64; None where only the mean is kept."""
        if not self.wide:
            return None
        mean = self.total / max(self.rows, 1)
        return np.asarray(self.products.astype(np.float64) / max(self.rows, 1) - np.outer(mean, mean))
