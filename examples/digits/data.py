"""The 8x8 handwritten digits of scikit-learn, split once and for all."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SPLIT_SEED = 20240229
TEST_COUNT = 360


class Split(NamedTuple):
    """Images float32 [N, 1, 8, 8] in [-1, 1]; labels int64 [N]."""

    x_train: NDArray[np.float32]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.float32]
    y_test: NDArray[np.int64]


def load_split() -> Split:
    """1437 training and 360 test digits, disjoint, stratified by class, the same on every call."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    pixels = (images.reshape(-1, 1, 8, 8) / 8.0 - 1.0).astype(np.float32)
    x_train, x_test, y_train, y_test = train_test_split(
        pixels, labels.astype(np.int64), test_size=TEST_COUNT, random_state=SPLIT_SEED, stratify=labels
    )
    return Split(x_train, y_train, x_test, y_test)
