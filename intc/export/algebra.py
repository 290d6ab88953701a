"""The scalar formulas as ONNX: an algebra whose values are int64 tensors of a graph that is being written.

ONNX has no shift to the right of signed integers, and its division rounds toward zero; ``x >> n`` is
``(x - mod(x, 2**n)) / 2**n``, for Mod takes the sign of the divisor. What is known when the file is written
is computed then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import onnx
from onnx import helper, numpy_helper

from intc.ir.op import Array
from intc.ops.scalar import EXACT

POWERS: Final = np.left_shift(1, np.arange(63), dtype=np.int64)
LENGTHS: Final = (32, 16, 8, 4, 2, 1)
ROOT_STEPS: Final = 7  # from less than twice the root; five reach it, see intc.codegen.cpu.layer_norm


@dataclass
class Writer:
    """Collects nodes and constants; every tensor of numbers is int64, every condition bool."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[tuple[Any, ...], str] = field(default_factory=dict)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    value: str = ""  # what the nodes belong to, and the ONNX node that it came from
    source: str = ""

    def emit(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Append a node and return its one output."""
        output = f"t{len(self.nodes)}"
        node = helper.make_node(
            op, list(inputs), [output], name=f"{self.value}/{op}_{len(self.nodes)}", **attributes
        )
        node.doc_string = self.source
        self.nodes.append(node)
        return output

    def constant(self, array: Array) -> str:
        """The name of an initializer with these contents; equal ones are stored once."""
        key = (array.dtype.str, array.shape, array.tobytes())
        name = self.constants.get(key)
        if name is None:
            name = self.constants[key] = f"c{len(self.constants)}"
            self.initializers.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def tensor(self, name: str, size: int | None = None) -> Tensor:
        return Tensor(self, name, size=size)

    def known(self, array: Any) -> Tensor:
        value = np.asarray(array)
        value = value if value.dtype == np.bool_ else value.astype(np.int64)
        return Tensor(self, "", value, int(value.shape[-1]) if value.ndim else None)


@dataclass(frozen=True, eq=False)
class Tensor:
    """A tensor by name, or, where it is known, by ``value``; ``size`` is the length of its last axis."""

    writer: Writer
    _name: str
    value: Array | None = None
    size: int | None = None

    @property
    def name(self) -> str:
        return self.writer.constant(self.value) if self.value is not None else self._name

    def lift(self, other: Any) -> Tensor:
        return other if isinstance(other, Tensor) else self.writer.known(other)

    def apply(self, op: str, function: Callable[..., Any], *others: Any) -> Tensor:
        """``op`` on this and ``others``; by numpy's ``function`` where all are known."""
        operands = [self, *(self.lift(o) for o in others)]
        values = [o.value for o in operands if o.value is not None]
        if len(values) == len(operands):
            return self.writer.known(function(*values))
        return self.writer.tensor(self.writer.emit(op, *(o.name for o in operands)))

    def __add__(self, other: Any) -> Tensor:
        return self.apply("Add", np.add, other)

    def __sub__(self, other: Any) -> Tensor:
        return self.apply("Sub", np.subtract, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self.lift(other) - self

    def __mul__(self, other: Any) -> Tensor:
        return self.apply("Mul", np.multiply, other)

    __radd__, __rmul__ = __add__, __mul__

    def __floordiv__(self, other: Any) -> Tensor:
        """Rounded down, for any divisor but 0."""
        divisor = self.lift(other)
        if self.value is not None and divisor.value is not None:
            return self.writer.known(self.value // divisor.value)
        return (self - self % divisor).apply("Div", np.floor_divide, divisor)

    def __mod__(self, other: Any) -> Tensor:
        return self.apply("Mod", np.mod, other)

    def __rshift__(self, other: Any) -> Tensor:
        return self // self.power(other)

    def __lshift__(self, other: Any) -> Tensor:
        return self * self.power(other)

    def __rlshift__(self, other: Any) -> Tensor:
        return self.lift(other) << self

    def power(self, exponent: Any) -> Tensor:
        """``2**exponent``, exponents of 0 to 62."""
        known = self.lift(exponent)
        if known.value is not None:
            return self.writer.known(POWERS[known.value])
        return self.writer.tensor(self.writer.emit("Gather", self.writer.constant(POWERS), known.name))

    def __and__(self, mask: int) -> Tensor:
        """``mask`` is one less than a power of two."""
        return self % (mask + 1)

    def __ge__(self, other: Any) -> Tensor:
        return self.apply("GreaterOrEqual", np.greater_equal, other)

    def __gt__(self, other: Any) -> Tensor:
        return self.apply("Greater", np.greater, other)


class OnnxAlgebra:
    """The algebra over :class:`Tensor`; see :class:`intc.ops.scalar.RowAlgebra`."""

    def __init__(self, writer: Writer) -> None:
        self.writer = writer

    def lift(self, value: Any) -> Tensor:
        return value if isinstance(value, Tensor) else self.writer.known(value)

    def where(self, condition: Tensor, a: Any, b: Any) -> Tensor:
        return condition.apply("Where", np.where, a, b)

    def minimum(self, a: Any, b: Any) -> Tensor:
        return self.lift(a).apply("Min", np.minimum, b)

    def maximum(self, a: Any, b: Any) -> Tensor:
        return self.lift(a).apply("Max", np.maximum, b)

    def mulhrs(self, a: Any, b: Any) -> Tensor:
        return (self.lift(a) * self.lift(b) + 16384) >> 15

    def assume(self, value: Any, lo: int, hi: int) -> Any:
        return value

    def product(self, a: Any, b: Any, lo: int, hi: int) -> Tensor:
        return self.lift(a) * self.lift(b)

    def floor_div(self, a: Any, b: Any) -> Tensor:
        return self.lift(a) // self.lift(b)

    def bit_length(self, x: Tensor) -> Tensor:
        result: Tensor = self.lift(0)
        for step in LENGTHS:
            big = x >= 1 << step
            result = result + self.where(big, step, 0)
            x = self.where(big, x >> step, x)
        return result + self.where(x > 0, 1, 0)

    def isqrt(self, x: Tensor) -> Tensor:
        """Newton steps from a power of two above the root; see :func:`intc.ops.integer_math.isqrt`."""
        if x.value is not None:
            return self.writer.known(EXACT.isqrt(x.value))
        root: Tensor = 1 << ((self.bit_length(x) + 1) >> 1)
        for _ in range(ROOT_STEPS):
            root = self.minimum(root, (root + x // self.maximum(root, 1)) >> 1)
        return self.where(x > 0, root, 0)

    def take(self, table: Tensor, index: Tensor) -> Tensor:
        return self.writer.tensor(self.writer.emit("Gather", table.name, index.name))

    def size(self, x: Tensor) -> int:
        assert x.size is not None
        return x.size

    def row_sum(self, x: Tensor) -> Tensor:
        last = self.writer.constant(np.array([-1], np.int64))
        return self.writer.tensor(self.writer.emit("ReduceSum", x.name, last, keepdims=1))

    def row_max(self, x: Tensor) -> Tensor:
        last = self.writer.constant(np.array([-1], np.int64))
        return self.writer.tensor(self.writer.emit("ReduceMax", x.name, last, keepdims=1))

    def distance(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        if keep is None:
            return self.row_max(x) - x
        return self.where(keep, self.row_max(self.where(keep, x, -(2**31))) - x, 0)
