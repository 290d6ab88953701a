"""The inputs and outputs that a file declares: types, names, and which of them are a decoder's state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from intc.errors import GraphError, ImportFailure, IntcError
from intc.frontend.agreement import EqualSizes, kept_above, kept_below, substitute
from intc.frontend.load import element_name
from intc.ir.dims import PAST, Dim, is_symbol, symbol
from intc.ir.graph import Graph, Node
from intc.ir.types import DTYPES, TensorType
from intc.ops.elementwise import Cast
from intc.ops.movement import Concat, Reshape

if TYPE_CHECKING:
    from intc.frontend.importer import Importer

ELEMENT: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float32",
    onnx.TensorProto.DOUBLE: "float32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT8: "int8",
}


def declare_input(ctx: Importer, info: onnx.ValueInfoProto, given: Any) -> str:
    """The value of an input, of the type in the file or what is ``given`` in its place: a shape or an element
    type.
    """
    where = f"{ctx.source}: input '{info.name}'"
    declared, shape = _declared(info, where)
    element = declared
    if isinstance(given, str) or (given is not None and not isinstance(given, Sequence)):
        element = np.dtype(given).name
        if element not in DTYPES:
            raise ImportFailure(f"{where} cannot be {element}")
    elif given is not None:
        if len(given) != len(shape):
            raise ImportFailure(f"{where} has rank {len(shape)}, not {len(given)}")
        shape = [symbol(d) if isinstance(d, str) else int(d) for d in given]
        if any(isinstance(d, int) and d < 1 for d in shape):
            raise ImportFailure(f"{where} cannot have the shape {list(given)}")
    try:
        type_ = TensorType(tuple(substitute(d, ctx.assumed.sizes) for d in shape), element)  # type: ignore[arg-type]
    except GraphError as error:
        raise ImportFailure(f"{where}: {error}") from None
    value = ctx.builder.input(info.name, type_)
    if element == declared:
        return value
    return ctx.builder.emit(Cast(declared), value, name=f"{info.name}.{declared}")  # type: ignore[arg-type]


def _declared(info: onnx.ValueInfoProto, where: str) -> tuple[str, list[Dim]]:
    """Element type and shape in the file; sizes without a name get one."""
    tensor = info.type.tensor_type
    if tensor.elem_type not in ELEMENT or not tensor.HasField("shape"):
        kind = element_name(tensor.elem_type) if tensor.elem_type else "no tensor type"
        raise ImportFailure(f"{where} has an unsupported type ({kind}) or no shape")
    shape: list[Dim] = []
    for axis, dim in enumerate(tensor.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            shape.append(int(dim.dim_value))
        else:
            shape.append(symbol(dim.dim_param or f"{info.name}_{axis}"))
    return ELEMENT[tensor.elem_type], shape


def declare_outputs(ctx: Importer) -> dict[str, str]:
    """Mark the values of the outputs; the names in the file by value."""
    names: dict[str, str] = {}
    graph = ctx.builder.graph
    for output in ctx.proto.graph.output:
        if output.name not in ctx.env:
            raise ImportFailure(f"{ctx.source}: output '{output.name}' is computed by no node")
        try:
            known = not isinstance(ctx.env[output.name], str)
            value = ctx.live(ctx.env[output.name], output.name + ".value" * known)
        except IntcError as error:
            raise ImportFailure(f"{ctx.source}: output '{output.name}': {error}") from None
        element = output.type.tensor_type.elem_type
        if graph.type(value).is_float and ELEMENT.get(element, "float32") != "float32":
            raise ImportFailure(
                f"{ctx.source}: output '{output.name}' is declared as {element_name(element)}, but computed"
                " as real numbers; end a quantised tensor with its DequantizeLinear"
            )
        if output.name in names.values():
            raise ImportFailure(f"{ctx.source}: output '{output.name}' is listed twice")
        if value in (*names, *graph.inputs, *graph.constants):
            value = ctx.builder.emit(Reshape(ctx.shape_of(value)), value, name=output.name)
        ctx.builder.output(value)
        names[value] = output.name
    return names


def hold_states(graph: Graph) -> None:
    """Find the inputs that an output, which is also read inside, continues along one axis: the keys and
    values of past positions. Their length is the size ``PAST``, which may be 0.
    """
    last = symbol(PAST)
    read = {x for n in graph.nodes for x in n.inputs}
    joins = {n.output: n.op.axis for n in graph.nodes if isinstance(n.op, Concat) and n.output in read}
    first = {n.output: n.inputs[0] for n in graph.nodes if n.output in joins}
    for index, name in enumerate(graph.outputs):
        past = first.get(name, "")
        if past not in graph.inputs or past in graph.states or not graph.type(past).is_float:
            continue
        length = graph.type(past).shape[joins[name]]
        if length != last and is_symbol(length):
            raise EqualSizes(str(length), last)
        if length == last:
            graph.states[past] = index


def renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """``graph`` with its outputs under their ONNX names; a value that holds such a name swaps with it."""
    to: dict[str, str] = {}
    for old, new in names.items():
        if new not in graph.values:
            to[old] = new
        elif new != old and new not in names and new not in graph.inputs and new not in graph.constants:
            to[old], to[new] = new, old
    nodes = [
        Node(n.op, tuple(to.get(x, x) for x in n.inputs), to.get(n.output, n.output), n.source)
        for n in graph.nodes
    ]
    values = {to.get(k, k): replace(v, name=to.get(k, k)) for k, v in graph.values.items()}
    outputs = [to.get(x, x) for x in graph.outputs]
    return Graph(graph.name, graph.inputs, outputs, nodes, values, graph.constants, graph.states)


def check_limits(ctx: Importer, built: Graph) -> None:
    """ImportFailure where ``built`` takes sizes for which it was imported otherwise."""
    for name, largest in ctx.assumed.largest.items():
        if name not in ctx.assumed.sizes and not kept_below(built, name, largest):
            raise ImportFailure(
                f"{ctx.source}: which of {name} and {largest} is smaller depends on the input, and no"
                f" operator refuses a larger {name}; give the inputs a fixed length"
            )
    for size, least in ctx.least.items():
        if not kept_above(built, size, least):
            raise ImportFailure(
                f"{ctx.source}: positions are cut as if {size} were at least {least}, and no operator"
                f" refuses a smaller one"
            )
