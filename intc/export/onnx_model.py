"""An integer graph as an ONNX model of integer operators, which any ONNX engine runs to the same bits.

Inputs and outputs are the integers themselves, in their own element types; scales are the model's metadata.
Inside, numbers are int64, so that no intermediate can leave its type, and products of bytes MatMulInteger.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import onnx
from onnx import TensorProto, helper

import intc
from intc.export.algebra import Tensor, Writer
from intc.export.rules import Exporter
from intc.ir.dims import Dim
from intc.ir.graph import Graph
from intc.ir.types import TensorType
from intc.passes.unfuse import Unfuse

OPSET: Final = 18
IR_VERSION: Final = 8
TYPES: Final = {
    "bool": TensorProto.BOOL,
    "uint8": TensorProto.UINT8,
    "int8": TensorProto.INT8,
    "int16": TensorProto.INT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
}


def onnx_model(graph: Graph, output_names: Sequence[str] = ()) -> onnx.ModelProto:
    """``graph`` (integers only, fused or not) as a checked model, its outputs called ``output_names``.

    CodegenError names a node that ONNX's integer operators cannot express.
    """
    plain = Unfuse().run(graph)
    names = list(output_names) or list(plain.outputs)
    writer = Writer()
    exporter = Exporter(plain, writer, {})
    for name in plain.inputs:
        exporter.values[name] = _widened(writer, name, plain.type(name))
    for name, array in plain.constants.items():
        exporter.values[name] = writer.known(array)
    for node in plain.nodes:
        exporter.values[node.output] = exporter.node(node)
    for name, public in zip(plain.outputs, names, strict=True):
        writer.value = writer.source = ""
        result = writer.emit("Cast", exporter.values[name].name, to=TYPES[plain.type(name).dtype])
        writer.nodes[-1].output[0] = public
        assert result != public
    inputs = [_port(name, plain.type(name)) for name in plain.inputs]
    outputs = [_port(public, plain.type(name)) for name, public in zip(plain.outputs, names, strict=True)]
    body = helper.make_graph(writer.nodes, plain.name or "intc", inputs, outputs, writer.initializers)
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(body, opset_imports=opsets, ir_version=IR_VERSION, producer_name="intc")
    model.producer_version = intc.__version__
    helper.set_model_props(model, {"intc": json.dumps(_scales(plain, names))})
    onnx.checker.check_model(model)
    return model


def _widened(writer: Writer, name: str, type_: TensorType) -> Tensor:
    if type_.dtype in ("bool", "int64"):
        return writer.tensor(name)
    return writer.tensor(writer.emit("Cast", name, to=TensorProto.INT64))


def _port(name: str, type_: TensorType) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[type_.dtype], [_size(d) for d in type_.shape])


def _size(dim: Dim) -> int | str:
    return dim if isinstance(dim, int) else str(dim)


def _scales(graph: Graph, names: Sequence[str]) -> dict[str, Any]:
    """``real = integer * scale`` of inputs and outputs, null where the integers are what is meant; what the
    least integer of an output stands for instead.
    """
    outputs = list(zip(names, graph.outputs, strict=True))
    values = {public: graph.values[name] for public, name in [*((n, n) for n in graph.inputs), *outputs]}
    lowest = {public: value.lowest for public, value in values.items() if value.lowest is not None}
    return {"scales": {public: value.scale for public, value in values.items()}, "lowest": lowest}
