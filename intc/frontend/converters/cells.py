"""Where the largest entries of windows stand (the second result of MaxPool), and what is written there again
(MaxUnpool, SegNet): each window of an image is a cell, of which one entry is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.converters import window
from intc.frontend.converters.movement import reshape_to
from intc.frontend.converters.window import Window
from intc.frontend.indices import added, reshaped, with_ones
from intc.frontend.symbolic import Imported, Index
from intc.ir.dims import Dim, as_dim, product
from intc.ir.ranges import bounds
from intc.ops import elementwise as ew
from intc.ops.im2col import Im2col
from intc.ops.logic import And, Equal
from intc.ops.movement import Gather, Pad, Reshape, Slice, Transpose
from intc.ops.positions import Positions
from intc.ops.reduce import ArgMax

NOWHERE = Index((), ())


@dataclass(frozen=True)
class Cells:
    """Places ``corner[i, j, ..] + inside[taps[i, j, ..]]``; ``taps`` is live, or None: nothing is chosen."""

    corner: Index
    inside: Index = NOWHERE
    taps: str | None = None


def _max_pool(call: Call) -> list[Imported]:
    largest = window.pooled(call, window.largest)
    return [*largest, _largest_at(call)] if any(call.node.output[1:]) else largest


def _largest_at(call: Call) -> Imported:
    """Where the largest entry of each window stands, counted over all of the input."""
    batch, channels, *sizes = call.shape(call.x())
    call.refuse(len(sizes) > 2, "places in three dimensions are not supported")
    call.refuse(call.attributes.get("storage_order"), "places counted along columns are not supported")
    height, width = (1, *sizes)[-2:]
    rows, columns = (Window(), *window.windows_along(call, sizes))[-2:]
    image = reshape_to(call, call.x(), (batch, channels, height, width), True)
    image = call.emit(Transpose((0, 2, 3, 1)), image, last=False)
    patches = call.emit(Im2col(*window.parts(rows, columns), True), image, last=False)
    _, *outputs, _ = call.shape(patches)
    corner = Index(
        (batch, channels, *outputs),
        (channels * height * width, height * width, rows.stride * width, columns.stride),
        -rows.pads[0] * width - columns.pads[0],
    )
    shape = (batch, channels, *outputs[2 - len(sizes) :])
    if rows.kernel == columns.kernel == 1 and not any((*rows.pads, *columns.pads)):
        return reshaped(corner, shape)
    taps = rows.kernel * columns.kernel
    patches = reshape_to(call, patches, (batch, *outputs, taps, channels), True)
    if any((*rows.pads, *columns.pads)):
        along = zip((height, width), outputs, (rows, columns), strict=True)
        up, across = (window.inside(call, 0, size, count, w) for size, count, w in along)
        up = reshape_to(call, up, (outputs[0], 1, rows.kernel, 1), True)
        across = reshape_to(call, across, (1, outputs[1], 1, columns.kernel), True)
        kept = call.emit(And(), up, across, last=False)
        kept = reshape_to(call, kept, (*outputs, taps, 1), True)
        patches = call.emit(ew.Where(), kept, patches, call.constant(-np.inf), last=False)
    chosen = call.emit(ArgMax(3, False), patches, last=False)
    chosen = call.emit(Transpose((0, 3, 1, 2)), chosen, last=False)
    steps = (rows.dilation * width, columns.dilation)
    table = call.ctx.live(Index((rows.kernel, columns.kernel), steps), "positions")
    within = call.emit(Gather(0), reshape_to(call, table, (taps,), True), chosen, last=False)
    at = call.emit(ew.Add(), call.ctx.live(corner, "positions"), within, last=False)
    return reshape_to(call, at, shape, True)


def cells(call: Call, value: str) -> Cells | None:
    """``value`` as a sum of positions and of one table's entries, but for its shape; else None."""
    node = call.ctx.builder.producer(value)
    if node is None:
        return None
    if isinstance(node.op, Positions):
        return Cells(Index(node.op.shape, node.op.steps, node.op.offset))
    if isinstance(node.op, Reshape):
        found = cells(call, node.inputs[0])
        if found is None:
            return None
        alike = found.taps is None or with_ones(found.corner.shape, node.op.shape) is not None
        corner = reshaped(found.corner, node.op.shape) if alike else found.corner
        return None if corner is None else replace(found, corner=corner)
    if isinstance(node.op, Gather) and node.op.axis == 0:
        table = cells(call, _source(call, node.inputs[0]))
        size = product(table.corner.shape) if table and table.taps is None else None
        if table is None or size != product(call.shape(node.inputs[0])):
            return None
        shape = call.shape(value)
        return Cells(Index(shape, (0,) * len(shape)), table.corner, node.inputs[1])
    if isinstance(node.op, ew.Add | ew.Sub):
        a, b = (cells(call, x) for x in node.inputs)
        if a is None or b is None or (b.taps and (a.taps or isinstance(node.op, ew.Sub))):
            return None
        if any(c.corner.shape != call.shape(x) for c, x in zip((a, b), node.inputs, strict=True)):
            return None
        corner = added(a.corner, b.corner, -1 if isinstance(node.op, ew.Sub) else 1)
        chosen = b if b.taps else a
        return None if corner.shape != call.shape(value) else Cells(corner, chosen.inside, chosen.taps)
    return None


def _source(call: Call, value: str) -> str:
    node = call.ctx.builder.producer(value)
    return node.inputs[0] if node is not None and isinstance(node.op, Reshape) else value


def written(call: Call, at: Cells, updates: str, size: Dim) -> str:
    """``size`` zeros with ``updates`` at the places ``at``; GraphError where two cells share a place."""
    assert at.taps is not None
    shape, grid = at.corner.shape, at.inside.shape
    count = product(grid)
    assert isinstance(count, int)
    new = reshape_to(call, updates, (*shape, 1), True)
    taps = reshape_to(call, at.taps, (*shape, 1), True)
    here = call.emit(Equal(), taps, call.ctx.live(Index((count,), (1,)), "positions"), last=False)
    y = call.emit(ew.Where(), here, new, call.constant(0.0), last=False)
    y = reshape_to(call, y, (*shape, *grid), True)
    order = _order((*at.corner.steps, *at.inside.steps), (*shape, *grid))
    y = call.emit(Transpose(tuple(reversed(order))), y, last=False)
    steps, block, free = (*at.corner.steps, *at.inside.steps), as_dim(1), 0
    outer = [call.shape(y)[i] for i in range(len(order))]
    for axis in order:
        if (length := outer.pop()) != 1:
            y, free = _resized(call, reshape_to(call, y, (*outer, length, block), True), steps[axis], free)
            block = length * steps[axis]
    y, _ = _resized(call, reshape_to(call, y, (block,), True), size, free)
    call.refuse(
        at.corner.offset + at.inside.offset != 0, "the first window does not begin at the first entry"
    )
    return y


def _order(steps: Sequence[Dim], shape: Sequence[Dim]) -> list[int]:
    """The axes, innermost first: those with the smallest steps."""
    left, order = [a for a, d in enumerate(shape) if d != 1], []
    while left:
        least = [a for a in left if all(bounds(steps[b] - steps[a])[0] >= 0 for b in left)]
        if not least:
            raise GraphError("which of two windows is further in depends on the input")
        order.append(least[0])
        left.remove(least[0])
    return order + [a for a, d in enumerate(shape) if d == 1]


def _resized(call: Call, x: str, size: Dim, free: int) -> tuple[str, int]:
    """``x``, whose last ``free`` entries are zeros, with ``size`` entries, and how many are zeros then."""
    more, last = size - call.shape(x)[-1], len(call.shape(x)) - 1
    if not isinstance(more, int) or more < -free:
        raise GraphError("the windows overlap, or leave out a part that depends on the input")
    if more > 0:
        x = call.emit(Pad((0,) * (last + 1), (*(0,) * last, more)), x, last=False)
    return (call.emit(Slice(last, 0, size), x, last=False) if more < 0 else x), free + more


def _max_unpool(call: Call) -> list[Imported]:
    """``x`` at the places that a MaxPool gave for it, in an image of the default or the given size."""
    x = call.x()
    lead, sizes = call.shape(x)[:2], call.shape(x)[2:]
    kernel = [int(k) for k in call.attributes["kernel_shape"]]
    strides = call.attributes.get("strides", [1] * len(kernel))
    pads = call.attributes.get("pads", [0] * (2 * len(kernel)))
    shape = [
        *lead,
        *(
            (d - 1) * s + k - before - after
            for d, k, s, before, after in zip(
                sizes, kernel, strides, pads[: len(kernel)], pads[len(kernel) :], strict=True
            )
        ),
    ]
    if call.has(2):
        shape = list(call.known(2, "the output shape"))
    at = cells(call, call.x(1))
    call.refuse(at is None or at.taps is None, "the places are not those of a MaxPool")
    assert at is not None
    return [reshape_to(call, written(call, at, x, product(shape)), shape, True)]


CONVERTERS: dict[str, Converter] = {"MaxPool": _max_pool, "MaxUnpool": _max_unpool}
