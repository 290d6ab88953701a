"""What a mask sets in parts of a tensor, which are then joined again, it sets in the whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intc.ir.dims import Dim, Shape, broadcast
from intc.ir.graph import Builder, Graph, Node
from intc.ops.elementwise import Cast, Where
from intc.ops.movement import Concat, Expand, Reshape, Slice
from intc.ops.reduce import ReduceMax
from intc.passes.keep import Keep, Kept, negated
from intc.passes.masks import Masks
from intc.passes.rewrite import Rule, rewrite


def in_the_whole(graph: Graph, big: float) -> Graph:
    """``concat(where(k, x[:n], -big), x[n:]) = where(concat(k, true), x, -big)``: writes to the edges of
    windows of keys, one behind another.
    """
    while (changed := rewrite(graph, _written(graph, big))) is not graph:
        graph = changed
    return graph


def _written(graph: Graph, big: float) -> Rule:
    masks = Masks(graph, big)

    def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
        if not isinstance(node.op, Concat) or not graph.type(node.output).is_float:
            return None
        masks.lowest.clear()
        found = [_set(masks, x) for x in node.inputs]
        whole = _all_of(masks, [x for x, _ in found], node.op.axis)
        if whole is None or len(set(masks.lowest)) != 1:
            return None
        kept = [
            b.constant("true", np.ones(1, np.bool_))
            if isinstance(keep, bool)
            else masks.kept.emit(b, names, keep)
            for _, keep in found
        ]
        kept = [filled_up(b, k, graph.type(node.output).rank) for k in kept]
        mask = joined_masks(b, node.op, kept, [graph.type(x).shape[node.op.axis] for x in node.inputs])
        low = b.constant("low", np.full(1, masks.lowest[0], np.float32))
        return b.emit(Where(), mask, names[whole], low, name=node.output, source=node.source)

    return rule


def _set(masks: Masks, value: str) -> tuple[str, Keep]:
    """(x, keep) with ``value = where(keep, x, -big)``; keep is True where nothing is set."""
    node = masks.producers.get(value)
    if node is None or not isinstance(node.op, Where):
        return value, True
    condition, a, b = node.inputs
    keep = masks.truth(condition)
    for x, low, kept in ((a, b, keep), (b, a, negated(keep))):
        same = masks.graph.type(x).shape == masks.graph.type(value).shape
        if isinstance(kept, Kept) and same and masks.minus_infinity(low):
            return x, kept
    return value, True


def _all_of(masks: Masks, parts: list[str], axis: int) -> str | None:
    """The value whose slices ``parts`` are, from its first entry along ``axis`` to its last."""
    end: Dim = 0
    cuts = [_cut(masks, part) for part in parts]
    for whole, ops in cuts:
        if not ops or (whole, ops[:-1]) != (cuts[0][0], cuts[0][1][:-1]):
            return None
        if (ops[-1].axis, ops[-1].start, ops[-1].step) != (axis, end, 1):
            return None
        end = ops[-1].stop
    whole = masks.producers[parts[0]].inputs[0]
    return whole if masks.graph.type(whole).shape[axis] == end else None


def _cut(masks: Masks, value: str) -> tuple[str, tuple[Slice, ...]]:
    """What ``value`` is cut out of, and how."""
    node, ops = masks.producers.get(value), tuple[Slice, ...]()
    while node is not None and isinstance(node.op, Slice):
        value, ops = node.inputs[0], (node.op, *ops)
        node = masks.producers.get(value)
    return value, ops


def filled_up(b: Builder, value: str, rank: int) -> str:
    """``value`` with axes of size 1 in front, up to ``rank``."""
    shape = b.graph.type(value).shape
    whole = (*(1,) * (rank - len(shape)), *shape)
    return value if whole == shape else b.emit(Reshape(whole), value, name="mask")


def some_kept(b: Builder, mask: str, axis: int) -> str:
    """Whether ``mask`` keeps anything along ``axis``, which stays with a size of 1."""
    counted = b.emit(Cast("int32"), mask, name="mask.counted")
    most = b.emit(ReduceMax((axis,), True), counted, name="mask.most")
    return b.emit(Cast("bool"), most, name="mask.some")


def joined_masks(b: Builder, op: Concat, masks: list[str], sizes: list[Dim]) -> str:
    """``masks`` of one rank, which broadcast, joined with these ``sizes`` along the axis."""
    common: Shape = ()
    for mask in masks:
        shape = b.graph.type(mask).shape
        common = broadcast(common, (*shape[: op.axis], 1, *shape[op.axis + 1 :]))
    wide = [(*common[: op.axis], size, *common[op.axis + 1 :]) for size in sizes]
    whole = [
        m if b.graph.type(m).shape == w else b.emit(Expand(w), m, name="mask")
        for m, w in zip(masks, wide, strict=True)
    ]
    return b.emit(op, *whole, name="mask")
