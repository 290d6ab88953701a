"""Values that are limited twice."""

from __future__ import annotations

import numpy as np
import pytest

from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.requantize import Clip, Requantize
from intc.passes.merge_clips import MergeClips
from tests.native import random_feed

B = symbol("batch")
FIRST = (Clip(-900, 900, "int16"), Requantize(-127, 127, "int8"))


def limited(first: Clip | Requantize, *others: Clip, shown: bool = False) -> Graph:
    b = Builder("limited")
    x = b.input("x", TensorType((B, 64), "int16", -9999, 9999))
    if isinstance(first, Requantize):
        factors = (b.constant("m", np.int32([2**30])), b.constant("e", np.int32([36])))
        y = b.emit(first, x, *factors)
    else:
        y = b.emit(first, x)
    if shown:
        b.output(y)
    for other in others:
        y = b.emit(other, y)
    b.output(y)
    return b.finish()


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize(
    "others", [(Clip(0, 32767, "int16"),), (Clip(-50, 32767, "int16"), Clip(-99, 60, "int8"))]
)
def test_one_limit_is_left(first: Clip | Requantize, others: tuple[Clip, ...]) -> None:
    before = limited(first, *others)
    after = MergeClips().run(before)
    assert [type(n.op) for n in after.nodes] == [type(first)]
    x = random_feed(before.type("x"), {"batch": 5}, np.random.default_rng(1))
    want, got = (next(iter(g.run({"x": x}).values())) for g in (before, after))
    assert want.dtype == got.dtype and np.array_equal(want, got)


@pytest.mark.parametrize(
    "graph", [limited(FIRST[0], Clip(901, 999, "int16")), limited(FIRST[1], Clip(0, 99, "int8"), shown=True)]
)
def test_bounds_that_do_not_meet_and_values_that_others_read_stay(graph: Graph) -> None:
    assert MergeClips().run(graph) is graph
