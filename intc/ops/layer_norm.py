"""Float LayerNorm and RMSNorm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType


@dataclass(frozen=True)
class LayerNorm(Op):
    """``(x - mean) / sqrt(var + epsilon) * gamma + beta`` over the last axis (axis = -1); gamma, beta [C].

    Not ``centred``, it is RMSNorm: mean is 0, and var the mean of the squares.
    """

    axis: int
    epsilon: float
    centred: bool = True
    name: ClassVar[str] = "layer_norm"
    arity: ClassVar[tuple[int, ...]] = (3,)

    def infer(self, *types: TensorType) -> TensorType:
        x, gamma, beta = types
        if not x.is_float or self.axis not in (-1, x.rank - 1):
            raise GraphError(
                f"layer_norm over axis {self.axis} does not fit {x}: only the last axis is supported"
            )
        if gamma.shape != (x.shape[-1],) or beta.shape != (x.shape[-1],):
            raise GraphError(
                f"layer_norm of {x} needs gamma and beta of its last size, not {gamma} and {beta}"
            )
        return x

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x, gamma, beta = arrays
        centred = x - x.mean(axis=-1, keepdims=True, dtype=np.float32) if self.centred else x
        variance = np.mean(centred * centred, axis=-1, keepdims=True, dtype=np.float32)
        return np.asarray(centred / np.sqrt(variance + np.float32(self.epsilon)) * gamma + beta, np.float32)


OPS = (LayerNorm,)
