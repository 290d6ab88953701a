"""Converters of fused operators: ONNX Attention and onnxruntime's com.microsoft set, taken apart again.

They arrive at the same nodes as the decomposed forms: products, transposes, one softmax with a bool mask,
LayerNorm, GELU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.converters_movement import reshape_to, triangle
from intc.frontend.converters_nn import gelu, normalised
from intc.frontend.symbolic import Imported
from intc.ir.dims import Dim
from intc.ops import elementwise as ew
from intc.ops.gelu import Gelu
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Expand, Gather, Slice, Transpose
from intc.ops.softmax import Softmax

HEADS_FIRST = (0, 2, 1, 3)


def _split_heads(call: Call, x: str, heads: int) -> str:
    """[B, S, H*D] to [B, H, S, D]."""
    batch, length, width = call.shape(x)
    if not isinstance(width, int) or heads < 1 or width % heads:
        raise GraphError(f"a width of {width} does not split into {heads} heads")
    split = reshape_to(call, x, (batch, length, heads, width // heads), True)
    return call.emit(Transpose(HEADS_FIRST), split, last=False)


def _merge_heads(call: Call, x: str) -> str:
    """[B, H, S, D] to [B, S, H*D]."""
    batch, heads, length, width = call.shape(x)
    moved = call.emit(Transpose(HEADS_FIRST), x, last=False)
    return reshape_to(call, moved, (batch, length, heads * width), True)


def _repeated(call: Call, x: str, heads: Dim) -> str:
    """[B, G, S, D] with every head repeated until there are ``heads``."""
    batch, groups, length, width = call.shape(x)
    if groups == heads:
        return x
    if not isinstance(groups, int) or not isinstance(heads, int) or heads % groups:
        raise GraphError(f"{heads} query heads do not share {groups} key heads")
    apart = reshape_to(call, x, (batch, groups, 1, length, width), True)
    wide = call.emit(Expand((batch, groups, heads // groups, length, width)), apart, last=False)
    return reshape_to(call, wide, (batch, heads, length, width), True)


def _attend(
    call: Call,
    q: str,
    k: str,
    v: str,
    scale: float,
    mask: str | None,
    bias: str | None,
    last: bool,
    cap: float = 0.0,
) -> str:
    """``softmax(scale * q @ k' + bias, mask) @ v`` on [B, H, S, D]; ``scale`` 0 means 1 / sqrt(D); scores
    under a ``cap`` c are ``c * tanh(scores / c)``.
    """
    width = call.shape(q)[-1]
    if not isinstance(width, int):
        raise GraphError("the head size is symbolic")
    keys = call.emit(Transpose((0, 1, 3, 2)), k, last=False)
    scores = call.emit(MatMul(), q, keys, last=False)
    scores = call.emit(ew.Mul(), scores, call.constant([scale or 1 / math.sqrt(width)]), last=False)
    if cap:
        bent = call.emit(
            ew.Tanh(), call.emit(ew.Mul(), scores, call.constant([1 / cap]), last=False), last=False
        )
        scores = call.emit(ew.Mul(), bent, call.constant([cap]), last=False)
    if bias is not None:
        scores = call.emit(ew.Add(), scores, bias, last=False)
    weights = call.emit(Softmax(-1), *([scores] if mask is None else [scores, mask]), last=False)
    return call.emit(MatMul(), weights, v, last=last)


def _key_mask(call: Call, i: int) -> str | None:
    """Input ``i`` as a bool mask that broadcasts to [B, H, S, T]: nonzero = keep."""
    if not call.has(i):
        return None
    mask = call.x(i)
    shape = call.shape(mask)
    call.refuse(len(shape) not in (2, 3), "only masks [batch, keys] and [batch, queries, keys] are supported")
    if call.ctx.builder.graph.type(mask).dtype != "bool":
        mask = call.emit(ew.Cast("bool"), mask, last=False)
    return reshape_to(call, mask, (shape[0], *([1, 1] if len(shape) == 2 else [1]), *shape[1:]), True)


def _causal(call: Call, q: str, k: str) -> str:
    return triangle(call, call.shape(q)[2], call.shape(k)[2])


def _refuse_inputs(call: Call, allowed: Sequence[int]) -> None:
    given = [i for i in range(len(call.inputs)) if call.has(i) and i not in allowed]
    call.refuse(given, f"input(s) {given} (past state, packed or cached tensors) are not supported")


def _attention(call: Call) -> list[Imported]:
    """ONNX Attention (opset 23): Q, K, V of rank 4 [B, H, S, D] or 3 [B, S, H*D]; a bool or additive mask."""
    _refuse_inputs(call, (0, 1, 2, 3))
    known = {
        "is_causal",
        "kv_num_heads",
        "q_num_heads",
        "qk_matmul_output_mode",
        "scale",
        "softcap",
        "softmax_precision",
    }
    call.refuse(
        set(call.attributes) - known, f"attributes {sorted(set(call.attributes) - known)} are not supported"
    )
    call.refuse(any(call.node.output[1:]), "only the first output is supported")
    flat = len(call.shape(call.x(0))) == 3
    heads = [int(call.attributes.get(k, 0)) for k in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    q, k, v = (_split_heads(call, call.x(i), heads[i]) if flat else call.x(i) for i in range(3))
    k, v = (_repeated(call, x, call.shape(q)[1]) for x in (k, v))
    cap = float(call.attributes.get("softcap", 0.0))
    mask = bias = None
    if call.has(3):
        given = call.x(3)
        is_mask = call.ctx.builder.graph.type(given).dtype == "bool"
        mask, bias = (given, None) if is_mask else (None, given)
    if call.attributes.get("is_causal"):
        causal = _causal(call, q, k)
        mask = causal if mask is None else call.emit(ew.And(), mask, causal, last=False)
    y = _attend(call, q, k, v, float(call.attributes.get("scale", 0.0)), mask, bias, not flat, cap)
    return [_merge_heads(call, y) if flat else y]


def _ms_attention(call: Call) -> list[Imported]:
    """``input @ weights + bias`` holds Q, K, V side by side; inputs 3 and 5 are a mask and a score bias."""
    _refuse_inputs(call, (0, 1, 2, 3, 5))
    heads = int(call.attributes["num_heads"])
    packed = call.emit(MatMul(), call.x(0), call.x(1), last=False)
    if call.has(2):
        packed = call.emit(ew.Add(), packed, call.x(2), last=False)
    width = call.shape(packed)[-1]
    if not isinstance(width, int):
        raise GraphError("the width of the projections is symbolic")
    sizes = [int(s) for s in call.attributes.get("qkv_hidden_sizes", [])] or [width // 3] * 3
    call.refuse(sum(sizes) != width or len(sizes) != 3, "the projections do not fill the weights")
    stops = np.cumsum(sizes)
    parts = [
        call.emit(Slice(2, int(stop) - size, int(stop)), packed, last=False)
        for stop, size in zip(stops, sizes, strict=True)
    ]
    q, k, v = (_split_heads(call, part, heads) for part in parts)
    return _ms_attend(call, q, k, v, 3, 5)


def _ms_attend(call: Call, q: str, k: str, v: str, mask_input: int, bias_input: int) -> list[Imported]:
    call.refuse(call.attributes.get("do_rotary"), "rotary embedding is not supported")
    call.refuse(any(call.node.output[1:]), "only the first output is supported")
    mask = _key_mask(call, mask_input)
    bias = call.x(bias_input) if call.has(bias_input) else None
    if call.attributes.get("unidirectional"):
        causal = _causal(call, q, k)
        mask = causal if mask is None else call.emit(ew.And(), mask, causal, last=False)
    return [
        _merge_heads(
            call, _attend(call, q, k, v, float(call.attributes.get("scale", 0.0)), mask, bias, False)
        )
    ]


def _multi_head_attention(call: Call) -> list[Imported]:
    """Query, key, value [B, S, H*D]; then a bias for all three, a key mask, an additive bias."""
    _refuse_inputs(call, (0, 1, 2, 3, 4, 5))
    call.refuse(not call.has(1) or not call.has(2), "packed query, key and value are not supported")
    call.refuse(any(len(call.shape(call.x(i))) != 3 for i in range(3)), "only rank 3 inputs are supported")
    heads = int(call.attributes["num_heads"])
    parts, start = [], 0
    for i in range(3):
        part = call.x(i)
        width = call.shape(part)[-1]
        if call.has(3):
            bias = np.asarray(call.known(3, "the bias"))
            assert isinstance(width, int)
            part = call.emit(ew.Add(), part, call.constant(bias[start : start + width]), last=False)
            start += width
        parts.append(_split_heads(call, part, heads))
    return _ms_attend(call, parts[0], parts[1], parts[2], 4, 5)


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
    # The second output, mask lengths, is left out: a node that reads it is refused.
    return [normalised(call, total, 5, 6)]


def _skip_layer_norm(call: Call) -> list[Imported]:
    """``layer_norm(x + skip [+ bias])``; inputs x, skip, gamma, beta, bias; the sum is the fourth output."""
    total = call.emit(ew.Add(), call.x(0), call.x(1), last=False)
    if call.has(4):
        total = call.emit(ew.Add(), total, call.x(4), last=False)
    call.attributes.setdefault("epsilon", 1e-12)
    unused = np.zeros(0, np.float32)
    return [normalised(call, total, 2, 3), unused, unused, total]


def _quick_gelu(call: Call) -> list[Imported]:
    call.refuse(
        abs(float(call.attributes.get("alpha", 1.702)) - 1.702) > 1e-6, "only alpha = 1.702 is supported"
    )
    return [call.emit(Gelu("quick"), call.x())]


def _fused_matmul(call: Call) -> list[Imported]:
    """``alpha * A' @ B'`` with the last two axes transposed on demand."""
    call.refuse(call.attributes.get("transBatchA") or call.attributes.get("transBatchB"), "batch transposes")
    sides = []
    for i, key in ((0, "transA"), (1, "transB")):
        x = call.x(i)
        if call.attributes.get(key):
            rank = len(call.shape(x))
            x = call.emit(Transpose((*range(rank - 2), rank - 1, rank - 2)), x, last=False)
        sides.append(x)
    alpha = float(call.attributes.get("alpha", 1.0))
    y = call.emit(MatMul(), *sides, last=alpha == 1.0)
    return [y if alpha == 1.0 else call.emit(ew.Mul(), y, call.constant([alpha]))]


def _rotary(call: Call) -> list[Imported]:
    """RotaryEmbedding (opset 23): pairs of channels turned by the angles of their position.

    Inputs: x [B, H, S, D] or [B, S, H*D]; tables of cosines and sines [positions, D/2], or [B, S, D/2]
    without positions; positions [B, S]. Pairs are the two halves, or neighbours if interleaved.
    """
    x = call.x()
    flat = len(call.shape(x)) == 3
    x = _split_heads(call, x, int(call.attributes.get("num_heads", 0))) if flat else x
    width = call.shape(x)[-1]
    turned = int(call.attributes.get("rotary_embedding_dim", 0)) or width
    if not isinstance(width, int) or not isinstance(turned, int):
        raise GraphError("the head size is symbolic")
    tables = []
    for i in (1, 2):
        table = call.emit(Gather(0), call.x(i), call.x(3), last=False) if call.has(3) else call.x(i)
        batch, length, half = call.shape(table)
        tables.append(reshape_to(call, table, (batch, 1, length, half), True))
    neighbours = bool(call.attributes.get("interleaved", 0))
    first, second = (
        (Slice(3, 0, turned, 2), Slice(3, 1, turned, 2))
        if neighbours
        else (Slice(3, 0, turned // 2), Slice(3, turned // 2, turned))
    )
    a, b = call.emit(first, x, last=False), call.emit(second, x, last=False)
    cos, sin = tables

    def mul(p: str, q: str) -> str:
        return call.emit(ew.Mul(), p, q, last=False)

    real = call.emit(ew.Sub(), mul(a, cos), mul(b, sin), last=False)
    imaginary = call.emit(ew.Add(), mul(b, cos), mul(a, sin), last=False)
    parts = [real, imaginary]
    if neighbours:
        parts = [reshape_to(call, p, (*call.shape(p), 1), True) for p in parts]
        merged = call.emit(Concat(4), *parts, last=False)
        y = reshape_to(call, merged, (*call.shape(x)[:3], turned), True)
    else:
        y = call.emit(Concat(3), *parts, last=False)
    if turned != width:
        y = call.emit(Concat(3), y, call.emit(Slice(3, turned, width), x, last=False), last=False)
    return [_merge_heads(call, y) if flat else y]


CONVERTERS: dict[str, Converter] = {"Attention": _attention, "RotaryEmbedding": _rotary}
MICROSOFT: dict[str, Converter] = {
    "Attention": _ms_attention,
    "MultiHeadAttention": _multi_head_attention,
    "EmbedLayerNormalization": _embed_layer_norm,
    "SkipLayerNormalization": _skip_layer_norm,
    "Gelu": gelu("none"),
    "BiasGelu": gelu("none"),
    "FastGelu": gelu("tanh"),
    "QuickGelu": _quick_gelu,
    "FusedMatMul": _fused_matmul,
}
