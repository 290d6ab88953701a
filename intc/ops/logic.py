"""Comparisons, whose results are masks, and what is made of masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import broadcast
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType
from intc.ops.elementwise import pair


@dataclass(frozen=True)
class _Compare(Op):
    """A comparison of two operands of one kind, as bool."""

    arity: ClassVar[tuple[int, ...]] = (2,)

    def infer(self, *types: TensorType) -> TensorType:
        a, b = pair(self, types)
        return TensorType(broadcast(a.shape, b.shape), "bool")

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.apply(arrays[0], arrays[1]), np.bool_)

    def apply(self, a: Any, b: Any) -> Any:
        raise NotImplementedError


@dataclass(frozen=True)
class Equal(_Compare):
    """``a == b``."""

    name: ClassVar[str] = "equal"

    def apply(self, a: Any, b: Any) -> Any:
        return a == b


@dataclass(frozen=True)
class Less(_Compare):
    """``a < b``."""

    name: ClassVar[str] = "less"

    def apply(self, a: Any, b: Any) -> Any:
        return a < b


@dataclass(frozen=True)
class LessOrEqual(_Compare):
    """``a <= b``."""

    name: ClassVar[str] = "less_or_equal"

    def apply(self, a: Any, b: Any) -> Any:
        return a <= b


@dataclass(frozen=True)
class And(_Compare):
    """Logical and of two bools."""

    name: ClassVar[str] = "and"

    def apply(self, a: Any, b: Any) -> Any:
        return a & b


@dataclass(frozen=True)
class Or(_Compare):
    """Logical or of two bools."""

    name: ClassVar[str] = "or"

    def apply(self, a: Any, b: Any) -> Any:
        return a | b


@dataclass(frozen=True)
class Not(Op):
    """Logical not of a bool."""

    name: ClassVar[str] = "not"

    def infer(self, *types: TensorType) -> TensorType:
        if types[0].dtype != "bool":
            raise GraphError(f"not takes a bool operand, not {types[0]}")
        return TensorType(types[0].shape, "bool")

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.logical_not(arrays[0])


OPS = (Equal, Less, LessOrEqual, And, Or, Not)
