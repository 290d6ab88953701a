"""A small integer model with a float input, an index input and two outputs, for tests around the kernels."""

from __future__ import annotations

from functools import cache

import numpy as np

from intc.codegen.lower import lower
from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.module import Module
from intc.ops.elementwise import Add
from intc.ops.matmul import MatMul
from intc.ops.movement import Gather
from intc.ops.requantize import Requantize

FEATURES, ROWS, CLASSES = 24, 50, 10


def small_graph(least: int = -32768, lowest: float | None = None) -> Graph:
    """``logits = requantize(x @ w + table[ids])`` (per-tensor scale) and the raw sums (no scale).

    The ``least`` integer of the logits may stand for a ``lowest`` number.
    """
    rng = np.random.default_rng(7)
    b = Builder("small")
    batch = symbol("batch")
    x = b.input("x", TensorType((batch, FEATURES), "int8", -127, 127), scale=0.05)
    ids = b.input("ids", TensorType((batch,), "int64", 0, ROWS - 1))
    w = b.constant("w", rng.integers(-127, 128, (FEATURES, CLASSES)).astype(np.int8))
    table = b.constant("table", rng.integers(-9999, 10000, (ROWS, CLASSES)).astype(np.int32))
    acc = b.emit(MatMul(), x, w, name="acc", source="fc/MatMul")
    rows = b.emit(Gather(0), table, ids, name="rows", source="embed/Gather")
    total = b.emit(Add(), acc, rows, name="sums")
    m = b.constant("m", np.array([1 << 30], np.int32))
    e = b.constant("e", np.array([40], np.int32))
    logits = b.emit(Requantize(least, 32767, "int16"), total, m, e, name="logits", scale=0.001)
    b.output(logits, lowest)
    b.output(total)
    return b.finish()


@cache
def small_module() -> Module:
    """The graph compiled for this machine."""
    graph = small_graph()
    return Module(graph, graph, lower(graph, "native"), tuple(graph.outputs), {"model": "small.onnx"})


def small_feeds(batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Float features and indices."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 3, (batch, FEATURES)).astype(np.float32)
    return {"x": x, "ids": rng.integers(0, ROWS, batch)}
