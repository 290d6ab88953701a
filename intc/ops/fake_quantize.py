"""The rounding that an already quantised model puts on a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from intc.errors import GraphError
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType


@dataclass(frozen=True)
class FakeQuantize(Op):
    """``(clip(round(x / scale) + zero, lo, hi) - zero) * scale``, half to even: QuantizeLinear and back."""

    scale: float
    zero: int
    lo: int
    hi: int
    name: ClassVar[str] = "fake_quantize"

    @property
    def ends(self) -> tuple[float, float]:
        """The smallest and the largest number of the grid."""
        return (self.lo - self.zero) * self.scale, (self.hi - self.zero) * self.scale

    def infer(self, *types: TensorType) -> TensorType:
        if not types[0].is_float or not self.scale > 0 or not self.lo <= self.zero <= self.hi:
            raise GraphError(
                f"{types[0]} cannot be quantised at scale {self.scale} with zero {self.zero} "
                f"in [{self.lo}, {self.hi}]"
            )
        return types[0]

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        integers = np.clip(np.rint(arrays[0] / np.float32(self.scale)) + self.zero, self.lo, self.hi)
        return np.asarray((integers - self.zero) * np.float32(self.scale), np.float32)


OPS = (FakeQuantize,)
