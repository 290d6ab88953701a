"""Data movement that undoes itself disappears.

``reshape(reshape(x)) = reshape(x)``; ``transpose(transpose(x, p), q) = transpose(x, p[q])``; identity
reshapes and transposes are their input; a reshape that only splits axes of a transposed reshape joins the
latter; ``transpose(reshape(transpose(x)))`` is one reshape where the
transposes cancel (channels-first feature maps flattened to token rows, or back);
``reshape(transpose(reshape(x)))`` is one transpose where the reshapes only merge and split axes that stay
together (keys transposed as [batch*heads, S, D]). What is moved twice in the same way is moved once.
"""

from __future__ import annotations

from dataclasses import dataclass

from intc.ir.dims import Shape, product
from intc.ir.graph import Builder, Graph, Node, Scale, copy_node, rebuild
from intc.ir.op import Op
from intc.ops.movement import Concat, Expand, Reshape, Slice, Transpose


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
    return copy_node(graph, b, node, inputs)


def _producer(b: Builder, name: str) -> Node | None:
    return next((n for n in reversed(b.graph.nodes) if n.output == name), None)


def _reshape(b: Builder, node: Node, x: str, scale: Scale) -> str:
    assert isinstance(node.op, Reshape)
    inner = _producer(b, x)
    if inner is not None and isinstance(inner.op, Reshape):
        x = inner.inputs[0]
    shape = tuple(node.op.shape)
    if b.graph.type(x).shape == shape:
        return x
    inner = _producer(b, x)
    split = _producer(b, inner.inputs[0]) if inner is not None and isinstance(inner.op, Transpose) else None
    if (
        inner is not None
        and isinstance(inner.op, Transpose)
        and split is not None
        and isinstance(split.op, Reshape)
    ):
        base = split.inputs[0]
        perm = _unmerged(
            b.graph.type(base).shape, b.graph.type(split.output).shape, tuple(inner.op.perm), shape
        )
        if perm is not None:
            before = _producer(b, base)
            if before is not None and isinstance(before.op, Transpose):
                base, perm = before.inputs[0], tuple(before.op.perm[i] for i in perm)
            return b.emit(Transpose(perm), base, name=node.output, source=node.source, scale=scale)
        first = _split_first(tuple(inner.op.perm), b.graph.type(x).shape, shape)
        if first is not None:
            early = b.emit(Reshape(first[0]), base, name=f"{node.output}.split", scale=scale)
            return b.emit(Transpose(first[1]), early, name=node.output, source=node.source, scale=scale)
    return b.emit(Reshape(shape), x, name=node.output, source=node.source, scale=scale)


def _transpose(b: Builder, node: Node, x: str, scale: Scale) -> str:
    assert isinstance(node.op, Transpose)
    perm = tuple(node.op.perm)
    inner = _producer(b, x)
    if inner is not None and isinstance(inner.op, Transpose):
        x, perm = inner.inputs[0], tuple(inner.op.perm[i] for i in perm)
        inner = _producer(b, x)
    if perm == tuple(range(len(perm))):
        return x
    if inner is not None and isinstance(inner.op, Reshape):
        source = _producer(b, inner.inputs[0])
        if source is not None and isinstance(source.op, Transpose):
            regrouped = _through(
                tuple(source.op.perm), b.graph.type(source.output).shape, b.graph.type(x).shape, perm
            )
            if regrouped is not None:
                base = source.inputs[0]
                if b.graph.type(base).shape == regrouped:
                    return base
                return b.emit(Reshape(regrouped), base, name=node.output, source=node.source, scale=scale)
    return b.emit(Transpose(perm), x, name=node.output, source=node.source, scale=scale)


def _runs(coarse: Shape, fine: Shape) -> list[list[int]] | None:
    """For each axis of ``coarse`` the run of axes of ``fine`` whose product it is; None when they do not
    align.
    """
    runs: list[list[int]] = []
    start = 0
    for size in coarse:
        stop = start + 1
        while stop < len(fine) and product(fine[start:stop]) != size:
            stop += 1
        if start >= len(fine) or product(fine[start:stop]) != size:
            return None
        runs.append(list(range(start, stop)))
        start = stop
    return runs if start == len(fine) else None


def _unmerged(fine: Shape, merged: Shape, perm: tuple[int, ...], out: Shape) -> tuple[int, ...] | None:
    """The permutation P with ``reshape(transpose(reshape(x, merged), perm), out) == transpose(x, P)``, if
    any.
    """
    runs = _runs(merged, fine)
    if runs is None:
        return None
    full = tuple(axis for i in perm for axis in runs[i])
    return full if tuple(fine[i] for i in full) == tuple(out) else None


def _split_first(perm: tuple[int, ...], moved: Shape, out: Shape) -> tuple[Shape, tuple[int, ...]] | None:
    """(S, P) with ``reshape(transpose(x, perm), out) == transpose(reshape(x, S), P)`` where ``moved``, the
    shape in between, is only split, and not just given axes of size 1.
    """
    runs = _runs(moved, out)
    if runs is None or any(len(run) > 1 and 1 in [out[axis] for axis in run] for run in runs):
        return None
    before = [axis for original in range(len(perm)) for axis in runs[perm.index(original)]]
    return tuple(out[axis] for axis in before), tuple(before.index(axis) for axis in range(len(out)))


def _through(first: tuple[int, ...], before: Shape, after: Shape, second: tuple[int, ...]) -> Shape | None:
    """The shape S with ``transpose(reshape(transpose(x, first), after), second) == reshape(x, S)``, if one
    exists.

    The reshape must map each axis of ``before`` to a run of axes of ``after``, or the other way round; the
    transposes must cancel on the runs.
    """
    runs = _runs(before, after)
    if runs is None:
        merged = _runs(after, before)  # the reshape merges axes
        order = [first[axis] for i in second for axis in merged[i]] if merged is not None else []
        return tuple(after[i] for i in second) if order and order == sorted(order) else None
    wanted = [axis for original in range(len(first)) for axis in runs[first.index(original)]]
    return tuple(after[i] for i in second) if list(second) == wanted else None
