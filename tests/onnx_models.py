"""Small ONNX models written with onnx.parser, and their results by onnxruntime."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from intc.ir.graph import Graph

Feeds = dict[str, NDArray[np.generic]]


def model(
    body: str,
    inputs: str,
    outputs: str,
    weights: Feeds | None = None,
    opset: int = 17,
    microsoft: bool = False,
) -> onnx.ModelProto:
    """``agraph (inputs) => (outputs) { body }`` with ``weights`` as initializers."""
    domains = f'"" : {opset}' + (', "com.microsoft" : 1' if microsoft else "")
    text = f"<ir_version: 8, opset_import: [{domains}]> agraph ({inputs}) => ({outputs}) {{ {body} }}"
    proto = onnx.parser.parse_model(text)
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return proto


def expected(proto: onnx.ModelProto, feeds: Feeds) -> list[NDArray[np.generic]]:
    """What onnxruntime computes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [np.asarray(x) for x in session.run(None, feeds)]


def operators(graph: Graph) -> dict[str, int]:
    """How often each operator occurs."""
    counts: dict[str, int] = {}
    for node in graph.nodes:
        counts[node.op.name] = counts.get(node.op.name, 0) + 1
    return counts
