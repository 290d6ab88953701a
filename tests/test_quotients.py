"""Quotients of sizes, rounded down."""

from __future__ import annotations

import numpy as np
import pytest

from intc.codegen.lower import lower
from intc.errors import GraphError
from intc.export.onnx_model import onnx_model
from intc.frontend.agreement import part_of
from intc.ir.dims import Dim, evaluate, floor_div, parse, symbol
from intc.ir.graph import Builder
from intc.ir.ranges import bounds, linear
from intc.ir.text import parse_graph, print_graph, side_tensors
from intc.ir.types import TensorType
from intc.ops import OPS
from intc.ops.movement import Slice
from tests.onnx_models import Feeds, expected

N, M = symbol("n"), symbol("m")


def test_quotients_in_the_text_form_in_kernels_and_in_onnx() -> None:
    b = Builder("halves")
    x = b.input("x", TensorType((symbol("batch"), N), "int8"), scale=0.5)
    b.output(b.emit(Slice(1, floor_div(N, 2), N, 3), x, name="part", scale=0.5))
    graph = b.finish()
    text = print_graph(graph)
    assert print_graph(parse_graph(text, side_tensors(graph), OPS.values())) == text
    assert "floor((n + 5)/6)" in text or "floor(n/2)" in text
    lowered = lower(graph)
    assert lowered.symbols == ("batch", "n")
    feeds: Feeds = {"x": np.arange(22, dtype=np.int8).reshape(2, 11)}
    (want,) = expected(onnx_model(graph), feeds)
    assert np.array_equal(graph.run(feeds)["part"], want)


@pytest.mark.parametrize("size", [4 * N + 7, N * M - 3, -N + 5, 3 * N - 2 * M, floor_div(N + M, 3) * 2 + N])
@pytest.mark.parametrize("divisor", [1, 2, 5])
def test_quotients_are_rounded_down(size: Dim, divisor: int) -> None:
    found = floor_div(size, divisor)
    assert parse(str(found)) == found
    low, high = bounds(found)
    for n in range(1, 9):
        for m in (1, 4):
            env = {"n": n, "m": m}
            assert evaluate(found, env) == evaluate(size, env) // divisor
            assert low <= evaluate(found, env) <= high


def test_quotients_of_few_values_vanish() -> None:
    rounded = 64 * N - 64 * floor_div(63 * N, 64)  # up to a multiple of 64
    assert bounds(rounded - N) == (0, 63) and bounds(floor_div(N, 4) * 4 - N) == (-3, 0)
    assert linear(rounded, {"n": 64}) == 64 and linear(rounded * M - M, {"n": 64}) == 63 * M
    assert linear(rounded, {"n": 65}) == rounded


def test_quotients_of_quotients_are_one() -> None:
    assert floor_div(floor_div(N - 10, 5) - 3, 2) == floor_div(N + 5, 10) - 3
    assert str(floor_div(2 * N + 3, 4)) == "floor((n + 1)/2)"
    assert part_of("n_by_2", 3) == symbol("n_by_6")
    with pytest.raises(GraphError, match="cannot be divided"):
        floor_div(N, 0)
