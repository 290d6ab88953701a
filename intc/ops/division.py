"""Exact integer quotients and roots, for divisors and radicands that are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import broadcast
from intc.ir.op import Array, FormulaOp, Sizes
from intc.ir.types import TensorType
from intc.ops.integer_math import isqrt
from intc.ops.scalar import EXACT


@dataclass(frozen=True)
class Divide(FormulaOp):
    """``clip(round(a * 2**shift / b), -limit, limit)`` as int32; halves go up, and division by 0 gives 0.

    Inputs: a and b, broadcast; ``|a| * 2**shift < 2**62`` and ``|b| < 2**31``.
    """

    shift: int
    limit: int
    name: ClassVar[str] = "divide"
    arity: ClassVar[tuple[int, ...]] = (2,)
    error_bound: ClassVar[float] = 0.5  # output steps

    def infer(self, *types: TensorType) -> TensorType:
        a, b = types
        if a.is_float or b.is_float or not 0 <= self.shift < 62 or not 0 < self.limit < 2**31:
            raise GraphError(f"divide cannot take {a} and {b} with shift {self.shift}, limit {self.limit}")
        if a.magnitude << self.shift >= 2**62 or b.magnitude >= 2**31:
            raise QuantizationError(f"divide: {a} shifted by {self.shift}, or {b}, is too wide")
        reach = min(a.magnitude << self.shift, self.limit)
        return TensorType(broadcast(a.shape, b.shape), "int32", -reach, reach)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(EXACT, *(x.astype(np.int64) for x in arrays)), np.int32)

    def formula(self, ns: Any, *operands: Any) -> Any:
        a, b = operands
        numerator = ns.where(b >= 0, a, 0 - a) << self.shift
        size = ns.maximum(b, 0 - b)
        divisor = ns.maximum(size, 1)
        q = ns.where(size > 0, ns.floor_div(numerator + (divisor >> 1), divisor), 0)
        return ns.minimum(ns.maximum(q, -self.limit), self.limit)


@dataclass(frozen=True)
class Root(FormulaOp):
    """``floor(sqrt(max(x, 0) * 2**shift))`` as int32, for x of at most 32 bits and 0 <= shift <= 30."""

    shift: int
    name: ClassVar[str] = "root"
    error_bound: ClassVar[float] = 1.0  # output steps

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if x.is_float or not 0 <= self.shift <= 30:
            raise GraphError(f"root cannot take {x} with shift {self.shift}")
        if x.magnitude >= 2**31:
            raise QuantizationError(f"root: {x} exceeds 32 bits")
        lo, hi = (int(isqrt(np.array([max(end, 0) << self.shift]))[0]) for end in x.interval)
        return TensorType(x.shape, "int32", lo, hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(EXACT, arrays[0].astype(np.int64)), np.int32)

    def formula(self, ns: Any, *operands: Any) -> Any:
        return ns.isqrt(ns.maximum(operands[0], 0) << self.shift)


OPS = (Divide, Root)
