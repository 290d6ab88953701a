"""Functions of integers that take few values: one table each, exact whatever is computed in between."""

from __future__ import annotations

import numpy as np

from intc.frontend.call import Call
from intc.frontend.converters.movement import reshape_to
from intc.frontend.row_wise import POINTWISE
from intc.ir.graph import Node
from intc.ops.elementwise import Cast, Sub
from intc.ops.movement import Gather, Reshape

FEW = 1024  # entries of a table


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
    if high - low >= FEW or all(isinstance(node.op, Cast | Reshape) for node, _ in chain):
        return None
    numbers = np.arange(low, high + 1, dtype=graph.type(value).dtype)
    for node, source in reversed(chain):
        if not isinstance(node.op, Reshape):
            given = (numbers if y == source else graph.constants[y] for y in node.inputs)
            numbers = np.asarray(node.op.evaluate(*given, sizes={}))
    if not np.isfinite(numbers).all() or np.abs(numbers).max() >= 2**31:
        return None
    name = call.node.output[0]
    first = call.ctx.builder.constant(f"{name}.first", np.array([low], graph.type(value).dtype))
    at = call.emit(Sub(), value, first, last=False) if low else value
    table = call.ctx.builder.constant(f"{name}.table", np.trunc(numbers).astype(np.int64))
    return reshape_to(call, call.emit(Gather(0), table, at, last=False), call.shape(x), True)
