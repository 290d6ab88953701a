"""Per-channel activation scales that the next weights absorb exactly.

``x @ W = (x / s) @ (s * W)`` for any positive s per input channel. With ``t_c = max|x_c|^a / max|W_c|^(1-a)``
(SmoothQuant's form) the integers of x use their 8 bits in every channel, and the weights carry the rest; in a
dyadic epilogue the per-channel scale costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intc.ir.op import Array
from intc.passes.integer.widths import headroom

FLOOR = 2.0**-10  # channels far below the largest keep at least this share of its range


def channel_scales(activation: Array, weights: Sequence[Array], bits: int, strength: float) -> Array:
    """Scales [C] for an activation with magnitudes ``activation`` [C] consumed by ``weights``, each [C,
    N].
    """
    act = np.maximum(activation.astype(np.float64), max(float(activation.max()), 1e-30) * FLOOR)
    rows = np.max([np.abs(w).max(axis=1) for w in weights], axis=0).astype(np.float64)
    rows = np.maximum(rows, max(float(rows.max()), 1e-30) * FLOOR)
    spread = act**strength / rows ** (1 - strength)
    limit = 2.0 ** (bits - 1) - 1
    return np.asarray(spread * (float((act / spread).max()) * headroom(bits) / limit))
