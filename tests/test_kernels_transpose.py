"""Transposing copies: blocks, overlapping last blocks, batches, and axes too short for a block."""

from __future__ import annotations

import pytest

from intc.codegen.cpu.strided import View, row_major
from intc.codegen.cpu.transpose import crossing
from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.types import DType, TensorType
from intc.ops.movement import Transpose
from tests.native import check_graph


def transposition(
    shape: tuple[int, ...], perm: tuple[int, ...], dtype: DType, free: int | None = None
) -> Graph:
    """``free``: an axis whose size is symbolic."""
    b = Builder("transposition")
    sizes = tuple(symbol("n") if i == free else size for i, size in enumerate(shape))
    x = b.input("x", TensorType(sizes, dtype))
    b.output(b.emit(Transpose(perm), x, name="y"))
    return b.finish()


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32"])
@pytest.mark.parametrize(
    ("shape", "perm"),
    [
        ((64, 64), (1, 0)),
        ((16, 16), (1, 0)),
        ((19, 85), (1, 0)),
        ((3, 33, 47), (0, 2, 1)),
        ((2, 40, 3, 70), (0, 3, 2, 1)),
        ((2, 40, 5, 3), (0, 3, 1, 2)),
        ((70, 2, 33), (2, 1, 0)),
        ((1, 100, 17), (2, 0, 1)),
        ((2048, 19), (1, 0)),  # rows of the target lie whole pages apart
        ((40, 256, 21), (2, 1, 0)),
    ],
)
@pytest.mark.parametrize("target", ["x86-64-v2", "native"])
def test_every_element_arrives(
    shape: tuple[int, ...], perm: tuple[int, ...], dtype: DType, target: str
) -> None:
    check_graph(transposition(shape, perm, dtype), {}, target)


def test_batches_may_be_symbolic() -> None:
    graph = transposition((3, 40, 70), (0, 2, 1), "int8", free=0)
    for batch in (1, 3):
        check_graph(graph, {"n": batch})


def test_which_copies_go_by_blocks() -> None:
    def found(shape: tuple[object, ...], perm: tuple[int, ...], itemsize: int = 1) -> int | None:
        strides = row_major(shape)  # type: ignore[arg-type]
        out = tuple(shape[p] for p in perm)
        return crossing(out, View(tuple(strides[p] for p in perm)), View(row_major(out)), itemsize)  # type: ignore[arg-type]

    assert found((64, 32), (1, 0)) == 0
    assert found((2, 64, 32), (0, 2, 1)) == 1
    assert found((64, 15), (1, 0)) is None and found((64, 15), (1, 0), 2) == 0
    assert found((64, 32, 16), (1, 0, 2)) is None
    assert found((symbol("n"), 32), (1, 0)) is None
