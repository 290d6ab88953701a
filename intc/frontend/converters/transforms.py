"""Converters of Fourier transforms, which are products with known matrices, and of patches put back."""

from __future__ import annotations

import math

import numpy as np

from intc.frontend.call import Call, Converter
from intc.frontend.converters.image import fixed
from intc.frontend.converters.movement import reshape_to
from intc.frontend.symbolic import Imported
from intc.ir.op import Array
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Expand, Reshape, Transpose


def _dft(call: Call) -> list[Imported]:
    """The transform along one axis of fixed size; the last axis holds one or both parts of each number."""
    x = call.x()
    rank = len(call.shape(x))
    axis = int(call.known(2, "the axis").ravel()[0]) if call.has(2) else call.attributes.get("axis")
    if axis is None:
        axis = 1 if next(o.version for o in call.ctx.opsets if o.domain in ("", "ai.onnx")) < 20 else -2
    axis %= rank
    x = _real(call, x)
    shape = call.shape(x)
    size, parts = fixed(call, (shape[axis], shape[-1]), "the signal")
    call.refuse(axis == rank - 1 or parts not in (1, 2), "the last axis holds one or two parts of a number")
    length = int(call.known(1, "the length").ravel()[0]) if call.has(1) else None
    matrix = _fourier(
        size, parts, length, bool(call.attributes.get("onesided")), bool(call.attributes.get("inverse"))
    )
    turn = (*(a for a in range(rank - 1) if a != axis), axis, rank - 1)
    rows = x if axis == rank - 2 else call.emit(Transpose(turn), x, last=False)
    lead = call.shape(rows)[:-2]
    rows = reshape_to(call, rows, (*lead, size * parts), True)
    outputs, width = matrix.shape[1:]
    y = call.emit(MatMul(), rows, call.constant(matrix.reshape(size * parts, -1)), last=False)
    y = reshape_to(call, y, (*lead, outputs, width), True)
    back = tuple(turn.index(a) for a in range(rank))
    return [y if axis == rank - 2 else call.emit(Transpose(back), y)]


def _real(call: Call, x: str) -> str:
    """The real parts of the complex numbers ``x`` where all others are zeros, else ``x``."""
    graph = call.ctx.builder.graph
    producers = graph.producers()
    made = producers.get(x)
    if made is None or not isinstance(made.op, Concat) or call.shape(x)[-1] != 2 or len(made.inputs) != 2:
        return x
    real, other = made.inputs
    while other in producers and isinstance(producers[other].op, Expand | Reshape):
        other = producers[other].inputs[0]
    zeros = other in graph.constants and not graph.constants[other].any()
    return real if zeros and made.op.axis == len(call.shape(x)) - 1 else x


def _fourier(size: int, parts: int, length: int | None, onesided: bool, inverse: bool) -> Array:
    """What each part of each of ``size`` numbers gives: [size * parts, outputs, parts of an output]."""
    basis = np.eye(size * parts).reshape(-1, size, parts)
    numbers = basis[..., 0] + (1j * basis[..., 1] if parts == 2 else 0)
    if inverse and onesided:
        return np.fft.irfft(numbers, length, axis=1)[..., None]
    result = (np.fft.ifft if inverse else np.fft.fft)(numbers, length, axis=1)
    result = result[:, : result.shape[1] // 2 + 1] if onesided else result
    return np.stack([result.real, result.imag], -1)


def _col2im(call: Call) -> list[Imported]:
    """Patches [B, C * patch, count] as the image [B, C, ..] that they fill side by side. Where they overlap
    they add up: a transposed convolution whose weights put each entry in its place.
    """
    x = call.x()
    image, block = ([int(d) for d in call.known(i, "the shape of the image").ravel()] for i in (1, 2))
    rank = len(image)
    strides, dilations = (list(call.attributes.get(k, [1] * rank)) for k in ("strides", "dilations"))
    pads = list(call.attributes.get("pads", [0] * (2 * rank)))
    (rows,) = fixed(call, call.shape(x)[1:2], "the patches")
    channels, patch = rows // math.prod(block), math.prod(block)
    if strides == block and set(dilations) == {1} and not any(pads):
        call.refuse(
            any(d % b for d, b in zip(image, block, strict=True)), "the patches do not fill the image"
        )
        counts = [d // b for d, b in zip(image, block, strict=True)]
        apart = reshape_to(call, x, (call.shape(x)[0], channels, *block, *counts), True)
        pairs = (a for i in range(rank) for a in (2 + rank + i, 2 + i))
        whole = call.emit(Transpose((0, 1, *pairs)), apart, last=False)
        return [reshape_to(call, whole, (call.shape(x)[0], channels, *image), True)]
    sizes = zip(image, block, strides, dilations, pads[:rank], pads[rank:], strict=True)
    steps = [divmod(d + p + q - (b - 1) * a - 1, s) for d, b, s, a, p, q in sizes]
    grid = reshape_to(call, x, (call.shape(x)[0], rows, *(count + 1 for count, _ in steps)), True)
    places = np.tile(np.eye(patch, dtype=np.float32), (channels, 1)).reshape(rows, 1, *block)
    return call.apply(
        "ConvTranspose", [grid, places], group=channels, strides=strides, dilations=dilations, pads=pads,
        output_padding=[rest for _, rest in steps],
    )  # fmt: skip


CONVERTERS: dict[str, Converter] = {"DFT": _dft, "Col2Im": _col2im}
