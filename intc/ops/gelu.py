"""Float GELU in the forms that exporters emit, and its sisters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np
from scipy.special import erf

from intc.errors import GraphError
from intc.ir.op import Array, Op, Sizes
from intc.ir.types import TensorType

FORMS: Final = ("none", "tanh", "quick", "silu", "hard")


@dataclass(frozen=True)
class Gelu(Op):
    """``approximate``: "none" (erf), "tanh" (cubic argument), "quick" (x * sigmoid(1.702 x)), "silu"
    (x * sigmoid(x)) or "hard" (x * min(max(x + 3, 0), 6) / 6).
    """

    approximate: str = "none"
    name: ClassVar[str] = "gelu"

    @property
    def has_families(self) -> bool:
        """Whether the approximations of the literature compute it: they know GELU."""
        return self.approximate in ("none", "tanh", "quick")

    def infer(self, *types: TensorType) -> TensorType:
        if not types[0].is_float or self.approximate not in FORMS:
            raise GraphError(f"gelu '{self.approximate}' does not fit {types[0]}")
        return types[0]

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        x = arrays[0]
        if self.approximate == "none":
            half = 0.5 * (1.0 + erf(x * np.float32(1 / math.sqrt(2))))
        elif self.approximate == "tanh":
            half = 0.5 * (1.0 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))
        elif self.approximate == "hard":
            half = np.clip(x / 6 + 0.5, 0.0, 1.0)
        else:
            half = 0.5 * (1.0 + np.tanh((0.851 if self.approximate == "quick" else 0.5) * x))
        return np.asarray(x * half, np.float32)


OPS = (Gelu,)
