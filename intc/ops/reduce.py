"""Sums and means over axes."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import SYMBOL_MAX, Dim, Shape
from intc.ir.op import Array, Op, Sizes
from intc.ir.ranges import counted
from intc.ir.types import TensorType


@dataclass(frozen=True)
class _Reduce(Op):
    axes: tuple[int, ...]
    keepdims: bool
    arity: ClassVar[tuple[int, ...]] = (1,)

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        return counted(types[0].shape[a] for a in self.axes)

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
    """The sum over ``axes``: of int64 (which may wrap) as int64, of other integers as int32, which provably
    fits at any size.
    """

    name: ClassVar[str] = "reduce_sum"

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        shape = self.shape(x)
        if x.is_float:
            return TensorType(shape, "float32")
        sizes = (x.shape[a % x.rank] for a in self.axes)
        count = prod(d if isinstance(d, int) else SYMBOL_MAX for d in sizes)
        lo, hi = x.interval
        lo, hi = min(count * lo, lo), max(count * hi, hi)
        if x.dtype == "int64":
            return TensorType(shape, "int64", max(lo, -(2**63)), min(hi, 2**63 - 1))
        if count * x.magnitude >= 2**31:
            raise QuantizationError(f"the sum of {count} values of {x} may exceed 32 bits")
        return TensorType(shape, "int32", lo, hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x = arrays[0]
        if x.dtype.kind == "f":
            return np.asarray(x.sum(axis=self.axes, keepdims=self.keepdims), np.float32)
        dtype = np.int64 if x.dtype == np.int64 else np.int32
        return np.asarray(x.sum(axis=self.axes, keepdims=self.keepdims, dtype=np.int64), dtype)


@dataclass(frozen=True)
class ReduceMax(_Reduce):
    """The largest element over ``axes``."""

    name: ClassVar[str] = "reduce_max"

    def infer(self, *types: TensorType) -> TensorType:
        return types[0].with_shape(self.shape(types[0]))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(arrays[0].max(axis=self.axes, keepdims=self.keepdims))


@dataclass(frozen=True)
class ArgMax(Op):
    """The position of the largest element along ``axis`` as int64; of equal ones the first, or the last."""

    axis: int
    keepdims: bool
    last: bool = False
    name: ClassVar[str] = "arg_max"

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        return counted((types[0].shape[self.axis],))

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if not 0 <= self.axis < x.rank:
            raise GraphError(f"arg_max along axis {self.axis} does not fit {x}")
        size = x.shape[self.axis]
        shape = (*x.shape[: self.axis], *([1] if self.keepdims else []), *x.shape[self.axis + 1 :])
        return TensorType(shape, "int64", 0, (size if isinstance(size, int) else SYMBOL_MAX) - 1)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x = np.flip(arrays[0], self.axis) if self.last else arrays[0]
        at = np.argmax(x, axis=self.axis, keepdims=self.keepdims)
        return np.asarray(x.shape[self.axis] - 1 - at if self.last else at, np.int64)


@dataclass(frozen=True)
class CumSum(Op):
    """Running sums along ``axis``, of int64 (which may wrap) as int64, of other integers as int32.

    ``exclusive``: without the element itself; ``reverse``: from the end.
    """

    axis: int
    exclusive: bool = False
    reverse: bool = False
    name: ClassVar[str] = "cum_sum"

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        return counted((types[0].shape[self.axis],))

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if not 0 <= self.axis < x.rank:
            raise GraphError(f"cum_sum along axis {self.axis} does not fit {x}")
        if x.is_float:
            return x
        size = x.shape[self.axis]
        count = size if isinstance(size, int) else SYMBOL_MAX
        lo, hi = count * min(x.interval[0], 0), count * max(x.interval[1], 0)
        if x.dtype == "int64":
            return TensorType(x.shape, "int64", max(lo, -(2**63)), min(hi, 2**63 - 1))
        if max(-lo, hi) >= 2**31:
            raise QuantizationError(f"the sum of {count} values of {x} may exceed 32 bits")
        return TensorType(x.shape, "int32", lo, hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x = arrays[0]
        dtype = x.dtype if x.dtype.kind == "f" or x.dtype == np.int64 else np.int32
        x = np.flip(x, self.axis) if self.reverse else x
        total = np.cumsum(x, axis=self.axis, dtype=x.dtype if x.dtype.kind == "f" else np.int64)
        total = total - x if self.exclusive else total
        return np.asarray(np.flip(total, self.axis) if self.reverse else total, dtype)


OPS = (ReduceMean, ReduceSum, ReduceMax, ArgMax, CumSum)
