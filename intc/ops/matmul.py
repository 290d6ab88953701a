"""Matrix product, float or integer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import SYMBOL_MAX, Dim, broadcast, format_shape
from intc.ir.op import Array, Op, Sizes
from intc.ir.ranges import counted
from intc.ir.types import TensorType

EXACT_IN_FLOAT64: Final = 2**53


def exact_matmul(a: Array, b: Array) -> Array:
    """``a @ b`` of integers as int64, exact.

    A float64 product of integers is exact in any order of summation while the sum of magnitudes stays below
    2**53, and runs on BLAS; beyond that bound the product is taken in int64.
    """
    if a.size == 0 or b.size == 0:
        return np.asarray(np.matmul(a.astype(np.int64), b.astype(np.int64)))
    peak = int(np.abs(a.astype(np.int64)).max()) * int(np.abs(b.astype(np.int64)).max()) * a.shape[-1]
    if peak < EXACT_IN_FLOAT64:
        return np.asarray(np.matmul(a.astype(np.float64), b.astype(np.float64)), np.int64)
    return np.asarray(np.matmul(a.astype(np.int64), b.astype(np.int64)))


def column_ends(w: Array, lo: Array | int, hi: Array | int) -> tuple[Array, Array]:
    """The smallest and the largest sums that each column of ``x @ w`` can reach, int64 [N]; w is [K, N], and
    x lies between ``lo`` and ``hi``, of shape () or [K].

    >>> column_ends(np.array([[3, 0], [-2, 1]], np.int8), -128, 127)
    (array([-638, -128]), array([637, 127]))
    """
    up, down = np.maximum(w, 0), np.minimum(w, 0)
    first, last = (np.broadcast_to(np.asarray(end, np.int64), w.shape[:1]) for end in (lo, hi))

    def total(ends: Array, part: Array) -> Array:
        return np.asarray(np.einsum("k,kn->n", ends, part, dtype=np.int64))  # no wide copy of the weights

    return total(first, up) + total(last, down), total(last, up) + total(first, down)


@dataclass(frozen=True)
class MatMul(Op):
    """numpy's ``a @ b`` over the last two axes: float32, or 8/16-bit integers into int32 sums that provably
    fit.
    """

    name: ClassVar[str] = "matmul"
    arity: ClassVar[tuple[int, ...]] = (2,)

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        return counted(types[0].shape[-1:])

    def infer(self, *types: TensorType) -> TensorType:
        a, b = types
        if a.rank < 1 or b.rank < 2 or (a.rank == 1 and b.rank != 2):
            raise GraphError(f"matmul cannot multiply {a} by {b}")
        if a.shape[-1] != b.shape[-2]:
            raise GraphError(
                f"matmul of {format_shape(a.shape)} by {format_shape(b.shape)}: inner sizes differ"
            )
        shape = (*broadcast(a.shape[:-2], b.shape[:-2]), *a.shape[-2:-1], b.shape[-1])
        if a.is_float != b.is_float:
            raise GraphError("matmul mixes float and integer operands")
        if a.is_float:
            return TensorType(shape, "float32")
        length = a.shape[-1]
        ends = [x * y for x in a.interval for y in b.interval]
        length = length if isinstance(length, int) else SYMBOL_MAX
        lo, hi = length * min(*ends, 0), length * max(*ends, 0)
        if lo < -(2**31) or hi >= 2**31:
            raise QuantizationError(
                f"the sum over {length} products can reach {max(-lo, hi)}, beyond 32 bits"
            )
        return TensorType(shape, "int32", lo, hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        a, b = arrays
        if a.dtype.kind == "f":
            return np.asarray(np.matmul(a, b))
        return exact_matmul(a, b).astype(np.int32)


OPS = (MatMul,)
