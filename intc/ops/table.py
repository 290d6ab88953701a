"""Any function of an 8-bit value as a table of 256 entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import DType, TensorType


@dataclass(frozen=True)
class Table(Op):
    """``table[x - lowest]`` with lowest = -128 for int8 and 0 for uint8; the table is a constant of 256
    entries.
    """

    dtype: DType
    name: ClassVar[str] = "table"
    arity: ClassVar[tuple[int, ...]] = (2,)

    def infer(self, *types: TensorType) -> TensorType:
        x, table = types
        if x.dtype not in ("int8", "uint8") or table.shape != (256,) or table.dtype != self.dtype:
            raise GraphError(
                f"table takes int8 or uint8 and 256 entries of {self.dtype}, not {x} and {table}"
            )
        return TensorType(x.shape, self.dtype, *table.interval)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x, table = arrays
        return table[x.astype(np.int64) + (128 if x.dtype == np.int8 else 0)]


OPS = (Table,)
