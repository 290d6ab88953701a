"""Converters of what slides over images, sequences and frames: pooling, transposed convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

import numpy as np

from intc.frontend.agreement import divide, require_equal
from intc.frontend.call import Call, Converter
from intc.frontend.converters.image import fixed
from intc.frontend.converters.movement import reshape_to
from intc.frontend.symbolic import Imported, Index
from intc.ir.dims import Dim, product
from intc.ir.op import Array
from intc.ops import elementwise as ew
from intc.ops import logic
from intc.ops.conv import Conv
from intc.ops.im2col import Im2col
from intc.ops.movement import Concat, Slice, Transpose
from intc.ops.reduce import ReduceMax, ReduceMean, ReduceSum
from intc.ops.window import MaxPool


@dataclass(frozen=True)
class Window:
    """A window along one axis; of the ``pads`` (before, after), ``uncounted`` are no part of a mean."""

    kernel: int = 1
    stride: int = 1
    pads: tuple[int, int] = (0, 0)
    dilation: int = 1
    uncounted: tuple[int, int] = (0, 0)


FILTERS = 64  # elements of a window whose mean is a filter
Pool: TypeAlias = Callable[[Call, str, Window, Window], str]


def same_pads(
    sizes: Sequence[Dim], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], upper: bool
) -> list[int]:
    """The pads of ``auto_pad``: outputs of ceil(size / stride), the odd pad at the end for SAME_UPPER.

    A symbolic size must be a multiple of its stride.
    """
    before, after = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        span = d * (k - 1) + 1
        count = -(-size // s) if isinstance(size, int) else divide(size, s)
        total = max((count - 1) * s + span - size, 0) if isinstance(size, int) else max(span - s, 0)
        small, large = total // 2, total - total // 2
        before.append(small if upper else large)
        after.append(large if upper else small)
    return before + after


def windows_along(call: Call, sizes: Sequence[Dim]) -> list[Window]:
    """The windows of a pooling along axes of ``sizes``."""
    rank = len(sizes)
    kernel = [int(k) for k in call.attributes["kernel_shape"]]
    strides, dilations = (
        [int(v) for v in call.attributes.get(k, [1] * rank)] for k in ("strides", "dilations")
    )
    given = pads = [int(p) for p in call.attributes.get("pads", [0] * (2 * rank))]
    auto = call.attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = same_pads(sizes, kernel, strides, dilations, auto == "SAME_UPPER")
    call.refuse(
        len(kernel) != rank or len(pads) != 2 * rank or min(pads) < 0 or min(*strides, *dilations) < 1,
        "malformed pads or strides",
    )
    if call.attributes.get("ceil_mode"):
        pads = list(pads)
        for i, stride in enumerate(strides):
            if stride > 1:
                span = dilations[i] * (kernel[i] - 1) + 1
                if not isinstance(sizes[i], int) and span >= stride + pads[i + rank]:
                    pads[i + rank] += stride - 1  # all windows begin inside the image
                    continue
                (size,) = fixed(call, sizes[i : i + 1], "an image under ceil_mode")
                pads[i + rank] += _rounded_up(size, kernel[i], stride, pads[i::rank], dilations[i])
    counted = given if call.attributes.get("count_include_pad") else [0] * (2 * rank)
    windows = (
        Window(
            kernel[i],
            strides[i],
            (pads[i], pads[i + rank]),
            dilations[i],
            (pads[i] - counted[i], pads[i + rank] - counted[i + rank]),
        )
        for i in range(rank)
    )
    return [_trimmed(size, window) for size, window in zip(sizes, windows, strict=True)]


def _trimmed(size: Dim, window: Window) -> Window:
    """A window that takes in a whole axis at once loses the padding that does not count: it may be far larger
    than the image.
    """
    whole = isinstance(size, int) and size + sum(window.pads) == window.kernel and window.dilation == 1
    if not whole or not any(window.uncounted):
        return window
    before, after = (p - u for p, u in zip(window.pads, window.uncounted, strict=True))
    return Window(window.kernel - sum(window.uncounted), pads=(before, after))


def _rounded_up(size: int, kernel: int, stride: int, pads: Sequence[int], dilation: int) -> int:
    """The further padding at the end by which the last window begins inside the image and ends."""
    span, room = dilation * (kernel - 1) + 1, size + sum(pads)
    count = -(-(room - span) // stride) + 1
    count -= (count - 1) * stride >= size + pads[0]
    return max((count - 1) * stride + span - room, 0)


def pooled(call: Call, pool: Pool) -> list[Imported]:
    """``pool`` over images; a sequence is an image of height 1; frames are pooled each, then along."""
    x = call.x()
    batch, channels, *sizes = call.shape(x)
    call.refuse(len(sizes) not in (1, 2, 3), "only windows in one to three dimensions are supported")
    along = windows_along(call, sizes)
    if len(sizes) == 1:
        y = pool(call, reshape_to(call, x, (batch, channels, 1, *sizes), True), Window(), *along)
        return [reshape_to(call, y, (batch, channels, call.shape(y)[3]), True)]
    if len(sizes) == 2:
        return [pool(call, x, *along)]
    x = call.emit(Transpose((0, 2, 1, 3, 4)), x, last=False)
    images = reshape_to(call, x, (batch * sizes[0], channels, *sizes[1:]), True)
    y = pool(call, images, *along[1:])
    height, width = call.shape(y)[2:]
    y = reshape_to(call, y, (batch, sizes[0], channels, height * width), True)
    y = pool(call, call.emit(Transpose((0, 2, 1, 3)), y, last=False), along[0], Window())
    return [reshape_to(call, y, (batch, channels, call.shape(y)[2], height, width), True)]


def parts(
    rows: Window, columns: Window
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int], tuple[int, int]]:
    """Kernel, strides, pads (top, left, bottom, right) and dilations of both."""
    pads = (rows.pads[0], columns.pads[0], rows.pads[1], columns.pads[1])
    return (
        (rows.kernel, columns.kernel),
        (rows.stride, columns.stride),
        pads,
        (rows.dilation, columns.dilation),
    )


def largest(call: Call, x: str, rows: Window, columns: Window) -> str:
    last = call.emit(Transpose((0, 2, 3, 1)), x, last=False)
    y = call.emit(MaxPool(*parts(rows, columns)), last, last=False)
    return call.emit(Transpose((0, 3, 1, 2)), y, last=False)


def _mean(call: Call, x: str, rows: Window, columns: Window) -> str:
    """Means over windows: filters of every channel, large ones laid out as rows; where padding does not
    count, times what makes up for it.
    """
    _, channels, height, width = call.shape(x)
    kernel, strides, pads, dilations = parts(rows, columns)
    taps = rows.kernel * columns.kernel
    if taps <= FILTERS and isinstance(channels, int):
        every = call.constant(np.full((channels, 1, *kernel), 1 / taps, np.float32))
        y = call.emit(Conv(strides, pads, dilations, channels), x, every, last=False)
        y = call.emit(Transpose((0, 2, 3, 1)), y, last=False)
    else:
        image = call.emit(Transpose((0, 2, 3, 1)), x, last=False)
        patches = call.emit(Im2col(kernel, strides, pads, dilations, True), image, last=False)
        patches = reshape_to(call, patches, (*call.shape(patches)[:3], taps, channels), True)
        y = call.emit(ReduceMean((3,), False), patches, last=False)
    size = call.shape(y)[1:3]
    along = ((height, size[0], rows), (width, size[1], columns))
    if all(isinstance(length, int) or not any(window.uncounted) for length, _, window in along):
        counts = _counts(height, rows)[:, None] * _counts(width, columns)
        if (counts != taps).any():
            y = call.emit(ew.Mul(), y, call.constant((taps / counts)[..., None]), last=False)
    else:
        number = call.emit(
            ew.Mul(), *(_computed_counts(call, *axis, i) for i, axis in enumerate(along)), last=False
        )
        y = call.emit(ew.Mul(), y, call.constant(float(taps)), last=False)
        y = call.emit(ew.Div(), y, call.emit(ew.Cast("float32"), number, last=False), last=False)
    return call.emit(Transpose((0, 3, 1, 2)), y, last=False)


def _computed_counts(call: Call, size: Dim, outputs: Dim, window: Window, axis: int) -> str:
    """:func:`_counts` along an axis of any size, [outputs, 1, 1] or [outputs, 1] for the second axis."""
    ahead, behind = (p - u for p, u in zip(window.pads, window.uncounted, strict=True))
    counted = call.emit(ew.Cast("int32"), inside(call, -ahead, size + behind, outputs, window), last=False)
    number = call.emit(ReduceSum((1,), False), counted, last=False)
    return reshape_to(call, number, (outputs, *(1,) * (2 - axis)), True)


def inside(call: Call, first: Dim, end: Dim, outputs: Dim, window: Window) -> str:
    """Which entries of each window along an axis, [outputs, kernel], stand between ``first`` and ``end``."""
    steps = (window.stride, window.dilation)
    at = call.ctx.live(Index((outputs, window.kernel), steps, -window.pads[0]), "positions")
    left, right = (call.ctx.live(Index((1,), (0,), d), "positions") for d in (first, end))
    sides = (
        call.emit(logic.LessOrEqual(), left, at, last=False),
        call.emit(logic.Less(), at, right, last=False),
    )
    return call.emit(logic.And(), *sides, last=False)


def _counts(size: Dim, window: Window) -> Array:
    """How many entries count in each window along an axis; one number where it is the same for all."""
    if not any(window.uncounted):
        return np.array([window.kernel])
    assert isinstance(size, int)
    counted = [p - u for p, u in zip(window.pads, window.uncounted, strict=True)]
    ones = np.pad(np.ones(size + sum(counted), np.int64), window.uncounted)
    span = window.dilation * (window.kernel - 1) + 1
    every = np.lib.stride_tricks.sliding_window_view(ones, span)
    return np.asarray(every[:: window.stride, :: window.dilation].sum(axis=1))


def _average_pool(call: Call) -> list[Imported]:
    return pooled(call, _mean)


def _global_max_pool(call: Call) -> list[Imported]:
    x = call.x()
    return [call.emit(ReduceMax(tuple(range(2, len(call.shape(x)))), True), x)]


def _conv_transpose(call: Call) -> list[Imported]:
    """``y[s*q + r - p] = sum_j x[q - j] w[r + s*j]``: a convolution that gives the ``s`` outputs of a step as
    channels, which are then laid out side by side and cut.
    """
    x, groups = call.x(), int(call.attributes.get("group", 1))
    c, per, *kernel = (d for d in call.shape(call.x(1)) if isinstance(d, int))  # C, O / groups, K..
    n = len(call.shape(x)) - 2
    call.refuse(
        n not in (1, 2, 3) or len(kernel) != n, "only windows in one to three dimensions are supported"
    )
    call.refuse(call.attributes.get("auto_pad", "NOTSET") != "NOTSET", "auto_pad is not supported")
    call.refuse(call.attributes.get("output_shape"), "output_shape is not supported")
    strides, dilations = (list(call.attributes.get(k, [1] * n)) for k in ("strides", "dilations"))
    pads, extra = (
        list(call.attributes.get("pads", [0] * (2 * n))),
        call.attributes.get("output_padding", [0] * n),
    )
    call.refuse(min(*strides, *dilations) < 1 or min(pads) < 0, "malformed pads or strides")
    require_equal(call.shape(x)[1], c)
    cuts = [
        _Cut(d * (k - 1) + 1, d, s, pads[i], pads[n + i], extra[i])
        for i, (k, s, d) in enumerate(zip(kernel, strides, dilations, strict=True))
    ]
    if n == 1:
        x = reshape_to(call, x, (*call.shape(x)[:2], 1, call.shape(x)[2]), True)
        kernel, cuts = [1, *kernel], [_Cut(), *cuts]

    def arrange(weight: Array) -> Array:
        return _by_step(weight.reshape(c, per, *kernel), cuts, groups)

    y = _side_by_side(call, x, _arranged(call, arrange), cuts, groups)
    if call.has(2):
        bias = reshape_to(call, call.x(2), (groups * per, *(1,) * len(cuts)), True)
        y = call.emit(ew.Add(), y, bias, last=False)
    shape = call.shape(y)
    return [reshape_to(call, y, (*shape[:2], shape[3]), True) if n == 1 else y]


@dataclass(frozen=True)
class _Cut:
    """A transposed convolution along one axis, with the zeros between its taps in ``kernel``."""

    kernel: int = 1
    dilation: int = 1
    stride: int = 1
    before: int = 0
    after: int = 0
    extra: int = 0  # output padding

    @property
    def taps(self) -> int:
        """Those of one of the outputs of a step."""
        return -(-self.kernel // self.stride)

    @property
    def missing(self) -> int:
        """How many more steps the output padding needs behind the image."""
        return max(-(-(self.kernel - self.after + self.extra - self.stride * self.taps) // self.stride), 0)


def _arranged(call: Call, arrange: Callable[[Array], Array]) -> Imported:
    """``arrange(weights)``, which moves them and puts zeros between; computed ones are picked."""
    weight = call.inputs[1]
    if isinstance(weight, np.ndarray):
        return np.ascontiguousarray(arrange(np.asarray(weight, np.float32)))
    flat = reshape_to(call, call.x(1), (product(call.shape(call.x(1))),), True)
    zero = call.constant(np.zeros(1))
    padded = call.emit(Concat(0), zero, flat, last=False)
    places = arrange(1 + np.arange(int(call.shape(flat)[0])))  # type: ignore[arg-type]
    return call.apply("Gather", [padded, places], axis=0)[0]


def _by_step(weight: Array, cuts: Sequence[_Cut], groups: int) -> Array:
    """``weight`` [C, O / groups, K..] of a convolution that gives all outputs of a step as channels."""
    c, per, n = *weight.shape[:2], len(cuts)
    taps, strides = [cut.taps for cut in cuts], [cut.stride for cut in cuts]
    w = np.zeros((c, per, *(t * s for t, s in zip(taps, strides, strict=True))), weight.dtype)
    w[(slice(None), slice(None), *(slice(0, cut.kernel, cut.dilation) for cut in cuts))] = weight
    w = w.reshape(
        groups, c // groups, per, *(size for pair in zip(taps, strides, strict=True) for size in pair)
    )
    w = np.flip(w, tuple(range(3, 3 + 2 * n, 2)))
    w = w.transpose(0, 2, *range(4, 4 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2))  # G O/G S.. C/G T..
    return w.reshape(groups * per * prod(strides), c // groups, *taps)


def _side_by_side(call: Call, x: str, weight: Imported, cuts: Sequence[_Cut], groups: int) -> str:
    """The outputs of each step, which ``weight`` gives as channels, one beside the other."""
    n, strides = len(cuts), [cut.stride for cut in cuts]
    around = (*(cut.taps - 1 for cut in cuts), *(cut.taps - 1 + cut.missing for cut in cuts))
    (y,) = call.apply("Conv", [x, weight], pads=around, group=groups)
    batch, channels, *sizes = call.shape(y)
    per = channels // prod(strides)
    y = reshape_to(call, y, (batch, per, *strides, *sizes), True)
    y = call.emit(Transpose((0, 1, *(a for i in range(n) for a in (2 + n + i, 2 + i)))), y, last=False)
    y = reshape_to(call, y, (batch, per, *(d * s for d, s in zip(sizes, strides, strict=True))), True)
    for axis, cut in enumerate(cuts, 2):
        size = (call.shape(x)[axis] - 1) * cut.stride + cut.kernel - cut.before - cut.after + cut.extra
        if cut.before or call.shape(y)[axis] != size:
            y = call.emit(Slice(axis, cut.before, cut.before + size), y, last=False)
    return y


CONVERTERS: dict[str, Converter] = {
    "AveragePool": _average_pool,
    "GlobalMaxPool": _global_max_pool,
    "ConvTranspose": _conv_transpose,
}
