"""A float function of one value, element by element, written as a formula."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from intc.errors import GraphError
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType
from intc.ops import circular
from intc.ops import elementwise as ew

CURVED: Final = (ew.Erf, ew.Exp, ew.Log, ew.Abs, ew.Sin, ew.Cos, *circular.OPS)
"""Functions that integers know by their curve alone."""
UNARY: Final = (ew.Sqrt, ew.Tanh, ew.Sigmoid, ew.Relu, *CURVED)
BINARY: Final = (ew.Add, ew.Sub, ew.Mul, ew.Div, ew.Pow, ew.Max, ew.Min)
FUNCTIONS: Final[dict[str, Any]] = {op.name: op() for op in (*UNARY, *BINARY)}


@dataclass(frozen=True)
class Pointwise(Op):
    """``formula`` of x: ``x``, a number, or ``(op operand ..)`` with the elementwise operators' names.

    >>> Pointwise("(mul x (sigmoid x))").evaluate(np.array([0.0, 40.0], np.float32), sizes={})
    array([ 0., 40.], dtype=float32)
    """

    formula: str
    name: ClassVar[str] = "pointwise"

    def infer(self, *types: TensorType) -> TensorType:
        if not types[0].is_float:
            raise GraphError(f"pointwise takes a float operand, not {types[0]}")
        self.function(np.zeros(1))
        return types[0]

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.function(arrays[0]), np.float32)

    def function(self, x: Array) -> Array:
        """The formula in float64; GraphError where it is malformed."""
        tokens = re.findall(r"[()]|[^\s()]+", self.formula)
        with np.errstate(all="ignore"):
            result = _value(tokens, np.asarray(x, np.float64))
        if tokens:
            raise GraphError(f"'{self.formula}' is no formula")
        return np.broadcast_to(result, np.shape(x))


def _value(tokens: list[str], x: Array) -> Any:
    """The value of the formula at the head of ``tokens``, which loses it."""
    token = tokens.pop(0) if tokens else ""
    if token == "x":
        return x
    if token != "(":
        try:
            return np.float64(token)
        except ValueError:
            raise GraphError(f"'{token}' is neither x nor a number") from None
    function = FUNCTIONS.get(tokens.pop(0) if tokens else "")
    operands = []
    while tokens and tokens[0] != ")":
        operands.append(_value(tokens, x))
    if function is None or not tokens or len(operands) not in function.arity:
        raise GraphError("a formula with an unknown operator or a wrong number of operands")
    tokens.pop(0)
    return function.apply(*operands)


OPS = (Pointwise,)
