"""Sliding windows laid out as rows, so that a convolution is one matrix product."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import Dim
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType
from intc.ops.movement import joined
from intc.ops.window import at_least_one, output_size


@dataclass(frozen=True)
class Im2col(Op):
    """NCHW images to windows [B, OH, OW, C*KH*KW]; ``pads`` are (top, left, bottom, right) elements,
    each ``fill``: the integer that stands for zero.

    ``channels_last``: NHWC images to windows [B, OH, OW, KH*KW*C].
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)
    channels_last: bool = False
    fill: int = 0
    name: ClassVar[str] = "im2col"

    def output_size(self, x: TensorType) -> tuple[Dim, Dim]:
        """OH and OW; see :func:`intc.ops.window.output_size`."""
        height, width = x.shape[1:3] if self.channels_last else x.shape[2:]
        top, left, bottom, right = self.pads
        padded = (x.shape[0], height + top + bottom, width + left + right, 1)
        return output_size(padded, self.kernel, self.strides, self.dilations)

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        return at_least_one(self.output_size(types[0]))

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if x.rank != 4:
            raise GraphError(f"im2col takes images of rank 4, not {x}")
        channels = x.shape[3 if self.channels_last else 1]
        shape = (x.shape[0], *self.output_size(x), channels * self.kernel[0] * self.kernel[1])
        padded = any(self.pads) and not x.is_float
        around = TensorType(shape, x.dtype, self.fill, self.fill) if padded else x.with_shape(shape)
        return joined(shape, x.dtype, (x, around))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        top, left, bottom, right = self.pads
        x = arrays[0].transpose(0, 3, 1, 2) if self.channels_last else arrays[0]
        x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=self.fill)
        spans = [d * (k - 1) + 1 for d, k in zip(self.dilations, self.kernel, strict=True)]
        windows = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(2, 3))  # B C Y X KH KW
        sh, sw = self.strides
        dh, dw = self.dilations
        picked = windows[:, :, ::sh, ::sw, ::dh, ::dw]
        b, c, oh, ow, kh, kw = picked.shape
        order = (0, 2, 3, 4, 5, 1) if self.channels_last else (0, 2, 3, 1, 4, 5)
        return picked.transpose(order).reshape(b, oh, ow, c * kh * kw)


OPS = (Im2col,)
