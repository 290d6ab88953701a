"""Products with matrices of few elements in every column: interpolation and what is like it."""

from __future__ import annotations

import numpy as np
import pytest

from intc.codegen.cpu import taps
from intc.codegen.cpu.isa import AVX2, AVX512, AVX512_VNNI
from intc.codegen.targets import TARGETS, host_features
from intc.ir.dims import symbol
from intc.ir.graph import Builder
from intc.ir.types import TensorType
from intc.ops.fused import Linear
from tests.kernel_cases import ints
from tests.native import check_graph

B = symbol("batch")
NATIVE = [t for t in TARGETS if t.native and host_features().issuperset(t.features)]


def interpolation(k: int, n: int) -> np.ndarray:
    """Linear, [k, n], weights in 1/127."""
    w = np.zeros((k, n), np.int8)
    for column in range(n):
        at = max(0.0, (column + 0.5) * k / n - 0.5)
        low = min(int(at), k - 2)
        share = round(127 * min(1.0, at - low))
        w[low, column], w[low + 1, column] = 127 - share, share
    return w


def band(k: int, n: int, width: int) -> np.ndarray:
    """``width`` random elements in every column, side by side."""
    w = np.zeros((k, n), np.int8)
    for column in range(n):
        low = column * (k - width) // max(1, n - 1)
        w[low : low + width, column] = ints(-127, 127, width, np.int8)
    return w


MATRICES = {
    "twice as many": interpolation(64, 128),
    "some columns": interpolation(40, 90),
    "averages of two": np.repeat(np.eye(33, dtype=np.int8), 2, axis=0),
    "seven neighbours": band(49, 33, 7),
    "nothing": np.zeros((48, 20), np.int8),
}


@pytest.mark.parametrize("target", NATIVE, ids=lambda t: t.name)
def test_the_same_sums(target: object) -> None:
    b = Builder("taps")
    for name, w in MATRICES.items():
        for dtype, most in (("int16", 4095), ("int8", 127), ("uint8", 255)):
            low = 0 if dtype == "uint8" else -most
            x = b.input(b.fresh("x"), TensorType((B, 3, len(w)), dtype, low, most))  # type: ignore[arg-type]
            bias = b.constant(b.fresh("bias"), ints(-(2**20), 2**20, w.shape[1], np.int32))
            b.output(b.emit(Linear(0, 0, "int32", raw=True), x, b.constant(b.fresh(name), w), bias))
    check_graph(b.finish(), {"batch": 5}, target)


@pytest.mark.parametrize("name", MATRICES)
def test_every_weight_has_its_place(name: str) -> None:
    w = MATRICES[name]
    found = taps.find(w, AVX512_VNNI.wide())
    assert found is not None
    places, weights = found
    again = np.zeros_like(w, np.int64)
    for v, (part, factors) in enumerate(zip(places, weights, strict=True)):
        for rows, row_factors in zip(part.pairs, factors, strict=True):
            for lane, (row, factor) in enumerate(zip(rows, row_factors, strict=True)):
                if factor:
                    again[part.start + row, v * taps.LANES + lane // 2] += factor
    assert np.array_equal(again, w)


def test_where_a_dense_product_is_better() -> None:
    assert taps.find(ints(1, 99, (64, 32), np.int8), AVX512.wide()) is None  # nothing is zero
    assert taps.find(interpolation(8, 32), AVX512.wide()) is None  # few rows
    assert (
        taps.find(np.eye(64, dtype=np.int8)[:, ::-1][:, np.arange(64) * 7 % 64], AVX512) is None
    )  # far apart
    assert taps.find(interpolation(64, 128), AVX2) is None  # no such shuffle
