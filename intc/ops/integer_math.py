"""Exact integer functions on int64 arrays."""

from __future__ import annotations

import numpy as np

from intc.ir.op import Array


def bit_length(x: Array) -> Array:
    """The number of bits of each x >= 0; 0 for 0."""
    value = np.asarray(x, np.int64)
    result = np.zeros_like(value)
    for step in (32, 16, 8, 4, 2, 1):
        big = value >= (np.int64(1) << step)
        result += np.where(big, step, 0)
        value = np.where(big, value >> step, value)
    return result + (value > 0)


def isqrt(x: Array) -> Array:
    """Floor of the square root of each 0 <= x < 2**62, by integer Newton steps from a power of two above
    it.
    """
    value = np.asarray(x, np.int64)
    root = np.int64(1) << ((bit_length(value) + 1) >> 1)
    while True:
        better = (root + value // np.maximum(root, 1)) >> 1
        if not np.any(better < root):
            return np.where(value > 0, root, 0)
        root = np.minimum(root, better)
