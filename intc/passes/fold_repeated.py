"""Phase 5: what is the same for every sample is computed while compiling, and repeated afterwards.

``f(repeat(a), c) = repeat(f(a, c))`` for element-wise f, where ``repeat`` is an ``expand`` of a constant
along its first axis, reshaped or not (masks of shifted windows), and c a constant with one entry along it.
"""

from __future__ import annotations

from dataclasses import dataclass

from intc.ir.dims import Shape, exact_div, product
from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Array
from intc.ops.elementwise import Add, Max, Min, Mul, Sub
from intc.ops.movement import Expand, Reshape
from intc.ops.requantize import Clip, Requantize

ELEMENTWISE = (Requantize, Clip, Add, Sub, Mul, Max, Min)


@dataclass(frozen=True)
class FoldRepeated:
    """Constants of more than ``limit`` elements are not made."""

    limit: int = 2**22
    name: str = "fold_repeated"

    def run(self, graph: Graph) -> Graph:
        periods: dict[str, Array] = {}  # value: the array that it repeats along axis 0

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            shape = graph.type(node.output).shape
            period = _period(b.graph, node, inputs, shape, periods)
            if period is None or period.size > self.limit:
                return None
            value = _repeated(graph, b, node, period) if isinstance(node.op, ELEMENTWISE) else None
            periods[node.output if value is None else value] = period
            return value

        return rebuild(graph, visit)


def _period(
    built: Graph, node: Node, inputs: tuple[str, ...], shape: Shape, periods: dict[str, Array]
) -> Array | None:
    op, constants = node.op, built.constants
    if isinstance(op, Expand):
        one = constants.get(inputs[0])
        return one if one is not None and one.shape == (1, *shape[1:]) else None
    if isinstance(op, Reshape):
        period, row = periods.get(inputs[0]), product(shape[1:])
        if period is None or not isinstance(row, int) or not row or period.size % row:
            return None
        return period.reshape(-1, *shape[1:])
    operands = [periods[x] if x in periods else constants.get(x) for x in inputs]
    lengths = {len(periods[x]) for x in inputs if x in periods}
    if not isinstance(op, ELEMENTWISE) or len(lengths) != 1:
        return None
    for x, array in zip(inputs, operands, strict=True):
        if array is None or array.ndim > len(shape):
            return None
        whole = array.ndim == len(shape)
        if not whole if x in periods else whole and array.shape[0] != 1:
            return None
    return op.evaluate(*(array for array in operands if array is not None), sizes={})


def _repeated(graph: Graph, b: Builder, node: Node, period: Array) -> str:
    """``period`` again and again, of the shape of the node's output."""
    shape = graph.type(node.output).shape
    times = exact_div(shape[0], len(period))
    constant = b.constant(f"{node.output}.period", period[None])
    expanded = b.emit(
        Expand((times, *period.shape)), constant, name=f"{node.output}.expanded", source=node.source
    )
    scale = graph.values[node.output].scale
    return b.emit(Reshape(shape), expanded, name=node.output, source=node.source, scale=scale)
