"""Sums and means over axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import Shape, product
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType


@dataclass(frozen=True)
class _Reduce(Op):
    axes: tuple[int, ...]
    keepdims: bool
    arity: ClassVar[tuple[int, ...]] = (1,)

    def shape(self, x: TensorType) -> Shape:
        if not self.axes or any(not -x.rank <= a < x.rank for a in self.axes):
            raise GraphError(f"{self.name} over axes {list(self.axes)} does not fit {x}")
        axes = {a % x.rank for a in self.axes}
        kept = [(1 if i in axes else d) for i, d in enumerate(x.shape) if self.keepdims or i not in axes]
        return tuple(kept)


@dataclass(frozen=True)
class ReduceMean(_Reduce):
    """The mean over ``axes`` (float graphs)."""

    name: ClassVar[str] = "reduce_mean"

    def infer(self, *types: TensorType) -> TensorType:
        return TensorType(self.shape(types[0]), "float32")

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(arrays[0].mean(axis=self.axes, keepdims=self.keepdims), np.float32)


@dataclass(frozen=True)
class ReduceSum(_Reduce):
    """The sum over ``axes`` of integers as int32, over a fixed number of terms that provably fits."""

    name: ClassVar[str] = "reduce_sum"

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        shape = self.shape(x)
        if x.is_float:
            return TensorType(shape, "float32")
        count = product(x.shape[a % x.rank] for a in self.axes)
        if not isinstance(count, int) or count * x.magnitude >= 2**31:
            raise QuantizationError(f"the sum of {count} values of {x} may exceed 32 bits")
        lo, hi = x.interval
        return TensorType(shape, "int32", count * lo, count * hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x = arrays[0]
        if x.dtype.kind == "f":
            return np.asarray(x.sum(axis=self.axes, keepdims=self.keepdims), np.float32)
        return np.asarray(x.sum(axis=self.axes, keepdims=self.keepdims, dtype=np.int64), np.int32)


OPS = (ReduceMean, ReduceSum)
