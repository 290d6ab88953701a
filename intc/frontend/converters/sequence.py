"""Converters of sequences of tensors, which are lists while importing: what exporters write for `hstack`, for
loops over the parts of a split, and for lists that a loop fills.
"""

from __future__ import annotations

import numpy as np

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.symbolic import Imported, Items, Stacked


def _items(call: Call) -> list[Imported]:
    value = call.inputs[0]
    if not isinstance(value, Items):
        loop = isinstance(value, Stacked)
        raise GraphError(
            "what a loop appends is not just joined" if loop else "a tensor is used as a sequence"
        )
    return list(value.values)


def _position(call: Call, i: int, count: int, default: int) -> int:
    """Input ``i`` as a position among ``count``."""
    at = int(call.known(i, "the position").item()) if call.has(i) else default
    if not -count <= at < count:
        raise GraphError(f"position {at} lies outside the {count} tensors of the sequence")
    return at % count


def _construct(call: Call) -> list[Imported]:
    return [Items(tuple(call.inputs))]


def _insert(call: Call) -> list[Imported]:
    items = _items(call)
    items.insert(_position(call, 2, len(items) + 1, len(items)), call.inputs[1])
    return [Items(tuple(items))]


def _erase(call: Call) -> list[Imported]:
    items = _items(call)
    del items[_position(call, 1, len(items), len(items) - 1)]
    return [Items(tuple(items))]


def _at(call: Call) -> list[Imported]:
    items = _items(call)
    return [items[_position(call, 1, len(items), 0)]]


def _length(call: Call) -> list[Imported]:
    return [np.asarray(len(_items(call)), np.int64)]


def _split(call: Call) -> list[Imported]:
    """Parts of equal or given lengths along an axis of known size; without lengths, its single entries."""
    shape = call.ctx.shape_of(call.inputs[0])
    axis = int(call.attributes.get("axis", 0)) % len(shape)
    size = shape[axis]
    if not isinstance(size, int):
        raise GraphError("the split axis has a symbolic size")
    given = np.asarray(call.known(1, "the split")) if call.has(1) else np.asarray(1)
    step = int(given) if given.ndim == 0 else 0
    call.refuse(given.ndim == 0 and step < 1, f"an axis of size {size} cannot be split in parts of {step}")
    parts = [int(p) for p in given] if given.ndim else [min(step, size - a) for a in range(0, size, step)]
    pieces = [call.inputs[0]]
    if len(parts) > 1:
        lengths = np.asarray(parts, np.int64)
        pieces = call.apply("Split", [call.inputs[0], lengths], len(parts), axis=axis)
    if not call.has(1) and not call.attributes.get("keepdims", 1):
        pieces = [call.apply("Squeeze", [p, np.asarray([axis])])[0] for p in pieces]
    return [Items(tuple(pieces))]


def _concat(call: Call) -> list[Imported]:
    axis, given = int(call.attributes["axis"]), call.inputs[0]
    if isinstance(given, Stacked) and axis == 0 and not call.attributes.get("new_axis", 0):
        return [given.join]
    items = _items(call)
    call.refuse(not items, "an empty sequence is joined")
    if call.attributes.get("new_axis", 0):
        items = [call.apply("Unsqueeze", [x, np.asarray([axis])])[0] for x in items]
    return call.apply("Concat", items, axis=axis)


CONVERTERS: dict[str, Converter] = {
    "SequenceEmpty": _construct,
    "SequenceConstruct": _construct,
    "SequenceInsert": _insert,
    "SequenceErase": _erase,
    "SequenceAt": _at,
    "SequenceLength": _length,
    "SplitToSequence": _split,
    "ConcatFromSequence": _concat,
}
