"""Masks that hide some keys more than others: where a row keeps nothing, the ones hidden the least count.

``where(a, where(b, x, -1e9), -5e4)``: a token of Reformer attends to itself only if there is nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from intc.ir.graph import Builder, Node
from intc.ops.elementwise import Where
from intc.ops.logic import And, Not, Or
from intc.passes.keep import Both, Keep, Kept, Negated, both, negated, opposite
from intc.passes.masks import Masks
from intc.passes.rewrite import scalar_of
from intc.passes.whole_masks import some_kept


def least_hidden(masks: Masks, value: str) -> Kept | None:
    """The keys of ``value`` that have the highest of several numbers far below its scores, not counting those
    that are kept; None where all that are hidden have the same.
    """
    layers: list[tuple[Kept, float]] = []  # what each choice keeps, the number of the rest; outermost first
    while (node := masks.producers.get(value)) is not None and isinstance(node.op, Where):
        found = _layer(masks, node)
        if found is None:
            break
        value = found[0]
        layers.append(found[1:])
    highest = max((number for _, number in layers), default=0.0)
    if all(number == highest for _, number in layers):
        return None
    if not all(number == highest or highest - number >= masks.big for _, number in layers):
        return None
    above: Keep = True
    others: Keep = True
    for keep, number in layers:
        if number == highest:
            hidden = opposite(keep)
            others = both(others, Negated(hidden if isinstance(above, bool) else Both(above, hidden)))
        above = both(above, keep)
    return negated(others)


def _layer(masks: Masks, node: Node) -> tuple[str, Kept, float] | None:
    """What ``node`` chooses where it keeps, where that is, and the number elsewhere."""
    condition, *sides = node.inputs
    keep = masks.truth(condition)
    for kept, low in (sides, sides[::-1]):
        number = scalar_of(masks.graph, masks.producers, low)
        if number is not None and number <= -masks.big:
            keep = keep if low == sides[1] else negated(keep)
            return (kept, keep, number) if isinstance(keep, Kept) else None
    return None


def applied(
    masks: Masks, b: Builder, names: Mapping[str, str], value: str, axis: int, parts: tuple[str, str]
) -> tuple[str, str]:
    """``parts``, the scores in ``value`` and the keys along ``axis`` that are kept, with those of rows that
    keep nothing: the ones hidden the least, all alike.
    """
    scores, kept = parts
    shape, type_ = masks.graph.type(value).shape, b.graph.type(kept)
    least = least_hidden(masks, value)
    if least is None or axis % len(shape) != len(shape) - 1 or type_.shape[-1:] != shape[-1:]:
        return parts
    some = some_kept(b, kept, type_.rank - 1)
    rest = b.emit(
        And(), b.emit(Not(), some, name="mask.none"), masks.kept.emit(b, names, least), name="mask.rest"
    )
    zero = b.constant("zero", np.zeros(1, np.float32))
    return b.emit(Where(), some, scores, zero, name=f"{scores}.some"), b.emit(
        Or(), kept, rest, name="mask.or"
    )
