"""Sliding windows over images: the largest element, grouped convolution in integers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError, QuantizationError
from intc.ir.dims import Shape
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import DType, TensorType
from intc.ops import scalar


def output_size(
    x: TensorType, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]
) -> tuple[int, int]:
    """The rows and columns of windows that fit NCHW images ``x`` of fixed size; GraphError for none."""
    if x.rank != 4 or not all(isinstance(d, int) for d in x.shape[2:]):
        raise GraphError(f"windows need NCHW images of fixed size, not {x}")
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    oh, ow = ((int(n) - s) // t + 1 for n, s, t in zip(x.shape[2:], spans, strides, strict=True))  # type: ignore[arg-type]
    if min(oh, ow) < 1:
        raise GraphError(f"a {kernel} window does not fit {x}")
    return oh, ow


def windows(x: Array, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int]) -> Array:
    """View [B, C, OH, OW, KH, KW] of NCHW images."""
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel, strict=True)]
    every = np.lib.stride_tricks.sliding_window_view(x, spans, axis=(2, 3))
    return np.asarray(every[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]])


@dataclass(frozen=True)
class MaxPool(Op):
    """The largest element of each window of NCHW images; ``pads`` (top, left, bottom, right) never win."""

    kernel: tuple[int, int]
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    name: ClassVar[str] = "max_pool"

    def infer(self, *types: TensorType) -> TensorType:
        x = types[0]
        padded = x.with_shape(self._padded(x.shape)) if x.rank == 4 else x
        if x.rank != 4 or min(self.pads) < 0 or min(*self.strides, *self.dilations) < 1:
            raise GraphError(f"max_pool of {x} with pads {self.pads}, strides {self.strides}")
        oh, ow = output_size(padded, self.kernel, self.strides, self.dilations)
        return x.with_shape((*x.shape[:2], oh, ow))

    def _padded(self, shape: Shape) -> Shape:
        top, left, bottom, right = self.pads
        return (*shape[:2], shape[2] + top + bottom, shape[3] + left + right)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x = arrays[0]
        lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
        top, left, bottom, right = self.pads
        padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=lowest)
        return np.asarray(windows(padded, self.kernel, self.strides, self.dilations).max(axis=(4, 5)))


@dataclass(frozen=True)
class GroupedConv(Op):
    """Convolution of NCHW images in groups, with bias and requantisation per output channel; no pads.

    Inputs: x int8 or int16 [B, C, H, W]; w int8 [O, C/groups, KH, KW]; bias, m, e int32 [O]. int32 sums;
    the rest as Requantize does.
    """

    strides: tuple[int, int]
    dilations: tuple[int, int]
    groups: int
    lo: int
    hi: int
    dtype: DType
    name: ClassVar[str] = "grouped_conv"
    arity: ClassVar[tuple[int, ...]] = (5,)

    def infer(self, *types: TensorType) -> TensorType:
        x, w, bias, m, e = types
        sizes = [d for d in w.shape if isinstance(d, int)]
        if x.rank != 4 or len(sizes) != 4 or x.dtype not in ("int8", "int16") or w.dtype != "int8":
            raise GraphError(
                f"grouped_conv takes 8- or 16-bit images and int8 weights of rank 4, not {x} and {w}"
            )
        outputs, depth, kh, kw = sizes
        if x.shape[1] != depth * self.groups or outputs % self.groups:
            raise GraphError(f"grouped_conv of {x} by {w} in {self.groups} groups: the channels do not agree")
        if any(t.shape != (outputs,) for t in (bias, m, e)):
            raise GraphError(f"grouped_conv needs {outputs} biases and factors, not {bias}, {m}, {e}")
        bound = depth * kh * kw * x.magnitude * w.magnitude + bias.magnitude
        if bound >= 2**31 or m.magnitude >= 2**31 or e.interval[0] < 1 or e.interval[1] > 62:
            raise QuantizationError(f"grouped_conv: sums up to {bound} times {m} do not fit")
        size = output_size(x, (kh, kw), self.strides, self.dilations)
        return TensorType((x.shape[0], outputs, *size), self.dtype, self.lo, self.hi)

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x, w = arrays[0].astype(np.float64), arrays[1].astype(np.float64)  # sums below 2**31 are exact
        bias, m, e = (a.astype(np.int64)[:, None, None] for a in arrays[2:])
        outputs, depth, kh, kw = w.shape
        parts = windows(x, (kh, kw), self.strides, self.dilations)
        parts = parts.reshape(len(x), self.groups, depth, *parts.shape[2:])
        grouped = w.reshape(self.groups, outputs // self.groups, depth, kh, kw)
        acc = np.einsum("bgcyxij,gocij->bgoyx", parts, grouped, optimize=True)
        acc = np.rint(acc).astype(np.int64).reshape(len(x), outputs, *acc.shape[3:]) + bias
        return np.asarray(scalar.requantize(scalar.EXACT, acc, m, e, self.lo, self.hi), self.dtype)


OPS = (MaxPool, GroupedConv)
