"""Converters of image operators: padding, blocks of pixels, normalisation over channels-first maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.converters.movement import reshape_to
from intc.frontend.fold import small
from intc.frontend.symbolic import Imported
from intc.ir.dims import Dim, as_dim, factor, product, terms_of
from intc.ir.ranges import bounds
from intc.ops import elementwise as ew
from intc.ops.layer_norm import LayerNorm
from intc.ops.movement import Concat, Expand, Gather, Pad, Slice, Transpose
from intc.ops.reduce import ReduceMean


def fixed(call: Call, sizes: Sequence[Dim], what: str) -> list[int]:
    """``sizes`` as ints; GraphError names ``what`` must not be symbolic."""
    if not all(isinstance(d, int) for d in sizes):
        raise GraphError(f"{what} must have a fixed size, not {list(map(str, sizes))}")
    call.refuse(not small(sizes), f"{what} of {list(sizes)} is too large")
    return [int(d) for d in sizes]  # type: ignore[arg-type]


def _pad(call: Call) -> list[Imported]:
    x = call.x()
    rank = len(call.shape(x))
    pads = [as_dim(p) for p in call.known(1, "the padding").ravel()]
    axes = [int(a) % rank for a in call.known(3, "axes").ravel()] if call.has(3) else list(range(rank))
    mode = str(call.attributes.get("mode", "constant"))
    call.refuse(len(pads) != 2 * len(axes), f"{len(pads)} pads do not fit {len(axes)} axes")
    before: list[Dim] = [0] * rank
    after: list[Dim] = [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    for axis in range(rank):
        size = call.shape(x)[axis]
        cut = [-p if bounds(p, call.ctx.assumed.largest)[1] <= 0 else 0 for p in (before[axis], after[axis])]
        if any(cut):
            x = call.emit(Slice(axis, cut[0], size - cut[1]), x, last=False)
    before, after = ([_more(call, p) for p in ends] for ends in (before, after))
    if not any(before) and not any(after):
        return [x]
    fill = float(call.known(2, "the fill value").ravel()[0]) if call.has(2) else 0.0
    numbers = all(isinstance(p, int) for p in (*before, *after))
    if mode == "constant" and fill == 0.0 and numbers:
        return [call.emit(Pad(tuple(before), tuple(after)), x)]  # type: ignore[arg-type]
    for axis in range(rank):
        if before[axis] or after[axis]:
            x = extended(call, x, axis, (before[axis], after[axis]), mode, fill)
    return [x]


def _more(call: Call, size: Dim) -> Dim:
    """``size``, or 0 where it is negative; where that depends on the input, inputs that cut are refused."""
    low, high = bounds(size, call.ctx.assumed.largest)
    inexact = call.ctx.assumed.floors.taken and not call.ctx.assumed.floors.exact
    call.refuse(
        low < 0 < high and inexact, f"whether {size} more entries are less than none depends on the input"
    )
    return size if high > 0 else 0


def extended(call: Call, x: str, axis: int, pads: tuple[Dim, Dim], mode: str, fill: float) -> str:
    """``x`` with ``pads`` more entries at the two ends of ``axis``."""
    shape = call.shape(x)
    if mode == "constant":
        one = np.full((1,) * len(shape), fill, call.dtype(x))
        constant = call.ctx.builder.constant(f"{call.node.output[0]}.fill", one)
        parts = [(*shape[:axis], p, *shape[axis + 1 :]) for p in pads]
        ends = [call.emit(Expand(p), constant, last=False) if p[axis] else "" for p in parts]
        present = [v for v in (ends[0], x, ends[1]) if v]
        return call.emit(Concat(axis), *present, last=False)
    size, (first, last) = shape[axis], fixed(call, pads, f"a padding with mode '{mode}'")
    if not isinstance(size, int):
        return _with_ends(call, x, axis, (first, last), mode)
    call.refuse(not small([size + first + last]), f"{first + last} more entries are too many")
    positions = np.pad(
        np.arange(size), (first, last), mode={"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
    )  # type: ignore[call-overload]
    index = call.ctx.builder.constant(f"{call.node.output[0]}.index", positions.astype(np.int64))
    return call.emit(Gather(axis), x, index, last=False)


def _with_ends(call: Call, x: str, axis: int, pads: tuple[int, int], mode: str) -> str:
    """:func:`extended` along an axis of symbolic size, which must be as long as the ends need."""
    size = call.shape(x)[axis]
    first, last = pads
    slices = {
        "reflect": (Slice(axis, first, 0, -1), Slice(axis, size - 2, size - 2 - last, -1)),
        "edge": (Slice(axis, 0, 1), Slice(axis, size - 1, size)),
        "wrap": (Slice(axis, size - first, size), Slice(axis, 0, last)),
    }[mode]
    ends = []
    for part, count in zip(slices, pads, strict=True):
        end = call.emit(part, x, last=False) if count else ""
        if count and mode == "edge":
            end = call.emit(Expand(_resized(call.shape(end), axis, count)), end, last=False)
        ends.append(end)
    return call.emit(Concat(axis), *(v for v in (ends[0], x, ends[1]) if v), last=False)


def _resized(shape: Sequence[Dim], axis: int, size: Dim) -> tuple[Dim, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _rows_normalised(call: Call, groups: int) -> str:
    """Each group of channels of each sample with mean 0 and variance 1."""
    x = call.x()
    batch, channels, *sizes = call.shape(x)
    (count,) = fixed(call, [channels], "the channels")
    call.refuse(groups < 1 or count % groups, f"{groups} groups do not divide {count}")
    width, epsilon = count // groups * product(sizes), float(call.attributes.get("epsilon", 1e-5))
    if isinstance(width, int):
        call.refuse(not small([width]), f"a normalised map of {width} is too large")
        rows = reshape_to(call, x, (batch, groups, width), True)
        one, zero = call.constant(np.ones(width)), call.constant(np.zeros(width))
        y = call.emit(LayerNorm(-1, epsilon), rows, one, zero, last=False)
    else:
        y = _normalised(call, reshape_to(call, x, (batch, groups, count // groups, *sizes), True), epsilon)
    return reshape_to(call, y, call.shape(x), True)


def mean_over(call: Call, x: str, axes: Sequence[int], keepdims: bool = True) -> str:
    """The mean over ``axes``: all fixed sizes at once, symbols one by one, so that sums stay small."""
    shape = call.shape(x)
    gone = {a % len(shape) for a in axes}
    apart = [_factors(d) if a in gone else [d] for a, d in enumerate(shape)]
    sizes = [(d, a in gone) for a, parts in enumerate(apart) for d in parts]
    free = [i for i, (d, meant) in enumerate(sizes) if meant and not isinstance(d, int)]
    known = tuple(i for i, (d, meant) in enumerate(sizes) if meant and isinstance(d, int))
    if len(free) + bool(known) <= 1:
        return call.emit(ReduceMean(tuple(axes), keepdims), x)
    x = reshape_to(call, x, [d for d, _ in sizes], True)
    for part in (*((i,) for i in free), *((known,) if known else ())):
        x = call.emit(ReduceMean(part, True), x, last=False)
    kept = [1 if a in gone else d for a, d in enumerate(shape) if keepdims or a not in gone]
    return reshape_to(call, x, kept, True)


def _factors(size: Dim) -> list[Dim]:
    """``size`` as a product, where it is one."""
    terms = list(terms_of(size).items())
    if isinstance(size, int) or len(terms) != 1:
        return [size]
    ((names, coefficient),) = terms
    return [*([coefficient] if coefficient != 1 else []), *map(factor, names)]


def _normalised(call: Call, groups: str, epsilon: float) -> str:
    """``groups`` [B, G, ..] of symbolic size, each with mean 0 and variance 1."""
    axes = range(2, len(call.shape(groups)))
    centred = call.emit(ew.Sub(), groups, mean_over(call, groups, axes), last=False)
    squares = call.emit(ew.Mul(), centred, centred, last=False)
    variance = mean_over(call, squares, axes)
    variance = call.emit(ew.Add(), variance, call.constant([epsilon]), last=False)
    return call.emit(ew.Div(), centred, call.emit(ew.Sqrt(), variance, last=False), last=False)


def _affine(call: Call, y: str) -> list[Imported]:
    """``y * inputs[1] + inputs[2]``, one number for each channel (or each group of channels)."""
    rank, channels = len(call.shape(y)), call.shape(y)[1]
    vectors = []
    for i in (1, 2):
        value = np.asarray(call.known(i, "a normalisation parameter"), np.float32).ravel()
        if isinstance(channels, int) and value.size != channels:
            value = np.repeat(value, channels // value.size)
        vectors.append(call.constant(value.reshape(-1, *(1,) * (rank - 2))))
    return [call.emit(ew.Add(), call.emit(ew.Mul(), y, vectors[0], last=False), vectors[1])]


def _instance_norm(call: Call) -> list[Imported]:
    (channels,) = fixed(call, call.shape(call.x())[1:2], "the channels")
    return _affine(call, _rows_normalised(call, channels))


def _group_norm(call: Call) -> list[Imported]:
    return _affine(call, _rows_normalised(call, int(call.attributes["num_groups"])))


def _depth_to_space(call: Call) -> list[Imported]:
    x, block = call.x(), int(call.attributes["blocksize"])
    b, c, h, w = call.shape(x)
    (channels,) = fixed(call, [c], "the channels")
    inner = channels // block**2
    if call.attributes.get("mode", "DCR") == "DCR":
        parts, perm = (b, block, block, inner, h, w), (0, 3, 4, 1, 5, 2)
    else:
        parts, perm = (b, inner, block, block, h, w), (0, 1, 4, 2, 5, 3)
    y = call.emit(Transpose(perm), reshape_to(call, x, parts, True), last=False)
    return [reshape_to(call, y, (b, inner, h * block, w * block), True)]


def _space_to_depth(call: Call) -> list[Imported]:
    x, block = call.x(), int(call.attributes["blocksize"])
    b, c, h, w = call.shape(x)
    height, width = fixed(call, (h, w), "the image")
    split = reshape_to(call, x, (b, c, height // block, block, width // block, block), True)
    blocks_first = call.attributes.get("mode", "DCR") == "DCR"
    y = call.emit(Transpose((0, 3, 5, 1, 2, 4) if blocks_first else (0, 1, 3, 5, 2, 4)), split, last=False)
    return [reshape_to(call, y, (b, c * block**2, height // block, width // block), True)]


CONVERTERS: dict[str, Converter] = {
    "Pad": _pad,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
}
