"""Transposes move behind element-wise operators, so that those of neighbouring convolutions meet and cancel.

``f(transpose(x)) = transpose(f(x))``; of two operands both are transposed alike, or one is a constant that
is transposed the other way; means over axes, pads and joins take the axes of the original. A reshape that
splits axes, or merges those that lie side by side in the original too, does so with the original.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Op
from intc.ops.fake_quantize import FakeQuantize
from intc.ops.gelu import Gelu
from intc.ops.movement import Concat, Pad, Reshape, Transpose
from intc.ops.pointwise import BINARY, UNARY, Pointwise
from intc.ops.reduce import ReduceMax, ReduceMean, ReduceSum
from intc.passes.axes import reshaped_first


@dataclass(frozen=True)
class SinkTransposes:
    name: str = "sink_transposes"

    def run(self, graph: Graph) -> Graph:
        moved: dict[str, tuple[str, tuple[int, ...]]] = {}  # value: (x, perm) with value = transpose(x, perm)

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            if isinstance(node.op, Transpose):
                source, perm = moved.get(inputs[0], (inputs[0], tuple(range(len(node.op.perm)))))
                whole = tuple(perm[p] for p in node.op.perm)
                if whole == tuple(range(len(whole))):
                    return source
                out = b.emit(Transpose(whole), source, name=node.output, source=node.source)
                moved[out] = (source, whole)
                return out
            found = _sunk(b, node, inputs, moved)
            if found is None:
                return None
            value, perm = found
            if perm == tuple(range(len(perm))):
                return value
            out = b.emit(Transpose(perm), value, name=node.output, source=node.source)
            moved[out] = (value, perm)
            return out

        return rebuild(graph, visit)


def _sunk(
    b: Builder, node: Node, inputs: tuple[str, ...], moved: dict[str, tuple[str, tuple[int, ...]]]
) -> tuple[str, tuple[int, ...]] | None:
    """(value, perm) with ``transpose(value, perm)`` what ``node`` computes, or None where it cannot sink."""
    perms = {moved[x][1] for x in inputs if x in moved}
    if len(perms) != 1:
        return None
    perm = perms.pop()

    def emit(op: Op, *operands: str) -> str:
        return b.emit(op, *operands, name=f"{node.output}.inner", source=node.source)

    op = node.op
    if isinstance(op, (*UNARY, Gelu, Pointwise, FakeQuantize)):
        return emit(op, moved[inputs[0]][0]), perm
    if isinstance(op, BINARY):
        operands = [_operand(b, x, perm, moved) for x in inputs]
        return None if None in operands else (emit(op, *(x for x in operands if x)), perm)
    if isinstance(op, Concat) and all(x in moved for x in inputs):
        return emit(Concat(perm[op.axis]), *(moved[x][0] for x in inputs)), perm
    if isinstance(op, Pad):
        before, after = ([0] * len(perm) for _ in range(2))
        for i, axis in enumerate(perm):
            before[axis], after[axis] = op.before[i], op.after[i]
        return emit(Pad(tuple(before), tuple(after)), moved[inputs[0]][0]), perm
    if isinstance(op, Reshape):
        first = reshaped_first(perm, b.graph.type(inputs[0]).shape, tuple(op.shape))
        return None if first is None else (emit(Reshape(first[0]), moved[inputs[0]][0]), first[1])
    if isinstance(op, ReduceMean | ReduceSum | ReduceMax):
        return _reduced(op, emit, moved[inputs[0]][0], perm)
    return None


def _operand(
    b: Builder, x: str, perm: tuple[int, ...], moved: dict[str, tuple[str, tuple[int, ...]]]
) -> str | None:
    """``x`` in the layout before the transpose."""
    if x in moved:
        return moved[x][0]
    constant = b.graph.constants.get(x)
    if constant is None or constant.ndim > len(perm):
        return None
    if constant.size == 1:
        return x
    full = constant.reshape((1,) * (len(perm) - constant.ndim) + constant.shape)
    back = np.ascontiguousarray(full.transpose(np.argsort(perm)))
    while back.ndim > 1 and back.shape[0] == 1:  # a vector along the last axis stays one
        back = back[0]
    return b.constant(f"{x}.moved", back)


def _reduced(
    op: ReduceMean | ReduceSum | ReduceMax, emit: Callable[..., str], x: str, perm: tuple[int, ...]
) -> tuple[str, tuple[int, ...]]:
    axes = tuple(sorted(perm[a % len(perm)] for a in op.axes))
    y = emit(type(op)(axes, op.keepdims), x)
    if op.keepdims:
        return y, perm
    kept = [p for p in perm if p not in axes]
    return y, tuple(sorted(kept).index(p) for p in kept)
