"""Small stages that LLVM inlines one behind the other: each reads what the one before has written."""

from __future__ import annotations

import numpy as np
import pytest

from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.elementwise import Mul, Where
from intc.ops.logic import Less
from intc.ops.movement import Gather, Reshape
from intc.ops.requantize import Requantize
from tests.kernel_cases import ints
from tests.native import check_graph


def weighted(rows: int) -> Graph:
    """Rows times weights that are looked up in another order, and looked up themselves behind."""
    b = Builder("weighted")
    wide = b.input("weights", TensorType((rows // 2, 2), "int32", -(2**30), 2**30))
    x = b.input("x", TensorType((rows, 64), "int16", -32767, 32767))
    order = b.input("order", TensorType((rows,), "int64", 0, rows - 1))
    narrow = Requantize(-32767, 32767, "int16")
    factors = (b.constant("m", np.array([1866885534], np.int32)), b.constant("e", np.array([44], np.int32)))
    weights = b.emit(Reshape((rows,)), b.emit(narrow, wide, *factors))
    picked = b.emit(Reshape((rows, 1)), b.emit(Gather(0), weights, order))
    product = b.emit(narrow, b.emit(Mul(), x, picked), *factors)
    zero = b.constant("zero", np.zeros(1, np.int64))
    again = b.emit(Gather(0), b.constant("table", ints(0, rows - 1, rows, np.int64)), order)
    at = b.emit(Where(), b.emit(Less(), order, zero), zero, again)
    b.output(b.emit(Gather(0), product, at))
    return b.finish()


@pytest.mark.parametrize("rows", [8, 16, 24, 32, 64])
def test_a_stage_sees_what_the_one_before_wrote(rows: int) -> None:
    check_graph(weighted(rows), {})
