"""The typed SSA graph that every stage works on, float and integer alike.

A graph is a list of nodes in topological order; each node has one operator and one output; values are named
and typed. Graphs are built through :class:`Builder` and treated as immutable afterwards: a pass walks one
graph and builds the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np

from intc.errors import FeedError, GraphError, beyond_limit
from intc.ir import dims
from intc.ir.op import Array, Op
from intc.ir.spool import spooled, trim
from intc.ir.types import TensorType, type_of_array

Scale: TypeAlias = float | tuple[float, ...] | None


@dataclass(frozen=True)
class Value:
    """A named tensor. ``scale``: real = integer * scale (a float, or one float per index of the last
    axis). ``lowest``: of an output, the number that the least integer of its interval stands for instead.
    """

    name: str
    type: TensorType
    scale: Scale = None
    lowest: float | None = None


@dataclass(frozen=True)
class Node:
    """One application of ``op``; ``source`` names the ONNX node it comes from."""

    op: Op
    inputs: tuple[str, ...]
    output: str
    source: str = ""


@dataclass
class Graph:
    """``inputs`` and ``outputs`` are value names; ``constants`` maps value names to arrays.

    ``states`` maps an input that a decoder carries from run to run to the index of the output that continues
    it.
    """

    name: str
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)
    constants: dict[str, Array] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)

    def type(self, name: str) -> TensorType:
        return self.values[name].type

    def producers(self) -> dict[str, Node]:
        """Each computed value's node."""
        return {node.output: node for node in self.nodes}

    def users(self) -> dict[str, list[Node]]:
        """Each value's consumers in order; a value used as a graph output only has an empty list."""
        out: dict[str, list[Node]] = {name: [] for name in self.values}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                out[name].append(node)
        return out

    def symbols(self) -> list[str]:
        """The symbols that the input shapes bind, in order."""
        return dims.symbols(d for name in self.inputs for d in self.type(name).shape)

    def limits(self) -> dict[dims.Dim, int]:
        """The largest value of each symbolic size that some operator or proof puts a bound on."""
        out: dict[dims.Dim, int] = {dims.symbol(name): dims.SYMBOL_MAX for name in self.symbols()}
        for node in self.nodes:
            for size, largest in node.op.limits(*(self.type(x) for x in node.inputs)):
                out[size] = min(largest, out.get(size, largest))
        return out

    def bind(self, feeds: Mapping[str, Array]) -> dict[str, int]:
        """The size of every symbol, solved from the shapes of ``feeds``; FeedError names the input that
        disagrees.
        """
        env: dict[str, int] = {}
        for name in self.inputs:
            if name not in feeds:
                raise FeedError(f"input '{name}' is missing; the model takes {', '.join(self.inputs)}")
            want, got = self.type(name).shape, feeds[name].shape
            expected = dims.format_shape(want)
            if len(want) != len(got):
                raise FeedError(f"input '{name}' has shape {list(got)}, expected {expected}")
            for dim, size in zip(want, got, strict=True):
                if isinstance(dim, int):
                    if dim != size:
                        raise FeedError(f"input '{name}' has shape {list(got)}, expected {expected}")
                elif (found := dims.multiple(dim)) is not None:
                    factor, free = found
                    if size % factor:
                        raise FeedError(f"input '{name}' has shape {list(got)}, expected {expected}")
                    if env.setdefault(free, size // factor) * factor != size:
                        raise FeedError(
                            f"input '{name}' has shape {list(got)}: {free} is {env[free]} elsewhere"
                        )
        if unknown := set(self.symbols()) - set(env):
            raise FeedError(f"no input has the size {', '.join(sorted(unknown))} for itself")
        for name in self.inputs:  # sizes such as past + sequence
            sizes = dims.evaluate_shape(self.type(name).shape, env)
            if sizes != feeds[name].shape:
                shape = dims.format_shape(self.type(name).shape)
                raise FeedError(
                    f"input '{name}' has shape {list(feeds[name].shape)}, expected {shape}: {sizes}"
                )
        for size, largest in self.limits().items():
            if dims.evaluate(size, env) > largest:
                raise FeedError(beyond_limit(size, dims.evaluate(size, env), largest))
        return env

    def run(
        self, feeds: Mapping[str, Array], observe: Callable[[Value, Array], None] | None = None
    ) -> dict[str, Array]:
        """Evaluate on raw feeds (of the input's own element type); returns outputs by name.

        ``observe`` is called with every input and every node's result; values are freed after their last use.
        """
        env = self.bind(feeds)
        last = {name: i for i, node in enumerate(self.nodes) for name in node.inputs}
        live: dict[str, Array] = dict(self.constants)
        for name in self.inputs:
            live[name] = np.asarray(feeds[name])
            if observe:
                observe(self.values[name], live[name])
        for i, node in enumerate(self.nodes):
            try:
                result = node.op.evaluate(*(live[x] for x in node.inputs), sizes=env)
            except IndexError as error:
                where = f"node '{node.source or node.output}' ({node.op.name})"
                raise FeedError(f"{where}: the data have an index out of bounds ({error})") from None
            live[node.output] = result
            trim()
            if observe:
                observe(self.values[node.output], result)
            for name in node.inputs:
                if last[name] == i and name not in self.outputs and name not in self.constants:
                    live.pop(name, None)
        return {name: live[name] for name in self.outputs}

    def evaluate(self, feeds: Mapping[str, Array]) -> list[Array]:
        """The exact reference: float feeds are quantised at the inputs' scales, integer outputs dequantised.

        Feeds that already have the input's integer type pass through; outputs come in graph order.
        """
        raw = {
            name: quantize_feed(self.values[name], np.asarray(feeds[name]))
            for name in self.inputs
            if name in feeds
        }
        results = self.run(raw)
        return [dequantize(self.values[name], results[name]) for name in self.outputs]

    def __str__(self) -> str:
        from intc.ir.text import print_graph

        return print_graph(self)

    def _repr_html_(self) -> str:
        from intc.ir.display import graph_html

        return graph_html(self)


def quantize_feed(value: Value, array: Array) -> Array:
    """``array`` as the integers that ``value`` holds: round half to even of array / scale, saturated."""
    if value.type.is_float:
        return np.asarray(array, np.float32)
    if array.dtype.kind != "f" or value.scale is None:
        lo, hi = value.type.interval
        if array.size and (int(array.min()) < lo or int(array.max()) > hi):
            raise FeedError(f"input '{value.name}' holds values outside [{lo}, {hi}]")
        return np.asarray(array, value.type.dtype)
    lo, hi = value.type.interval
    scaled = np.rint(array.astype(np.float32) * np.float32(1.0 / float(np.asarray(value.scale))))
    return np.asarray(np.clip(scaled, lo, hi), value.type.dtype)


def dequantize(value: Value, array: Array) -> Array:
    """Integers of ``value`` as float32 (array * scale, ``lowest`` for the least); unchanged where it has no
    scale.
    """
    if value.scale is None or value.type.is_float:
        return array
    reals = np.asarray(array.astype(np.float64) * np.asarray(value.scale), np.float32)
    if value.lowest is not None:
        reals = np.where(array == value.type.interval[0], np.float32(value.lowest), reals)
    return reals


class Builder:
    """Builds a graph node by node; types and intervals are inferred as nodes are emitted."""

    def __init__(self, name: str, states: Mapping[str, int] | None = None) -> None:
        self.graph = Graph(name, states=dict(states or {}))
        self._producers: dict[str, Node] = {}

    def fresh(self, stem: str) -> str:
        """A value name that is not taken yet, equal to ``stem`` where possible."""
        stem = "".join(c if c.isalnum() or c in "_./:-" else "_" for c in stem) or "v"
        name, n = stem, 1
        while name in self.graph.values:
            name, n = f"{stem}.{n}", n + 1
        return name

    def producer(self, name: str) -> Node | None:
        """The node emitted so far that computes ``name``."""
        return self._producers.get(name)

    def input(self, name: str, type_: TensorType, scale: float | None = None) -> str:
        self._define(Value(name, type_, scale))
        self.graph.inputs.append(name)
        return name

    def constant(self, stem: str, array: Array, scale: Scale = None) -> str:
        array = spooled(np.ascontiguousarray(array))
        name = self.fresh(stem)
        self._define(Value(name, type_of_array(array), scale))
        self.graph.constants[name] = array
        return name

    def emit(
        self,
        op: Op,
        *inputs: str,
        name: str = "",
        source: str = "",
        scale: Scale = None,
    ) -> str:
        """Append ``op`` on ``inputs`` and return the output's name (``name`` where it is free)."""
        if len(inputs) not in op.arity:
            raise GraphError(f"{op.name} takes {' or '.join(map(str, op.arity))} inputs, not {len(inputs)}")
        try:
            type_ = op.infer(*(self.graph.type(x) for x in inputs))
        except GraphError as error:
            raise type(error)(f"node '{source or name or op.name}' ({op.name}): {error}") from None
        output = self.fresh(name or op.name)
        self._define(Value(output, type_, scale))
        node = self._producers[output] = Node(op, tuple(inputs), output, source)
        self.graph.nodes.append(node)
        return output

    def output(self, name: str, lowest: float | None = None) -> None:
        self.graph.outputs.append(name)
        if lowest is not None:
            self.graph.values[name] = replace(self.graph.values[name], lowest=lowest)

    def finish(self) -> Graph:
        """The graph without the nodes and constants that no output needs."""
        return prune(self.graph)

    def _define(self, value: Value) -> None:
        if value.name in self.graph.values:
            raise GraphError(f"value '{value.name}' is defined twice")
        self.graph.values[value.name] = value


Visit = Callable[[Builder, Node, tuple[str, ...]], str | None]


def rebuild(graph: Graph, visit: Visit) -> Graph:
    """A new graph: ``visit(builder, node, inputs)`` emits each node's replacement and returns its value.

    ``inputs`` are the node's inputs in the new graph. Returning ``None`` copies the node. Names of untouched
    values are kept; constants are copied on first use; what no output needs is dropped.
    """
    builder = Builder(graph.name, graph.states)
    names: dict[str, str] = {}
    for name in graph.inputs:
        value = graph.values[name]
        builder.graph.values[name] = value
        builder.graph.inputs.append(name)
        names[name] = name
    for name, array in graph.constants.items():
        builder.graph.values[name] = graph.values[name]
        builder.graph.constants[name] = array
        names[name] = name
    for node in graph.nodes:
        inputs = tuple(names[x] for x in node.inputs)
        result = visit(builder, node, inputs)
        names[node.output] = copy_node(graph, builder, node, inputs) if result is None else result
    for name in graph.outputs:
        builder.output(names[name], graph.values[name].lowest)
    return builder.finish()


def copy_node(graph: Graph, builder: Builder, node: Node, inputs: tuple[str, ...]) -> str:
    """Emit ``node`` of ``graph`` unchanged on ``inputs``, keeping its output's name and scale."""
    scale = graph.values[node.output].scale
    return builder.emit(node.op, *inputs, name=node.output, source=node.source, scale=scale)


def prune(graph: Graph) -> Graph:
    """``graph`` with only the nodes and constants that its outputs depend on; inputs always stay."""
    needed = set(graph.outputs)
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if node.output in needed:
            kept.append(node)
            needed.update(node.inputs)
    kept.reverse()
    names: Iterable[str] = (n for n in graph.values if n in needed or n in graph.inputs)
    return Graph(
        graph.name,
        list(graph.inputs),
        list(graph.outputs),
        kept,
        {n: graph.values[n] for n in names},
        {n: a for n, a in graph.constants.items() if n in needed},
        graph.states,
    )
