"""What each choice costs: its kernel, timed on this machine.

All kernels are timed in turns, and the shortest time of each counts: it is the one that nothing else
disturbed. Where the target cannot run here, a product's cost is its multiply-accumulates at the target's rate
for each width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np

from intc.codegen.targets import Target, host_features
from intc.ir.dims import evaluate, evaluate_shape
from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array
from intc.ir.types import TensorType
from intc.ops.fused import Linear
from intc.passes.plan import Choice, Resolved, is_linear
from intc.planning.sensitivity import Probe, Unit

Tell: TypeAlias = Callable[[str], None]
Key: TypeAlias = tuple[Any, ...]  # rows, K, N, wide rows, weight bits; or operator, choice, shapes
ROUNDS: Final = 7
PAIRS_PER_BYTE_DOT: Final = 2.0  # a dot product of 16-bit pairs costs two of bytes
NARROW_PER_PAIRS: Final = 0.6  # one of bytes with sums of 16 bits costs less than one of 16-bit pairs
SECONDS_PER_MAC: Final = 1.0 / 80e9


def product_shape(graph: Graph, node: Node, choice: Choice, sizes: Mapping[str, int]) -> Key:
    """The shape of the kernel that computes ``node`` as ``choice`` says."""
    k, n = graph.constants[node.inputs[1]].shape
    lead = graph.type(node.inputs[0]).shape[:-1]
    rows = int(np.prod([evaluate(d, sizes) for d in lead], dtype=np.int64))
    plan = Resolved({node.output: choice}, choice)
    return rows, k, n, plan.activations(node, k) > 8, plan.weights(node)


def costs(probe: Probe, units: Sequence[Unit], target: Target, tell: Tell) -> list[list[float]]:
    """Seconds of every choice of every unit on the probe's batch.

    A softmax or GELU with more than one choice is timed by itself, not fused with its neighbours.
    """
    keys = [[[_key(probe, n, c) for n in u.nodes] for c in u.choices] for u in units]
    examples = {
        key: (node, choice)
        for unit, row in zip(units, keys, strict=True)
        for choice, cell in zip(unit.choices, row, strict=True)
        for node, key in zip(unit.nodes, cell, strict=True)
        if len(unit.choices) > 1
    }
    runnable = target.native and host_features().issuperset(target.features)
    times = timed(probe, examples, target, tell) if runnable else {k: modelled(k, target) for k in examples}
    return [[sum(times.get(key, 0.0) for key in cell) for cell in row] for row in keys]


def _key(probe: Probe, node: Node, choice: Choice) -> Key:
    """What the time of a node depends on."""
    if is_linear(probe.graph, node):
        return product_shape(probe.graph, node, choice, probe.env)
    shapes = (evaluate_shape(probe.graph.type(x).shape, probe.env) for x in (*node.inputs, node.output))
    return (node.op.name, choice, *shapes)


def modelled(key: Key, target: Target) -> float:
    """Seconds by the number of dot products: 16-bit rows cost twice where bytes have an instruction, 4-bit
    weights less than 8-bit ones where bytes have none.
    """
    if isinstance(key[0], str):
        return 0.0
    rows, k, n, wide, bits = key
    factor = PAIRS_PER_BYTE_DOT if wide and target.level in ("avx512-vnni", "cuda") else 1.0
    if bits == 4 and not wide and target.level in ("sse4", "avx2", "avx512"):
        factor = NARROW_PER_PAIRS
    return float(rows * k * n * SECONDS_PER_MAC * factor)


def timed(
    probe: Probe, examples: Mapping[Key, tuple[Node, Choice]], target: Target, tell: Tell
) -> dict[Key, float]:
    """The shortest of some runs of each kernel, in seconds."""
    runs: dict[Key, Callable[[], Any]] = {}
    for i, (key, (node, choice)) in enumerate(examples.items(), 1):
        tell(f"latency: kernel {i}/{len(examples)}")
        if isinstance(key[0], str):
            graph, _, feeds = probe.integer(node, choice)
            values = {name: replace(value, scale=None) for name, value in graph.values.items()}
            graph = replace(graph, values=values)  # only integers go in and out
        else:
            graph = linear_graph(key)
            wide = graph.type("x").dtype
            feeds = {"x": np.random.default_rng(0).integers(-99, 99, key[:2]).astype(wide)}
        runs[key] = kernel_run(graph, feeds, target)
    best = dict.fromkeys(runs, np.inf)
    for _ in range(ROUNDS):
        for key, run in runs.items():
            start = time.perf_counter()
            run()
            best[key] = min(best[key], time.perf_counter() - start)
    return best


def kernel_run(graph: Graph, feeds: Mapping[str, Array], target: Target) -> Callable[[], Any]:
    """A call of the compiled ``graph`` on these integers."""
    from intc.codegen.lower import lower
    from intc.module import Module

    session = Module(graph, graph, lower(graph, target), tuple(graph.outputs)).session()
    session.run(None, feeds, raw=True)
    return lambda: session.run(None, feeds, raw=True)


def linear_graph(shape: Key) -> Graph:
    """One requantised product of that shape."""
    rows, k, n, wide, bits = shape
    rng = np.random.default_rng(k * n)
    limit = 2 ** (bits - 1) - 1
    weights: Array = rng.integers(-limit, limit + 1, (k, n)).astype(np.int8)
    weights[0, 0] = limit
    b = Builder("linear")
    x = b.input("x", TensorType((rows, k), "int16" if wide else "int8", -127, 127))
    w = b.constant("w", weights)
    bias, m = b.constant("bias", np.zeros(n, np.int32)), b.constant("m", np.full(n, 2**30, np.int32))
    e = b.constant("e", np.full(n, 40, np.int32))
    b.output(b.emit(Linear(-127, 127, "int8"), x, w, bias, m, e, name="y"))
    return b.finish()
