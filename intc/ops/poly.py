"""GELU by a polynomial in 16 bits: closer than the shift formula, in half of its register width."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.op import Array, FormulaOp, Sizes
from intc.ir.types import TensorType
from intc.ops import scalar


@dataclass(frozen=True)
class PolyGelu(FormulaOp):
    """GELU of int16 x in Q``frac`` (4..12), less an optional constant int16 [C], as int16 in Q``frac``.

    A GELU never goes below -0.171: less the middle of its range, it fills signed codes. ``kind``: none (erf),
    tanh (its cubic argument) or quick (``x * sigmoid(1.702 x)``), as in ONNX; silu (``x * sigmoid(x)``) or
    hard (hard-swish), of x and with a result in units of ``scalar.GELU_UNITS``.
    """

    frac: int
    kind: str = "none"
    name: ClassVar[str] = "poly_gelu"
    arity: ClassVar[tuple[int, ...]] = (1, 2)
    error_bound: ClassVar[float] = 0.0005  # absolute, for frac >= 11 and kinds none and tanh

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if x.magnitude > 32767:
            raise QuantizationError(f"{self.name} takes values in [-32767, 32767], not {x}")
        if not 4 <= self.frac <= 12 or self.kind not in scalar.GELU_UNITS:
            raise GraphError(f"{self.name} cannot use frac={self.frac}, kind='{self.kind}'")
        lo = -(1 << (self.frac - (1 if self.kind == "hard" else 2)))
        hi = max(x.interval[1], 0)
        if len(types) == 2:
            if types[1].shape != x.shape[-1:]:
                raise GraphError(f"{self.name} cannot subtract {types[1]} from {x}")
            lo, hi = lo - types[1].interval[1], hi - types[1].interval[0]
            if lo < -32768 or hi > 32767:
                raise QuantizationError(f"{self.name} less its constant reaches [{lo}, {hi}], beyond 16 bits")
        return TensorType(x.shape, "int16", lo, hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(scalar.EXACT, *(a.astype(np.int64) for a in arrays)), np.int16)

    def formula(self, ns: Any, *operands: Any) -> Any:
        y = scalar.poly_gelu(ns, operands[0], self.frac, self.kind)
        return y - operands[1] if len(operands) == 2 else y


OPS = (PolyGelu,)
