"""Converters of products, convolutions, normalisations, activations and reductions."""

from __future__ import annotations

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import require_equal
from intc.frontend.call import Call, Converter
from intc.frontend.converters.image import mean_over
from intc.frontend.converters.movement import reshape_to
from intc.frontend.converters.window import same_pads
from intc.frontend.symbolic import Imported
from intc.ir.dims import Dim, floor_div, product
from intc.ir.ranges import bounds
from intc.ops import elementwise as ew
from intc.ops.conv import Conv
from intc.ops.gelu import Gelu
from intc.ops.layer_norm import LayerNorm
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Pad, Slice, Transpose
from intc.ops.reduce import ReduceMax, ReduceMean, ReduceSum
from intc.ops.softmax import Softmax


def _matmul(call: Call) -> list[Imported]:
    """Operands of rank 1 are a row on the left, a column on the right; the result drops their axis."""
    a, b = call.x(0), call.x(1)
    row, column = len(call.shape(a)) == 1, len(call.shape(b)) == 1
    if row:
        a = reshape_to(call, a, (1, *call.shape(a)), True)
    if column:
        b = reshape_to(call, b, (*call.shape(b), 1), True)
    y = call.emit(MatMul(), a, b, last=not row and not column)
    shape = list(call.shape(y))
    if column:
        shape.pop(-1)
    if row:
        shape.pop(-1 if column else -2)
    return [reshape_to(call, y, shape, True)]


def _gemm(call: Call) -> list[Imported]:
    """``alpha * A' @ B' + beta * C``; factors and transposes of constants are computed here."""
    alpha, beta = float(call.attributes.get("alpha", 1.0)), float(call.attributes.get("beta", 1.0))
    a = call.x(0)
    if call.attributes.get("transA"):
        a = call.emit(Transpose((1, 0)), a, last=False)
    b = call.inputs[1]
    if isinstance(b, np.ndarray):
        weight = np.asarray(b, np.float32)
        weight = weight.T if call.attributes.get("transB") else weight
        weight = weight * np.float32(alpha) if alpha != 1.0 else weight
        right = call.ctx.builder.constant(call.node.input[1], weight)
        alpha = 1.0
    else:
        right = call.x(1)
        right = call.emit(Transpose((1, 0)), right, last=False) if call.attributes.get("transB") else right
    y = call.emit(MatMul(), a, right, last=not call.has(2) and alpha == 1.0)
    if alpha != 1.0:
        y = call.emit(ew.Mul(), y, call.constant([alpha]), last=not call.has(2))
    if not call.has(2):
        return [y]
    c = call.inputs[2]
    bias = call.constant(np.asarray(c) * beta) if isinstance(c, np.ndarray) else call.x(2)
    if not isinstance(c, np.ndarray) and beta != 1.0:
        bias = call.emit(ew.Mul(), bias, call.constant([beta]), last=False)
    return [call.emit(ew.Add(), y, bias)]


def _conv(call: Call) -> list[Imported]:
    """Two-dimensional; a one-dimensional convolution runs over images of height 1, one in three dimensions
    over images that hold the frames of each window as channels.
    """
    x, w = call.x(0), call.x(1)
    rank, groups = len(call.shape(w)) - 2, int(call.attributes.get("group", 1))
    kernel = [d for d in call.shape(w)[2:] if isinstance(d, int)]
    call.refuse(
        rank not in (1, 2, 3) or len(kernel) != rank,
        "only convolutions in one to three dimensions are supported",
    )
    strides, dilations = (list(call.attributes.get(k, [1] * rank)) for k in ("strides", "dilations"))
    pads = list(call.attributes.get("pads", [0] * (2 * rank)))
    auto = call.attributes.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        pads = same_pads(call.shape(x)[2:], kernel, strides, dilations, auto == "SAME_UPPER")
    call.refuse(
        len(pads) != 2 * rank or min(pads) < 0 or min(*strides, *dilations) < 1, "malformed pads or strides"
    )
    bias = [call.x(2)] if call.has(2) else []
    require_equal(call.shape(x)[1], call.shape(w)[1] * groups)
    whole = {*kernel, *strides} == {1} and not any(pads)
    known = isinstance(call.inputs[1], np.ndarray)
    if whole and known and not all(isinstance(d, int) for d in call.shape(x)[2:]):
        return [_along_channels(call, x, bias, groups)]
    if rank == 3:
        return [_over_frames(call, x, bias, strides, pads, dilations, groups)]
    if rank == 2:
        return [call.emit(Conv(tuple(strides), tuple(pads), tuple(dilations), groups), x, w, *bias)]
    x = reshape_to(call, x, (*call.shape(x)[:2], 1, *call.shape(x)[2:]), True)
    w = reshape_to(call, w, (*call.shape(w)[:2], 1, *call.shape(w)[2:]), True)
    op = Conv((1, strides[0]), (0, pads[0], 0, pads[1]), (1, dilations[0]), groups)
    y = call.emit(op, x, w, *bias, last=False)
    return [reshape_to(call, y, (*call.shape(y)[:2], call.shape(y)[3]), True)]


def _over_frames(
    call: Call,
    x: str,
    bias: list[str],
    strides: list[int],
    pads: list[int],
    dilations: list[int],
    groups: int,
) -> str:
    """``x`` [B, C, D, H, W]: the frames that a window sees become channels, the windows along D images."""
    weight = call.x(1)
    outputs, each, taps, *kernel = call.shape(weight)
    assert isinstance(taps, int)
    if pads[0] or pads[3]:
        x = call.emit(Pad((0, 0, pads[0], 0, 0), (0, 0, pads[3], 0, 0)), x, last=False)
    batch, channels, depth, height, width = call.shape(x)
    step, gap = strides[0], dilations[0]
    count = floor_div(depth - gap * (taps - 1) - 1, step) + 1
    call.refuse(bounds(count)[1] < 1, f"{depth} frames are fewer than a window of {taps}")
    parts = []
    for k in range(taps):
        one = call.emit(Slice(2, k * gap, k * gap + (count - 1) * step + 1, step), x, last=False)
        parts.append(reshape_to(call, one, (batch, channels, count, 1, height, width), True))
    frames = call.emit(Concat(3), *parts, last=False) if taps > 1 else parts[0]
    frames = call.emit(Transpose((0, 2, 1, 3, 4, 5)), frames, last=False)
    images = reshape_to(call, frames, (batch * count, channels * taps, height, width), True)
    w = reshape_to(call, weight, (outputs, each * taps, *kernel), True)
    around = (pads[1], pads[2], pads[4], pads[5])
    op = Conv((strides[1], strides[2]), around, (dilations[1], dilations[2]), groups)
    y = call.emit(op, images, w, *bias, last=False)
    apart = reshape_to(call, y, (batch, count, *call.shape(y)[1:]), True)
    return call.emit(Transpose((0, 2, 1, 3, 4)), apart)


def _along_channels(call: Call, x: str, bias: list[str], groups: int) -> str:
    """A convolution with a kernel of one element: products along the channels, at any size."""
    weight = np.asarray(call.known(1, "the weights"), np.float32)
    outputs, depth = weight.shape[:2]
    rank = len(call.shape(x))
    last = call.emit(Transpose((0, *range(2, rank), 1)), x, last=False)
    parts = []
    for g, w in enumerate(weight.reshape(groups, outputs // groups, depth)):
        part = (
            call.emit(Slice(rank - 1, g * depth, (g + 1) * depth), last, last=False) if groups > 1 else last
        )
        parts.append(call.emit(MatMul(), part, call.constant(w.T), last=False))
    y = call.emit(Concat(rank - 1), *parts, last=False) if groups > 1 else parts[0]
    y = call.emit(ew.Add(), y, bias[0], last=False) if bias else y
    return call.emit(Transpose((0, rank - 1, *range(1, rank - 1))), y)


def _softmax(call: Call) -> list[Imported]:
    """Along the last axis, to which another one is moved."""
    x = call.x()
    axis, last = call.axis(x, -1), len(call.shape(x)) - 1
    if axis == last:
        return [call.emit(Softmax(-1), x)]
    swap = tuple({axis: last, last: axis}.get(a, a) for a in range(last + 1))
    moved = call.emit(Softmax(-1), call.emit(Transpose(swap), x, last=False), last=False)
    return [call.emit(Transpose(swap), moved)]


def _log_softmax(call: Call) -> list[Imported]:
    """``d - log(sum(exp(d)))`` with d the distance from the largest element of the axis."""
    x = call.x()
    axes = (call.axis(x, -1),)
    distance = call.emit(ew.Sub(), x, call.emit(ReduceMax(axes, True), x, last=False), last=False)
    total = call.emit(ReduceSum(axes, True), call.emit(ew.Exp(), distance, last=False), last=False)
    return [call.emit(ew.Sub(), distance, call.emit(ew.Log(), total, last=False))]


def _layer_norm(call: Call) -> list[Imported]:
    return [normalised(call, call.x(0), 1, 2)]


def normalised(call: Call, x: str, gamma: int, beta: int, centred: bool = True) -> str:
    """LayerNorm (or RMSNorm) of ``x``; gamma, beta: input positions. Several last axes are one for it."""
    shape = call.shape(x)
    axis = call.axis(x, -1)
    channels = product(shape[axis:])
    if not isinstance(channels, int):
        raise GraphError("only normalisation over axes of fixed size is supported")
    scale = _vector(call, gamma, shape[axis:])
    bias = _vector(call, beta, shape[axis:]) if call.has(beta) else call.constant(np.zeros(channels))
    op = LayerNorm(-1, float(call.attributes.get("epsilon", 1e-5)), centred)
    if axis == len(shape) - 1:
        return call.emit(op, x, scale, bias)
    flat = reshape_to(call, x, (*shape[:axis], channels), True)
    return reshape_to(call, call.emit(op, flat, scale, bias, last=False), shape, True)


def _vector(call: Call, i: int, shape: tuple[Dim, ...]) -> str:
    """Input ``i`` broadcast to ``shape`` and flattened."""
    value = call.inputs[i]
    if isinstance(value, np.ndarray):
        sizes = tuple(int(d) for d in shape)  # type: ignore[arg-type]
        if value.shape == sizes and len(sizes) == 1:
            return call.x(i)
        return call.constant(np.broadcast_to(value, sizes).reshape(-1))
    x = call.x(i)
    return reshape_to(call, x, (product(shape),), True)


def _batch_norm(call: Call) -> list[Imported]:
    """Inference only: ``x * a + (beta - mean * a)`` with ``a = gamma / sqrt(var + epsilon)``."""
    call.refuse(call.attributes.get("training_mode"), "training mode is not supported")
    x = call.x()
    gamma, beta, mean, variance = (
        np.asarray(call.known(i, "a normalisation parameter"), np.float64) for i in (1, 2, 3, 4)
    )
    factor = gamma / np.sqrt(variance + float(call.attributes.get("epsilon", 1e-5)))
    shape = (-1,) + (1,) * (len(call.shape(x)) - 2)
    scaled = call.emit(ew.Mul(), x, call.constant(factor.reshape(shape)), last=False)
    return [call.emit(ew.Add(), scaled, call.constant((beta - mean * factor).reshape(shape)))]


def gelu(approximate: str | None = None) -> Converter:
    """GELU of the first input plus, where there is one, the second (a bias)."""

    def run(call: Call) -> list[Imported]:
        x = call.x()
        if call.has(1):
            x = call.emit(ew.Add(), x, call.x(1), last=False)
        return [call.emit(Gelu(approximate or str(call.attributes.get("approximate", "none"))), x)]

    return run


def _reduce(op: type[ReduceMean] | type[ReduceSum]) -> Converter:
    def run(call: Call) -> list[Imported]:
        x = call.x()
        axes = call.axes(len(call.shape(x)))
        if not axes and call.attributes.get("noop_with_empty_axes"):
            return [x]
        axes, keepdims = axes or tuple(range(len(call.shape(x)))), bool(call.attributes.get("keepdims", 1))
        return [mean_over(call, x, axes, keepdims) if op is ReduceMean else call.emit(op(axes, keepdims), x)]

    return run


def _global_average_pool(call: Call) -> list[Imported]:
    x = call.x()
    return [mean_over(call, x, range(2, len(call.shape(x))))]


def _rms_norm(call: Call) -> list[Imported]:
    """RMSNormalization (opset 23), SimplifiedLayerNormalization of onnxruntime."""
    return [normalised(call, call.x(0), 1, 2, centred=False)]


CONVERTERS: dict[str, Converter] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Softmax": _softmax,
    "LogSoftmax": _log_softmax,
    "LayerNormalization": _layer_norm,
    "BatchNormalization": _batch_norm,
    "Gelu": gelu(),
    "ReduceMean": _reduce(ReduceMean),
    "ReduceSum": _reduce(ReduceSum),
    "RMSNormalization": _rms_norm,
    "SimplifiedLayerNormalization": _rms_norm,
    "GlobalAveragePool": _global_average_pool,
}
