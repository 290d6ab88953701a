"""One converter per ONNX operator: from its live and known inputs to values of the float graph.

``CONVERTERS`` is the whole list. A converter raises GraphError with the reason when the node is outside its conditions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from intc.errors import GraphError
from intc.frontend.symbolic import Imported, Index, IndexTuple, NanTest, Splat, dims_of, gather_axes
from intc.ir.dims import Dim, Poly, broadcast, exact_div, product
from intc.ir.op import Op
from intc.ir.types import DType
from intc.ops import elementwise as ew
from intc.ops.conv import Conv
from intc.ops.gelu import Gelu
from intc.ops.layer_norm import LayerNorm
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Expand, Gather, Reshape, Slice, Transpose
from intc.ops.reduce import ReduceMean, ReduceSum
from intc.ops.softmax import Softmax

if TYPE_CHECKING:
    from intc.frontend.importer import Importer

__all__ = ["CONVERTERS", "broadcast", "convert"]
CASTS: dict[int, DType] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float32",
    onnx.TensorProto.DOUBLE: "float32",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
}


class Call:
    """One node being converted: its inputs, attributes and names."""

    def __init__(
        self, ctx: Importer, node: onnx.NodeProto, inputs: Sequence[Imported | None], attributes: dict[str, Any], label: str
    ) -> None:
        self.ctx, self.node, self.inputs, self.attributes, self.label = ctx, node, list(inputs), attributes, label

    def has(self, i: int) -> bool:
        return i < len(self.inputs) and self.inputs[i] is not None

    def x(self, i: int = 0) -> str:
        """Input ``i`` as a live value."""
        return self.ctx.live(self.inputs[i], self.node.input[i])

    def known(self, i: int, what: str) -> np.ndarray:  # type: ignore[type-arg]
        """Input ``i`` as known data; GraphError names ``what`` must not depend on input values."""
        value = self.inputs[i]
        if not isinstance(value, np.ndarray):
            raise GraphError(f"{what} depends on input values")
        return value

    def shape(self, value: str) -> tuple[Dim, ...]:
        return self.ctx.builder.graph.type(value).shape

    def emit(self, op: Op, *inputs: str, last: bool = True) -> str:
        """Emit ``op``; the ``last`` node of a converter carries the ONNX output's name."""
        name = self.node.output[0] if last else f"{self.node.output[0]}.{op.name}"
        return self.ctx.builder.emit(op, *inputs, name=name, source=self.label)

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
        return tuple(a % rank for a in given)


Converter = Callable[[Call], list[Imported]]


def convert(
    ctx: Importer, node: onnx.NodeProto, inputs: Sequence[Imported | None], attributes: dict[str, Any], label: str
) -> list[Imported]:
    """The results of ``node``; GraphError when no converter exists."""
    converter = CONVERTERS.get(node.op_type) if node.domain in ("", "ai.onnx", "com.microsoft") else None
    if converter is None:
        raise GraphError("the operator is not supported")
    return converter(Call(ctx, node, inputs, attributes, label))


def _elementwise(op: Op) -> Converter:
    return lambda call: [call.emit(op, *(call.x(i) for i in range(len(call.inputs))))]


def _identity(call: Call) -> list[Imported]:
    value = call.inputs[0]
    assert value is not None
    return [value]


def _cast(call: Call) -> list[Imported]:
    to = call.attributes["to"]
    x = call.x()
    if to not in CASTS:
        raise GraphError(f"cast to {onnx.TensorProto.DataType.Name(to)} is not supported")
    same = call.ctx.builder.graph.type(x).dtype == CASTS[to]
    return [x if same else call.emit(ew.Cast(CASTS[to]), x)]


def _and(call: Call) -> list[Imported]:
    """``true & x`` is x: exporters spell such masks out."""
    for i in (0, 1):
        other, value = call.inputs[1 - i], call.inputs[i]
        true = isinstance(value, Splat) and value.value is not None and bool(value.value)
        true = true or (isinstance(value, np.ndarray) and value.dtype == bool and bool(value.all()))
        if true and other is not None:
            return [other]
    return [call.emit(ew.And(), call.x(0), call.x(1))]


def _not_ordered(op: Op, swap: bool) -> Converter:
    """``a > b`` is ``b < a``; ``a >= b`` is ``b <= a``."""
    return lambda call: [call.emit(op, *((call.x(1), call.x(0)) if swap else (call.x(0), call.x(1))))]


def _where(call: Call) -> list[Imported]:
    condition = call.inputs[0]
    if isinstance(condition, NanTest):
        zero = call.inputs[1]
        if isinstance(zero, np.ndarray) and not np.any(zero) and call.inputs[2] == condition.value:
            return [condition.value]
        raise GraphError("only Where(IsNaN(x), 0, x) has a meaning without NaN")
    return [call.emit(ew.Where(), call.x(0), call.x(1), call.x(2))]


def _is_nan(call: Call) -> list[Imported]:
    return [NanTest(call.x())]


def _reshape_to(call: Call, x: str, target: Sequence[Dim], allow_zero: bool = False) -> str:
    have = call.shape(x)
    shape: list[Dim] = [have[i] if d == 0 and not allow_zero else d for i, d in enumerate(target)]
    if any(isinstance(d, int) and d == -1 for d in shape):
        hole = shape.index(-1)
        rest = product(d for i, d in enumerate(shape) if i != hole)
        shape[hole] = exact_div(product(have), rest)
    return x if tuple(shape) == tuple(have) else call.emit(Reshape(tuple(shape)), x)


def _reshape(call: Call) -> list[Imported]:
    target = dims_of(call.known(1, "the target shape"))
    return [_reshape_to(call, call.x(), target, bool(call.attributes.get("allowzero", 0)))]


def _flatten(call: Call) -> list[Imported]:
    x = call.x()
    shape = call.shape(x)
    axis = int(call.attributes.get("axis", 1))
    axis = axis + len(shape) if axis < 0 else axis
    return [_reshape_to(call, x, (product(shape[:axis]), product(shape[axis:])), True)]


def _unsqueeze(call: Call) -> list[Imported]:
    x = call.x()
    shape: list[Dim] = list(call.shape(x))
    count = len(shape) + (call.known(1, "axes").size if call.has(1) else len(call.attributes["axes"]))
    for axis in sorted(call.axes(count)):
        shape.insert(axis, 1)
    return [_reshape_to(call, x, shape, True)]


def _squeeze(call: Call) -> list[Imported]:
    x = call.x()
    shape = call.shape(x)
    axes = call.axes(len(shape)) or tuple(i for i, d in enumerate(shape) if d == 1)
    if any(shape[a] != 1 for a in axes):
        raise GraphError("only axes of size 1 can be squeezed")
    return [_reshape_to(call, x, [d for i, d in enumerate(shape) if i not in axes], True)]


def _transpose(call: Call) -> list[Imported]:
    x = call.x()
    perm = tuple(call.attributes.get("perm", range(len(call.shape(x)) - 1, -1, -1)))
    return [x if perm == tuple(range(len(perm))) else call.emit(Transpose(perm), x)]


def _concat(call: Call) -> list[Imported]:
    values = [call.x(i) for i in range(len(call.inputs)) if call.has(i)]
    return [values[0] if len(values) == 1 else call.emit(Concat(call.axis(values[0])), *values)]


def _bound(value: Any, size: Dim, default: Dim) -> Dim:
    """One slice bound normalised to [0, size]."""
    if isinstance(value, Poly):
        return value
    number = int(value)
    if number < 0:
        low = size + number
        return default if abs(number) >= 2**31 else (max(low, 0) if isinstance(low, int) else low)
    if isinstance(size, int):
        return min(number, size)
    return size if number >= 2**31 else number


def _slice(call: Call) -> list[Imported]:
    x = call.x()
    starts, ends = (call.known(i, "a slice bound").ravel() for i in (1, 2))
    rank = len(call.shape(x))
    axes = [int(a) % rank for a in call.known(3, "axes").ravel()] if call.has(3) else list(range(len(starts)))
    steps = [int(s) for s in call.known(4, "steps").ravel()] if call.has(4) else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = call.shape(x)[axis]
        if step < 0:
            if not isinstance(size, int):
                raise GraphError("a backward slice needs an axis of fixed size")
            picked = range(size)[slice(int(start), None if int(end) < -size else int(end), step)]
            op = Slice(axis, picked.start, picked.stop, step)
        else:
            op = Slice(axis, _bound(start, size, 0), _bound(end, size, 0), step)
        if op.start == 0 and op.stop == size and step == 1:
            continue
        x = call.emit(op, x)
    return [x]


def _split(call: Call) -> list[Imported]:
    x = call.x()
    axis = call.axis(x)
    size = call.shape(x)[axis]
    count = len(call.node.output)
    if call.has(1):
        sizes = [int(s) for s in call.known(1, "the split").ravel()]
    elif isinstance(size, int):
        chunk = -(-size // count)
        sizes = [min(chunk, size - i * chunk) for i in range(count)]
    else:
        raise GraphError("the split axis has a symbolic size")
    out: list[Imported] = []
    start = 0
    for name, length in zip(call.node.output, sizes, strict=True):
        op = Slice(axis, start, start + length)
        out.append(call.ctx.builder.emit(op, x, name=name, source=call.label))
        start += length
    return out


def _expand(call: Call) -> list[Imported]:
    x = call.x()
    shape = broadcast(call.shape(x), dims_of(call.known(1, "the target shape")))
    return [x if shape == call.shape(x) else call.emit(Expand(shape), x)]


def _gather(call: Call) -> list[Imported]:
    data, indices = call.x(0), call.inputs[1]
    axis = call.axis(data)
    size = call.shape(data)[axis]
    if isinstance(indices, Index):
        return [_gather_range(call, data, axis, indices)]
    if isinstance(indices, np.ndarray):
        if indices.ndim == 0 and np.issubdtype(np.asarray(indices).dtype, np.integer):
            at: Dim = int(indices) if int(indices) >= 0 else size + int(indices)
            one = call.emit(Slice(axis, at, at + 1), data, last=False)
            shape = [d for i, d in enumerate(call.shape(one)) if i != axis]
            return [_reshape_to(call, one, shape, True)]
        if isinstance(size, int) and indices.size and (indices.min() < -size or indices.max() >= size):
            raise GraphError(f"an index lies outside the {size} entries")
        if isinstance(size, int):
            known = call.ctx.builder.constant(f"{call.node.output[0]}.indices", np.asarray(indices % size, np.int64))
            return [call.emit(Gather(axis), data, known)]
    return [call.emit(Gather(axis), data, call.x(1))]


def _gather_range(call: Call, data: str, axis: int, index: Index) -> str:
    """Positions that are ranges select a slice, or a whole flattened tensor rearranged."""
    size = call.shape(data)[axis]
    moving = [a for a, s in enumerate(index.steps) if s != 0]
    if len(moving) == 1 and index.steps[moving[0]] == 1:
        a = moving[0]
        part = data
        if index.offset != 0 or index.shape[a] != size:
            part = call.emit(Slice(axis, index.offset, index.offset + index.shape[a]), data, last=False)
        shape = (*call.shape(data)[:axis], *index.shape, *call.shape(data)[axis + 1 :])
        flat = [1 if i != a else d for i, d in enumerate(index.shape)]
        part = _reshape_to(call, part, (*call.shape(data)[:axis], *flat, *call.shape(data)[axis + 1 :]), True)
        return part if call.shape(part) == shape else call.emit(Expand(shape), part)
    source = next((n for n in call.ctx.builder.graph.nodes if n.output == data), None)
    rest = call.shape(data)[1:]
    if axis == 0 and source is not None and isinstance(source.op, Reshape) and product(rest) == 1:
        base = source.inputs[0]
        have = call.shape(base)
        strides = [product(have[k + 1 :]) for k in range(len(have))]
        if index.offset == 0 and all(s == 0 or s in strides for s in index.steps):
            parts = []
            for k in range(len(have)):
                steps = tuple(1 if s == strides[k] and s != 0 else 0 for s in index.steps)
                parts.append(Index(index.shape, steps))
            picked = _select(call, base, parts)
            return _reshape_to(call, picked, (*call.shape(picked), *rest), True)
    raise GraphError("the gathered positions are not plain index ranges")


def _select(call: Call, data: str, parts: Sequence[Index]) -> str:
    shape, source = gather_axes(parts, call.shape(data))
    used = [k for k in source if k >= 0]
    if used != sorted(used):
        data = call.emit(Transpose(tuple(used)), data, last=False)
    flat = [1 if k < 0 else d for k, d in zip(source, shape, strict=True)]
    return _reshape_to(call, data, flat, True)


def _gather_nd(call: Call) -> list[Imported]:
    index = call.inputs[1]
    data = call.x(0)
    if not isinstance(index, IndexTuple) or len(index.parts) != len(call.shape(data)):
        raise GraphError("only whole coordinates made of index ranges are supported")
    return [_select(call, data, index.parts)]


def _matmul(call: Call) -> list[Imported]:
    return [call.emit(MatMul(), call.x(0), call.x(1))]


def _gemm(call: Call) -> list[Imported]:
    """``alpha * A' @ B' + beta * C``."""
    alpha, beta = float(call.attributes.get("alpha", 1.0)), float(call.attributes.get("beta", 1.0))
    a = call.x(0)
    if call.attributes.get("transA"):
        a = call.emit(Transpose((1, 0)), a, last=False)
    b = call.inputs[1]
    if isinstance(b, np.ndarray):
        weight = np.asarray(b, np.float32)
        weight = weight.T if call.attributes.get("transB") else weight
        right = call.ctx.builder.constant(call.node.input[1], weight * np.float32(alpha) if alpha != 1.0 else weight)
        alpha = 1.0
    else:
        right = call.x(1)
        right = call.emit(Transpose((1, 0)), right, last=False) if call.attributes.get("transB") else right
    y = call.emit(MatMul(), a, right, last=not call.has(2) and alpha == 1.0)
    if alpha != 1.0:
        y = call.emit(ew.Mul(), y, call.constant(alpha), last=not call.has(2))
    if not call.has(2):
        return [y]
    c = call.inputs[2]
    bias = call.constant(np.asarray(c) * beta) if isinstance(c, np.ndarray) else call.x(2)
    if not isinstance(c, np.ndarray) and beta != 1.0:
        bias = call.emit(ew.Mul(), bias, call.constant(beta), last=False)
    return [call.emit(ew.Add(), y, bias)]


def _conv(call: Call) -> list[Imported]:
    x, w = call.x(0), call.x(1)
    shape = call.shape(w)
    if len(shape) != 4:
        raise GraphError("only two-dimensional convolutions are supported")
    auto = call.attributes.get("auto_pad", "NOTSET")
    if auto not in ("NOTSET", "VALID"):
        raise GraphError(f"auto_pad {auto} is not supported")
    pads = tuple(call.attributes.get("pads", (0, 0, 0, 0)))
    strides, dilations = (tuple(call.attributes.get(k, (1, 1))) for k in ("strides", "dilations"))
    op = Conv(strides, pads, dilations, int(call.attributes.get("group", 1)))  # type: ignore[arg-type]
    return [call.emit(op, x, w, *([call.x(2)] if call.has(2) else []))]


def _softmax(call: Call) -> list[Imported]:
    x = call.x()
    return [call.emit(Softmax(call.axis(x, -1)), x)]


def _layer_norm(call: Call) -> list[Imported]:
    return [normalised(call, call.x(0), 1, 2)]


def normalised(call: Call, x: str, gamma: int, beta: int) -> str:
    """LayerNorm of ``x`` with the affine inputs at those positions, over the last axis."""
    channels = call.shape(x)[-1]
    if int(call.attributes.get("axis", -1)) not in (-1, len(call.shape(x)) - 1) or not isinstance(channels, int):
        raise GraphError("only normalisation over the last axis, of fixed size, is supported")
    scale = call.x(gamma)
    bias = call.x(beta) if call.has(beta) else call.constant(np.zeros(channels))
    return call.emit(LayerNorm(-1, float(call.attributes.get("epsilon", 1e-5))), x, scale, bias)


def _skip_layer_norm(call: Call) -> list[Imported]:
    """``layer_norm(x + skip [+ bias])``; inputs x, skip, gamma, beta, bias; the sum is the fourth output."""
    total = call.emit(ew.Add(), call.x(0), call.x(1), last=False)
    if call.has(4):
        total = call.emit(ew.Add(), total, call.x(4), last=False)
    call.attributes.setdefault("epsilon", 1e-12)
    unused = np.zeros(0, np.float32)
    return [normalised(call, total, 2, 3), unused, unused, total]


def _gelu(approximate: str | None = None) -> Converter:
    def run(call: Call) -> list[Imported]:
        x = call.x()
        if call.has(1):
            x = call.emit(ew.Add(), x, call.x(1), last=False)
        return [call.emit(Gelu(approximate or str(call.attributes.get("approximate", "none"))), x)]

    return run


def _quick_gelu(call: Call) -> list[Imported]:
    if abs(float(call.attributes.get("alpha", 1.702)) - 1.702) > 1e-6:
        raise GraphError("only alpha = 1.702 is supported")
    return [call.emit(Gelu("quick"), call.x())]


def _reduce(mean: bool) -> Converter:
    def run(call: Call) -> list[Imported]:
        x = call.x()
        rank = len(call.shape(x))
        axes = call.axes(rank) or tuple(range(rank))
        keep = bool(call.attributes.get("keepdims", 1))
        return [call.emit(ReduceMean(axes, keep) if mean else ReduceSum(axes, keep), x)]

    return run


def _global_average_pool(call: Call) -> list[Imported]:
    x = call.x()
    return [call.emit(ReduceMean(tuple(range(2, len(call.shape(x)))), True), x)]


CONVERTERS: dict[str, Converter] = {
    "Identity": _identity,
    "Dropout": _identity,
    "Cast": _cast,
    "Add": _elementwise(ew.Add()),
    "Sub": _elementwise(ew.Sub()),
    "Mul": _elementwise(ew.Mul()),
    "Div": _elementwise(ew.Div()),
    "Pow": _elementwise(ew.Pow()),
    "Sqrt": _elementwise(ew.Sqrt()),
    "Erf": _elementwise(ew.Erf()),
    "Exp": _elementwise(ew.Exp()),
    "Tanh": _elementwise(ew.Tanh()),
    "Sigmoid": _elementwise(ew.Sigmoid()),
    "Relu": _elementwise(ew.Relu()),
    "Equal": _elementwise(ew.Equal()),
    "Less": _elementwise(ew.Less()),
    "LessOrEqual": _elementwise(ew.LessOrEqual()),
    "Greater": _not_ordered(ew.Less(), True),
    "GreaterOrEqual": _not_ordered(ew.LessOrEqual(), True),
    "And": _and,
    "Or": _elementwise(ew.Or()),
    "Not": _elementwise(ew.Not()),
    "Where": _where,
    "IsNaN": _is_nan,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Concat": _concat,
    "Slice": _slice,
    "Split": _split,
    "Expand": _expand,
    "Gather": _gather,
    "GatherND": _gather_nd,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "Gelu": _gelu(),
    "BiasGelu": _gelu("none"),
    "FastGelu": _gelu("tanh"),
    "QuickGelu": _quick_gelu,
    "ReduceMean": _reduce(True),
    "ReduceSum": _reduce(False),
    "GlobalAveragePool": _global_average_pool,
}
