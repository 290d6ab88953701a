"""How each integer operator is written in ONNX's integer operators; formulas go through the algebra."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from onnx import TensorProto

from intc.errors import CodegenError
from intc.export.algebra import OnnxAlgebra, Tensor, Writer
from intc.ir import dims
from intc.ir.dims import Dim, terms_of
from intc.ir.graph import Graph, Node
from intc.ir.op import Array, FormulaOp
from intc.ir.types import LIMITS, TensorType
from intc.ops import elementwise as el
from intc.ops import logic
from intc.ops import movement as mv
from intc.ops.im2col import Im2col
from intc.ops.matmul import MatMul
from intc.ops.positions import Positions
from intc.ops.reduce import ArgMax, CumSum, ReduceMax, ReduceSum
from intc.ops.table import Table
from intc.ops.window import GroupedConv, MaxPool, output_size

BOOL, UINT8, INT32, INT64 = (getattr(TensorProto, name) for name in ("BOOL", "UINT8", "INT32", "INT64"))


@dataclass
class Exporter:
    """Writes the nodes of ``graph``; ``values`` are the tensors of its values so far."""

    graph: Graph
    writer: Writer
    values: dict[str, Tensor]

    def type(self, name: str) -> TensorType:
        return self.graph.type(name)

    def emit(self, op: str, *inputs: str, **attributes: Any) -> Tensor:
        return self.writer.tensor(self.writer.emit(op, *inputs, **attributes))

    def ints(self, *numbers: int) -> str:
        """The name of a constant of one axis."""
        return self.writer.constant(np.array(numbers, np.int64))

    def node(self, node: Node) -> Tensor:
        """The nodes that compute ``node``; CodegenError for what ONNX cannot say."""
        rule = RULES.get(type(node.op))
        self.writer.value, self.writer.source = node.output, node.source
        operands = [self.values[x] for x in node.inputs]
        try:
            if rule is not None:
                return rule(self, node, operands)
            if isinstance(node.op, FormulaOp):
                return self._formula(node.op, node, operands)
        except CodegenError as error:
            raise CodegenError(f"node '{node.source or node.output}' ({node.op.name}): {error}") from None
        raise CodegenError(f"node '{node.source or node.output}' ({node.op.name}) has no form in ONNX")

    def _formula(self, op: FormulaOp, node: Node, operands: list[Tensor]) -> Tensor:
        for i, name in enumerate(node.inputs):
            shape = self.type(name).shape
            if shape and isinstance(shape[-1], int) and operands[i].value is None:
                operands[i] = self.writer.tensor(operands[i].name, shape[-1])
        result: Tensor = op.formula(OnnxAlgebra(self.writer), *operands)
        return result

    def dim(self, dim: Dim) -> Tensor:
        """A size as a tensor [1], computed from the shapes of the inputs where it is not known."""
        total = self.writer.known([0])
        for mono, coefficient in terms_of(dim).items():
            term = self.writer.known([coefficient])
            for name in mono:
                inner = dims.quotient(name)
                term = term * (self.dim(inner[0]) // inner[1] if inner else self._symbol(name))
            total = total + term
        return total

    def _symbol(self, symbol: str) -> Tensor:
        for name in self.graph.inputs:
            for axis, size in enumerate(self.type(name).shape):
                found = dims.multiple(size)
                if found is not None and found[1] == symbol:
                    return self.emit("Shape", name, start=axis, end=axis + 1) // found[0]
        raise CodegenError(f"no input has the size {symbol} for itself")

    def shape(self, shape: Sequence[Dim]) -> str:
        """The name of a tensor with the sizes of ``shape``."""
        parts = [self.dim(size) for size in shape]
        known = [part.value for part in parts if part.value is not None]
        if len(known) == len(parts):
            return self.ints(*(int(value[0]) for value in known))
        return self.emit("Concat", *(part.name for part in parts), axis=0).name

    def reshape(self, x: Tensor, shape: Sequence[Dim]) -> Tensor:
        return self.emit("Reshape", x.name, self.shape(shape))

    def transpose(self, x: Tensor, *perm: int) -> Tensor:
        return self.emit("Transpose", x.name, perm=list(perm))

    def grid(self, shape: Sequence[Dim], steps: Sequence[Dim], offset: Dim) -> Tensor:
        """``offset + sum(steps[a] * i_a)`` for every index of ``shape``."""
        total = self._scalar(offset)
        for axis, (size, step) in enumerate(zip(shape, steps, strict=True)):
            bounds = [self.writer.known(0), self._scalar(size), self.writer.known(1)]
            along = self.emit("Range", *(b.name for b in bounds)) * self._scalar(step)
            total = total + self.emit("Reshape", along.name, self.ints(-1, *[1] * (len(shape) - 1 - axis)))
        return total

    def _scalar(self, dim: Dim) -> Tensor:
        if isinstance(dim, int):
            return self.writer.known(dim)
        return self.emit("Squeeze", self.dim(dim).name, self.ints(0))

    def numbers(self, node: Node, operands: list[Tensor]) -> list[Tensor]:
        """The operands with conditions as 0 and 1."""
        return [
            self.emit("Cast", x.name, to=INT64) if self.type(name).dtype == "bool" else x
            for name, x in zip(node.inputs, operands, strict=True)
        ]

    def padded(self, x: Tensor, before: Sequence[int], after: Sequence[int], fill: int = 0) -> Tensor:
        if not any((*before, *after)):
            return x
        value = self.writer.constant(np.array(fill, np.int64))
        return self.emit("Pad", x.name, self.ints(*before, *after), value)

    def windows(self, x: Tensor, shape: Sequence[Dim], kernel: Any, strides: Any, dilations: Any) -> Tensor:
        """Images [B, H, W, C] as [B, rows * columns of windows, elements of a window, C]."""
        height, width, channels = shape[1:]
        if not isinstance(height, int) or not isinstance(width, int):
            return self._taps(x, shape, kernel, strides, dilations)
        flat = self.reshape(x, (shape[0], height * width, channels))
        rows, columns = (
            np.arange(0, size - d * (k - 1), s)[:, None] + d * np.arange(k)
            for size, k, s, d in zip((height, width), kernel, strides, dilations, strict=True)
        )
        at = rows[:, None, :, None] * width + columns[None, :, None, :]
        index = self.writer.constant(at.reshape(len(rows) * len(columns), -1).astype(np.int64))
        return self.emit("Gather", flat.name, index, axis=1)

    def _taps(self, x: Tensor, shape: Sequence[Dim], kernel: Any, strides: Any, dilations: Any) -> Tensor:
        """:meth:`windows` at any size: one strided slice for each place in a window."""
        rows, columns = output_size(tuple(shape), kernel, strides, dilations)
        parts = []
        for place in np.ndindex(*kernel):
            starts = [int(i) * d for i, d in zip(place, dilations, strict=True)]
            ends = [a + (n - 1) * s + 1 for a, n, s in zip(starts, (rows, columns), strides, strict=True)]
            part = self.emit(
                "Slice", x.name, self.ints(*starts), self.shape(ends), self.ints(1, 2), self.ints(*strides)
            )
            parts.append(self.reshape(part, (shape[0], rows * columns, 1, shape[3])).name)
        return self.emit("Concat", *parts, axis=2)


Rule: TypeAlias = Callable[[Exporter, Node, list[Tensor]], Tensor]


def _plain(op: str, function: Callable[..., Any]) -> Rule:
    def rule(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
        first, *others = ex.numbers(node, x)
        return first.apply(op, function, *others)

    return rule


def _logical(op: str, function: Callable[..., Any]) -> Rule:
    return lambda ex, node, x: x[0].apply(op, function, *x[1:])


def _where(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    if ex.type(node.output).dtype != "bool":
        return x[0].apply("Where", np.where, *x[1:])
    condition, a, b = x  # engines choose between numbers only
    otherwise = condition.apply("Not", np.logical_not)
    chosen = condition.apply("And", np.logical_and, a), otherwise.apply("And", np.logical_and, b)
    return chosen[0].apply("Or", np.logical_or, chosen[1])


def _cast(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    given, wanted = ex.type(node.inputs[0]).dtype, ex.type(node.output).dtype
    if given == wanted or "bool" not in (given, wanted):
        return x[0]  # numbers are int64 throughout, and fit their type
    return ex.emit("Cast", x[0].name, to=BOOL if wanted == "bool" else INT64)


def _slice(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    op = node.op
    assert isinstance(op, mv.Slice)
    stop: Dim = -(2**62) if op.step < 0 and op.stop == -1 else op.stop
    ends = [ex.dim(end).name for end in (op.start, stop)]
    return ex.emit("Slice", x[0].name, *ends, ex.ints(op.axis), ex.ints(op.step))


def _lookup(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    op = node.op
    assert isinstance(op, mv.Lookup)
    return ex.emit("Gather", x[0].name, ex.grid(op.shape, op.steps, op.offset).name, axis=0)


def _positions(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    op = node.op
    assert isinstance(op, Positions)
    return ex.grid(op.shape, op.steps, op.offset)


def _pad(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    op = node.op
    assert isinstance(op, mv.Pad)
    return ex.padded(x[0], op.before, op.after)


def _matmul(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    """MatMulInteger where both sides have 8 bits, as unsigned ones: engines widen those exactly on every
    processor, while some saturate products of signed by unsigned bytes.
    """
    types = [ex.type(name) for name in node.inputs]
    if not all(t.dtype in ("int8", "uint8") for t in types):
        return ex.emit("MatMul", x[0].name, x[1].name)
    return _byte_product(ex, x, types)


def _byte_product(ex: Exporter, x: list[Tensor], types: Sequence[TensorType]) -> Tensor:
    offsets = [128 if t.dtype == "int8" else 0 for t in types]
    names = [_bytes(ex, tensor + offset) for tensor, offset in zip(x, offsets, strict=True)]
    zeros = [ex.writer.constant(np.array(offset, np.uint8)) for offset in offsets]
    return ex.emit("Cast", ex.emit("MatMulInteger", *names, *zeros).name, to=INT64)


def _bytes(ex: Exporter, x: Tensor) -> str:
    if x.value is not None:
        return ex.writer.constant(x.value.astype(np.uint8))
    return ex.emit("Cast", x.name, to=UINT8).name


def _reduce(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    op = node.op
    assert isinstance(op, ReduceSum | ReduceMax)
    name = "ReduceSum" if isinstance(op, ReduceSum) else "ReduceMax"
    return ex.emit(name, ex.numbers(node, x)[0].name, ex.ints(*op.axes), keepdims=int(op.keepdims))


def _arg_max(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    op = node.op
    assert isinstance(op, ArgMax)
    if ex.type(node.inputs[0]).magnitude >= 2**31:
        raise CodegenError("its operand exceeds 32 bits")
    narrow = ex.emit("Cast", x[0].name, to=INT32)  # engines know no ArgMax of int64
    attributes = {"axis": op.axis, "keepdims": int(op.keepdims), "select_last_index": int(op.last)}
    return ex.emit("ArgMax", narrow.name, **attributes)


def _cum_sum(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    op = node.op
    assert isinstance(op, CumSum)
    axis = ex.writer.constant(np.array(op.axis, np.int64))
    return ex.emit(
        "CumSum", ex.numbers(node, x)[0].name, axis, exclusive=int(op.exclusive), reverse=int(op.reverse)
    )


def _table(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    lowest = LIMITS[ex.type(node.inputs[0]).dtype][0]
    return ex.emit("Gather", x[1].name, (x[0] - lowest).name)


def _im2col(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    op, shape = node.op, ex.type(node.inputs[0]).shape
    assert isinstance(op, Im2col)
    image = x[0] if op.channels_last else ex.transpose(x[0], 0, 2, 3, 1)
    if not op.channels_last:
        shape = (shape[0], *shape[2:], shape[1])
    image, shape = _surrounded(ex, image, shape, op.pads, op.fill)
    parts = ex.windows(image, shape, op.kernel, op.strides, op.dilations)
    parts = parts if op.channels_last else ex.transpose(parts, 0, 1, 3, 2)
    return ex.reshape(parts, ex.type(node.output).shape)


def _max_pool(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    op, type_ = node.op, ex.type(node.inputs[0])
    assert isinstance(op, MaxPool)
    image, shape = _surrounded(ex, x[0], type_.shape, op.pads, LIMITS[type_.dtype][0])
    parts = ex.windows(image, shape, op.kernel, op.strides, op.dilations)
    return ex.reshape(ex.emit("ReduceMax", parts.name, ex.ints(2)), ex.type(node.output).shape)


def _surrounded(
    ex: Exporter, x: Tensor, shape: Sequence[Dim], pads: tuple[int, int, int, int], fill: int
) -> tuple[Tensor, tuple[Dim, ...]]:
    """Images [B, H, W, C] with a border, and their new shape."""
    top, left, bottom, right = pads
    batch, height, width, channels = shape
    padded = ex.padded(x, (0, top, left, 0), (0, bottom, right, 0), fill)
    return padded, (batch, height + top + bottom, width + left + right, channels)


def _grouped_conv(ex: Exporter, node: Node, x: list[Tensor]) -> Tensor:
    """Per group, the windows of its channels times its weights, as one product with a leading axis."""
    op, types = node.op, [ex.type(name) for name in node.inputs]
    assert isinstance(op, GroupedConv)
    weights = x[1].value
    if weights is None:
        raise CodegenError("its weights are computed")
    kh, kw, depth, outputs = weights.shape
    parts = ex.windows(x[0], types[0].shape, (kh, kw), op.strides, op.dilations)
    out = ex.type(node.output).shape
    split = (out[0], out[1] * out[2], kh * kw, op.groups, depth)
    parts = ex.transpose(ex.reshape(parts, split), 3, 0, 1, 2, 4)
    rows = ex.reshape(parts, (op.groups, out[0] * out[1] * out[2], kh * kw * depth))
    grouped: Array = weights.reshape(kh * kw * depth, op.groups, outputs // op.groups).transpose(1, 0, 2)
    columns = ex.writer.known(grouped)
    narrow = all(t.dtype in ("int8", "uint8") for t in types)
    product = (
        _byte_product(ex, [rows, columns], types) if narrow else ex.emit("MatMul", rows.name, columns.name)
    )
    return ex.reshape(ex.transpose(product, 1, 0, 2), out)


RULES: Final[Mapping[type, Rule]] = {
    el.Add: _plain("Add", np.add),
    el.Sub: _plain("Sub", np.subtract),
    el.Mul: _plain("Mul", np.multiply),
    el.Max: _plain("Max", np.maximum),
    el.Min: _plain("Min", np.minimum),
    logic.Equal: _plain("Equal", np.equal),
    logic.Less: _plain("Less", np.less),
    logic.LessOrEqual: _plain("LessOrEqual", np.less_equal),
    logic.And: _logical("And", np.logical_and),
    logic.Or: _logical("Or", np.logical_or),
    logic.Not: _logical("Not", np.logical_not),
    el.Where: _where,
    el.Cast: _cast,
    mv.Reshape: lambda ex, node, x: ex.reshape(x[0], node.op.shape),  # type: ignore[attr-defined]
    mv.Transpose: lambda ex, node, x: ex.transpose(x[0], *node.op.perm),  # type: ignore[attr-defined]
    mv.Slice: _slice,
    mv.Concat: lambda ex, node, x: ex.emit("Concat", *(t.name for t in x), axis=node.op.axis),  # type: ignore[attr-defined]
    mv.Gather: lambda ex, node, x: ex.emit("Gather", x[0].name, x[1].name, axis=node.op.axis),  # type: ignore[attr-defined]
    mv.GatherElements: lambda ex, node, x: ex.emit(
        "GatherElements",
        x[0].name,
        x[1].name,
        axis=node.op.axis,  # type: ignore[attr-defined]
    ),
    mv.Expand: lambda ex, node, x: ex.emit("Expand", x[0].name, ex.shape(node.op.shape)),  # type: ignore[attr-defined]
    mv.Lookup: _lookup,
    mv.Pad: _pad,
    Positions: _positions,
    MatMul: _matmul,
    ReduceSum: _reduce,
    ReduceMax: _reduce,
    ArgMax: _arg_max,
    CumSum: _cum_sum,
    Table: _table,
    Im2col: _im2col,
    MaxPool: _max_pool,
    GroupedConv: _grouped_conv,
}
