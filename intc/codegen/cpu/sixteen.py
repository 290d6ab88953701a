"""Which products may be summed in 16 bits: proven from the actual weights and the interval of their input."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from intc.codegen.cpu.isa import Isa

SHORTEST: Final = 4  # words below which widening the sums costs more than 16 bits save


def run_words(w: NDArray[np.int8], lo: int, hi: int, isa: Isa) -> int:
    """The longest runs of words, an even number, whose sums fit 16 bits in every column of w [K, N]; 0 where
    runs would be too short to gain by.

    The input, in [``lo``, ``hi``], is unsigned: with its offset of 128 if it needs one. In a run every lane
    adds the products of two of four rows, in any order: no partial sum leaves int16.

    >>> from intc.codegen.cpu.isa import AVX2
    >>> [run_words(np.full((64, 8), w, np.int8), 0, 255, AVX2) for w in (1, 7, 64)]
    [16, 8, 0]
    """
    words = isa.narrow().words(len(w))
    padded = np.zeros((words * 4, w.shape[1]), np.int32)
    padded[: len(w)] = w
    steps = padded.reshape(words // 2, 2, 2, 2, -1).swapaxes(1, 2)  # two words, lane, word, neighbour, column
    up, down = (_most(part, lo, hi) for part in (steps, -steps))

    def fits(run: int) -> bool:
        starts = np.arange(0, words // 2, run // 2)
        highest, lowest = (np.add.reduceat(ends, starts, axis=0).max() for ends in (up, down))
        return bool(highest <= 32767 and lowest <= 32768)

    if not fits(2):  # a part of every run
        return 0
    even = dict.fromkeys(-(-words // (2 * parts)) * 2 for parts in range(1, words // 2 + 1))
    return next((run for run in even if run >= min(SHORTEST, words) and fits(run)), 0)


def _most(steps: NDArray[np.int32], lo: int, hi: int) -> NDArray[np.int32]:
    """The most that each step can add to a sum of a lane, 0 where it adds nothing; [steps, 2, N]."""
    return np.asarray(np.maximum(np.maximum(steps * lo, steps * hi), 0).sum(axis=(2, 3)))
