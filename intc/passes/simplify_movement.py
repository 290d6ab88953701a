"""Data movement that undoes itself disappears.

``reshape(reshape(x)) = reshape(x)``; ``transpose(transpose(x, p), q) = transpose(x, p[q])``; identity
reshapes and transposes are their input; a reshape that only splits, or only merges, axes of a transposed
reshape joins the latter; ``transpose(reshape(transpose(x)))`` is one reshape where the
transposes cancel (channels-first feature maps flattened to token rows, or back);
``reshape(transpose(reshape(x)))`` is one transpose where the reshapes only merge and split axes that stay
together (keys transposed as [batch*heads, S, D]). A part of a join that is cut out again is that part.
What is moved twice in the same way is moved once.
"""

from __future__ import annotations

from dataclasses import dataclass

from intc.ir.dims import Dim
from intc.ir.graph import Builder, Graph, Node, Scale, copy_node, rebuild
from intc.ir.op import Op
from intc.ops.movement import Concat, Expand, Reshape, Slice, Transpose
from intc.passes.axes import reshaped_first, through, unmerged


@dataclass(frozen=True)
class SimplifyMovement:
    name: str = "simplify_movement"

    def run(self, graph: Graph) -> Graph:
        done: dict[tuple[Op, tuple[str, ...]], str] = {}

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            if not isinstance(node.op, (Reshape, Transpose, Slice, Concat, Expand)):
                return None
            if (node.op, inputs) not in done:
                done[node.op, inputs] = _simplified(graph, b, node, inputs)
            return done[node.op, inputs]

        return rebuild(graph, visit)


def _simplified(graph: Graph, b: Builder, node: Node, inputs: tuple[str, ...]) -> str:
    scale = graph.values[node.output].scale
    if isinstance(node.op, Reshape):
        return _reshape(b, node, inputs[0], scale)
    if isinstance(node.op, Transpose):
        return _transpose(b, node, inputs[0], scale)
    part = _part(b, node.op, inputs[0]) if isinstance(node.op, Slice) and scale is None else None
    return part if part is not None else copy_node(graph, b, node, inputs)


def _part(b: Builder, op: Slice, x: str) -> str | None:
    """The part of the join ``x`` that ``op`` cuts out again, if it is one."""
    join = b.producer(x)
    if join is None or not isinstance(join.op, Concat) or (join.op.axis, 1) != (op.axis, op.step):
        return None
    start: Dim = 0
    for part in join.inputs:
        stop = start + b.graph.type(part).shape[op.axis]
        if (start, stop) == (op.start, op.stop):
            return part
        start = stop
    return None


def _reshape(b: Builder, node: Node, x: str, scale: Scale) -> str:
    assert isinstance(node.op, Reshape)
    inner = b.producer(x)
    if inner is not None and isinstance(inner.op, Reshape):
        x = inner.inputs[0]
    shape = tuple(node.op.shape)
    if b.graph.type(x).shape == shape:
        return x
    inner = b.producer(x)
    split = b.producer(inner.inputs[0]) if inner is not None and isinstance(inner.op, Transpose) else None
    if (
        inner is not None
        and isinstance(inner.op, Transpose)
        and split is not None
        and isinstance(split.op, Reshape)
    ):
        base = split.inputs[0]
        perm = unmerged(
            b.graph.type(base).shape, b.graph.type(split.output).shape, tuple(inner.op.perm), shape
        )
        if perm is not None:
            before = b.producer(base)
            if before is not None and isinstance(before.op, Transpose):
                base, perm = before.inputs[0], tuple(before.op.perm[i] for i in perm)
            return b.emit(Transpose(perm), base, name=node.output, source=node.source, scale=scale)
        first = reshaped_first(tuple(inner.op.perm), b.graph.type(x).shape, shape)
        if first is not None:
            early = b.emit(Reshape(first[0]), base, name=f"{node.output}.split", scale=scale)
            return b.emit(Transpose(first[1]), early, name=node.output, source=node.source, scale=scale)
    return b.emit(Reshape(shape), x, name=node.output, source=node.source, scale=scale)


def _transpose(b: Builder, node: Node, x: str, scale: Scale) -> str:
    assert isinstance(node.op, Transpose)
    perm = tuple(node.op.perm)
    inner = b.producer(x)
    if inner is not None and isinstance(inner.op, Transpose):
        x, perm = inner.inputs[0], tuple(inner.op.perm[i] for i in perm)
        inner = b.producer(x)
    if perm == tuple(range(len(perm))):
        return x
    if inner is not None and isinstance(inner.op, Reshape):
        source = b.producer(inner.inputs[0])
        if source is not None and isinstance(source.op, Transpose):
            regrouped = through(
                tuple(source.op.perm), b.graph.type(source.output).shape, b.graph.type(x).shape, perm
            )
            if regrouped is not None:
                base = source.inputs[0]
                if b.graph.type(base).shape == regrouped:
                    return base
                return b.emit(Reshape(regrouped), base, name=node.output, source=node.source, scale=scale)
    return b.emit(Transpose(perm), x, name=node.output, source=node.source, scale=scale)
