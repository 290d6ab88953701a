"""Converters of image operators: padding, pooling, resizing, normalisation over channels-first maps."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.converters_movement import reshape_to
from intc.frontend.fold import compute, small
from intc.frontend.symbolic import Imported
from intc.ir.dims import Dim, product
from intc.ir.op import Array
from intc.ops import elementwise as ew
from intc.ops.conv import Conv
from intc.ops.im2col import Im2col
from intc.ops.layer_norm import LayerNorm
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Expand, Gather, Pad, Slice, Transpose
from intc.ops.reduce import ReduceMean
from intc.ops.window import MaxPool


def fixed(call: Call, sizes: Sequence[Dim], what: str) -> list[int]:
    """``sizes`` as ints; GraphError names ``what`` must not be symbolic."""
    if not all(isinstance(d, int) for d in sizes):
        raise GraphError(f"{what} must have a fixed size, not {list(map(str, sizes))}")
    call.refuse(not small(sizes), f"{what} of {list(sizes)} is too large")
    return [int(d) for d in sizes]  # type: ignore[arg-type]


def _pad(call: Call) -> list[Imported]:
    x = call.x()
    rank = len(call.shape(x))
    pads = [int(p) for p in call.known(1, "the padding").ravel()]
    axes = [int(a) % rank for a in call.known(3, "axes").ravel()] if call.has(3) else list(range(rank))
    mode = str(call.attributes.get("mode", "constant"))
    call.refuse(len(pads) != 2 * len(axes), f"{len(pads)} pads do not fit {len(axes)} axes")
    before, after = [0] * rank, [0] * rank
    for i, axis in enumerate(axes):
        before[axis], after[axis] = pads[i], pads[i + len(axes)]
    for axis in range(rank):
        size = call.shape(x)[axis]
        start, stop = max(-before[axis], 0), size - max(-after[axis], 0)
        if start or stop != size:
            x = call.emit(Slice(axis, start, stop), x, last=False)
    before, after = [max(p, 0) for p in before], [max(p, 0) for p in after]
    if not any(before) and not any(after):
        return [x]
    fill = float(call.known(2, "the fill value").ravel()[0]) if call.has(2) else 0.0
    if mode == "constant" and fill == 0.0:
        return [call.emit(Pad(tuple(before), tuple(after)), x)]
    for axis in range(rank):
        if before[axis] or after[axis]:
            x = _extended(call, x, axis, (before[axis], after[axis]), mode, fill)
    return [x]


def _extended(call: Call, x: str, axis: int, pads: tuple[int, int], mode: str, fill: float) -> str:
    """``x`` with ``pads`` more entries at the two ends of ``axis``."""
    shape = call.shape(x)
    if mode == "constant":
        constant = call.constant(np.full((1,) * len(shape), fill))
        parts = [(*shape[:axis], p, *shape[axis + 1 :]) for p in pads]
        ends = [call.emit(Expand(p), constant, last=False) if p[axis] else "" for p in parts]
        present = [v for v in (ends[0], x, ends[1]) if v]
        return call.emit(Concat(axis), *present, last=False)
    (size,) = fixed(call, shape[axis : axis + 1], "a padded axis")
    call.refuse(not small([size + sum(pads)]), f"{sum(pads)} more entries are too many")
    positions = np.pad(
        np.arange(size), pads, mode={"reflect": "reflect", "edge": "edge", "wrap": "wrap"}[mode]
    )  # type: ignore[call-overload]
    index = call.ctx.builder.constant(f"{call.node.output[0]}.index", positions.astype(np.int64))
    return call.emit(Gather(axis), x, index, last=False)


def window_of(call: Call, sizes: list[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, strides, pads (before.., after..) and dilations of a pooling over images of ``sizes``."""
    rank = len(sizes)
    kernel = [int(k) for k in call.attributes["kernel_shape"]]
    strides, dilations = (
        [int(v) for v in call.attributes.get(k, [1] * rank)] for k in ("strides", "dilations")
    )
    pads = [int(p) for p in call.attributes.get("pads", [0] * (2 * rank))]
    auto = call.attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = same_pads(sizes, kernel, strides, dilations, auto == "SAME_UPPER")
    call.refuse(
        len(kernel) != rank or len(pads) != 2 * rank or min(pads) < 0 or min(*strides, *dilations) < 1,
        "malformed pads or strides",
    )
    if call.attributes.get("ceil_mode"):
        for i, size in enumerate(sizes):
            span, room = dilations[i] * (kernel[i] - 1) + 1, size + pads[i] + pads[i + rank]
            count = -(-(room - span) // strides[i]) + 1
            count -= (count - 1) * strides[i] >= size + pads[i]  # a window that starts beyond the image
            pads[i + rank] += max((count - 1) * strides[i] + span - room, 0)
    return kernel, strides, pads, dilations


def same_pads(
    sizes: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int], upper: bool
) -> list[int]:
    """The pads of ``auto_pad``: outputs of ceil(size / stride), the odd pad at the end for SAME_UPPER."""
    before, after = [], []
    for size, k, s, d in zip(sizes, kernel, strides, dilations, strict=True):
        total = max((-(-size // s) - 1) * s + d * (k - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        before.append(small if upper else large)
        after.append(large if upper else small)
    return before + after


def _two(values: list[int], fill: int) -> tuple[int, int]:
    """One- and two-dimensional attributes as two-dimensional ones."""
    return (fill, values[0]) if len(values) == 1 else (values[0], values[1])


def _as_images(call: Call) -> tuple[str, list[int]]:
    """The first input as NCHW (a sequence is an image of height 1) and its sizes behind the channels."""
    x = call.x()
    shape = call.shape(x)
    call.refuse(len(shape) not in (3, 4), "only one- and two-dimensional windows are supported")
    sizes = fixed(call, shape[2:], "a pooled image")
    return (reshape_to(call, x, (*shape[:2], 1, shape[2]), True) if len(shape) == 3 else x), sizes


def _last(call: Call, x: str) -> str:
    """NCHW as [B, H, W, C]."""
    return call.emit(Transpose((0, 2, 3, 1)), x, last=False)


def _from_images(call: Call, y: str, rank: int) -> str:
    """The result [B, H, W, C] in the layout of an input with ``rank`` axes behind the channels."""
    y = call.emit(Transpose((0, 3, 1, 2)), y, last=False)
    shape = call.shape(y)
    return reshape_to(call, y, (*shape[:2], shape[3]), True) if rank == 1 else y


def _max_pool(call: Call) -> list[Imported]:
    call.refuse(any(call.node.output[1:]), "only the first output is supported")
    x, sizes = _as_images(call)
    kernel, strides, pads, dilations = window_of(call, sizes)
    n = len(sizes)
    op = MaxPool(
        _two(kernel, 1),
        _two(strides, 1),
        (*_two(pads[:n], 0), *_two(pads[n:], 0)),
        _two(dilations, 1),
    )
    return [_from_images(call, call.emit(op, _last(call, x), last=False), n)]


def _average_pool(call: Call) -> list[Imported]:
    """Means over windows laid out as rows; where padding does not count, times what makes up for it."""
    x, sizes = _as_images(call)
    given = [int(p) for p in call.attributes.get("pads", [0] * (2 * len(sizes)))]
    kernel, strides, pads, dilations = window_of(call, sizes)
    n = len(sizes)
    k, s, d = _two(kernel, 1), _two(strides, 1), _two(dilations, 1)
    p = (*_two(pads[:n], 0), *_two(pads[n:], 0))
    columns = Im2col(k, s, p, d, True)
    batch, channels, height, width = call.shape(x)
    image = _last(call, x)
    size = columns.output_size(call.ctx.builder.graph.type(image))
    patches = call.emit(columns, image, last=False)
    patches = reshape_to(call, patches, (batch, prod(size), prod(kernel), channels), True)
    y = call.emit(ReduceMean((2,), False), patches, last=False)
    whole = np.ones((1, 1, *fixed(call, (height, width), "a pooled image")), np.float32)
    extra = list(p)
    if call.attributes.get("count_include_pad"):
        g = (*_two(given[:n], 0), *_two(given[n:], 0))
        whole = np.pad(whole, ((0, 0), (0, 0), (g[0], g[2]), (g[1], g[3])), constant_values=1)
        extra = [a - b for a, b in zip(p, g, strict=True)]
    counts = (
        Im2col(k, s, (extra[0], extra[1], extra[2], extra[3]), d).evaluate(whole, sizes={}).sum(axis=-1)[0]
    )
    if (counts != prod(kernel)).any():
        y = call.emit(ew.Mul(), y, call.constant((prod(kernel) / counts)[:, None]), last=False)
    return [_from_images(call, reshape_to(call, y, (batch, *size, channels), True), n)]


def _global_max_pool(call: Call) -> list[Imported]:
    call.attributes["kernel_shape"] = fixed(call, call.shape(call.x())[2:], "a pooled image")
    return _max_pool(call)


def _resize(call: Call) -> list[Imported]:
    """Each resized axis is a product with the matrix of its interpolation, or a gather where it repeats."""
    x = call.x()
    for axis, matrix in _interpolations(call, x).items():
        rank = len(call.shape(x))
        single = (matrix == 1).sum(axis=0).min() == 1 and np.count_nonzero(matrix) == matrix.shape[1]
        if single:
            index = call.ctx.builder.constant(f"{call.node.output[0]}.index", matrix.argmax(axis=0))
            x = call.emit(Gather(axis), x, index, last=False)
            continue
        order = [*(a for a in range(rank) if a != axis), axis]
        back = tuple(order.index(a) for a in range(rank))
        moved = x if axis == rank - 1 else call.emit(Transpose(tuple(order)), x, last=False)
        moved = call.emit(MatMul(), moved, call.constant(matrix), last=False)
        x = moved if axis == rank - 1 else call.emit(Transpose(back), moved, last=False)
    return [x]


def _interpolations(call: Call, x: str) -> dict[int, Array]:
    """[size, new size] for each axis that changes, as the reference implementation interpolates."""
    shape = call.shape(x)
    crops = call.attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    call.refuse(crops, "crops are not supported")
    axes = [int(a) % len(shape) for a in call.attributes.get("axes", range(len(shape)))]
    targets: list[Any] = list(call.known(3, "the size").ravel()) if call.has(3) else []
    scales = [float(s) for s in call.known(2, "the scale").ravel()] if call.has(2) and not targets else []
    policy = call.attributes.get("keep_aspect_ratio_policy", "stretch")
    call.refuse(policy != "stretch", f"the policy {policy} is not supported")
    out: dict[int, Array] = {}
    for i, axis in enumerate(axes):
        if (targets and targets[i] == shape[axis]) or (scales and scales[i] == 1.0):
            continue
        (size,) = fixed(call, [shape[axis]], "a resized axis")
        extent = (
            {"sizes": np.array([size, int(targets[i])])}
            if targets
            else {"scales": np.array([1.0, scales[i]])}
        )
        out[axis] = _interpolation(call, size, extent)
    return out


def _interpolation(call: Call, size: int, extent: dict[str, Array]) -> Array:
    ((key, value),) = extent.items()
    call.refuse(not small((size, size)), f"an axis of {size} is too large to resize")
    value = value.astype(np.int64 if key == "sizes" else np.float32)
    kept = {k: v for k, v in call.attributes.items() if k not in ("axes", "keep_aspect_ratio_policy")}
    inputs = ["x", "", "", "sizes"] if key == "sizes" else ["x", "", "scales"]
    node = onnx.helper.make_node("Resize", inputs, ["y"], **kept)
    (matrix,) = compute(node, {"x": np.eye(size, dtype=np.float32), key: value}, call.ctx.opsets)
    return matrix


def _upsample(call: Call) -> list[Imported]:
    call.inputs.insert(1, None)
    call.attributes.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    return _resize(call)


def _rows_normalised(call: Call, groups: int) -> str:
    """Each group of channels of each sample with mean 0 and variance 1."""
    x = call.x()
    batch, channels = call.shape(x)[:2]
    rest = product(call.shape(x)[2:])
    (width,) = fixed(call, [channels * rest], "a normalised map")
    call.refuse(groups < 1 or width % groups, f"{groups} groups do not divide {width}")
    rows = reshape_to(call, x, (batch, groups, width // groups), True)
    one, zero = call.constant(np.ones(width // groups)), call.constant(np.zeros(width // groups))
    y = call.emit(LayerNorm(-1, float(call.attributes.get("epsilon", 1e-5))), rows, one, zero, last=False)
    return reshape_to(call, y, call.shape(x), True)


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


def _conv_transpose(call: Call) -> list[Imported]:
    """The convolution, by the reversed kernel, of the image with ``stride - 1`` zeros between its pixels."""
    x, sizes = _as_images(call)
    weight = np.asarray(call.known(1, "the weights"), np.float32)  # C, O / groups, K..
    n, groups = len(sizes), int(call.attributes.get("group", 1))
    weight = weight if n == 2 else weight[:, :, None]
    kernel = list(weight.shape[2:])
    strides, dilations = (
        list(_two([int(v) for v in call.attributes.get(k, [1] * n)], 1)) for k in ("strides", "dilations")
    )
    pads = [int(p) for p in call.attributes.get("pads", [0] * (2 * n))]
    extra = _two([int(p) for p in call.attributes.get("output_padding", [0] * n)], 0)
    call.refuse(call.attributes.get("auto_pad", "NOTSET") != "NOTSET", "auto_pad is not supported")
    call.refuse(call.attributes.get("output_shape"), "output_shape is not supported")
    first, last = _two(pads[:n], 0), _two(pads[n:], 0)
    for axis in (2, 3):
        x = _spread(call, x, axis, strides[axis - 2])
    spans = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    before = [s - p for s, p in zip(spans, first, strict=True)]
    after = [s - p + e for s, p, e in zip(spans, last, extra, strict=True)]
    call.refuse(min(*before, *after) < 0, "pads beyond the kernel are not supported")
    c, per, kh, kw = weight.shape
    flipped = weight.reshape(groups, c // groups, per, kh, kw).transpose(0, 2, 1, 3, 4)[..., ::-1, ::-1]
    w = call.constant(np.ascontiguousarray(flipped).reshape(groups * per, c // groups, kh, kw))
    op = Conv((1, 1), (before[0], before[1], after[0], after[1]), (dilations[0], dilations[1]), groups)
    y = call.emit(op, x, w, *([call.x(2)] if call.has(2) else []), last=False)
    shape = call.shape(y)
    return [reshape_to(call, y, (*shape[:2], shape[3]), True) if n == 1 else y]


def _spread(call: Call, x: str, axis: int, stride: int) -> str:
    """``stride - 1`` zeros between the entries of ``axis``."""
    if stride == 1:
        return x
    shape = list(call.shape(x))
    apart = reshape_to(call, x, (*shape[: axis + 1], 1, *shape[axis + 1 :]), True)
    after = tuple(stride - 1 if a == axis + 1 else 0 for a in range(len(shape) + 1))
    padded = call.emit(Pad((0,) * (len(shape) + 1), after), apart, last=False)
    merged = [*shape[:axis], shape[axis] * stride, *shape[axis + 1 :]]
    y = reshape_to(call, padded, merged, True)
    return call.emit(Slice(axis, 0, merged[axis] - (stride - 1)), y, last=False)


CONVERTERS: dict[str, Converter] = {
    "Pad": _pad,
    "MaxPool": _max_pool,
    "AveragePool": _average_pool,
    "GlobalMaxPool": _global_max_pool,
    "Resize": _resize,
    "Upsample": _upsample,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "DepthToSpace": _depth_to_space,
    "SpaceToDepth": _space_to_depth,
    "ConvTranspose": _conv_transpose,
}
