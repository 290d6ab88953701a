"""Products with constants, taken where they are cheapest: fewer multiply-adds, the same numbers."""

from __future__ import annotations

import numpy as np
import pytest

from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.elementwise import Add
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Reshape, Transpose
from intc.ops.pointwise import UNARY
from intc.passes.reorder_products import ReorderProducts
from intc.report.macs import count_macs

B = symbol("batch")
RNG = np.random.default_rng(20261126)


def weight(b: Builder, rows: int, columns: int) -> str:
    return b.constant("w", RNG.normal(size=(rows, columns)).astype(np.float32))


def linear(b: Builder, x: str, rows: int, columns: int) -> str:
    bias = b.constant("b", RNG.normal(size=columns).astype(np.float32))
    return b.emit(Add(), b.emit(MatMul(), x, weight(b, rows, columns)), bias)


def enlarged(b: Builder, x: str, size: int, keeps: bool) -> str:
    """Images [B, C, size, size] at twice the size; with ``keeps`` by columns that sum to 1."""
    for _ in range(2):
        x = b.emit(Transpose((0, 1, 3, 2)), x)
        rates = RNG.uniform(0.1, 1, size=(size, 2 * size))
        rates = rates / rates.sum(axis=0) if keeps else rates
        x = b.emit(MatMul(), x, b.constant("up", rates.astype(np.float32)))
    return x


def head() -> Graph:
    """Tokens of two maps, projected, the smaller enlarged, joined and mixed, as in segmentation networks."""
    b = Builder("head")
    maps = []
    for i, (size, width) in enumerate(((8, 4), (4, 8))):
        x = b.input(f"x{i}", TensorType((B, size * size, width), "float32"))
        rows = b.emit(Transpose((0, 2, 1)), linear(b, x, width, 24))
        image = b.emit(Reshape((B, 24, size, size)), rows)
        maps.append(image if i == 0 else enlarged(b, image, size, True))
    whole = b.emit(Transpose((0, 2, 3, 1)), b.emit(Concat(1), *maps))
    b.output(linear(b, whole, 48, 16))
    return b.finish()


def same(before: Graph, after: Graph) -> None:
    feeds = {n: RNG.normal(size=[2 if s == B else s for s in before.type(n).shape]) for n in before.inputs}
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    for want, got in zip(before.run(feeds).values(), after.run(feeds).values(), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)


def test_maps_are_mixed_at_their_own_size() -> None:
    before = head()
    after = ReorderProducts().run(before)
    same(before, after)
    assert sum(isinstance(n.op, MatMul) for n in after.nodes) == 4  # one for each map, and two that enlarge
    assert sum(n.op == Add() for n in after.nodes) == 3  # a bias for each map, and their sum
    assert count_macs(after, {"batch": 1}) < 0.3 * count_macs(before, {"batch": 1})


@pytest.mark.parametrize("keeps", [True, False])
def test_a_bias_passes_what_keeps_constants(keeps: bool) -> None:
    b = Builder("enlarged")
    image = enlarged(b, b.input("x", TensorType((B, 8, 4, 4), "float32")), 4, keeps)
    b.output(linear(b, b.emit(Transpose((0, 2, 3, 1)), image), 8, 8))
    before = b.finish()
    after = ReorderProducts().run(before)
    same(before, after)
    names = [n.op.name for n in after.nodes if n.op.name != "transpose"]
    assert names == (
        ["matmul", "add", "matmul", "matmul"] if keeps else ["matmul", "matmul", "matmul", "add"]
    )


def chain(middle: int, *, activated: bool = False, shown: bool = False) -> Graph:
    """Two products in a row, 32 -> middle -> 32."""
    b = Builder("chain")
    y = linear(b, b.input("x", TensorType((B, 3, 32), "float32")), 32, middle)
    if activated:
        y = b.emit(next(op for op in UNARY if op.name == "relu")(), y)
    b.output(linear(b, y, middle, 32))
    if shown:
        b.output(y)
    return b.finish()


def test_two_products_are_one_where_that_is_cheaper() -> None:
    before = chain(64)
    after = ReorderProducts().run(before)
    same(before, after)
    assert [n.op.name for n in after.nodes] == ["matmul", "add"]


@pytest.mark.parametrize("graph", [chain(8), chain(64, activated=True), chain(64, shown=True)])
def test_what_must_stay(graph: Graph) -> None:
    """A product of low rank, one behind a function, one whose result others need."""
    assert ReorderProducts().run(graph) is graph
