"""Element-by-element operators with broadcasting: float arithmetic, integer sums and products, casts
and choices by a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from scipy.special import erf

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import broadcast
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import LIMITS, DType, TensorType
from intc.ops.movement import joined


def pair(op: Op, types: tuple[TensorType, ...]) -> tuple[TensorType, TensorType]:
    """The types of two operands that are both float or both integer."""
    a, b = types
    if a.is_float != b.is_float:
        raise GraphError(f"{op.name} mixes float and integer operands: {a} and {b}")
    return a, b


def _integer(shape: Any, lo: int, hi: int, wide: bool) -> TensorType:
    """The int32 (int64 when an operand already is) type of an exact integer result."""
    dtype: DType = "int64" if wide else "int32"
    low, high = LIMITS[dtype]
    if wide:
        return TensorType(shape, dtype, max(lo, low), min(hi, high))
    if lo < low or hi > high:
        raise QuantizationError(f"the result can reach [{lo}, {hi}], beyond 32 bits")
    return TensorType(shape, dtype, lo, hi)


@dataclass(frozen=True)
class _Binary(Op):
    """Float32 on floats; on integers the exact result as int32 (int64 where an operand is int64)."""

    arity: ClassVar[tuple[int, ...]] = (2,)

    def infer(self, *types: TensorType) -> TensorType:
        a, b = pair(self, types)
        shape = broadcast(a.shape, b.shape)
        if a.is_float:
            return TensorType(shape, "float32")
        ends = [self.apply(x, y) for x in a.interval for y in b.interval]
        return _integer(shape, int(min(ends)), int(max(ends)), "int64" in (a.dtype, b.dtype))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        a, b = arrays
        if a.dtype.kind == "f":
            return np.asarray(self.apply(a, b), np.float32)
        wide = np.int64 in (a.dtype, b.dtype)
        return np.asarray(self.apply(a.astype(np.int64), b.astype(np.int64)), np.int64 if wide else np.int32)

    def apply(self, a: Any, b: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Add(_Binary):
    """``a + b``."""

    name: ClassVar[str] = "add"

    def apply(self, a: Any, b: Any) -> Any:
        return a + b


@dataclass(frozen=True)
class Sub(_Binary):
    """``a - b``."""

    name: ClassVar[str] = "sub"

    def apply(self, a: Any, b: Any) -> Any:
        return a - b


@dataclass(frozen=True)
class Mul(_Binary):
    """``a * b``."""

    name: ClassVar[str] = "mul"

    def apply(self, a: Any, b: Any) -> Any:
        return a * b


@dataclass(frozen=True)
class Max(_Binary):
    """The larger of two."""

    name: ClassVar[str] = "max"

    def apply(self, a: Any, b: Any) -> Any:
        return np.maximum(a, b)


@dataclass(frozen=True)
class Min(_Binary):
    """The smaller of two."""

    name: ClassVar[str] = "min"

    def apply(self, a: Any, b: Any) -> Any:
        return np.minimum(a, b)


@dataclass(frozen=True)
class _FloatBinary(Op):
    """A float32 function of two operands."""

    arity: ClassVar[tuple[int, ...]] = (2,)

    def infer(self, *types: TensorType) -> TensorType:
        a, b = types
        if not a.is_float or not b.is_float:
            raise GraphError(f"{self.name} takes float operands, not {a} and {b}")
        return TensorType(broadcast(a.shape, b.shape), "float32")

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.apply(*arrays), np.float32)

    def apply(self, a: Array, b: Array) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Div(_FloatBinary):
    """``a / b``."""

    name: ClassVar[str] = "div"

    def apply(self, a: Array, b: Array) -> Any:
        return np.divide(a, b)


@dataclass(frozen=True)
class Pow(_FloatBinary):
    """``a ** b``."""

    name: ClassVar[str] = "pow"

    def apply(self, a: Array, b: Array) -> Any:
        return np.power(a, b)


@dataclass(frozen=True)
class FloatUnary(Op):
    """A float32 function of one operand."""

    def infer(self, *types: TensorType) -> TensorType:
        if not types[0].is_float:
            raise GraphError(f"{self.name} takes a float operand, not {types[0]}")
        return types[0]

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.apply(arrays[0]), np.float32)

    def apply(self, x: Array) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Sqrt(FloatUnary):
    """Square root."""

    name: ClassVar[str] = "sqrt"

    def apply(self, x: Array) -> Any:
        return np.sqrt(x)


@dataclass(frozen=True)
class Erf(FloatUnary):
    """Gauss error function."""

    name: ClassVar[str] = "erf"

    def apply(self, x: Array) -> Any:
        return erf(x)


@dataclass(frozen=True)
class Exp(FloatUnary):
    """Exponential."""

    name: ClassVar[str] = "exp"

    def apply(self, x: Array) -> Any:
        return np.exp(x)


@dataclass(frozen=True)
class Log(FloatUnary):
    """Natural logarithm."""

    name: ClassVar[str] = "log"

    def apply(self, x: Array) -> Any:
        return np.log(x)


@dataclass(frozen=True)
class Abs(FloatUnary):
    """Magnitude."""

    name: ClassVar[str] = "abs"

    def apply(self, x: Array) -> Any:
        return np.abs(x)


@dataclass(frozen=True)
class Sin(FloatUnary):
    """Sine."""

    name: ClassVar[str] = "sin"

    def apply(self, x: Array) -> Any:
        return np.sin(x)


@dataclass(frozen=True)
class Cos(FloatUnary):
    """Cosine."""

    name: ClassVar[str] = "cos"

    def apply(self, x: Array) -> Any:
        return np.cos(x)


@dataclass(frozen=True)
class Floor(FloatUnary):
    """The largest integer below or at x."""

    name: ClassVar[str] = "floor"

    def apply(self, x: Array) -> Any:
        return np.floor(x)


@dataclass(frozen=True)
class Round(FloatUnary):
    """The nearest integer; of two the even one. Integers, which meet halves by chance, go up there."""

    name: ClassVar[str] = "round"

    def apply(self, x: Array) -> Any:
        return np.rint(x)


@dataclass(frozen=True)
class Tanh(FloatUnary):
    """Hyperbolic tangent."""

    name: ClassVar[str] = "tanh"

    def apply(self, x: Array) -> Any:
        return np.tanh(x)


@dataclass(frozen=True)
class Sigmoid(FloatUnary):
    """Logistic function."""

    name: ClassVar[str] = "sigmoid"

    def apply(self, x: Array) -> Any:
        return 0.5 * (np.tanh(0.5 * x) + 1.0)


@dataclass(frozen=True)
class Relu(FloatUnary):
    """``max(x, 0)``."""

    name: ClassVar[str] = "relu"

    def apply(self, x: Array) -> Any:
        return np.maximum(x, 0)


@dataclass(frozen=True)
class Cast(Op):
    """Another element type; numbers to bool are ``x != 0``. Integers must fit the new type."""

    dtype: DType
    name: ClassVar[str] = "cast"

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if self.dtype in ("float32", "bool") or x.is_float:
            return TensorType(x.shape, self.dtype)
        low, high = LIMITS[self.dtype]
        lo, hi = x.interval
        return TensorType(x.shape, self.dtype, max(lo, low), min(hi, high))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return (arrays[0] != 0) if self.dtype == "bool" else arrays[0].astype(self.dtype)


@dataclass(frozen=True)
class Where(Op):
    """``a`` where the bool condition holds, else ``b``."""

    name: ClassVar[str] = "where"
    arity: ClassVar[tuple[int, ...]] = (3,)

    def infer(self, *types: TensorType) -> TensorType:
        c, a, b = types
        if c.dtype != "bool" or a.dtype != b.dtype:
            raise GraphError(f"where cannot choose between {a} and {b} by {c}")
        return joined(broadcast(c.shape, broadcast(a.shape, b.shape)), a.dtype, (a, b))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.where(*arrays)


OPS = (
    Add,
    Sub,
    Mul,
    Max,
    Min,
    Div,
    Pow,
    Sqrt,
    Erf,
    Exp,
    Log,
    Abs,
    Sin,
    Cos,
    Floor,
    Round,
    Tanh,
    Sigmoid,
    Relu,
    Cast,
    Where,
)
