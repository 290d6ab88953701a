"""Phase 1: what a mask sets to minus infinity is set behind the sums and functions that read it, and where
maxima or a caller read it, it is one number.

``where(k, x, -big) + y = where(k, x + y, -big)``, and ``f(v) = where(k, f(v), f(-big))`` with
``v = where(k, x, -big)``, moved or not, for a function that is small there: now nothing of v counts but x,
and of a value with the range of -big no step would be left to x. ``x + where(k, 0, -big)``, however it is
spelt, becomes ``where(k, x, -big)``, in whose integers -big is the least one
(:mod:`intc.passes.integer.sentinels`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from intc.ir.dims import broadcast
from intc.ir.graph import Builder, Graph, Node
from intc.ir.spool import trim
from intc.ops.elementwise import Add, Max, Min, Mul, Sub, Where
from intc.ops.gelu import Gelu
from intc.ops.im2col import Im2col
from intc.ops.movement import MOVEMENT, Expand
from intc.ops.pointwise import UNARY, Pointwise
from intc.passes.integer.sentinels import COMPARISONS, MAXIMA
from intc.passes.keep import Kept, Moved, unrepeated
from intc.passes.masks import BIG, LEAST, Masks
from intc.passes.rewrite import Rule, rewrite

MASKING: Final = (Add, Sub, Mul, Max, Min, Where)
FUNCTIONS: Final = (*UNARY, Gelu, Pointwise)
SUMS: Final = 3  # one behind another, at most


@dataclass(frozen=True)
class SinkMasks:
    """``big``: a constant of at most ``-big`` counts as minus infinity."""

    big: float = BIG
    name: str = "sink_masks"

    def run(self, graph: Graph) -> Graph:
        graph = _finite(graph)
        for _ in range(SUMS):
            graph = rewrite(graph, _behind_sums(graph, self.big))
        graph = rewrite(graph, _behind_functions(graph, self.big))
        return rewrite(graph, _one_number(graph, self.big))


def _finite(graph: Graph) -> Graph:
    """``graph`` with the largest float for infinity in constants."""
    infinite = set[str]()
    for name, constant in graph.constants.items():
        if constant.dtype.kind == "f" and np.isinf(constant).any():
            infinite.add(name)
        trim()

    def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
        if infinite.isdisjoint(node.inputs):
            return None
        bounded = (
            b.constant(f"{x}.finite", np.clip(graph.constants[x], LEAST, -LEAST))
            if x in infinite
            else names[x]
            for x in node.inputs
        )
        return b.emit(node.op, *bounded, name=node.output, source=node.source)

    return rewrite(graph, rule)


def _behind_sums(graph: Graph, big: float) -> Rule:
    masks = Masks(graph, big)

    def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
        if not isinstance(node.op, Add | Sub) or not graph.type(node.output).is_float:
            return None
        for i in range(2 if isinstance(node.op, Add) else 1):
            other, found = node.inputs[1 - i], _masked(masks, node.inputs[i])
            same = graph.type(node.inputs[i]).shape == graph.type(node.output).shape
            if found is None or not same or masks.split(other)[1] or masks.additive(other, 1) is not None:
                continue
            if masks.additive(other, -1) is not None:
                continue
            operands = (found.x, other) if i == 0 else (other, found.x)
            total = b.emit(
                node.op, *(names[x] for x in operands), name=f"{node.output}.kept", source=node.source
            )
            return _chosen(masks, b, names, total, found, node)
        return None

    return rule


def _behind_functions(graph: Graph, big: float) -> Rule:
    masks = Masks(graph, big)

    def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
        if not isinstance(node.op, FUNCTIONS):
            return None
        value = node.inputs[0]
        inner, moves = masks.unmoved(value)
        base = inner.output if inner is not None and moves else value
        found = _masked(masks, base)
        if found is None:
            return None
        low = float(node.op.evaluate(np.full(1, found.low, np.float32), sizes={})[0])
        if not abs(low) < big:
            return None
        x, keep = names[found.x], found.keep
        if moves:
            keep = Moved(Expand(graph.type(base).shape), (keep,))
        for move in moves:
            x, keep = b.emit(move, x, name=f"{found.x}.moved"), Moved(move, (keep,))
        found = replace(found, keep=keep)
        whole = _chosen(masks, b, names, x, found, masks.producers[value])
        if whole is None:
            return None
        y = b.emit(node.op, whole, name=f"{node.output}.kept", source=node.source)
        return _chosen(masks, b, names, y, replace(found, low=low), node)

    return rule


def _one_number(graph: Graph, big: float) -> Rule:
    masks, users = Masks(graph, big), graph.users()

    def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
        if not isinstance(node.op, MASKING) or not _decides(graph, users, node.output):
            return None
        found = _masked(masks, node.output)
        if found is None or _is_chosen(graph, node, found):
            return None
        return _chosen(masks, b, names, names[found.x], found, node)

    return rule


def _is_chosen(graph: Graph, node: Node, found: Masked) -> bool:
    """Whether ``node`` is ``where(keep, x, low)`` already."""
    if not isinstance(node.op, Where) or node.inputs[1] != found.x:
        return False
    low = graph.constants.get(node.inputs[2])
    return low is not None and low.size == 1 and float(low.ravel()[0]) == found.low


def _decides(graph: Graph, users: Mapping[str, list[Node]], value: str) -> bool:
    """Whether maxima, comparisons and the caller read ``value``, moved or not, and nothing else does."""
    pending, seen = [value], set[str]()
    while pending:
        at = pending.pop()
        if at in seen:
            continue
        seen.add(at)
        if not users[at] and at not in graph.outputs:
            return False
        for user in users[at]:
            if isinstance(user.op, (*MOVEMENT, Im2col)):
                pending.append(user.output)
            elif not isinstance(user.op, (*MAXIMA, *COMPARISONS)):
                return False
    return True


@dataclass(frozen=True)
class Masked:
    """``where(keep, x, low)``."""

    x: str
    keep: Kept
    low: float


def _masked(masks: Masks, value: str) -> Masked | None:
    """What ``value`` is masked by; None where it is not, or moved behind the mask."""
    masks.lowest.clear()
    masks.tables.clear()
    x, keep, moves = masks.split(value)
    shape = masks.graph.type(value).shape
    if isinstance(keep, bool) or moves or masks.graph.type(x).shape != shape:
        return None
    return Masked(x, keep, max(min(-abs(n) for n in (*masks.lowest, *masks.tables)), LEAST))


def _chosen(
    masks: Masks, b: Builder, names: Mapping[str, str], x: str, found: Masked, node: Node
) -> str | None:
    """``where(keep, x, low)`` as what ``node`` computes; None where it would be wider than ``x``."""
    keep = masks.kept.emit(b, names, unrepeated(found.keep))
    shape = b.graph.type(x).shape
    if broadcast(shape, b.graph.type(keep).shape) != shape:
        return None
    low = b.constant(f"{node.output}.low", np.full(1, found.low, np.float32))
    return b.emit(Where(), keep, x, low, name=node.output, source=node.source)
