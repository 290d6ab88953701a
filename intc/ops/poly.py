"""GELU by a polynomial in 16 bits: closer than the shift formula, in half of its register width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType
from intc.ops import scalar

DEEPEST = 0.25  # a GELU is never below -0.171


@dataclass(frozen=True)
class PolyGelu(Op):
    """GELU of int16 x in Q``frac`` (4..12), as int16 in Q``frac``.

    ``kind``: none (erf), tanh (its cubic argument) or quick (``x * sigmoid(1.702 x)``), as in ONNX.
    """

    frac: int
    kind: str = "none"
    name: ClassVar[str] = "poly_gelu"
    error_bound: ClassVar[float] = 0.0005  # absolute, for frac >= 11 and kinds none and tanh

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if x.magnitude > 32767:
            raise QuantizationError(f"{self.name} takes values in [-32767, 32767], not {x}")
        if not 4 <= self.frac <= 12 or self.kind not in scalar.POLY_GELU:
            raise GraphError(f"{self.name} cannot use frac={self.frac}, kind='{self.kind}'")
        return TensorType(x.shape, "int16", -int(DEEPEST * 2**self.frac), max(x.interval[1], 0))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x = arrays[0].astype(np.int64)
        return np.asarray(scalar.poly_gelu(scalar.EXACT, x, self.frac, self.kind), np.int16)


OPS = (PolyGelu,)
