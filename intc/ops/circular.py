"""Circular and hyperbolic functions beside sine, cosine and tanh, and their inverses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from intc.ir.op import Array
from intc.ops.elementwise import FloatUnary


@dataclass(frozen=True)
class Acos(FloatUnary):
    """Inverse cosine."""

    name: ClassVar[str] = "acos"

    def apply(self, x: Array) -> Any:
        return np.arccos(x)


@dataclass(frozen=True)
class Asin(FloatUnary):
    """Inverse sine."""

    name: ClassVar[str] = "asin"

    def apply(self, x: Array) -> Any:
        return np.arcsin(x)


@dataclass(frozen=True)
class Atan(FloatUnary):
    """Inverse tangent."""

    name: ClassVar[str] = "atan"

    def apply(self, x: Array) -> Any:
        return np.arctan(x)


@dataclass(frozen=True)
class Cosh(FloatUnary):
    """Hyperbolic cosine."""

    name: ClassVar[str] = "cosh"

    def apply(self, x: Array) -> Any:
        return np.cosh(x)


@dataclass(frozen=True)
class Sinh(FloatUnary):
    """Hyperbolic sine."""

    name: ClassVar[str] = "sinh"

    def apply(self, x: Array) -> Any:
        return np.sinh(x)


@dataclass(frozen=True)
class Acosh(FloatUnary):
    """Inverse hyperbolic cosine."""

    name: ClassVar[str] = "acosh"

    def apply(self, x: Array) -> Any:
        return np.arccosh(x)


@dataclass(frozen=True)
class Asinh(FloatUnary):
    """Inverse hyperbolic sine."""

    name: ClassVar[str] = "asinh"

    def apply(self, x: Array) -> Any:
        return np.arcsinh(x)


@dataclass(frozen=True)
class Atanh(FloatUnary):
    """Inverse hyperbolic tangent."""

    name: ClassVar[str] = "atanh"

    def apply(self, x: Array) -> Any:
        return np.arctanh(x)


OPS = (Acos, Asin, Atan, Cosh, Sinh, Acosh, Asinh, Atanh)
