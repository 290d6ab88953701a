"""Float softmax, with an optional mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import broadcast
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType


@dataclass(frozen=True)
class Softmax(Op):
    """``exp(x) / sum exp(x)`` along ``axis``; masked-out elements (mask False) are 0, and so is an all-masked
    row, or the same everywhere where it is to be ``uniform``.
    """

    axis: int
    uniform: bool = False
    name: ClassVar[str] = "softmax"
    arity: ClassVar[tuple[int, ...]] = (1, 2)

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if not x.is_float or not -x.rank <= self.axis < x.rank:
            raise GraphError(f"softmax along axis {self.axis} does not fit {x}")
        if len(types) == 2 and (types[1].dtype != "bool" or broadcast(x.shape, types[1].shape) != x.shape):
            raise GraphError(f"mask {types[1]} does not broadcast to {x}")
        return x

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x = arrays[0]
        if len(arrays) == 2:
            keep = arrays[1]
            if self.uniform:
                some = np.broadcast_to(keep, x.shape).any(axis=self.axis, keepdims=True)
                x, keep = np.where(some, x, 0), keep | ~some
            x = np.where(keep, x, -np.inf)
        top = x.max(axis=self.axis, keepdims=True)
        weights = np.exp(x - np.where(np.isfinite(top), top, 0))
        total = weights.sum(axis=self.axis, keepdims=True)
        return np.asarray(weights / np.where(total > 0, total, 1), np.float32)


OPS = (Softmax,)
