"""Converters of onnxruntime's fused operators around attention: embeddings, sums before norms, activations,
products with a transpose or an activation.
"""

from __future__ import annotations

import numpy as np

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.converters.activations import swish
from intc.frontend.converters.nn import CONVERTERS as NN
from intc.frontend.converters.nn import gelu, normalised
from intc.frontend.symbolic import Imported
from intc.ops import elementwise as ew
from intc.ops.matmul import MatMul
from intc.ops.movement import Gather, Slice, Transpose
from intc.ops.reduce import ReduceSum


def _embed_layer_norm(call: Call) -> list[Imported]:
    """``layer_norm(words[ids] + positions[0 .. S] + segments[segment_ids])``."""
    ids = call.x(0)
    total = call.emit(Gather(0), call.x(2), ids, last=False)
    if call.has(8):
        positions = call.emit(Gather(0), call.x(3), call.x(8), last=False)
    else:
        positions = call.emit(Slice(0, 0, call.shape(ids)[1]), call.x(3), last=False)
    total = call.emit(ew.Add(), total, positions, last=False)
    if call.has(1) and call.has(4):
        segments = call.emit(Gather(0), call.x(4), call.x(1), last=False)
        total = call.emit(ew.Add(), total, segments, last=False)
    call.attributes.setdefault("epsilon", 1e-12)
    lengths: Imported = np.zeros(call.shape(ids)[0] if isinstance(call.shape(ids)[0], int) else 1, np.int32)
    if call.has(7):
        mask = call.emit(ew.Cast("int32"), call.x(7), last=False)
        kept = call.emit(ew.Cast("int32"), call.emit(ew.Cast("bool"), mask, last=False), last=False)
        lengths = call.emit(ReduceSum((1,), False), kept, last=False)
    return [normalised(call, total, 5, 6), lengths, total]


def _skip_norm(centred: bool) -> Converter:
    """``norm(x + skip [+ bias])``: inputs x, skip, gamma, beta (of LayerNorm), bias; the sum is the fourth
    output.
    """

    def run(call: Call) -> list[Imported]:
        total = call.emit(ew.Add(), call.x(0), call.x(1), last=False)
        bias = 4 if centred else 3
        if call.has(bias):
            total = call.emit(ew.Add(), total, call.x(bias), last=False)
        call.attributes.setdefault("epsilon", 1e-12)
        unused = np.zeros(0, np.float32)
        beta = 3 if centred else len(call.inputs)
        return [normalised(call, total, 2, beta, centred), unused, unused, total]

    return run


def _fused_matmul(call: Call) -> list[Imported]:
    """``alpha * A' @ B'`` with the last two axes transposed on demand; a batch transpose moves the first axis
    behind the others but the last, before that.
    """
    sides = []
    for i, key in ((0, "A"), (1, "B")):
        x = call.x(i)
        rank = len(call.shape(x))
        if call.attributes.get(f"transBatch{key}"):
            x = call.emit(Transpose((*range(1, rank - 1), 0, rank - 1)), x, last=False)
        if call.attributes.get(f"trans{key}"):
            x = call.emit(Transpose((*range(rank - 2), rank - 1, rank - 2)), x, last=False)
        sides.append(x)
    alpha = float(call.attributes.get("alpha", 1.0))
    y = call.emit(MatMul(), *sides, last=alpha == 1.0)
    return [y if alpha == 1.0 else call.emit(ew.Mul(), y, call.constant([alpha]))]


def _bias_add(call: Call) -> list[Imported]:
    """``x + bias + skip``."""
    return [call.emit(ew.Add(), call.emit(ew.Add(), call.x(0), call.x(1), last=False), call.x(2))]


def _activated(op_type: str) -> Converter:
    """The operator ``op_type`` with an activation behind it: `activation` and its `activation_params`."""

    def run(call: Call) -> list[Imported]:
        (x,) = NN[op_type](call)
        kind = str(call.attributes.get("activation", ""))
        given = [float(p) for p in call.attributes.get("activation_params", [])]
        if kind == "":
            return [x]
        if kind == "Clip" and len(given) == 2:
            low = call.emit(ew.Max(), x, call.constant([given[0]]), last=False)
            return [call.emit(ew.Min(), low, call.constant([given[1]]), last=False)]
        if kind == "LeakyRelu":
            below = call.emit(ew.Mul(), x, call.constant([given[0] if given else 0.01]), last=False)
            return [call.emit(ew.Max(), x, below, last=False)]
        simple = {"Relu": ew.Relu(), "Sigmoid": ew.Sigmoid(), "Tanh": ew.Tanh()}
        if kind not in simple:
            raise GraphError(f"the activation {kind} is not supported")
        return [call.emit(simple[kind], x, last=False)]

    return run


MICROSOFT: dict[str, Converter] = {
    "EmbedLayerNormalization": _embed_layer_norm,
    "SkipLayerNormalization": _skip_norm(True),
    "SkipSimplifiedLayerNormalization": _skip_norm(False),
    "Gelu": gelu("none"),
    "BiasGelu": gelu("none"),
    "FastGelu": gelu("tanh"),
    "QuickGelu": swish(1.702),
    "FusedMatMul": _fused_matmul,
    "FusedConv": _activated("Conv"),
    "FusedGemm": _activated("Gemm"),
    "BiasAdd": _bias_add,
}
