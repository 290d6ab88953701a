"""Masks that every sample shares: computed once, with the same results."""

from __future__ import annotations

import numpy as np
import pytest

from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.elementwise import Add
from intc.ops.movement import Expand, Reshape
from intc.ops.requantize import Clip, Requantize
from intc.passes.fold_repeated import FoldRepeated
from tests.kernel_cases import ints
from tests.native import check_graph

B = symbol("batch")


def masks(rank: int = 4) -> Graph:
    """``clip(requantize(repeat(table)) + heads) + x``, the table with four windows a sample."""
    b = Builder("masks")
    table = b.constant("table", ints(-32767, 0, (1, 4, 1, 5, 5), np.int16))
    rows = b.emit(Reshape((4 * B, 1, 5, 5)), b.emit(Expand((B, 4, 1, 5, 5)), table))
    m, e = b.constant("m", np.array([2**30 + 7], np.int32)), b.constant("e", np.array([31], np.int32))
    wide = b.emit(Requantize(-(2**30) + 1, 2**30 - 1, "int32"), rows, m, e)
    heads = b.constant("heads", ints(-999, 999, (1, 3, 5, 5)[-rank:], np.int32))
    total = b.emit(Clip(-32767, 32767, "int16"), b.emit(Add(), wide, heads))
    x = b.input("x", TensorType((B, 12, 5, 5), "int16", -99, 99))
    b.output(b.emit(Add(), b.emit(Reshape((4 * B, 3, 5, 5)), x), total))
    return b.finish()


@pytest.mark.parametrize("rank", [3, 4])
def test_everything_before_the_samples_differ_is_folded(rank: int) -> None:
    graph = masks(rank)
    folded = FoldRepeated().run(graph)
    assert sorted(n.op.name for n in folded.nodes) == ["add", "expand", "reshape", "reshape"]
    for batch in (1, 3):
        x = np.random.default_rng(batch).integers(-99, 100, (batch, 12, 5, 5)).astype(np.int16)
        want, got = (g.run({"x": x})[g.outputs[0]] for g in (graph, folded))
        assert np.array_equal(got, want)
    check_graph(folded, {"batch": 2})


def test_large_constants_are_not_made() -> None:
    graph = masks()
    assert [n.op for n in FoldRepeated(limit=299).run(graph).nodes if n.op.name == "add"] == [Add(), Add()]
    assert len(FoldRepeated(limit=300).run(graph).nodes) == 4


def test_an_operand_that_is_not_constant_stays() -> None:
    b = Builder("computed")
    one = b.input("one", TensorType((1, 4), "int8", -9, 9))
    b.output(b.emit(Add(), b.emit(Expand((B, 4)), one), b.input("x", TensorType((B, 4), "int8", -9, 9))))
    graph = b.finish()
    assert [n.op.name for n in FoldRepeated().run(graph).nodes] == ["expand", "add"]
