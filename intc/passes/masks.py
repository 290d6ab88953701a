"""Masks, however they are spelt: what is kept of a value, as an expression of bools."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar, cast

import numpy as np

from intc.ir.dims import Shape, product
from intc.ir.graph import Graph, Node
from intc.ir.op import Op
from intc.ops.elementwise import Add, Cast, Max, Min, Mul, Sub, Where
from intc.ops.logic import And, Equal, Not
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVES, Concat, Expand, Gather, Pad, Reshape, Transpose
from intc.passes.keep import (
    Emitter,
    From,
    Keep,
    Kept,
    Moved,
    Source,
    Turned,
    both,
    conditions,
    counts,
    moved,
    negated,
)
from intc.passes.keep_whole import is_given
from intc.passes.rewrite import constant_of, scalar_of

Question = TypeVar("Question", bound=Callable[..., Any])
BIG = 9999.0  # what lies as far below zero counts as minus infinity
LEAST = float(np.finfo(np.float32).min)
LONGEST = 256  # values that one mask is spelt with; what is longer is no mask


def _limited(question: Question) -> Question:
    """``question`` about a value, answered with None where it leads through more than ``LONGEST`` values."""

    @wraps(question)
    def asked(masks: Masks, value: str, *rest: int) -> Any:
        key = (question.__name__, value, *rest)
        if key in masks.answers or len(masks.answers) > LONGEST:
            return masks.answers.get(key)
        outermost = not masks.answers
        masks.answers[key] = None
        try:
            answer = masks.answers[key] = question(masks, value, *rest)
        finally:
            if outermost:
                masks.answers.clear()
        return answer

    return cast(Question, asked)


class Masks:
    """Questions about the masks in ``graph``, where at most ``-big`` counts as minus infinity."""

    def __init__(self, graph: Graph, big: float) -> None:
        self.graph, self.producers, self.big = graph, graph.producers(), big
        self.kept = Emitter(graph, self.producers)
        self.lowest: list[float] = []  # what stood for minus infinity in the last mask
        self.tables: list[float] = []  # what did in constants of several numbers
        self.answers: dict[object, object] = {}  # about the values behind the present question

    def unmoved(self, value: str) -> tuple[Node | None, tuple[Op, ...]]:
        """The node behind the data movement that makes ``value``, and that movement in order."""
        node, moves = self.producers.get(value), list[Op]()
        while node is not None and isinstance(node.op, MOVES):
            moves.insert(0, node.op)
            node = self.producers.get(node.inputs[0])
        return node, tuple(moves)

    def split(self, value: str) -> tuple[str, Keep, tuple[Reshape | Transpose, ...]]:
        """(scores, keep, moves) with ``value = where(keep, moved scores, -big)``; keep is False where nothing
        was understood.
        """
        return self._split(value) or (value, False, ())

    @_limited
    def _split(self, value: str) -> tuple[str, Keep, tuple[Reshape | Transpose, ...]] | None:
        node = self.producers.get(value)
        if node is not None and isinstance(node.op, Max):
            floored = self._floored(node)
            return self.split(floored) if floored else (value, False, ())
        if node is not None and isinstance(node.op, Reshape):
            scores, keep, shapes = self.split(node.inputs[0])
            if not isinstance(keep, Kept):
                return value, False, ()
            whole = Moved(Expand(self.graph.type(node.inputs[0]).shape), (keep,))
            return scores, Moved(node.op, (whole,)), (*shapes, node.op)
        if node is not None and isinstance(node.op, Transpose):
            scores, keep, shapes = self.split(node.inputs[0])
            if not isinstance(keep, Kept):
                return value, False, ()
            return scores, Turned(node.op, keep), (*shapes, node.op)
        found: Keep | None = None
        scores = value
        if node is not None and isinstance(node.op, Add):
            for inner, other in (node.inputs, node.inputs[::-1]):
                found = self.additive(other)
                if found is not None:
                    scores = inner
                    break
        elif node is not None and isinstance(node.op, Sub):
            scores, found = node.inputs[0], self.additive(node.inputs[1], -1)
        elif node is not None and isinstance(node.op, Where):
            condition, a, b = node.inputs
            if self.minus_infinity(b):
                scores, found = a, self.truth(condition)
            elif self.minus_infinity(a):
                scores, found = b, negated(self.truth(condition))
        if found is None:
            return value, False, ()
        inner, keep, shapes = self.split(scores)
        keep = found if keep is False else both(found, keep)
        return self._unfactored(inner, keep), keep, shapes

    def _unfactored(self, scores: str, keep: Keep) -> str:
        """``x`` where ``scores`` is x times a part of ``keep``: where it counts, the factor is 1."""
        node = self.producers.get(scores)
        if node is None or not isinstance(node.op, Mul):
            return scores
        ones = [part for part in conditions(keep) if not counts(part)]
        live = [x for x in node.inputs if (factor := self.truth(x)) is None or factor not in ones]
        same = len(live) == 1 and self.graph.type(live[0]).shape == self.graph.type(scores).shape
        return live[0] if same else scores

    def fits(self, scores: str, moves: tuple[Reshape | Transpose, ...], wanted: Shape) -> bool:
        """Whether no mask has broadcast the scores."""
        shape = self.graph.type(scores).shape
        for move in moves:
            if isinstance(move, Transpose):
                if len(move.perm) != len(shape):
                    return False
                shape = tuple(shape[a] for a in move.perm)
            elif product(shape) != product(move.shape):
                return False
            else:
                shape = move.shape
        return shape == wanted

    def _floored(self, node: Node) -> str | None:
        """What the lowest number stands under again, as a floor."""
        live = [x for x in node.inputs if not self.minus_infinity(x)]
        return live[0] if len(live) == 1 else None

    @_limited
    def additive(self, value: str, sign: int = 1) -> Keep | None:
        """keep with ``sign * value = where(keep, 0, -big)``; None where ``value`` is no such mask."""
        constant = constant_of(self.graph, self.producers, value)
        if constant is not None and constant.dtype.kind == "f":
            kept = constant == 0
            if not np.all(kept | (sign * constant <= -self.big)):
                return None
            if bool(kept.all()):
                return True
            self.tables.append(float(-np.abs(constant).max()))
            return From("zeros", value)
        node = self.producers.get(value)
        if node is None:
            return None
        if isinstance(node.op, MOVES):
            return moved(node.op, self.additive(node.inputs[0], sign))
        if isinstance(node.op, Gather):
            return moved(node.op, self.additive(node.inputs[0], sign), positions=node.inputs[1])
        if isinstance(node.op, MatMul):
            return self._repeated(node, sign)
        if isinstance(node.op, Pad):  # zeros around: more that is kept
            return moved(node.op, self.additive(node.inputs[0], sign))
        if isinstance(node.op, Concat):
            return self._beside(node, "zeros", [self.additive(x, sign) for x in node.inputs])
        if isinstance(node.op, (Add, Min if sign > 0 else Max)):
            return self._joined(node, [self.additive(x, sign) for x in node.inputs])
        if isinstance(node.op, Max) and sign == 1:
            floored = self._floored(node)
            return self.additive(floored) if floored else None
        if isinstance(node.op, Mul):
            for factor, other in (node.inputs, node.inputs[::-1]):
                if self.minus_infinity(other, sign):
                    given = is_given(self.graph, self.producers, factor)
                    return negated(self.truth(factor) or (From("input", factor) if given else None))
                if (less := self._one_less(factor)) is not None and self.minus_infinity(other, -sign):
                    return self.truth(less)
                if self.is_number(other, -1):
                    return self.additive(factor, -sign)
            return None
        return self._chosen(node, sign) if isinstance(node.op, Where) else None

    def _one_less(self, value: str) -> str | None:
        """x where ``value`` is x - 1."""
        node = self.producers.get(value)
        if node is None or not isinstance(node.op, Add | Sub):
            return None
        sign = 1 if isinstance(node.op, Sub) else -1
        pairs = (node.inputs,) if sign > 0 else (node.inputs, node.inputs[::-1])
        return next((x for x, one in pairs if scalar_of(self.graph, self.producers, one) == sign), None)

    def _repeated(self, node: Node, sign: int) -> Keep | None:
        """A mask that is repeated by its product, of one term, with ones."""
        shape = self.graph.type(node.output).shape
        for mask, other in (node.inputs, node.inputs[::-1]):
            ones = scalar_of(self.graph, self.producers, other) == 1
            if ones and self._one_term(node):
                return moved(Expand(shape), self.additive(mask, sign))
        return None

    def _one_term(self, node: Node) -> bool:
        """Whether ``node`` is a product of a column and a row."""
        return isinstance(node.op, MatMul) and self.graph.type(node.inputs[0]).shape[-1] == 1

    def _beside(self, node: Node, everywhere: Source, parts: Sequence[Keep | None]) -> Keep | None:
        """``parts`` behind one another, of which constants may hold ``everywhere``: keys never hidden."""
        joined = []
        for x, part in zip(node.inputs, parts, strict=True):
            if part is True and constant_of(self.graph, self.producers, x) is not None:
                part = From(everywhere, x)
            joined.append(moved(Expand(self.graph.type(x).shape), part))
        return moved(node.op, *joined)

    def _joined(self, node: Node, parts: Sequence[Keep | None]) -> Keep | None:
        """Both conditions; the shape of one that holds everywhere is kept."""
        if parts[0] is None or parts[1] is None:
            return None
        keep, shape = both(parts[0], parts[1]), self.graph.type(node.output).shape
        left = [x for x, part in zip(node.inputs, parts, strict=True) if part is not True]
        narrow = len(left) == 1 and self.graph.type(left[0]).shape != shape
        return moved(Expand(shape), keep) if narrow else keep

    def _chosen(self, node: Node, sign: int) -> Keep | None:
        """``where(c, m, -big)`` and ``where(c, -big, m)`` of another mask m, 0 for one, or of an m that is 0
        wherever it is chosen.
        """
        condition, a, b = node.inputs
        for kept, low in ((a, b), (b, a)):
            if not self.minus_infinity(low, sign):
                continue
            keep = self.truth(condition) if low == b else negated(self.truth(condition))
            inner = self.additive(kept, sign)
            if inner is True or (keep is not None and negated(keep) == self.truth(kept)):
                return keep
            return both(keep, inner) if isinstance(keep, Kept) and isinstance(inner, Kept) else None
        return None

    @_limited
    def truth(self, value: str) -> Keep | None:
        """The condition ``value != 0`` of a bool, an integer, or a float that only takes the values 0 and 1;
        a float input of the model counts as one of those, at least where it meets -big.
        """
        type_ = self.graph.type(value)
        constant = constant_of(self.graph, self.producers, value)
        if constant is not None:
            if type_.is_float and not np.isin(constant, (0, 1)).all():
                return None
            if constant.all():
                return True
            if type_.dtype == "bool":
                return From("value", value)
            return From("ones", value) if np.isin(constant, (0, 1)).all() else None
        node = self.producers.get(value)
        if node is not None and isinstance(node.op, MOVES):
            return moved(node.op, self.truth(node.inputs[0]))
        if node is not None and isinstance(node.op, Cast):
            source = self._tested(node.inputs[0]) if type_.dtype == "bool" else self.truth(node.inputs[0])
            return From("value", value) if source is None and type_.dtype == "bool" else source
        if node is not None and isinstance(node.op, Not):
            return negated(self.truth(node.inputs[0]))
        if node is not None and isinstance(node.op, Concat) and type_.is_float:
            return self._beside(node, "ones", [self.truth(x) for x in node.inputs])
        if node is not None and (self._one_term(node) or isinstance(node.op, (And, Mul))):
            return self._joined(node, [self.truth(x) for x in node.inputs])
        if node is not None and isinstance(node.op, Sub):
            one = scalar_of(self.graph, self.producers, node.inputs[0]) == 1
            return negated(self.truth(node.inputs[1])) if one else None
        if node is not None and isinstance(node.op, Equal):
            for other, x in (node.inputs, node.inputs[::-1]):
                if scalar_of(self.graph, self.producers, other) == 0:
                    return negated(self._tested(x)) or From("value", value)
        if node is not None and isinstance(node.op, Where):
            chosen = [scalar_of(self.graph, self.producers, x) for x in node.inputs[1:]]
            if None not in chosen and [bool(c) for c in chosen] in ([True, False], [False, True]):
                keep = self.truth(node.inputs[0])
                return keep if chosen[0] else negated(keep)
        if type_.dtype == "bool":
            return From("value", value)
        if type_.is_float:
            return From("input", value) if value in self.graph.inputs else None
        return From("nonzero", value)

    def _tested(self, value: str) -> Keep | None:
        """The condition ``value != 0`` that the model itself tests: a float input may hold any number."""
        any_number = value in self.graph.inputs and self.graph.type(value).is_float
        return None if any_number else self.truth(value)

    def is_number(self, value: str, number: float) -> bool:
        """Whether ``value`` is this one constant number."""
        return scalar_of(self.graph, self.producers, value) == number

    def minus_infinity(self, value: str, sign: int = 1) -> bool:
        """Whether ``sign * value`` is one number of at most ``-big``."""
        number = scalar_of(self.graph, self.producers, value)
        found = number is not None and sign * number <= -self.big
        if found and number is not None:
            self.lowest.append(sign * number)
        return found
