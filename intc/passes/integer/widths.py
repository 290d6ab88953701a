"""What changes in a product with its bit widths: how weight scales are chosen and how far channels are
equalised.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from intc.ir.op import Array

# The share of an activation's spread that its weights take over. Sixteen bits hold more of the spread
# themselves, which leaves the weights more even (measured: docs/plan.md).
NARROW: Final = 0.8
WIDE: Final = {16: 0.5, 8: 0.5, 4: 0.3}  # by weight bits
ROOMY: Final = 12  # bits that can spare one
SHORTEST: Final = 8
OFF_GRID: Final = 1e-3  # of a step; dequantised floats are off by 1e-5 at most
SHRINK: Final = tuple(1.0 - 0.05 * i for i in range(9))
FEW_ROWS: Final = 16  # of a matrix, in whose columns chance makes one scale better than another
GROWN: Final = tuple(1.0 + i / 256 for i in range(64))


def strength(wide: bool, weight_bits: int) -> float:
    """How far the channels of an activation are equalised."""
    return WIDE[weight_bits] if wide else NARROW


def headroom(bits: int) -> float:
    """How much more than what calibration showed integers of ``bits`` bits hold: wide ones spare a bit, since
    clipping what a few samples did not show costs more than half as many steps.
    """
    return 2.0 if bits >= ROOMY else 1.0


def weight_scales(folded: Array, limit: int, covariance: Array | None = None) -> Array:
    """One scale per column of ``folded`` [K, N] for integers up to ``limit``.

    It maps the largest magnitude to ``limit``; for 4 bits a share of it, since few steps are better spent on
    the many small weights: the one of ``SHRINK`` with the smallest squared rounding error. Where the
    ``covariance`` [K, K] of what they multiply is known, the scale of short columns may be up to a quarter
    larger: the one of ``GROWN`` with the smallest error of the products.
    """
    largest = np.asarray(np.abs(folded).max(axis=0) / limit)
    metric = None if limit <= 7 or len(folded) > FEW_ROWS else covariance
    best, lowest = largest, np.full(largest.shape, np.inf)
    for share in SHRINK if limit <= 7 else GROWN if metric is not None else ():
        scale = np.maximum(largest * share, np.finfo(np.float64).tiny)
        off = np.clip(np.rint(folded / scale), -limit, limit) * scale - folded
        error = np.einsum("kn,kn->n", off if metric is None else metric @ off, off)
        best, lowest = np.where(error < lowest, scale, best), np.minimum(error, lowest)
    return best


def grid_scales(folded: Array) -> Array:
    """Per column of ``folded`` [K, N] the largest scale at which all of it are integers of 8 bits, else 0.

    Weights that arrive quantised lie on such a grid, and lose nothing on it. Others do not, but by chance in
    columns shorter than ``SHORTEST``, which are left out.
    """
    top = np.abs(folded).max(axis=0)
    found = np.zeros(folded.shape[1])
    if len(folded) < SHORTEST:
        return found
    for k in range(1, 129):
        candidates = np.flatnonzero((found == 0) & (top > 0))
        for rows in (folded[:SHORTEST], folded):
            steps = rows[:, candidates] * (k / top[candidates])
            candidates = candidates[(np.abs(steps - np.rint(steps)) < OFF_GRID).all(axis=0)]
        if k == 128:
            candidates = candidates[(folded[:, candidates].max(axis=0) < top[candidates])]
        found[candidates] = top[candidates] / k
    return found
