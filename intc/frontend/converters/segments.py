"""Sums, maxima and minima of the rows that go to one place: scatter_add, index_add, scatter_reduce.

Which rows go where is a matrix of zeros and ones, computed from the places; sums are its product with the
rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intc.frontend.call import Call
from intc.frontend.converters.movement import reshape_to
from intc.frontend.symbolic import Imported, Index, Splat
from intc.ir.dims import Dim, Shape, product
from intc.ops.elementwise import Add, Cast, Max, Min, Mul, Where
from intc.ops.logic import Equal, Or
from intc.ops.matmul import MatMul
from intc.ops.movement import Expand
from intc.ops.reduce import ReduceMax, ReduceSum

FAR = 1e8  # beyond all rows: what a minimum starts with


@dataclass(frozen=True)
class Emptied:
    """``data`` less the entries that ``index`` names, which a maximum or minimum that follows leaves out."""

    data: Imported
    index: Imported
    shape: Shape


def emptied(call: Call, reduction: str) -> Emptied | None:
    """The result where the rows are infinite, as exporters write ``include_self=False``."""
    data, index, rows = call.inputs
    sign = {"max": 1, "min": -1}.get(reduction, 0)
    if not sign or not isinstance(rows, Splat) or not sign * rows.value > FAR:
        return None
    return Emptied(data, index, call.ctx.shape_of(data))


def reduced(call: Call, reduction: str, axis: int) -> str:
    """``data`` [A, N, F] with the rows [A, E, F] added (or maximised) at places [A, E, F] along ``axis``, of
    which A is all axes before and F all axes behind it.
    """
    given, index, rows = call.inputs[0], call.x(1), call.x(2)
    replaces = isinstance(given, Emptied)
    if isinstance(given, Emptied):
        call.refuse(given.index is not call.inputs[1], "other entries are left out than are written")
        given = given.data
    data = call.ctx.live(given, f"{call.node.output[0]}.data")
    places = _unrepeated(call, index)
    lead, tail = call.shape(data)[:axis], call.shape(data)[axis + 1 :]
    size, count = call.shape(data)[axis], call.shape(rows)[axis]
    alike = all(d == 1 for d in call.shape(places)[axis + 1 :])
    if reduction == "add" and alike and (lead or tail) and call.dtype(rows) == "float32":
        matrix = _matrix(call, reshape_to(call, places, (*call.shape(places)[:axis], 1, count), True), size)
        matrix = call.emit(Cast("float32"), matrix, last=False)
        flat = reshape_to(call, rows, (*lead, count, product(tail)), True)
        total = call.emit(MatMul(), matrix, flat, last=False)
        return _with(call, given, data, reshape_to(call, total, (*lead, size, *tail), True))
    behind = call.shape(places)[axis + 1 :]
    at = reshape_to(call, places, (*call.shape(places)[:axis], 1, count, *behind), True)
    here = _matrix(call, at, size, len(tail))
    rows = reshape_to(call, rows, (*lead, 1, count, *tail), True)
    if reduction == "add":
        nothing = call.ctx.builder.constant(f"{call.node.output[0]}.zero", np.zeros(1, call.dtype(rows)))
        kept = call.emit(Where(), here, rows, nothing, last=False)
        return _with(call, given, data, call.emit(ReduceSum((axis + 1,), False), kept, last=False))
    call.refuse(call.dtype(rows) != "float32", "maxima of integers at computed places are not supported")
    sign = 1 if reduction == "max" else -1
    alone = replaces or (isinstance(given, Splat) and sign * given.value <= -FAR)
    return _extreme(call, sign, None if alone else data, data, here, rows, axis)


def _extreme(call: Call, sign: int, data: str | None, rest: str, here: str, rows: str, axis: int) -> str:
    """The largest (smallest, of a ``sign`` of -1) of ``data``, if any, and of its rows; ``rest`` where it has
    none. Rows that go elsewhere count as the smallest of all.
    """
    minus = call.ctx.builder.constant("minus", np.full(1, -1, np.float32))

    def largest(value: str, up: bool) -> str:
        value = value if up else call.emit(Mul(), value, minus, last=False)
        found = call.emit(ReduceMax((axis + 1,), True), value, last=False)
        return found if up else call.emit(Mul(), found, minus, last=False)

    kept = call.emit(Where(), here, rows, largest(rows, sign < 0), last=False)
    found = reshape_to(call, largest(kept, sign > 0), call.shape(rest), True)
    if data is not None:
        found = call.emit(Max() if sign > 0 else Min(), found, data, last=False)
    number = call.emit(Cast("int64"), here, last=False)
    some = call.emit(ReduceMax((axis + 1,), False), number, last=False)
    return call.emit(Where(), call.emit(Cast("bool"), some, last=False), found, rest)


def _matrix(call: Call, at: str, size: Dim, behind: int = 0) -> str:
    """Whether entry e [.., 1, E, ..] goes to place n: [.., N, E, ..], with ``behind`` axes behind E."""
    rank = len(call.shape(at))
    axis = rank - 2 - behind
    line = tuple(size if a == axis else 1 for a in range(rank))
    steps = tuple(int(a == axis) for a in range(rank))
    starts = [call.ctx.live(Index(line, steps, start), "positions") for start in (0, -size)]
    return call.emit(Or(), *(call.emit(Equal(), at, x, last=False) for x in starts), last=False)


def _with(call: Call, given: Imported, data: str, total: str) -> str:
    """``data`` plus ``total``."""
    value = given.value if isinstance(given, Splat) else given
    if isinstance(value, np.ndarray | np.generic) and not np.any(value):
        return reshape_to(call, total, call.shape(data), False)
    return call.emit(Add(), data, total)


def _unrepeated(call: Call, index: str) -> str:
    """The places before they were repeated along the axes of their rows, with ones there."""
    rank, value = len(call.shape(index)), index
    while (node := call.ctx.builder.producer(value)) is not None and isinstance(node.op, Expand):
        value = node.inputs[0]
    shape = call.shape(value)
    return reshape_to(call, value, ((1,) * (rank - len(shape)) + shape), True)
