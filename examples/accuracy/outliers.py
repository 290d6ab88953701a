"""Outlier channels in an ONNX model's LayerNorm outputs, without changing the function that it computes.

Trained transformers have a few channels tens of times larger than the rest; random weights have none. For a
factor ``t[c]`` per channel, gamma and beta of each norm are multiplied by ``t`` and the rows of the constant
matrices that read the norm divided by it: ``(t * y) @ (W / t) = y @ W``. Another reader, such as the residual
sum of a post-norm model, reads ``(t * y) * (1 / t)``.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

SHARE, SMALLEST, LARGEST = 0.02, 8.0, 64.0


def factors(width: int, seed: int = 0) -> NDArray[np.float32]:
    """Ones, but for SHARE of the channels (at least one): there log-uniform in [SMALLEST, LARGEST]."""
    rng = np.random.default_rng([seed, width])
    out = np.ones(width, np.float32)
    chosen = rng.choice(width, max(1, round(SHARE * width)), replace=False)
    out[chosen] = np.exp(rng.uniform(np.log(SMALLEST), np.log(LARGEST), len(chosen)))
    return out


def inject(model: onnx.ModelProto, seed: int = 0) -> int:
    """Change ``model`` in place; the number of norms that got outliers.

    The same channels are large in every norm of one width, as in trained models. A norm that no constant
    matrix reads is left alone.
    """
    graph = model.graph
    known = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    weights = {node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in known}
    shared = {name for name in weights if len(readers[name]) > 1}
    outputs = {output.name for output in graph.output}
    nodes: list[onnx.NodeProto] = []
    count = 0
    for node in graph.node:
        nodes.append(node)
        y = node.output[0]
        linears = [r for r in readers.get(y, []) if _is_linear(r, y, weights - shared)]
        if node.op_type != "LayerNormalization" or not linears or y in outputs:
            continue
        if not set(node.input[1:3]) <= set(known):
            continue
        t = factors(int(known[node.input[1]].dims[0]), seed)
        for i, name in enumerate(node.input[1:3], 1):
            node.input[i] = _scaled(graph, known[name], t, f"{y}.affine{i}")
        for linear in linears:
            old = known[linear.input[1]]
            linear.input[1] = _scaled(graph, old, 1 / t[:, None], f"{linear.output[0]}.weight")
        others = [r for r in readers[y] if r not in linears]
        if others:
            back = f"{y}.unscaled"
            graph.initializer.append(numpy_helper.from_array(1 / t, f"{back}.factor"))
            nodes.append(onnx.helper.make_node("Mul", [y, f"{back}.factor"], [back], name=back))
            for reader in others:
                for i, name in enumerate(reader.input):
                    if name == y:
                        reader.input[i] = back
        count += 1
    del graph.node[:]
    graph.node.extend(nodes)
    _drop_unused(graph)
    return count


def _is_linear(node: onnx.NodeProto, value: str, weights: set[str]) -> bool:
    return node.op_type == "MatMul" and node.input[0] == value and node.input[1] in weights


def _scaled(graph: onnx.GraphProto, tensor: onnx.TensorProto, by: NDArray[np.float32], name: str) -> str:
    """A new initializer ``tensor * by``; the old one may have other readers."""
    array = (numpy_helper.to_array(tensor) * by).astype(np.float32)
    graph.initializer.append(numpy_helper.from_array(array, name))
    return name


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
