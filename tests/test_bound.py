"""Free sizes made numbers: the same integers for these sizes, everything else refused by name."""

from __future__ import annotations

import numpy as np
import pytest

from intc.errors import FeedError, UsageError
from intc.ir.bound import bound
from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.text import parse_graph, print_graph, side_tensors
from intc.ir.types import TensorType
from intc.ir.verify import verify
from intc.ops import OPS
from intc.ops.elementwise import Add
from intc.ops.movement import Expand, Lookup, Reshape, Slice
from intc.ops.positions import Positions

B, S = symbol("batch"), symbol("seq")


def graph() -> Graph:
    """Sizes in shapes and in attributes; at most 8 positions."""
    b = Builder("sizes")
    x = b.input("x", TensorType((B, S, 4), "int8"), scale=0.5)
    table = b.constant("table", np.arange(32, dtype=np.int8).reshape(8, 4))
    row = b.emit(Lookup((S,), (1,), 0), table, name="row")
    total = b.emit(Add(), x, b.emit(Expand((B, S, 4)), row), name="total", source="add", scale=0.5)
    last = b.emit(Slice(1, S - 1, S, 1), total, name="last")
    b.output(b.emit(Reshape((B, 4)), last, name="flat", scale=0.5))
    b.output(b.emit(Positions((B, S), (S, 1), 0), name="numbers"))
    return b.finish()


@pytest.mark.parametrize(
    "sizes", [{"batch": 3, "seq": 5}, {"batch": 1, "seq": 8}, {"seq": 2}, {"batch": 2}, {}]
)
def test_the_meaning_stays(sizes: dict[str, int]) -> None:
    free, fixed = graph(), bound(graph(), sizes)
    verify(fixed)
    assert set(fixed.symbols()) == {"batch", "seq"} - set(sizes)
    assert fixed.outputs == free.outputs and fixed.values["flat"].scale == 0.5
    assert [n.source for n in fixed.nodes] == [n.source for n in free.nodes]
    shape = (sizes.get("batch", 4), sizes.get("seq", 6), 4)
    x = np.random.default_rng(0).integers(-128, 128, shape).astype(np.int8)
    for name, want in free.run({"x": x}).items():
        np.testing.assert_array_equal(fixed.run({"x": x})[name], want)
    if sizes:
        with pytest.raises(FeedError):
            fixed.run({"x": np.zeros((5, 7, 4), np.int8)})


def test_it_prints_and_parses() -> None:
    fixed = bound(graph(), {"batch": 1, "seq": 3})
    assert "batch" not in print_graph(fixed)
    assert print_graph(parse_graph(print_graph(fixed), side_tensors(fixed), OPS.values())) == print_graph(
        fixed
    )


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"length": 3}, "'length' is no free size; the model has batch, seq"),
        ({"seq": 0}, "seq=0: a size is at least 1"),
        ({"seq": 9}, "seq is 9; the model takes at most 8"),
    ],
)
def test_refusals(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bound(graph(), sizes)
