"""A function given by its values on an even grid: how integers compute what has no formula of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import Dim
from intc.ir.op import Array, FormulaOp, Sizes
from intc.ir.types import TensorType
from intc.ops.scalar import EXACT

KNOTS: Final = 1025


@dataclass(frozen=True)
class Curve(FormulaOp):
    """Linear interpolation between the 2**k + 1 int16 entries of a table, spread over all of int16.

    Inputs: x int16; table int16 [2**k + 1], 1 <= k <= 15. With ``u = x + 2**15``, ``s = 16 - k``,
    ``i = u >> s`` and ``f = u & (2**s - 1)``: ``(table[i] * (2**s - f) + table[i + 1] * f + 2**(s-1)) >> s``.
    """

    name: ClassVar[str] = "curve"
    arity: ClassVar[tuple[int, ...]] = (2,)

    @staticmethod
    def step_bits(table: TensorType) -> int:
        """s: an interval between two entries is 2**s steps of x."""
        size = table.shape[0] if table.rank == 1 else 0
        k = size.bit_length() - 1 if isinstance(size, int) else 0
        if not 1 <= k <= 15 or size != 2**k + 1 or table.dtype != "int16":
            raise GraphError(f"curve takes a table of 2**k + 1 int16 entries, not {table}")
        return 16 - k

    def infer(self, *types: TensorType) -> TensorType:
        x, table = types
        self.step_bits(table)
        if x.is_float or x.magnitude > 2**15 or x.interval[1] >= 2**15:
            raise GraphError(f"curve takes 16-bit integers, not {x}")
        return TensorType(x.shape, "int16", *table.interval)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(EXACT, *(a.astype(np.int64) for a in arrays)), np.int16)

    def row(self, *types: TensorType) -> Dim:
        return types[1].shape[0]

    def formula(self, ns: Any, *operands: Any) -> Any:
        x, table = operands
        s = 17 - ns.size(table).bit_length()
        u = x + 2**15
        i, f = u >> s, u & (2**s - 1)
        return (ns.take(table, i) * (2**s - f) + ns.take(table, i + 1) * f + 2 ** (s - 1)) >> s


OPS = (Curve,)
