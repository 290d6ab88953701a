"""``intc verify`` node by node: where kernels first leave the reference, what saturates, how far the float
model is.

The artifact's kernels keep intermediates where the memory plan puts them; to see every one, the artifact's
graph is compiled once more for the same target with all values as outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from intc.frontend import import_onnx
from intc.ir.graph import Graph, Value, dequantize, quantize_feed
from intc.ir.op import Array
from intc.ops.fused import Attention
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVEMENT
from intc.ops.requantize import Requantize
from intc.ops.row_softmax import NormaliseRows
from intc.passes import pipeline
from intc.report.matching import has_row_sums, matches
from intc.report.reference import fidelity

FOLLOWING: Final = (*MOVEMENT, NormaliseRows, Requantize)


@dataclass
class NodeCheck:
    """One value. ``differences`` and ``largest`` (in steps) compare the kernel with the reference;
    ``saturated`` is the share of elements at an end of the interval; ``sqnr_db`` and ``cosine`` compare with
    the float model: None where it has no such value, or an equal one.
    """

    name: str
    op: str
    source: str
    dtype: str
    interval: tuple[int, int]
    seen: tuple[int, int]
    saturated: float
    differences: int
    largest: int
    sqnr_db: float | None = None
    cosine: float | None = None

    def summary(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "interval": [*self.interval], "seen": [*self.seen]}


def check_nodes(
    graph: Graph, target: str, feeds: Mapping[str, Array], model: str | Path | None = None
) -> list[NodeCheck]:
    """Every node's value on ``feeds``, in order of computation."""
    raw = {name: quantize_feed(graph.values[name], np.asarray(feeds[name])) for name in graph.inputs}
    exact: dict[str, Array] = {}
    graph.run(raw, lambda value, array: exact.__setitem__(value.name, array))
    every = tuple(node.output for node in graph.nodes)
    bare = {name: replace(value, scale=None) for name, value in graph.values.items()}  # integers are compared
    open_graph = replace(graph, values=bare, outputs=list(every), states={})
    from intc.codegen.lower import lower
    from intc.module import Module  # the compiler: verify itself runs without it

    session = Module(open_graph, open_graph, lower(open_graph, target), every).session()
    kernels = dict(zip(every, session.run(None, raw, raw=True), strict=True))
    checks = []
    for node in graph.nodes:
        value, want = graph.values[node.output], exact[node.output]
        checks.append(_check(value, node.op.name, node.source, want, kernels[node.output]))
    if model is not None:
        _compare_with_floats(graph, exact, feeds, model, {c.name: c for c in checks})
    return checks


def first_divergence(checks: list[NodeCheck]) -> str | None:
    """The first value in which a kernel differs from the reference."""
    return next((check.name for check in checks if check.differences), None)


def _check(value: Value, op: str, source: str, want: Array, got: Array) -> NodeCheck:
    lo, hi = value.type.interval
    wide = want.astype(object) if want.dtype == np.int64 else want.astype(np.int64)
    apart = np.abs(got.astype(wide.dtype) - wide)
    ends = (want == lo) & (lo != 0) | (
        want == hi
    )  # zero is where a ReLU or a probability rests, not where it clips
    counted = want.size and value.type.dtype != "bool"
    return NodeCheck(
        value.name,
        op,
        source,
        value.type.dtype,
        (lo, hi),
        (int(want.min()), int(want.max())) if want.size else (0, 0),
        float(np.mean(ends)) if counted else 0.0,
        int(np.count_nonzero(got != want)),
        int(apart.max()) if want.size else 0,
    )


def _compare_with_floats(
    graph: Graph,
    exact: Mapping[str, Array],
    feeds: Mapping[str, Array],
    model: str | Path,
    checks: Mapping[str, NodeCheck],
) -> None:
    """Fill in the distance from the float values of the same names."""
    source = pipeline.canonicalise(import_onnx(Path(model))).graph
    producers = graph.producers()
    balanced = _balanced(graph)
    pairs = {
        name: real
        for name, real in matches(source, graph).items()
        if name in checks and name not in balanced and not has_row_sums(producers.get(name))
    }
    floats: dict[str, Array] = {}
    wanted = set(pairs.values())

    def observe(value: Value, array: Array) -> None:
        if value.name in wanted:
            floats[value.name] = array

    source.run(
        {name: quantize_feed(source.values[name], np.asarray(feeds[name])) for name in source.inputs}, observe
    )
    for name, real in pairs.items():
        found = fidelity(dequantize(graph.values[name], exact[name]), floats[real])
        checks[name].cosine = found["cosine_mean"]
        checks[name].sqnr_db = found["sqnr_db"] if np.isfinite(found["sqnr_db"]) else None


def _balanced(graph: Graph) -> set[str]:
    """Values whose channels may have been multiplied to equal ranges before calibration: operands and results
    of computed products, and what is moved or rescaled into the first and from the second.
    """
    producers, found = graph.producers(), set[str]()
    todo: list[str] = []
    for node in graph.nodes:
        computed = isinstance(node.op, MatMul) and not set(node.inputs) & set(graph.constants)
        if isinstance(node.op, Attention) or computed:
            todo += node.inputs[:3]
            found.add(node.output)
        elif isinstance(node.op, FOLLOWING) and found.intersection(node.inputs):
            found.add(node.output)
    while todo:
        name = todo.pop()
        found.add(name)
        if name in producers and isinstance(producers[name].op, MOVEMENT):
            todo += producers[name].inputs
    return found
