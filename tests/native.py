"""Runs lowered graphs in the tests, with canaries around everything that kernels write."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tvm_ffi

from intc.codegen.lower import Lowered, lower
from intc.ir.dims import evaluate_shape
from intc.ir.graph import Builder, Graph
from intc.ir.op import Array, Op
from intc.ir.types import TensorType

CANARY = 64


class Memory:
    """Aligned bytes followed by a canary."""

    def __init__(self, size: int, fill: int = 0xA5) -> None:
        self.size = size
        raw = np.full(size + CANARY + 64, fill, np.uint8)
        start = -raw.ctypes.data % 64
        self.all = raw[start : start + size + CANARY]
        self.canary = self.all[size:].copy()

    @property
    def data(self) -> Array:
        return self.all[: self.size]

    def pointer(self) -> ctypes.c_void_p:
        return ctypes.c_void_p(self.all.ctypes.data)

    def check(self) -> None:
        assert np.array_equal(self.all[self.size :], self.canary), "a kernel wrote beyond its memory"


class Native:
    """A lowered graph in this process."""

    def __init__(self, graph: Graph, lowered: Lowered) -> None:
        self.graph, self.lowered = graph, lowered
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "kernels.so"
            path.write_bytes(lowered.library)
            self.module = tvm_ffi.load_module(str(path))
        blob = lowered.blob()
        self.constants = Memory(blob.size)
        self.constants.data[:] = blob

    def run(self, feeds: Mapping[str, Array], tasks: int = 1) -> dict[str, Array]:
        """Outputs by name; asserts that nothing beyond outputs and arena was written."""
        sizes = self.graph.bind(feeds)
        arena = Memory(self.lowered.arena_bytes(sizes, tasks))
        inputs, outputs = [], {}
        for name in self.lowered.inputs:
            memory = Memory(feeds[name].nbytes)
            memory.data[:] = np.ascontiguousarray(feeds[name]).reshape(-1).view(np.uint8)
            inputs.append(memory)
        for name in self.lowered.outputs:
            type_ = self.graph.type(name)
            count = int(np.prod(evaluate_shape(type_.shape, sizes)))
            outputs[name] = Memory(count * np.dtype(type_.dtype).itemsize, 0x5A)
        memories = [self.constants, arena, *inputs, *outputs.values()]
        before = [np.array(m.data) for m in (self.constants, *inputs)]
        symbols = [sizes[s] for s in self.lowered.symbols]
        self.module[self.lowered.entry](*(m.pointer() for m in memories), *symbols, tasks)
        for memory in memories:
            memory.check()
        for memory, old in zip((self.constants, *inputs), before, strict=True):
            assert np.array_equal(memory.data, old), "a kernel changed its input"
        result = {}
        for name, memory in outputs.items():
            type_ = self.graph.type(name)
            result[name] = memory.data.view(type_.dtype).reshape(evaluate_shape(type_.shape, sizes))
        return result


def random_feed(type_: TensorType, sizes: Mapping[str, int], rng: np.random.Generator) -> Array:
    """Values over the whole interval of ``type_``, its ends included."""
    lo, hi = type_.interval
    out = rng.integers(lo, hi, evaluate_shape(type_.shape, sizes), np.int64, endpoint=True)
    flat = out.reshape(-1)
    if flat.size > 2:
        flat[0], flat[flat.size // 2] = lo, hi
    return out.astype(type_.dtype)


def check_graph(
    graph: Graph,
    sizes: Mapping[str, int],
    target: Any = "native",
    tasks: Sequence[int] = (1, 2, 5),
    seed: int = 1,
) -> Lowered:
    """Lower ``graph`` and compare with ``graph.run`` on random feeds, for each number of tasks."""
    lowered = lower(graph, target)
    native = Native(graph, lowered)
    rng = np.random.default_rng(seed)
    feeds = {name: random_feed(graph.type(name), sizes, rng) for name in graph.inputs}
    expected = graph.run(feeds)
    for count in tasks:
        for name, got in native.run(feeds, count).items():
            want = expected[name]
            assert got.dtype == want.dtype, f"{name}: {got.dtype} instead of {want.dtype}"
            assert np.array_equal(got, want), (
                f"{name}: {np.sum(got != want)} of {got.size} differ with {count} tasks"
            )
    return lowered


def check_op(
    cases: Sequence[tuple[Op, Sequence[TensorType | Array], Mapping[str, int]]],
    check: Callable[[Graph, Mapping[str, int]], object] = check_graph,
) -> None:
    """Every operator alone in a graph; graphs of equal sizes are compiled together."""
    batches: dict[tuple[tuple[str, int], ...], list[tuple[Op, Sequence[TensorType | Array]]]] = {}
    for op, inputs, sizes in cases:
        batches.setdefault(tuple(sizes.items()), []).append((op, inputs))
    for sizes_key, ops in batches.items():
        builder = Builder("cases")
        # the symbols must be bound by some input even where an operator's inputs do not show them
        builder.input("sizes", TensorType(tuple(_symbols(dict(sizes_key))), "bool"))
        emit_side_by_side(builder, ops)
        check(builder.finish(), dict(sizes_key))


def emit_side_by_side(builder: Builder, ops: Iterable[tuple[Op, Sequence[TensorType | Array]]]) -> None:
    """Every operator with inputs of its own, of which those of one type are one, and an output."""
    known: dict[TensorType, str] = {}
    for number, (op, inputs) in enumerate(ops):
        names = []
        for i, item in enumerate(inputs):
            if isinstance(item, TensorType):
                if item not in known:
                    known[item] = builder.input(f"in{number}_{i}", item)
                names.append(known[item])
            else:
                names.append(builder.constant(f"const{number}_{i}", item))
        builder.output(builder.emit(op, *names, name=f"{number}:{op.name}"))


def _symbols(sizes: Mapping[str, int]) -> list[Any]:
    from intc.ir.dims import symbol

    return [symbol(s) for s in sizes]
