"""Masks, however they are spelt, become the bool mask input of softmax, and leave what maxima read.

``softmax(x + where(k, 0, -big)) = softmax(where(k, x, -big)) = softmax(x, mask=k)``, and
``softmax(x + (1 - k) * -big)`` and ``softmax(k * x + (1 - k) * -big)`` alike, because ``exp(-big)`` is 0 in
float32. Integers stand for the bool ``k != 0``; masks that keep everything vanish; repeated axes are dropped,
since softmax broadcasts its mask. A row without any kept element is 0; where -big is finite such a row is
uniform, and so is it in softmax unless the mask is a function of positions alone, which leaves no row empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import Shape, broadcast
from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Op
from intc.ops.elementwise import Add, Mul, Where
from intc.ops.movement import Expand
from intc.ops.reduce import ReduceMax
from intc.ops.softmax import Softmax
from intc.passes.masks import Keep, Masks
from intc.passes.rewrite import rewrite


@dataclass(frozen=True)
class RecoverSoftmaxMask:
    """``big``: an added constant of at most ``-big`` counts as minus infinity."""

    big: float = 9999.0
    name: str = "recover_softmax_mask"

    def run(self, graph: Graph) -> Graph:
        graph = _reassociated(graph, self.big)
        masks = Masks(graph, graph.producers(), self.big)

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            if isinstance(node.op, ReduceMax):
                return _maximum(masks, b, node, names)
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
            mask = masks.emit(b, names, _unrepeated(keep))
            if broadcast(shape, b.graph.type(mask).shape) != shape:
                raise GraphError(f"node '{node.source}' (softmax): its mask does not broadcast to its scores")
            op = replace(node.op, uniform=all(np.isfinite(masks.lowest)) and not masks.by_position(keep))
            return b.emit(op, kept, mask, name=node.output, source=node.source)

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
    kept = b.emit(Where(), masks.emit(b, names, keep), moved, lowest, name=f"{x}.kept")
    return b.emit(node.op, kept, name=node.output, source=node.source)


def _reassociated(graph: Graph, big: float) -> Graph:
    """``x + (b + mask) = (x + b) + mask``, and likewise with a mask that chooses between b and -big, or
    where both were moved first.
    """
    masks = Masks(graph, graph.producers(), big)

    def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
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


def _unrepeated(keep: Keep) -> Keep:
    while isinstance(keep, tuple) and keep[0] == "move" and isinstance(keep[1], Expand):
        keep = keep[2]  # type: ignore[assignment]
    return keep
