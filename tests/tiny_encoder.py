"""A two-layer BERT-like encoder as an exporter writes it: decomposed GELU, additive mask, symbolic sizes."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

VOCABULARY, POSITIONS, WIDTH, HEADS, HIDDEN, CLASSES = 50, 40, 48, 3, 96, 5


class _Writer:
    """Nodes and weights collected by name."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, np.ndarray] = {}

    def weight(self, name: str, array: Any) -> str:
        self.weights[name] = np.asarray(array)
        return name

    def op(self, kind: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = name or f"{kind}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def linear(self, x: str, name: str, inputs: int, outputs: int) -> str:
        w = self.weight(f"{name}.w", self.rng.normal(0, inputs**-0.5, (inputs, outputs)).astype(np.float32))
        b = self.weight(f"{name}.b", self.rng.normal(0, 0.1, outputs).astype(np.float32))
        return self.op("Add", self.op("MatMul", x, w), b)

    def norm(self, x: str, name: str) -> str:
        g = self.weight(f"{name}.g", self.rng.uniform(0.5, 2.0, WIDTH).astype(np.float32))
        b = self.weight(f"{name}.b", self.rng.normal(0, 0.2, WIDTH).astype(np.float32))
        return self.op("LayerNormalization", x, g, b, axis=-1, epsilon=1e-12)

    def scalar(self, name: str, value: float) -> str:
        return self.weight(name, np.float32(value))

    def gelu(self, x: str) -> str:
        erf = self.op("Erf", self.op("Div", x, self.scalar("sqrt2", 2**0.5)))
        return self.op(
            "Mul", self.op("Mul", x, self.op("Add", erf, self.scalar("one", 1))), self.scalar("half", 0.5)
        )

    def heads(self, x: str, perm: tuple[int, ...]) -> str:
        shape = self.weight("split", np.array([0, 0, HEADS, WIDTH // HEADS], np.int64))
        return self.op("Transpose", self.op("Reshape", x, shape), perm=perm)

    def layer(self, x: str, mask: str, name: str) -> str:
        q = self.heads(self.linear(x, f"{name}.q", WIDTH, WIDTH), (0, 2, 1, 3))
        k = self.heads(self.linear(x, f"{name}.k", WIDTH, WIDTH), (0, 2, 3, 1))
        v = self.heads(self.linear(x, f"{name}.v", WIDTH, WIDTH), (0, 2, 1, 3))
        scores = self.op("Div", self.op("MatMul", q, k), self.scalar("root", (WIDTH // HEADS) ** 0.5))
        p = self.op("Softmax", self.op("Add", scores, mask), axis=-1)
        context = self.op("Transpose", self.op("MatMul", p, v), perm=(0, 2, 1, 3))
        merged = self.op("Reshape", context, self.weight("merge", np.array([0, 0, WIDTH], np.int64)))
        x = self.norm(self.op("Add", self.linear(merged, f"{name}.o", WIDTH, WIDTH), x), f"{name}.n1")
        hidden = self.gelu(self.linear(x, f"{name}.f1", WIDTH, HIDDEN))
        return self.norm(self.op("Add", self.linear(hidden, f"{name}.f2", HIDDEN, WIDTH), x), f"{name}.n2")


@cache
def tiny_encoder(seed: int = 0, layers: int = 2) -> onnx.ModelProto:
    """Inputs input_ids and attention_mask [batch, sequence] int64; output logits [batch, 5]."""
    w = _Writer(seed)
    table = w.weight("words", w.rng.normal(0, 1, (VOCABULARY, WIDTH)).astype(np.float32))
    positions = w.weight("positions", w.rng.normal(0, 0.5, (POSITIONS, WIDTH)).astype(np.float32))
    length = w.op("Gather", w.op("Shape", "input_ids"), w.weight("at1", np.array([1], np.int64)))
    start, axis = w.weight("start", np.array([0], np.int64)), w.weight("axis", np.array([0], np.int64))
    x = w.op("Add", w.op("Gather", table, "input_ids"), w.op("Slice", positions, start, length, axis))
    x = w.norm(x, "embeddings")
    wide = w.op(
        "Cast", w.op("Unsqueeze", "attention_mask", w.weight("axes", np.array([1, 2], np.int64))), to=1
    )
    mask = w.op("Mul", w.op("Sub", w.scalar("one", 1), wide), w.scalar("minimum", -10000.0))
    for i in range(layers):
        x = w.layer(x, mask, f"layer{i}")
    first = w.op("Gather", x, w.weight("zero", np.int64(0)), axis=1)
    pooled = w.op("Tanh", w.linear(first, "pooler", WIDTH, WIDTH))
    w.op("Identity", w.linear(pooled, "classifier", WIDTH, CLASSES), name="logits")
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    weights = [numpy_helper.from_array(a, n) for n, a in w.weights.items()]
    graph = helper.make_graph(w.nodes, "tiny_encoder", ids, [out], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(proto)
    return proto


def tiny_feeds(batch: int, length: int, seed: int = 1) -> dict[str, np.ndarray]:
    """Random tokens; every other sample is padded by a third."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    mask[::2, length - length // 3 :] = 0
    return {"input_ids": rng.integers(0, VOCABULARY, (batch, length)), "attention_mask": mask}
