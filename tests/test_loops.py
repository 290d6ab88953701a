"""Loops whose steps do not depend on one another: bags of embeddings, as torch's two exporters write them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, floats, model, operators

WEIGHTS: Feeds = {
    "table": floats(20, 8), "first": np.array([0]), "second": np.array([1]), "most": np.array([2**62]),
    "go": np.array(True), "zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "last": np.array([-1]),
    "width": np.int64(3), "empty_row": np.zeros((1, 8), np.float32),
}  # fmt: skip
OFFSETS = " n = Shape(ids) starts = Concat<axis=0>(offsets, n)"
BAGS = " ids = Reshape(given, last) m = Shape(given) k = ReduceProd<keepdims=0>(m) "
BAGS += "r = Range(zero, k, width) n = Shape(ids) starts = Concat<axis=0>(r, n)"
TRACED = """
 stops = Slice(starts, second, most, first) count = Size(stops)
 y = Loop(count, go) <body = step (int64 i, bool c) => (bool d, float[8] row) {
  a = Gather(starts, i) b = Gather(stops, i) a1 = Unsqueeze(a, first) b1 = Unsqueeze(b, first)
  part = Slice(ids, a1, b1, first) rows = Gather(table, part) WEIGHTED row = REDUCE d = Cast<to=9>(c)
 }>
"""
REDUCE = {
    "sum": "ReduceSum<keepdims=0>(rows, first)",
    "mean": "ReduceMean<axes=[0], keepdims=0>(rows)",
    "max": "ReduceMax<axes=[0], keepdims=0>(rows)",
}
WHILE = """
 rows = Gather(table, ids) count = Size(offsets) some = Less(zero, count) none = SequenceEmpty()
 every, end = Loop(, some, none, zero) <body = step (int64 i, bool c, seq(float[a, b]) before, int64 at)
  => (bool more, seq(float[e, f]) after, int64 next) {
  here = Reshape(at, last) there = Add(here, one) behind = Add(here, two)
  a1 = Slice(starts, here, there) b1 = Slice(starts, there, behind) nothing = Equal(a1, b1)
  bag = If(nothing) <then_branch = zeros () => (float[1, 8] t) { t = Identity(empty_row) },
   else_branch = sums () => (float[1, 8] u) {
    ends = Sub(count, one) final = Equal(at, ends)
    part = If(final) <then_branch = rest () => (float[p, 8] v) { v = Slice(rows, a1, n) },
     else_branch = some_rows () => (float[q, 8] w) { w = Slice(rows, a1, b1) }>
    u = REDUCE
   }>
  after = SequenceInsert(before, bag) next = Add(at, one) more = Less(next, count)
 }>
 y = ConcatFromSequence<axis=0>(every)
"""


def bags(body: str, inputs: str) -> onnx.ModelProto:
    used = {name: array for name, array in WEIGHTS.items() if name in body}
    return model(body, inputs, "float[batch, 8] y", used)


def traced(reduce: str, weighted: str = "") -> str:
    return TRACED.replace("REDUCE", REDUCE[reduce]).replace("WEIGHTED", weighted)


def feeds(seed: int = 0) -> Feeds:
    """Bags of 3, 1, 5 and 2 numbers."""
    return {"ids": np.random.default_rng(seed).integers(0, 20, 11), "offsets": np.array([0, 3, 4, 9])}


@pytest.mark.parametrize("reduce", REDUCE)
def test_bags_between_offsets(reduce: str, tmp_path: Path) -> None:
    proto = bags(OFFSETS + traced(reduce), "int64[tokens] ids, int64[batch] offsets")
    canonical(proto, feeds())
    samples = [feeds(seed) for seed in range(8)]
    assert distance(compiled(proto, samples, tmp_path), proto, feeds(9)) < 0.01


@pytest.mark.parametrize("reduce", REDUCE)
def test_bags_of_one_length(reduce: str) -> None:
    graph = canonical(
        bags(BAGS + traced(reduce), "int64[batch, 3] given"), {"given": np.arange(12).reshape(4, 3)}
    )
    assert not any(n.op.name in ("less", "matmul") for n in graph.nodes)


def test_bags_with_weights() -> None:
    weighted = "g = Slice(w, a1, b1, first) h = Unsqueeze(g, second) found = Mul(rows, h)"
    body = OFFSETS + traced("sum", weighted).replace(
        "ReduceSum<keepdims=0>(rows", "ReduceSum<keepdims=0>(found"
    )
    proto = bags(body, "int64[tokens] ids, int64[batch] offsets, float[tokens] w")
    canonical(proto, feeds() | {"w": floats(11)})


@pytest.mark.parametrize("reduce", ["ReduceSum<keepdims=1>(part, first)", "ReduceMax<axes=[0]>(part)"])
def test_a_loop_that_appends_to_a_sequence(reduce: str) -> None:
    body = OFFSETS + WHILE.replace("REDUCE", reduce)
    proto = bags(body, "int64[tokens] ids, int64[batch] offsets")
    for offsets in ([0, 3, 4, 9], [0, 3, 3, 9]):  # with an empty bag
        canonical(proto, feeds() | {"offsets": np.array(offsets)})


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (WHILE.replace("ConcatFromSequence<axis=0>", "ConcatFromSequence<axis=1>"), "not just joined"),
        (traced("sum").replace("d = Cast<to=9>(c)", "d = Equal(i, zero)"), "a condition ends it"),
        (
            traced("sum").replace(
                "row = ReduceSum<keepdims=0>(rows, first)", "row = ReduceL1<axes=[0]>(rows)"
            ),
            "a step has 'ReduceL1'",
        ),
    ],
)
def test_what_else_is_refused(body: str, reason: str) -> None:
    body = OFFSETS + body.replace("REDUCE", "ReduceSum<keepdims=1>(part, first)")
    with pytest.raises(UnsupportedModel, match=reason):
        import_onnx(bags(body, "int64[tokens] ids, int64[batch] offsets"))


def test_steps_that_depend_on_one_another_are_refused() -> None:
    """Where their number is not known; else they are imported one by one."""
    body = (
        "{} y = Loop(count, go, x) <body = step (int64 i, bool c, float[n, 4] a)"
        " => (bool d, float[n, 4] b) {{ b = Sin(a) d = Identity(c) }}>"
    )
    counted = "s = Shape<start=0, end=1>(x) count = Squeeze(s)"
    weights: Feeds = {"go": np.array(True)}
    with pytest.raises(UnsupportedModel, match="its steps depend on one another by 'a'"):
        import_onnx(model(body.format(counted), "float[n, 4] x", "float[n, 4] y", weights))
    three = model(body.format(""), "float[n, 4] x", "float[n, 4] y", {**weights, "count": np.int64(3)})
    assert operators(import_onnx(three)) == {"sin": 3}
