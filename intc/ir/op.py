"""The contract of an operator: one frozen dataclass with its typing rule and its exact meaning.

Fields are the static attributes; they are printed and parsed by the text form, so each is an ``int``,
``str``, ``bool``, ``float`` (float graphs only), a dim, or a tuple of those.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from numpy.typing import NDArray

from intc.ir.dims import Dim
from intc.ir.ranges import counted
from intc.ir.types import TensorType

Array = NDArray[Any]
Sizes = Mapping[str, int]


@dataclass(frozen=True)
class Op:
    """Base of every operator; every operator has one output.

    ``name`` is the operator's name in the text form; ``arity`` the allowed numbers of inputs.
    """

    name: ClassVar[str] = ""
    arity: ClassVar[tuple[int, ...]] = (1,)

    def infer(self, *types: TensorType) -> TensorType:
        """The output type, interval included; GraphError when the inputs do not fit."""
        raise NotImplementedError

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        """``(size, largest)`` pairs that symbolic sizes must keep for this operator to have a meaning."""
        return []

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        """The exact result (of the inferred dtype); ``sizes`` binds the symbols of dims in attributes."""
        raise NotImplementedError


class FormulaOp(Op):
    """An operator whose meaning is a formula over an algebra of :mod:`intc.ops.scalar`, within 64 bits."""

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        return counted((self.row(*types),))

    def row(self, *types: TensorType) -> Dim:
        """The length of the rows that the formula sums, or asks for."""
        return types[0].shape[-1] if types[0].rank else 1

    def formula(self, ns: Any, *operands: Any) -> Any:
        """The result for ``operands`` of the algebra ``ns``: integers in 64 bits, masks as conditions."""
        raise NotImplementedError
