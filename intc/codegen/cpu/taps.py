"""Products with matrices of few elements in every column, all close together: interpolation, differences,
averages of neighbours. The elements of a row are picked by a shuffle whose places are known, and so are
multiplied only by what is not zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import Isa, dot_pairs
from intc.codegen.cpu.vector import ramp, shuffle

WINDOW: Final = 32  # int16 elements of a row that one shuffle can pick from
LANES: Final = 16  # int32 lanes of the registers that have such a shuffle
PAIRS: Final = 4  # of elements in a column, at most
COLUMNS: Final = 512  # at most, as their code is unrolled
COST: Final = 6  # words of a dense product that take as long as one pair of elements picked, generously


@dataclass(frozen=True)
class Taps:
    """Where one vector of columns finds its elements: ``pairs`` of places behind element ``start`` of a row,
    for every column two side by side.
    """

    start: int
    pairs: tuple[tuple[int, ...], ...]


def find(w: NDArray[np.int8], isa: Isa) -> tuple[tuple[Taps, ...], NDArray[np.int16]] | None:
    """The places and the weights [vectors, pairs, 2 * LANES] of every vector of columns of w [K, N]; None
    where too many elements are not zero, or a dense product is as fast.
    """
    k, n = w.shape
    if isa.lanes != LANES or isa.dot == "generic" or n > COLUMNS or isa.words(k) < COST:
        return None
    most = int(np.count_nonzero(w, axis=0).max(initial=0))
    pairs = max(1, -(-most // 2))
    if pairs > PAIRS or pairs * COST > isa.words(k):
        return None
    vectors = -(-n // LANES)
    weights = np.zeros((vectors, pairs, LANES, 2), np.int16)
    found = []
    for v in range(vectors):
        part = w[:, v * LANES : (v + 1) * LANES]
        used = np.flatnonzero(part.any(axis=1))
        start = int(used[0]) if used.size else 0
        if used.size and used[-1] - start >= WINDOW:
            return None
        places = np.zeros((pairs, LANES, 2), np.int64)
        for column in range(part.shape[1]):
            for i, row in enumerate(np.flatnonzero(part[:, column])):
                places[i // 2, column, i % 2] = row - start
                weights[v, i // 2, column, i % 2] = part[row, column]
        found.append(Taps(start, tuple(tuple(map(int, p.reshape(-1))) for p in places)))
    return tuple(found), weights.reshape(vectors, pairs, 2 * LANES)


def emit_taps(
    taps: Sequence[Taps],
    rows: int,
    a: Any,
    a_base: Any,
    a_stride: Any,
    w: Any,
    w_base: Any,
    start: Any,
    out: Any,
    out_base: Any,
    out_stride: int,
) -> None:
    """What :func:`intc.codegen.cpu.tile.emit_tile` computes, for the vectors of columns of ``taps``; ``a``
    and ``w`` count int16 elements, ``out`` words.
    """
    for v, part in enumerate(taps):
        factors = [
            T.Bind(w[ramp(w_base + (v * len(part.pairs) + p) * 2 * LANES, 2 * LANES)])
            for p in range(len(part.pairs))
        ]
        initial = T.Bind(start(v))
        for r in range(rows):
            window = T.Bind(a[ramp(a_base + r * a_stride + part.start, WINDOW)])
            total = initial
            for places, factor in zip(part.pairs, factors, strict=True):
                total = dot_pairs(total, shuffle([window], list(places)), factor, LANES)
            T.buffer_store(out, total, [ramp(out_base + r * out_stride + v * LANES, LANES)])
