"""Masks, however they are spelt, become the bool mask input of softmax, and leave what maxima read.

``softmax(x + where(k, 0, -big)) = softmax(where(k, x, -big)) = softmax(x, mask=k)``, and
``softmax(x + (1 - k) * -big)`` and ``softmax(k * x + (1 - k) * -big)`` alike, because ``exp(-big)`` is 0 in
float32. Integers stand for the bool ``k != 0``; masks that keep everything vanish; repeated axes are dropped,
since softmax broadcasts its mask. What all scores of a row have in common is dropped, their maximum for one;
scores that are joined with others are masked behind the join. A row without any kept element is 0; where
-big is finite such a row is uniform, and so is it in softmax unless the mask is a function of positions
alone, which leaves no row empty; where -big is so near that sums keep the scores apart, it counts as kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import Shape, broadcast
from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Op
from intc.ops.elementwise import Add, Cast, Mul, Sub, Where
from intc.ops.logic import Not, Or
from intc.ops.movement import Concat, Expand
from intc.ops.reduce import ReduceMax
from intc.ops.softmax import Softmax
from intc.passes import mask_levels
from intc.passes.keep import Kept, conditions, negated, unrepeated
from intc.passes.masks import BIG, Masks
from intc.passes.match import softmax_of
from intc.passes.rewrite import rewrite
from intc.passes.whole_masks import filled_up, in_the_whole, joined_masks, some_kept

FAINT = -(2.0**20)  # float32 steps of 1/16 there: sums with numbers above it still tell scores apart


@dataclass(frozen=True)
class RecoverSoftmaxMask:
    """``big``: an added constant of at most ``-big`` counts as minus infinity."""

    big: float = BIG
    name: str = "recover_softmax_mask"

    def run(self, graph: Graph) -> Graph:
        graph = in_the_whole(_unshifted(graph), self.big)
        for _ in graph.nodes:  # behind one summand there may be another
            before, graph = graph, _reassociated(graph, self.big)
            if graph is before:
                break
        graph = _joined_first(graph, self.big)
        masks = Masks(graph, self.big)

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            if isinstance(node.op, ReduceMax):
                return _maximum(masks, b, node, names)
            if isinstance(node.op, Cast) and node.op.dtype == "bool":
                return _tested(masks, b, node, names)
            if not isinstance(node.op, Softmax) or len(node.inputs) != 1:
                return None
            masks.lowest.clear()
            scores, keep, moves = masks.split(node.inputs[0])
            shape = graph.type(node.inputs[0]).shape
            if keep is False or not masks.fits(scores, moves, shape):
                return None
            kept = names[scores]
            for move in moves:
                kept = b.emit(move, kept, name=f"{scores}.moved")
            if keep is True:
                return (
                    None
                    if scores == node.inputs[0]
                    else b.emit(node.op, kept, name=node.output, source=node.source)
                )
            mask = masks.kept.emit(b, names, unrepeated(keep))
            if not masks.kept.by_position(keep):
                kept, mask = mask_levels.applied(masks, b, names, node.inputs[0], node.op.axis, (kept, mask))
            if broadcast(shape, b.graph.type(mask).shape) != shape:
                raise GraphError(f"node '{node.source}' (softmax): its mask does not broadcast to its scores")
            lowest = min(masks.lowest, default=-np.inf)
            if lowest > FAINT and not any(map(masks.kept.by_position, conditions(keep))):
                whole = _whole_where_empty(b, mask, node.op.axis % len(shape) - len(shape))
                if whole is not None:
                    return b.emit(node.op, kept, whole, name=node.output, source=node.source)
            op = replace(node.op, uniform=bool(np.isfinite(lowest)) and not masks.kept.by_position(keep))
            return b.emit(op, kept, mask, name=node.output, source=node.source)

        return rewrite(graph, rule)


def _whole_where_empty(b: Builder, mask: str, axis: int) -> str | None:
    """``mask`` with the rows along ``axis`` (from the end) that keep nothing kept whole; None where rows of
    a sample cannot differ in that.
    """
    shape = b.graph.type(mask).shape
    place = len(shape) + axis
    others = [d for i, d in enumerate(shape) if i != place and (i or len(shape) < 3)]
    if place < 0 or all(d == 1 for d in others):
        return None
    none = b.emit(Not(), some_kept(b, mask, place), name="mask.none")
    return b.emit(Or(), mask, none, name="mask.full")


def _unshifted(graph: Graph) -> Graph:
    """``softmax(x - c) = softmax(x)`` with c the same all along the axis."""
    producers = graph.producers()

    def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
        shift = producers.get(node.inputs[0]) if isinstance(node.op, Softmax) else None
        if shift is None or not isinstance(shift.op, Add | Sub) or not isinstance(node.op, Softmax):
            return None
        shape = graph.type(node.output).shape
        from_end = len(shape) - node.op.axis % len(shape)
        pairs = (shift.inputs,) if isinstance(shift.op, Sub) else (shift.inputs, shift.inputs[::-1])
        for x, other in pairs:
            have = graph.type(other).shape
            common = len(have) < from_end or have[-from_end] == 1
            if common and graph.type(x).shape == shape and shape[-from_end] != 1:
                inputs = (x, *node.inputs[1:])
                return b.emit(node.op, *(names[v] for v in inputs), name=node.output, source=node.source)
        return None

    return rewrite(graph, rule)


def _joined_first(graph: Graph, big: float) -> Graph:
    """``concat(where(k, x, -big), y) = where(concat(k, true), concat(x, y), -big)`` in front of softmax."""
    masks, users = Masks(graph, big), graph.users()

    def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
        if not isinstance(node.op, Concat) or softmax_of(graph, users, node.output) is None:
            return None
        masks.lowest.clear()
        found = [masks.split(x) for x in node.inputs]
        if not any(isinstance(keep, Kept) for _, keep, _ in found):
            return None
        parts, keeps = list[str](), list[str]()
        for value, (x, keep, moves) in zip(node.inputs, found, strict=True):
            if isinstance(keep, bool):
                x, moves, one = value, (), b.constant("true", np.ones(1, np.bool_))
            elif not masks.fits(x, moves, graph.type(value).shape):
                return None
            else:
                one = masks.kept.emit(b, names, keep)
            part = names[x]
            for move in moves:
                part = b.emit(move, part, name=f"{x}.moved")
            parts.append(part)
            keeps.append(filled_up(b, one, graph.type(value).rank))
        mask = joined_masks(b, node.op, keeps, [graph.type(x).shape[node.op.axis] for x in node.inputs])
        joined = b.emit(node.op, *parts, name=f"{node.output}.joined", source=node.source)
        low = b.constant("low", np.full(1, min(masks.lowest, default=-np.inf), np.float32))
        return b.emit(Where(), mask, joined, low, name=node.output, source=node.source)

    return rewrite(graph, rule)


def _maximum(masks: Masks, b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
    """``max(where(k, x, -big)) = max(where(k, x, min(x)))``: a range that holds -big would leave x no step. A
    row that keeps nothing gives its least entry.
    """
    x, keep, moves = masks.split(node.inputs[0])
    if isinstance(keep, bool) or not masks.fits(x, moves, masks.graph.type(node.inputs[0]).shape):
        return None
    moved = names[x]
    for move in moves:
        moved = b.emit(move, moved, name=f"{x}.moved")
    minus = b.constant("minus", np.full(1, -1, np.float32))
    assert isinstance(node.op, ReduceMax)
    turned = b.emit(Mul(), moved, minus, name=f"{x}.negated")
    turned = b.emit(replace(node.op, keepdims=True), turned, name=f"{x}.negated.max", source=node.source)
    lowest = b.emit(Mul(), turned, minus, name=f"{x}.least")
    kept = b.emit(Where(), masks.kept.emit(b, names, keep), moved, lowest, name=f"{x}.kept")
    return b.emit(node.op, kept, name=node.output, source=node.source)


def _tested(masks: Masks, b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
    """``where(k, 0, -big) != 0`` is ``not k``."""
    keep = masks.additive(node.inputs[0]) if masks.graph.type(node.inputs[0]).is_float else None
    hides = negated(keep)
    if hides is None:
        return None
    hidden = masks.kept.emit(b, names, hides)
    shape = masks.graph.type(node.output).shape
    return hidden if b.graph.type(hidden).shape == shape else b.emit(Expand(shape), hidden, name=node.output)


def _reassociated(graph: Graph, big: float) -> Graph:
    """``x + (b + mask) = (x + b) + mask``, and likewise with a mask that chooses between b and -big, where
    both were moved first, or x is subtracted; ``-(x - mask) = -x + mask``, which minima read.
    """
    masks = Masks(graph, big)

    def negated(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
        total = masks.producers.get(node.inputs[0])
        if total is None or not isinstance(total.op, Add) or not masks.is_number(node.inputs[1], -1):
            return None
        if not any(masks.additive(x, -1) is not None for x in total.inputs):
            return None
        terms = [b.emit(Mul(), names[x], names[node.inputs[1]], name=f"{x}.negated") for x in total.inputs]
        return b.emit(Add(), *terms, name=node.output, source=node.source)

    def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
        if isinstance(node.op, Mul):
            return negated(b, node, names)
        if isinstance(node.op, Sub):
            return _less(masks, b, node, names)
        for x, other in (node.inputs, node.inputs[::-1]) if isinstance(node.op, Add) else ():
            inner, moves = masks.unmoved(other)
            if inner is None or masks.additive(other) is not None or not graph.type(x).is_float:
                continue
            whole = graph.type(inner.output).shape

            def moved(value: str, whole: Shape = whole, moves: tuple[Op, ...] = moves) -> str:
                result = names[value]
                if moves and b.graph.type(result).shape != whole:
                    result = b.emit(Expand(whole), result, name=f"{value}.whole")
                for move in moves:
                    result = b.emit(move, result, name=f"{value}.moved")
                return result

            def biased(bias: str, x: str = x) -> str:
                return b.emit(Add(), names[x], moved(bias), name=f"{node.output}.biased", source=node.source)

            if isinstance(inner.op, Add):
                for bias, mask in (inner.inputs, inner.inputs[::-1]):
                    if masks.additive(mask) is not None:
                        return b.emit(Add(), biased(bias), moved(mask), name=node.output, source=node.source)
            if isinstance(inner.op, Where):
                choice, kept, masked = inner.inputs
                if masks.minus_infinity(masked) or masks.minus_infinity(kept):
                    bias = kept if masks.minus_infinity(masked) else masked
                    total = biased(bias)
                    sides = [total if v == bias else names[v] for v in (kept, masked)]
                    return b.emit(Where(), moved(choice), *sides, name=node.output, source=node.source)
        return None

    return rewrite(graph, rule)


def _less(masks: Masks, b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
    """``(b + mask) - x = (b - x) + mask``, and with a choice between b and -big, of the shape of both."""
    whole, x = node.inputs
    inner, shape = masks.producers.get(whole), masks.graph.type(node.output).shape
    if inner is None or masks.graph.type(whole).shape != shape or not masks.graph.type(whole).is_float:
        return None

    def less(value: str) -> str:
        return b.emit(Sub(), names[value], names[x], name=f"{node.output}.less", source=node.source)

    if isinstance(inner.op, Add) and masks.additive(whole) is None:
        for bias, mask in (inner.inputs, inner.inputs[::-1]):
            if masks.additive(mask) is not None:
                return b.emit(Add(), less(bias), names[mask], name=node.output, source=node.source)
    if isinstance(inner.op, Where):
        choice, *sides = inner.inputs
        low = [masks.minus_infinity(side) for side in sides]
        if any(low) and not all(low):
            kept = (names[v] if far else less(v) for v, far in zip(sides, low, strict=True))
            return b.emit(Where(), names[choice], *kept, name=node.output, source=node.source)
    return None
