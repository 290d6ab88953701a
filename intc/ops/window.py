"""Sliding windows over channels-last images: the largest element, convolution in groups."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import Dim, Shape, floor_div, format_shape
from intc.ir.op import Array, Op, Sizes
from intc.ir.ranges import bounds
from intc.ir.types import TensorType


def output_size(
    shape: Shape, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]
) -> tuple[Dim, Dim]:
    """The rows and columns of windows that fit images [B, H, W, C]; GraphError where none ever does."""
    if len(shape) != 4:
        raise GraphError(f"windows need images [B, H, W, C], not {format_shape(shape)}")
    if min(*kernel, *strides, *dilations) < 1:
        raise GraphError(f"windows of {kernel} with strides {strides} and dilations {dilations}")
    out: list[Dim] = []
    for size, width, stride, dilation in zip(shape[1:3], kernel, strides, dilations, strict=True):
        rest = size - (dilation * (width - 1) + 1)
        out.append(floor_div(rest, stride) + 1)
        if bounds(out[-1])[1] < 1:
            raise GraphError(f"a {kernel} window does not fit {format_shape(shape)}")
    return out[0], out[1]


def at_least_one(sizes: Iterable[Dim]) -> list[tuple[Dim, int]]:
    """The limits by which each of ``sizes`` is at least 1."""
    return [(1 - size, 0) for size in sizes if bounds(size)[0] < 1]


def windows(x: Array, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]) -> Array:
    """View [B, OH, OW, C, KH, KW] of images [B, H, W, C]."""
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    every = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(1, 2))
    return np.asarray(every[:, :: strides[0], :: strides[1], :, :: dilations[0], :: dilations[1]])


@dataclass(frozen=True)
class MaxPool(Op):
    """The largest element of each window of images [B, H, W, C]; ``pads`` (top, left, bottom, right) never
    win.
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    name: ClassVar[str] = "max_pool"

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        return at_least_one(self.infer(*types).shape[1:3])

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        if x.rank != 4 or min(self.pads) < 0:
            raise GraphError(f"max_pool of {x} with pads {self.pads}")
        top, left, bottom, right = self.pads
        padded = (x.shape[0], x.shape[1] + top + bottom, x.shape[2] + left + right, x.shape[3])
        oh, ow = output_size(padded, self.kernel, self.strides, self.dilations)
        return x.with_shape((x.shape[0], oh, ow, x.shape[3]))

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x = arrays[0]
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        top, left, bottom, right = self.pads
        padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)), constant_values=lowest)
        return np.asarray(windows(padded, self.kernel, self.strides, self.dilations).max(axis=(4, 5)))


@dataclass(frozen=True)
class GroupedConv(Op):
    """Convolution in groups without padding: float32, or 8/16-bit integers into int32 sums that provably fit.

    Inputs: x [B, H, W, C]; w [KH, KW, C/groups, O], of which output o sees the channels of its group.
    """

    strides: tuple[int, int]
    dilations: tuple[int, int]
    groups: int
    name: ClassVar[str] = "grouped_conv"
    arity: ClassVar[tuple[int, ...]] = (2,)

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        return at_least_one(self.infer(*types).shape[1:3])

    def infer(self, *types: TensorType) -> TensorType:
        x, w = types
        sizes = [d for d in w.shape if isinstance(d, int)]
        if x.rank != 4 or len(sizes) != 4 or x.is_float != w.is_float:
            raise GraphError(f"grouped_conv takes images and weights of rank 4 and one kind, not {x} and {w}")
        kh, kw, depth, outputs = sizes
        if x.shape[3] != depth * self.groups or outputs % self.groups:
            raise GraphError(f"grouped_conv of {x} by {w} in {self.groups} groups: the channels do not agree")
        shape = (x.shape[0], *output_size(x.shape, (kh, kw), self.strides, self.dilations), outputs)
        if x.is_float:
            return TensorType(shape, "float32")
        taps = depth * kh * kw
        ends = [a * b for a in x.interval for b in w.interval]
        lo, hi = taps * min(*ends, 0), taps * max(*ends, 0)
        if lo < -(2**31) or hi >= 2**31:
            raise QuantizationError(f"the sum over {taps} products can reach {max(-lo, hi)}, beyond 32 bits")
        return TensorType(shape, "int32", lo, hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x, w = (a.astype(np.float64) for a in arrays)  # integer sums below 2**31 are exact
        kh, kw, depth, outputs = w.shape
        parts = windows(x, (kh, kw), self.strides, self.dilations)  # B OH OW C KH KW
        parts = parts.reshape(*parts.shape[:3], self.groups, depth, kh, kw)
        grouped = w.reshape(kh, kw, depth, self.groups, outputs // self.groups)
        acc = np.einsum("byxgcij,ijcgo->byxgo", parts, grouped, optimize=True)
        out = acc.reshape(*acc.shape[:3], outputs)
        return np.asarray(out, np.float32) if arrays[0].dtype.kind == "f" else np.rint(out).astype(np.int32)


OPS = (MaxPool, GroupedConv)
