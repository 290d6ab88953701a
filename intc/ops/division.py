"""Exact integer quotients and roots, for divisors and radicands that are computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import broadcast
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType
from intc.ops.integer_math import isqrt


@dataclass(frozen=True)
class Divide(Op):
    """``clip(round(a * 2**shift / b), -limit, limit)`` as int32; halves go up, and division by 0 gives 0.

    Inputs: a and b of at most 32 bits, broadcast; ``|a| * 2**shift < 2**62``.
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
        a, b = (x.astype(np.int64) for x in arrays)
        numerator = np.where(b < 0, -a, a) << self.shift
        divisor = np.maximum(np.abs(b), 1)
        q = np.where(b == 0, 0, (numerator + (divisor >> 1)) // divisor)
        return np.asarray(np.clip(q, -self.limit, self.limit), np.int32)


@dataclass(frozen=True)
class Root(Op):
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
        return np.asarray(isqrt(np.maximum(arrays[0].astype(np.int64), 0) << self.shift), np.int32)


OPS = (Divide, Root)
