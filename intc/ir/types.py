"""Types of values: shape, element type and, for integers, the proven interval ``[lo, hi]``.

Integers are types in full: an operator cannot overflow silently, because its result type carries the exact
range that its interval rule derives, and :meth:`TensorType.__post_init__` refuses a range that the element
type cannot hold.

>>> TensorType((2, 3), "int8", -5, 7)
TensorType(int8[2, 3] in [-5, 7])
>>> TensorType((4,), "uint8").lo, TensorType((4,), "uint8").hi
(0, 255)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, cast, get_args

import numpy as np

from intc.errors import GraphError
from intc.ir.dims import Dim, Shape, format_shape

DType: TypeAlias = Literal["float32", "bool", "uint8", "int8", "int16", "int32", "int64"]
DTYPES: Final[tuple[str, ...]] = get_args(DType)
MAX_RANK: Final = 32  # as far as all of numpy goes
MAX_SIZE: Final = 2**26  # of one axis: passes hold vectors as long
MAX_ELEMENTS: Final = 2**31 - 1  # of a value: kernels count in 32 bits
LIMITS: Final[dict[str, tuple[int, int]]] = {
    "bool": (0, 1),
    "uint8": (0, 255),
    "int8": (-128, 127),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
}


@dataclass(frozen=True, repr=False)
class TensorType:
    """``shape`` of dims, ``dtype``, and for integer types the closed interval of values that can occur."""

    shape: Shape
    dtype: DType
    lo: int | None = None
    hi: int | None = None

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise GraphError(f"element type '{self.dtype}' is not one of {', '.join(DTYPES)}")
        if len(self.shape) > MAX_RANK:
            raise GraphError(f"rank {len(self.shape)} is more than {MAX_RANK}")
        fixed = [d for d in self.shape if isinstance(d, int)]
        if max(fixed, default=0) > MAX_SIZE or math.prod(fixed) > MAX_ELEMENTS:
            raise GraphError(f"a value of shape {format_shape(self.shape)} is too large")
        if self.dtype == "float32":
            if self.lo is not None or self.hi is not None:
                raise GraphError("a float32 type carries no integer interval")
            return
        low, high = LIMITS[self.dtype]
        lo, hi = (low if self.lo is None else int(self.lo)), (high if self.hi is None else int(self.hi))
        if not low <= lo <= hi <= high:
            raise GraphError(f"interval [{lo}, {hi}] does not fit {self.dtype} ([{low}, {high}])")
        object.__setattr__(self, "lo", lo)
        object.__setattr__(self, "hi", hi)

    @property
    def is_float(self) -> bool:
        return self.dtype == "float32"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def interval(self) -> tuple[int, int]:
        """``(lo, hi)``; GraphError for a float type, which has none."""
        if self.lo is None or self.hi is None:
            raise GraphError("a float32 value has no integer interval")
        return self.lo, self.hi

    @property
    def magnitude(self) -> int:
        """The largest absolute value in the interval."""
        lo, hi = self.interval
        return max(-lo, hi)

    def with_shape(self, shape: tuple[Dim, ...]) -> TensorType:
        return TensorType(shape, self.dtype, self.lo, self.hi)

    def __repr__(self) -> str:
        return f"TensorType({format_type(self)})"


def format_type(type_: TensorType) -> str:
    """``int8[batch, 197, 384] in [-128, 127]``; the interval is left out where it is the whole element
    type.
    """
    text = type_.dtype + format_shape(type_.shape)
    if type_.is_float or type_.interval == LIMITS[type_.dtype]:
        return text
    return f"{text} in [{type_.lo}, {type_.hi}]"


def type_of_array(array: np.ndarray) -> TensorType:
    """The type of a constant: its shape, element type and exact smallest interval."""
    name = cast(DType, array.dtype.name)
    if name not in DTYPES:
        raise GraphError(f"element type '{name}' is not one of {', '.join(DTYPES)}")
    if name == "float32" or array.size == 0:
        return TensorType(array.shape, name)
    return TensorType(array.shape, name, int(array.min()), int(array.max()))


def narrowest(lo: int, hi: int) -> DType:
    """The smallest signed element type that holds ``[lo, hi]`` (uint8 where lo >= 0 and hi in 128..255)."""
    for name in ("int8", "uint8", "int16", "int32", "int64"):
        low, high = LIMITS[name]
        if low <= lo and hi <= high:
            return name
    raise GraphError(f"interval [{lo}, {hi}] does not fit 64 bits")
