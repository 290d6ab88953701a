"""Functions of integers that take few values: one table each, exact whatever is computed in between; where
any integer may come, and they grow with it, a count of the places where they step up.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from intc.frontend.call import Call
from intc.frontend.converters.movement import reshape_to
from intc.frontend.row_wise import POINTWISE
from intc.ir.graph import Graph, Node
from intc.ir.op import Array
from intc.ops.elementwise import (
    Add,
    Cast,
    Div,
    Exp,
    Floor,
    Log,
    Max,
    Min,
    Mul,
    Relu,
    Round,
    Sigmoid,
    Sqrt,
    Sub,
    Tanh,
)
from intc.ops.logic import LessOrEqual
from intc.ops.movement import Gather, Reshape
from intc.ops.reduce import ReduceSum

FEW = 1024  # entries of a table
STEPS = 256  # of a growing function
FAR = 2**61  # from zero; what lies beyond counts as this
GROWING = (Add, Cast, Exp, Floor, Log, Max, Min, Relu, Reshape, Round, Sigmoid, Sqrt, Tanh)


def of_few(call: Call, x: str) -> str | None:
    """The float ``x``, rounded towards zero, as int64 from a table; None where it is no function of one
    integer of few values, or nothing but that integer.
    """
    graph = call.ctx.builder.graph
    chain: list[tuple[Node, str]] = []
    value = x
    while graph.type(value).is_float:
        node = call.ctx.builder.producer(value)
        if node is None or not isinstance(node.op, (*POINTWISE, Reshape)):
            return None
        live = {y for y in node.inputs if y not in graph.constants}
        if len(live) != 1 or any(graph.constants[y].size != 1 for y in {*node.inputs} - live):
            return None
        value = live.pop()
        chain.append((node, value))
    low, high = graph.type(value).interval
    if all(isinstance(node.op, Cast | Reshape) for node, _ in chain):
        return None

    def function(numbers: Array) -> Array | None:
        for node, source in reversed(chain):
            if not isinstance(node.op, Reshape):
                given = (numbers if y == source else graph.constants[y] for y in node.inputs)
                numbers = np.asarray(node.op.evaluate(*given, sizes={}))
        good = np.isfinite(numbers).all() and np.abs(numbers).max() < 2**31
        return np.trunc(numbers).astype(np.int64) if good else None

    if high - low >= FEW:
        grows = all(_grows(graph, node, source) for node, source in chain)
        found = _steps(function, max(low, -FAR), min(high, FAR), graph.type(value).dtype) if grows else None
        return reshape_to(call, _counted(call, value, *found), call.shape(x), True) if found else None
    numbers = function(np.arange(low, high + 1, dtype=graph.type(value).dtype))
    if numbers is None:
        return None
    name = call.node.output[0]
    first = call.ctx.builder.constant(f"{name}.first", np.array([low], graph.type(value).dtype))
    at = call.emit(Sub(), value, first, last=False) if low else value
    table = call.ctx.builder.constant(f"{name}.table", numbers)
    return reshape_to(call, call.emit(Gather(0), table, at, last=False), call.shape(x), True)


def _grows(graph: Graph, node: Node, source: str) -> bool:
    """Whether ``node`` falls nowhere in its operand ``source``; the other one is one number."""
    if isinstance(node.op, Mul | Div):
        numbers = [graph.constants[x] for x in node.inputs if x != source]
        return bool(node.inputs[0] == source or isinstance(node.op, Mul)) and all(
            (n > 0).all() for n in numbers
        )
    return isinstance(node.op, GROWING) or (isinstance(node.op, Sub) and node.inputs[0] == source)


def _steps(
    function: Callable[[Array], Array | None], low: int, high: int, dtype: str
) -> tuple[int, Array] | None:
    """(its first value, the least integers at which it is 1, 2, .. more) of a growing function from ``low``
    to ``high``; None where those are many.
    """
    with np.errstate(all="ignore"):
        ends = function(np.array([low, high], dtype))
    if ends is None or not 0 < ends[1] - ends[0] <= STEPS:
        return None
    levels = ends[0] + 1 + np.arange(ends[1] - ends[0])
    below, above = (np.full(len(levels), end, dtype) for end in (low, high))
    while (above - below > 1).any():
        middle = below + (above - below) // 2
        reached = function(middle) >= levels
        below, above = np.where(reached, below, middle), np.where(reached, middle, above)
    return int(ends[0]), above


def _counted(call: Call, value: str, first: int, steps: Array) -> str:
    """``first`` and how many of ``steps`` the integers ``value`` reach."""
    name, shape = call.node.output[0], call.shape(value)
    column = reshape_to(call, value, (*shape, 1), True)
    reached = call.emit(LessOrEqual(), call.ctx.builder.constant(f"{name}.steps", steps), column, last=False)
    count = call.emit(
        ReduceSum((len(shape),), False), call.emit(Cast("int32"), reached, last=False), last=False
    )
    count = call.emit(Cast("int64"), count, last=False)
    base = call.ctx.builder.constant(f"{name}.first", np.array([first], np.int64))
    return call.emit(Add(), count, base, last=False)
