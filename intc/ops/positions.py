"""Positions as data: the index tensors that causal and other computed masks compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import Dim, Shape, evaluate, evaluate_shape
from intc.ir.op import Array, Op, Sizes
from intc.ir.ranges import bounds
from intc.ir.types import TensorType


@dataclass(frozen=True)
class Positions(Op):
    """``out[i0, i1, ..] = offset + sum(steps[a] * i_a)`` over ``shape``, int64; it has no inputs.

    GraphError where known positions do not fit 32 bits.
    """

    shape: Shape
    steps: Shape
    offset: Dim = 0
    name: ClassVar[str] = "positions"
    arity: ClassVar[tuple[int, ...]] = (0,)

    def infer(self, *types: TensorType) -> TensorType:
        if len(self.steps) != len(self.shape):
            raise GraphError(f"{len(self.steps)} steps do not fit rank {len(self.shape)}")
        lo, hi = bounds(self.offset)
        for size, step in zip(self.shape, self.steps, strict=True):
            low, high = bounds(step * (size - 1))
            lo, hi = lo + min(low, 0), hi + max(high, 0)
        if not all(isinstance(d, int) for d in (*self.shape, *self.steps, self.offset)):
            return TensorType(self.shape, "int64", max(lo, -(2**63)), min(hi, 2**63 - 1))
        if max(-lo, hi) >= 2**31:
            raise GraphError(f"positions from {lo} to {hi} exceed 32 bits")
        return TensorType(self.shape, "int64", lo, hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        out: Array = np.full(evaluate_shape(self.shape, sizes), evaluate(self.offset, sizes), np.int64)
        for axis, step in enumerate(self.steps):
            along = np.arange(out.shape[axis]).reshape([-1 if a == axis else 1 for a in range(out.ndim)])
            out += along * evaluate(step, sizes)
        return out


OPS = (Positions,)
