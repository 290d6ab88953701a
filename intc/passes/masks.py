"""Masks, however they are spelt: what is kept of a value, as an expression of bools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np

from intc.ir.dims import Shape, product
from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Op
from intc.ops.elementwise import Add, Cast, Max, Min, Mul, Sub, Where
from intc.ops.logic import And, Equal, Less, Not
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVES, Concat, Expand, Gather, Pad, Reshape, Transpose
from intc.passes.keep_whole import is_given
from intc.passes.rewrite import constant_of, scalar_of

# A mask as an expression: True keeps everything; the rest is emitted on demand, once per expression.
Keep: TypeAlias = bool | tuple[object, ...]
Question = TypeVar("Question", bound=Callable[..., Any])
BIG = 9999.0  # what lies as far below zero counts as minus infinity
LEAST = float(np.finfo(np.float32).min)
LONGEST = 256  # values that one mask is spelt with; what is longer is no mask


def both(a: Keep, b: Keep) -> Keep:
    if a is True or b is True:
        return b if a is True else a
    return a if a == b else ("and", a, b)


def _parts(keep: Keep) -> list[Keep]:
    """The conditions that ``keep`` joins."""
    if isinstance(keep, tuple) and keep[0] == "and":
        return [part for side in keep[1:] for part in _parts(side)]  # type: ignore[arg-type]
    return [keep]


def _counts(keep: Keep) -> bool:
    """Whether ``keep`` stems from integers, which need not be 1 where they are not 0."""
    return isinstance(keep, tuple) and (keep[0] == "nonzero" or any(_counts(k) for k in keep[1:]))  # type: ignore[arg-type]


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


@dataclass(frozen=True)
class Masks:
    """Questions about the masks in ``graph``, where at most ``-big`` counts as minus infinity."""

    graph: Graph
    producers: Mapping[str, Node]
    big: float
    emitted: dict[Keep, str] = field(default_factory=dict)
    lowest: list[float] = field(default_factory=list)  # what stood for minus infinity in the last mask
    tables: list[float] = field(default_factory=list)  # what did in constants of several numbers
    answers: dict[object, object] = field(
        default_factory=dict
    )  # about the values behind the present question

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
            if not isinstance(keep, tuple):
                return value, False, ()
            whole = ("move", Expand(self.graph.type(node.inputs[0]).shape), keep)
            return scores, ("move", node.op, whole), (*shapes, node.op)
        if node is not None and isinstance(node.op, Transpose):
            scores, keep, shapes = self.split(node.inputs[0])
            if not isinstance(keep, tuple):
                return value, False, ()
            return scores, ("turn", node.op, keep), (*shapes, node.op)
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
                scores, found = b, self.negated(self.truth(condition))
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
        ones = [part for part in _parts(keep) if not _counts(part)]
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
            return ("zeros", value)
        node = self.producers.get(value)
        if node is None:
            return None
        if isinstance(node.op, MOVES):
            return self._moved(node.op, self.additive(node.inputs[0], sign))
        if isinstance(node.op, Gather):
            return self._rows(node, self.additive(node.inputs[0], sign))
        if isinstance(node.op, MatMul):
            return self._repeated(node, sign)
        if isinstance(node.op, Pad):  # zeros around: more that is kept
            keep = self.additive(node.inputs[0], sign)
            return ("pad", node.op, keep) if isinstance(keep, tuple) else keep
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
                    return self.negated(self.truth(factor) or (("input", factor) if given else None))
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

    def _rows(self, node: Node, keep: Keep | None) -> Keep | None:
        return ("rows", node.op, keep, node.inputs[1]) if isinstance(keep, tuple) else keep

    def _repeated(self, node: Node, sign: int) -> Keep | None:
        """A mask that is repeated by its product, of one term, with ones."""
        shape = self.graph.type(node.output).shape
        for mask, other in (node.inputs, node.inputs[::-1]):
            ones = scalar_of(self.graph, self.producers, other) == 1
            if ones and self._one_term(node):
                return self._moved(Expand(shape), self.additive(mask, sign))
        return None

    def _one_term(self, node: Node) -> bool:
        """Whether ``node`` is a product of a column and a row."""
        return isinstance(node.op, MatMul) and self.graph.type(node.inputs[0]).shape[-1] == 1

    def _beside(self, node: Node, everywhere: str, parts: Sequence[Keep | None]) -> Keep | None:
        """``parts`` behind one another, of which constants may hold ``everywhere``: keys never hidden."""
        joined = []
        for x, part in zip(node.inputs, parts, strict=True):
            if part is True and constant_of(self.graph, self.producers, x) is not None:
                part = (everywhere, x)
            joined.append(self._moved(Expand(self.graph.type(x).shape), part))
        return ("join", node.op, *joined) if all(isinstance(k, tuple) for k in joined) else None

    def _joined(self, node: Node, parts: Sequence[Keep | None]) -> Keep | None:
        """Both conditions; the shape of one that holds everywhere is kept."""
        if parts[0] is None or parts[1] is None:
            return None
        keep, shape = both(parts[0], parts[1]), self.graph.type(node.output).shape
        left = [x for x, part in zip(node.inputs, parts, strict=True) if part is not True]
        narrow = len(left) == 1 and self.graph.type(left[0]).shape != shape
        return ("move", Expand(shape), keep) if narrow else keep

    def _chosen(self, node: Node, sign: int) -> Keep | None:
        """``where(c, m, -big)`` and ``where(c, -big, m)`` of another mask m, 0 for one, or of an m that is 0
        wherever it is chosen.
        """
        condition, a, b = node.inputs
        for kept, low in ((a, b), (b, a)):
            if not self.minus_infinity(low, sign):
                continue
            keep = self.truth(condition) if low == b else self.negated(self.truth(condition))
            inner = self.additive(kept, sign)
            if inner is True or (keep is not None and self.negated(keep) == self.truth(kept)):
                return keep
            return both(keep, inner) if isinstance(keep, tuple) and isinstance(inner, tuple) else None
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
                return ("value", value)
            return ("ones", value) if np.isin(constant, (0, 1)).all() else None
        node = self.producers.get(value)
        if node is not None and isinstance(node.op, MOVES):
            return self._moved(node.op, self.truth(node.inputs[0]))
        if node is not None and isinstance(node.op, Cast):
            source = self._tested(node.inputs[0]) if type_.dtype == "bool" else self.truth(node.inputs[0])
            return ("value", value) if source is None and type_.dtype == "bool" else source
        if node is not None and isinstance(node.op, Not):
            return self.negated(self.truth(node.inputs[0]))
        if node is not None and isinstance(node.op, Concat) and type_.is_float:
            return self._beside(node, "ones", [self.truth(x) for x in node.inputs])
        one_term = (
            isinstance(node.op, MatMul) and self.graph.type(node.inputs[0]).shape[-1] == 1 if node else False
        )
        if node is not None and (one_term or isinstance(node.op, (And, Mul))):
            return self._joined(node, [self.truth(x) for x in node.inputs])
        if node is not None and isinstance(node.op, Sub):
            one = scalar_of(self.graph, self.producers, node.inputs[0]) == 1
            return self.negated(self.truth(node.inputs[1])) if one else None
        if node is not None and isinstance(node.op, Equal):
            for other, x in (node.inputs, node.inputs[::-1]):
                if scalar_of(self.graph, self.producers, other) == 0:
                    return self.negated(self._tested(x)) or ("value", value)
        if node is not None and isinstance(node.op, Where):
            chosen = [scalar_of(self.graph, self.producers, x) for x in node.inputs[1:]]
            if None not in chosen and [bool(c) for c in chosen] in ([True, False], [False, True]):
                keep = self.truth(node.inputs[0])
                return keep if chosen[0] else self.negated(keep)
        if type_.dtype == "bool":
            return ("value", value)
        if type_.is_float:
            return ("input", value) if value in self.graph.inputs else None
        return ("nonzero", value)

    def _tested(self, value: str) -> Keep | None:
        """The condition ``value != 0`` that the model itself tests: a float input may hold any number."""
        any_number = value in self.graph.inputs and self.graph.type(value).is_float
        return None if any_number else self.truth(value)

    def negated(self, keep: Keep | None) -> Keep | None:
        if not isinstance(keep, tuple):
            return None
        if keep[0] == "move":
            return ("move", keep[1], self.negated(keep[2]))  # type: ignore[arg-type]
        return keep[1] if keep[0] == "not" else ("not", keep)  # type: ignore[return-value]

    def _moved(self, op: Op, keep: Keep | None) -> Keep | None:
        return ("move", op, keep) if isinstance(keep, tuple) else keep

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

    def by_position(self, keep: Keep) -> bool:
        """Whether ``keep`` depends on positions and constants alone: no row of such a mask is empty."""
        if not isinstance(keep, tuple):
            return True
        if keep[0] in ("zeros", "ones"):
            return True
        named = [str(k) for k in keep[1:] if isinstance(k, str)]
        if not all(self.by_position(k) for k in keep[1:] if isinstance(k, bool | tuple)):
            return False
        pending, seen = named, set[str]()
        while pending:
            name = pending.pop()
            node = self.producers.get(name)
            if node is None and name not in self.graph.constants:
                return False
            if node is not None and name not in seen:
                seen.add(name)
                pending += node.inputs
        return True

    def emit(self, b: Builder, names: Mapping[str, str], keep: Keep) -> str:
        """The value of ``keep`` in the new graph."""
        if keep not in self.emitted:
            self.emitted[keep] = self._emit(b, names, keep)
        return self.emitted[keep]

    def _emit(self, b: Builder, names: Mapping[str, str], keep: Keep) -> str:
        assert isinstance(keep, tuple)
        kind, first = keep[0], keep[1]
        if kind in ("zeros", "ones"):
            return self._known(b, str(first), kind == "zeros")
        if kind == "value":
            return names[str(first)]
        if kind == "nonzero":
            return b.emit(Cast("bool"), names[str(first)], name=f"{first}.keep")
        if kind == "not":
            kept = self.emit(b, names, first)  # type: ignore[arg-type]
            known = b.graph.constants.get(kept)
            return b.emit(Not(), kept, name="mask.not") if known is None else b.constant("mask.not", ~known)
        if kind == "and":
            return b.emit(And(), *(self.emit(b, names, k) for k in keep[1:]), name="mask.and")  # type: ignore[arg-type]
        if kind == "input":
            half = b.constant(f"{first}.half", np.full(1, 0.5, np.float32))
            return b.emit(Less(), half, names[str(first)], name=f"{first}.keep")
        assert isinstance(first, Op)
        if kind == "pad":
            outside = self.emit(b, names, ("not", keep[2]))
            return b.emit(Not(), b.emit(first, outside, name="mask.not"), name="mask")
        if kind == "rows":
            return b.emit(first, self.emit(b, names, keep[2]), names[str(keep[3])], name="mask")  # type: ignore[arg-type]
        if kind == "join":
            return b.emit(first, *(self.emit(b, names, k) for k in keep[2:]), name="mask")  # type: ignore[arg-type]
        if isinstance(first, Transpose) and kind == "turn":
            inner = self.emit(b, names, keep[2])  # type: ignore[arg-type]
            shape = b.graph.type(inner).shape
            ones = (1,) * (len(first.perm) - len(shape))
            inner = b.emit(Reshape(ones + shape), inner, name="mask") if ones else inner
            return b.emit(first, inner, name="mask")
        inner = self.emit(b, names, keep[2])  # type: ignore[arg-type]
        whole = isinstance(first, Expand) and b.graph.type(inner).shape == first.shape
        return inner if whole else b.emit(first, inner, name="mask")

    def _known(self, b: Builder, value: str, zero: bool) -> str:
        """Where a constant, or one number that is repeated, is 0 (or is not)."""
        constant, shape = constant_of(self.graph, self.producers, value), self.graph.type(value).shape
        assert constant is not None
        keep = b.constant(f"{value}.keep", (constant == 0) == zero)
        return keep if constant.shape == shape else b.emit(Expand(shape), keep, name=f"{value}.keep")


def unrepeated(keep: Keep) -> Keep:
    """``keep`` before its axes were repeated, where that came last."""
    while isinstance(keep, tuple) and keep[0] == "move" and isinstance(keep[1], Expand):
        keep = keep[2]  # type: ignore[assignment]
    return keep
