"""Per-channel activation scales that the next weights absorb exactly.

``x @ W = (x / s) @ (s * W)`` for any positive s per input channel. With ``t_c = max|x_c|^a / max|W_c|^(1-a)``
(SmoothQuant's form) the integers of x use their 8 bits in every channel, and the weights carry the rest; in a
dyadic epilogue the per-channel scale costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from intc.calibration.histogram import Histogram
from intc.calibration.observers import TELLING, Statistics
from intc.ir.op import Array
from intc.passes.integer.widths import headroom

FLOOR = 2.0**-10  # channels far below the largest keep at least this share of its range
ROOM: Final = (1.0, 1.125, 1.25, 1.5, 1.75, 2.0)
TRUSTED: Final = 256  # samples that show what clipping costs; of fewer it counts more
WORTHWHILE: Final = 1 / 2  # of the loss without room
SHOWN: Final = 512  # channels that show what all need


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


def room(
    seen: Statistics, scales: Array, weights: Sequence[Array], strength: float, quotient: bool = False
) -> float:
    """The factor of ``scales`` [C], of 8 bits, at which ``weights`` [C, N] lose the least by rounding and by
    what every sample in turn has beyond the ranges of the others; 1 where too few were seen to tell. The
    latter counts more where the value is a ``quotient`` by a computed one: samples with smaller divisors
    exceed it by far.
    """
    channel, peaks = seen.channel, seen.peaks
    if channel is None or peaks is None or peaks.count < TELLING or channel.limit.shape != scales.shape:
        return 1.0
    some = slice(None, None, -(-scales.size // SHOWN))
    part = Histogram(channel.bins, channel.limit[some], channel.counts[some])
    highest, second = (np.maximum(p[some], np.finfo(np.float32).tiny) for p in peaks.channels)
    limits = scales[some] * 127 * (second / highest) ** strength
    squares = np.sum([np.einsum("cn,cn->c", w[some], w[some]) for w in weights], axis=0, dtype=np.float64)
    rounding = float(squares @ scales[some] ** 2) / 12

    risk = max(TRUSTED / peaks.count, 1.0) ** (2 if quotient else 1)

    def lost(factor: float) -> float:
        return risk * float(squares @ part.beyond(factor * limits)) + factor**2 * rounding

    best = min(ROOM, key=lost)
    return best if lost(best) < WORTHWHILE * lost(1.0) else 1.0
