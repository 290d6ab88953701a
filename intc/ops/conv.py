"""Float 2-D convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import Dim
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType
from intc.ops.im2col import Im2col
from intc.ops.window import at_least_one


@dataclass(frozen=True)
class Conv(Op):
    """NCHW convolution; inputs x, w [O, C/groups, KH, KW] and optionally bias [O]; pads (top, left, bottom,
    right).
    """

    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    dilations: tuple[int, int]
    groups: int
    name: ClassVar[str] = "conv"
    arity: ClassVar[tuple[int, ...]] = (2, 3)

    def _columns(self, w: tuple[int, ...]) -> Im2col:
        return Im2col((w[2], w[3]), self.strides, self.pads, self.dilations)

    def limits(self, *types: TensorType) -> list[tuple[Dim, int]]:
        return at_least_one(self.infer(*types).shape[2:])

    def infer(self, *types: TensorType) -> TensorType:
        x, w = types[:2]
        if x.rank != 4 or w.rank != 4 or not x.is_float:
            raise GraphError(f"conv takes NCHW float images and a 4-D weight, not {x} and {w}")
        shape = tuple(d for d in w.shape if isinstance(d, int))
        if len(shape) != 4 or x.shape[1] != shape[1] * self.groups or shape[0] % self.groups:
            raise GraphError(f"conv of {x} by {w} in {self.groups} group(s): the channels do not agree")
        return TensorType((x.shape[0], shape[0], *self._columns(shape).output_size(x)), "float32")

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x, w = arrays[:2]
        columns = self._columns(w.shape).evaluate(x, sizes=sizes)
        b, oh, ow, _ = columns.shape
        grouped = columns.reshape(b, oh * ow, self.groups, -1).transpose(0, 2, 1, 3)  # B G P K
        weights = w.reshape(self.groups, w.shape[0] // self.groups, -1).transpose(0, 2, 1)  # G K O
        out = np.matmul(grouped, weights).transpose(0, 1, 3, 2).reshape(b, w.shape[0], oh, ow)
        return np.asarray(out if len(arrays) == 2 else out + arrays[2][:, None, None])


OPS = (Conv,)
