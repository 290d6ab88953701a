"""Dyadic requantisation and saturation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.op import Array, FormulaOp, Sizes
from intc.ir.types import DType, TensorType
from intc.ops import scalar


@dataclass(frozen=True)
class Requantize(FormulaOp):
    """``clip((x*m + 2**(e-1)) >> e, lo, hi)``, the product exact in 64 bits; ties toward +infinity.

    Inputs: x; m, e int32 constants of one element or one per index of the last axis, 1 <= e <= 62. The
    rescaling is by m / 2**e (Jacob et al. 2018, HAWQ-V3).
    ``error_bound``: output steps against clip(x * ratio), for m, e of ``dyadic_array`` and |y| <= 2**15.
    """

    lo: int
    hi: int
    dtype: DType
    name: ClassVar[str] = "requantize"
    arity: ClassVar[tuple[int, ...]] = (3,)
    error_bound: ClassVar[float] = 0.5 + 2.0**-16

    def infer(self, *types: TensorType) -> TensorType:
        x, m, e = types
        for what, factor in (("m", m), ("e", e)):
            if factor.rank > 1 or (
                factor.rank == 1 and factor.shape[0] not in (1, x.shape[-1] if x.rank else 1)
            ):
                raise GraphError(f"requantize needs one {what} or one per channel of {x}, not {factor}")
        if x.magnitude >= 2**31 or m.magnitude >= 2**31:
            raise QuantizationError(f"requantize of {x} by {m}: the product does not fit 62 bits")
        if e.interval[0] < 1 or e.interval[1] > 62:
            raise QuantizationError(f"requantize shifts by {e.interval}, outside [1, 62]")
        return TensorType(x.shape, self.dtype, self.lo, self.hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(scalar.EXACT, *(a.astype(np.int64) for a in arrays)), self.dtype)

    def formula(self, ns: Any, *operands: Any) -> Any:
        x, m, e = operands
        return scalar.requantize(ns, x, m, e, self.lo, self.hi)


@dataclass(frozen=True)
class Clip(FormulaOp):
    """``min(max(x, lo), hi)`` stored as ``dtype``."""

    lo: int
    hi: int
    dtype: DType
    name: ClassVar[str] = "clip"

    def infer(self, *types: TensorType) -> TensorType:
        low, high = types[0].interval
        bounds = (min(max(low, self.lo), self.hi), max(min(high, self.hi), self.lo))
        return TensorType(types[0].shape, self.dtype, *bounds)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(scalar.EXACT, arrays[0].astype(np.int64)), self.dtype)

    def formula(self, ns: Any, *operands: Any) -> Any:
        return ns.minimum(ns.maximum(operands[0], self.lo), self.hi)


OPS = (Requantize, Clip)
