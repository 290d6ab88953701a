"""Operators with graphs inside, whose nodes are imported in their place: the branch that a known condition
takes, the body for each tensor of a list, and for each of a known number of rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import onnx

from intc.errors import GraphError, IntcError
from intc.frontend.load import decode
from intc.frontend.symbolic import Imported, Items, is_symbolic

if TYPE_CHECKING:
    from intc.frontend.importer import Importer

LOOPED = 2**14  # nodes that a loop may become


def _results(ctx: Importer, graph: onnx.GraphProto) -> list[Imported] | None:
    """The outputs of ``graph``, whose inputs are known by name; None where a node was refused."""
    ctx.env.update((tensor.name, decode(tensor, ctx.source)) for tensor in graph.initializer)
    for inner in graph.node:
        ctx.convert(inner)
    if any(output.name in ctx.failed for output in graph.output):
        return None
    return [ctx.env[output.name] for output in graph.output]


def _branch(ctx: Importer, node: onnx.NodeProto) -> bool:
    condition = ctx.env.get(node.input[0])
    if not isinstance(condition, np.ndarray):
        return False
    taken = "then_branch" if condition.all() else "else_branch"
    graph = next(a.g for a in node.attribute if a.name == taken)
    _results(ctx, graph)
    for name, output in zip(node.output, graph.output, strict=True):
        if output.name in ctx.failed:
            ctx.failed.add(name)
        else:
            ctx.env[name] = ctx.env[output.name]
    return True


def _map(ctx: Importer, node: onnx.NodeProto) -> bool:
    graph, given = node.attribute[0].g, [ctx.env.get(x) for x in node.input]
    if not isinstance(given[0], Items):
        return False
    rows: list[list[Imported]] = []
    for i in range(len(given[0].values)):
        for info, value in zip(graph.input, given, strict=True):
            ctx.env[info.name] = value.values[i] if isinstance(value, Items) else value
        found = _results(ctx, graph)
        if found is None:
            ctx.failed.update(node.output)
            return True
        rows.append(found)
    for name, column in zip(node.output, zip(*rows, strict=True), strict=True):
        ctx.env[name] = Items(column)
    return True


def _rounds(ctx: Importer, node: onnx.NodeProto) -> int | None:
    """How often a Loop runs, where that is known and not too much."""
    count, start = (ctx.env.get(x) if x else None for x in node.input[:2])
    if not isinstance(count, np.ndarray) or count.size != 1 or is_symbolic(count):
        return None
    if node.input[1] and not isinstance(start, np.ndarray):
        return None
    rounds = int(count.item()) if start is None or np.all(start) else 0
    return rounds if 0 < rounds * len(node.attribute[0].g.node) <= LOOPED else None


def _loop(ctx: Importer, node: onnx.NodeProto) -> bool:
    """The rounds one by one, where their number is known and none is refused; else they must not depend on
    one another (:mod:`intc.frontend.loops`).
    """
    if (count := _rounds(ctx, node)) is None or not ctx.failed.isdisjoint(node.input):
        return False
    problems, failed = [*ctx.problems], {*ctx.failed}
    try:
        results = _in_turn(ctx, node, count)
    except GraphError as error:
        ctx.refuse(node, node.name, str(error))
        return True
    if results is None:
        ctx.problems, ctx.failed = problems, failed
        return False
    ctx.env.update(zip(node.output, results, strict=False))
    return True


def _in_turn(ctx: Importer, node: onnx.NodeProto, count: int) -> list[Imported] | None:
    """The body for each round, as long as its condition is known to hold; what rounds give is stacked. None
    where a node was refused.
    """
    graph = node.attribute[0].g
    state: list[Imported] = [ctx.env.get(x) for x in node.input[2:]]
    rows: list[list[Imported]] = []
    for i in range(count):
        given = [np.asarray(i), np.asarray(True), *state]
        ctx.env.update(zip((info.name for info in graph.input), given, strict=True))
        found = _results(ctx, graph)
        if found is None:
            return None
        goes_on, *values = found
        if not isinstance(goes_on, np.ndarray):
            raise GraphError("how often a loop runs depends on input values")
        state = values[: len(state)]
        rows.append(values[len(state) :])
        if not goes_on.all():
            break
    try:
        columns = [_stacked(ctx, column) for column in map(list, zip(*rows, strict=True))]
    except IntcError:
        return None
    return [*state, *columns]


def _stacked(ctx: Importer, parts: list[Imported]) -> Imported:
    """``parts`` along a new first axis."""
    rows = []
    for part in parts:
        unsqueeze = onnx.helper.make_node("Unsqueeze", ["part", "axes"], ["row"])
        rows += ctx.results(unsqueeze, [part, np.zeros(1, np.int64)], {}, "Loop")
    concat = onnx.helper.make_node("Concat", [f"row{i}" for i in range(len(rows))], ["rows"], axis=0)
    return ctx.results(concat, rows, {"axis": 0}, "Loop")[0]


INNER: dict[str, Callable[[Importer, onnx.NodeProto], bool]] = {
    "If": _branch,
    "SequenceMap": _map,
    "Loop": _loop,
}
