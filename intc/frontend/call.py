"""A node being converted, and what a converter may ask of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from intc.errors import GraphError
from intc.frontend.agreement import require_broadcast, require_equal
from intc.frontend.indices import as_index
from intc.frontend.symbolic import Imported, Index, is_symbolic
from intc.ir.dims import Dim, Shape
from intc.ir.op import Array, Op
from intc.ir.types import DType
from intc.ops.elementwise import Add, Div, Max, Min, Mul, Pow, Sub, Where
from intc.ops.logic import And, Equal, Less, LessOrEqual, Or
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat

if TYPE_CHECKING:
    from intc.frontend.importer import Importer


class Call:
    """One node being converted: its inputs, attributes and names."""

    def __init__(
        self,
        ctx: Importer,
        node: onnx.NodeProto,
        inputs: Sequence[Imported | None],
        attributes: dict[str, Any],
        label: str,
    ) -> None:
        self.ctx, self.node, self.inputs = ctx, node, list(inputs)
        self.attributes, self.label = attributes, label

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] is not None

    def x(self, i: int = 0) -> str:
        """Input ``i`` as a live value; sizes are floats where no other input is an integer."""
        value = self.inputs[i]
        if isinstance(value, np.ndarray) and is_symbolic(value):
            others = [v for v in self.inputs if v is not None and v is not value]
            value = _sizes(value, "float32" if all(map(self._real, others)) else "int64")
        return self.ctx.live(value, self.node.input[i])

    def _real(self, value: Imported) -> bool:
        if isinstance(value, str):
            return self.ctx.type_of(value).is_float
        dtype = getattr(value, "dtype", np.dtype(np.float32))
        return np.dtype(dtype).kind == "f"

    def known(self, i: int, what: str) -> Array:
        """Input ``i`` as known data; GraphError names ``what`` must not depend on input values."""
        value = self.inputs[i]
        if not isinstance(value, np.ndarray):
            raise GraphError(f"{what} depends on input values")
        return value

    def shape(self, value: str) -> tuple[Dim, ...]:
        return self.ctx.builder.graph.type(value).shape

    def dtype(self, value: str) -> DType:
        return self.ctx.builder.graph.type(value).dtype

    def emit(self, op: Op, *inputs: str, last: bool = True) -> str:
        """Emit ``op``; the ``last`` node of a converter carries the ONNX output's name."""
        _require_agreement(op, [self.shape(x) for x in inputs])
        name = self.node.output[0] if last else f"{self.node.output[0]}.{op.name}"
        return self.ctx.builder.emit(op, *inputs, name=name, source=self.label)

    def apply(self, op: str, inputs: list[Imported], count: int = 1, **attributes: Any) -> list[Imported]:
        """The ``count`` results of the ONNX operator ``op`` on ``inputs``, folded where they are known."""
        stem = self.node.output[0]
        outputs = [stem] if count == 1 else [f"{stem}.{i}" for i in range(count)]
        names = [f"{stem}.in{i}" for i in range(len(inputs))]
        node = onnx.helper.make_node(op, names, outputs, **attributes)
        return self.ctx.results(node, inputs, attributes, self.label)

    def constant(self, array: Any) -> str:
        return self.ctx.builder.constant(f"{self.node.output[0]}.c", np.asarray(array, np.float32))

    def axis(self, value: str, default: int = 0) -> int:
        rank = len(self.shape(value))
        axis = int(self.attributes.get("axis", default))
        if not -rank <= axis < max(rank, 1):
            raise GraphError(f"axis {axis} does not fit rank {rank}")
        return axis % rank if rank else 0

    def axes(self, rank: int) -> tuple[int, ...]:
        """The ``axes`` input (index 1) or attribute, normalised."""
        if self.has(1):
            given = [int(a) for a in self.known(1, "axes").ravel()]
        else:
            given = [int(a) for a in self.attributes.get("axes", [])]
        if any(not -rank <= a < rank for a in given) or len({a % rank for a in given}) != len(given):
            raise GraphError(f"axes {given} do not fit rank {rank}")
        return tuple(a % rank for a in given)

    def refuse(self, condition: object, reason: str) -> None:
        """GraphError with ``reason`` where ``condition`` holds."""
        if condition:
            raise GraphError(reason)


def _sizes(array: Array, dtype: DType) -> Index:
    """Sizes that are used as data, as an index tensor; GraphError where they are no affine function."""
    index = as_index(np.atleast_1d(array))
    if index is None:
        raise GraphError("several symbolic sizes are used as data")
    return replace(index, dtype=dtype)


BROADCASTING = (Add, Sub, Mul, Max, Min, Div, Pow, Equal, Less, LessOrEqual, And, Or, Where)


def _require_agreement(op: Op, shapes: Sequence[Shape]) -> None:
    """Sizes that ``op`` puts together are the same size; see :func:`require_equal`."""
    if isinstance(op, BROADCASTING):
        require_broadcast(*shapes)
    elif isinstance(op, MatMul) and min(map(len, shapes)) >= 2:
        require_equal(shapes[0][-1], shapes[1][-2])
        require_broadcast(*(shape[:-2] for shape in shapes))
    elif isinstance(op, Concat):
        for shape in shapes[1:]:
            for axis, (a, b) in enumerate(zip(shapes[0], shape, strict=False)):
                if axis != op.axis:
                    require_equal(a, b)


Converter = Callable[[Call], list[Imported]]
