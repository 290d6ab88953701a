"""Small ONNX models written with onnx.parser, their results by onnxruntime, and their canonical graphs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from intc.frontend import import_onnx
from intc.ir.graph import Graph
from intc.ir.verify import verify
from intc.passes.fold_constants import FoldConstants
from intc.passes.fold_input_normalisation import FoldInputNormalisation
from intc.passes.recover_gelu import RecoverGelu
from intc.passes.recover_layer_norm import RecoverLayerNorm
from intc.passes.recover_softmax_mask import RecoverSoftmaxMask

Feeds = dict[str, NDArray[np.generic]]
PASSES = (
    FoldConstants(),
    RecoverLayerNorm(),
    RecoverGelu(),
    RecoverSoftmaxMask(),
    FoldInputNormalisation(),
)


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


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Normal numbers by shape and seed alone: weights of one shape in one model need different seeds."""
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def several(names: Iterable[str], *shape: int) -> Feeds:
    """Different :func:`floats` of one shape under each name."""
    return {name: floats(*shape, seed=seed) for seed, name in enumerate(names)}


def canonical(proto: onnx.ModelProto, feeds: Feeds, tolerance: float = 2e-5) -> Graph:
    """The canonical graph of ``proto``, after checking it and the imported graph against onnxruntime, to
    ``tolerance`` times the largest result (or 1).
    """
    graph = import_onnx(proto)
    want = expected(proto, feeds)
    for step in (None, *PASSES):
        graph = step.run(graph) if step else graph
        verify(graph)
        for a, b in zip(want, graph.evaluate(feeds), strict=True):
            assert a.shape == b.shape
            scale = max(1.0, float(np.abs(a[np.isfinite(a)]).max(initial=0.0)))
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=tolerance * scale)
    assert graph.outputs == [o.name for o in proto.graph.output]
    return graph
