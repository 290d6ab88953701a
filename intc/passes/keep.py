"""What a mask keeps, as an expression of bools: found while a graph is read, emitted on demand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Op
from intc.ops.elementwise import Cast
from intc.ops.logic import And, Less, Not
from intc.ops.movement import MOVES, Expand, Pad, Reshape, Transpose
from intc.passes.rewrite import constant_of

Source: TypeAlias = Literal[
    "value",  # a bool
    "nonzero",  # an integer, where it is not 0
    "input",  # a float input of the model, where it is above one half
    "zeros",  # a constant, where it is 0
    "ones",  # a constant, where it is not
]


@dataclass(frozen=True)
class From:
    """Where the value named ``value`` of the graph is ``true``."""

    true: Source
    value: str


@dataclass(frozen=True)
class Negated:
    part: Kept


@dataclass(frozen=True)
class Both:
    a: Kept
    b: Kept


@dataclass(frozen=True)
class Moved:
    """``parts``, which data movement takes elsewhere: what stands outside of them is kept. ``positions``
    names what a Gather reads them at.
    """

    op: Op
    parts: tuple[Kept, ...]
    positions: str = ""


@dataclass(frozen=True)
class Turned:
    """``part``, of the rank of the scores at least, transposed with them."""

    op: Transpose
    part: Kept


Kept: TypeAlias = From | Negated | Both | Moved | Turned
Keep: TypeAlias = bool | Kept  # True keeps everything; False: nothing was understood


def both(a: Keep, b: Keep) -> Keep:
    if isinstance(a, bool) or isinstance(b, bool):
        return b if a is True else a
    return a if a == b else Both(a, b)


def moved(op: Op, *parts: Keep | None, positions: str = "") -> Keep | None:
    """``parts`` moved by ``op``; a single one that is no expression stays as it is."""
    kept = [part for part in parts if part is not None and not isinstance(part, bool)]
    if len(kept) == len(parts):
        return Moved(op, tuple(kept), positions)
    return parts[0] if len(parts) == 1 else None


def negated(keep: Keep | None) -> Kept | None:
    """What ``keep`` hides, where that is not nothing."""
    if keep is None or isinstance(keep, bool):
        return None
    return opposite(keep)


def opposite(keep: Kept) -> Kept:
    """What ``keep`` hides."""
    if isinstance(keep, Moved) and isinstance(keep.op, MOVES):
        return Moved(keep.op, (opposite(keep.parts[0]),))
    return keep.part if isinstance(keep, Negated) else Negated(keep)


def conditions(keep: Keep) -> Iterator[Kept]:
    """Those of which ``keep`` needs all."""
    if isinstance(keep, Both):
        yield from conditions(keep.a)
        yield from conditions(keep.b)
    elif not isinstance(keep, bool):
        yield keep


def unrepeated(keep: Kept) -> Kept:
    """``keep`` before its axes were repeated, where that came last."""
    while isinstance(keep, Moved) and isinstance(keep.op, Expand):
        (keep,) = keep.parts
    return keep


def counts(keep: Kept) -> bool:
    """Whether ``keep`` stems from integers, which need not be 1 where they are not 0."""
    return (isinstance(keep, From) and keep.true == "nonzero") or any(map(counts, _parts(keep)))


def _parts(keep: Kept) -> tuple[Kept, ...]:
    if isinstance(keep, Both):
        return keep.a, keep.b
    if isinstance(keep, Negated | Turned):
        return (keep.part,)
    return keep.parts if isinstance(keep, Moved) else ()


@dataclass(frozen=True)
class Emitter:
    """Emits what is kept of values of ``graph``, each expression once."""

    graph: Graph
    producers: Mapping[str, Node]
    emitted: dict[Kept, str] = field(default_factory=dict)

    def emit(self, b: Builder, names: Mapping[str, str], keep: Kept) -> str:
        """The value of ``keep`` in the new graph."""
        if keep not in self.emitted:
            self.emitted[keep] = self._emit(b, names, keep)
        return self.emitted[keep]

    def _emit(self, b: Builder, names: Mapping[str, str], keep: Kept) -> str:
        if isinstance(keep, From):
            return self._source(b, names, keep.true, keep.value)
        kept = [self.emit(b, names, part) for part in _parts(keep)]
        if isinstance(keep, Both):
            return b.emit(And(), *kept, name="mask.and")
        if isinstance(keep, Negated):
            known = b.graph.constants.get(kept[0])
            return b.emit(Not(), *kept, name="mask.not") if known is None else b.constant("mask.not", ~known)
        shape = b.graph.type(kept[0]).shape
        if isinstance(keep, Turned):
            ones = (1,) * (len(keep.op.perm) - len(shape))
            whole = b.emit(Reshape(ones + shape), *kept, name="mask") if ones else kept[0]
            return b.emit(keep.op, whole, name="mask")
        if isinstance(keep.op, Pad):  # with zeros, where all is kept
            outside = b.emit(keep.op, self.emit(b, names, Negated(keep.parts[0])), name="mask.not")
            return b.emit(Not(), outside, name="mask")
        if isinstance(keep.op, Expand) and shape == keep.op.shape:
            return kept[0]
        return b.emit(keep.op, *kept, *([names[keep.positions]] if keep.positions else []), name="mask")

    def _source(self, b: Builder, names: Mapping[str, str], true: Source, value: str) -> str:
        if true == "value":
            return names[value]
        if true == "nonzero":
            return b.emit(Cast("bool"), names[value], name=f"{value}.keep")
        if true == "input":
            half = b.constant(f"{value}.half", np.full(1, 0.5, np.float32))
            return b.emit(Less(), half, names[value], name=f"{value}.keep")
        constant, shape = constant_of(self.graph, self.producers, value), self.graph.type(value).shape
        assert constant is not None
        keep = b.constant(f"{value}.keep", (constant == 0) == (true == "zeros"))
        return keep if constant.shape == shape else b.emit(Expand(shape), keep, name=f"{value}.keep")

    def by_position(self, keep: Keep) -> bool:
        """Whether ``keep`` depends on positions and constants alone: no row of such a mask is empty."""
        pending = [] if isinstance(keep, bool) else list(_values(keep))
        seen = set[str]()
        while pending:
            name = pending.pop()
            node = self.producers.get(name)
            if node is None and name not in self.graph.constants:
                return False
            if node is not None and name not in seen:
                seen.add(name)
                pending += node.inputs
        return True


def _values(keep: Kept) -> Iterator[str]:
    """The values that ``keep`` is computed from, but for constants."""
    if isinstance(keep, From) and keep.true not in ("zeros", "ones"):
        yield keep.value
    if isinstance(keep, Moved) and keep.positions:
        yield keep.positions
    for part in _parts(keep):
        yield from _values(part)
