"""Converters of attention and rotary embedding: ONNX's and onnxruntime's operators, taken apart again.

They arrive at the same nodes as the decomposed forms: products, transposes, one softmax with a bool mask.
Keys and values of the past are joined in front of the new ones.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Sequence

import numpy as np

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.converters_movement import reshape_to, triangle
from intc.frontend.symbolic import Imported, Index, require_equal
from intc.ir.dims import Dim
from intc.ops import elementwise as ew
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


def _key_mask(call: Call, i: int, keys: Dim) -> str | None:
    """Input ``i`` as a bool mask that broadcasts to [B, H, S, T]: what is not 0, or lengths [B]."""
    if not call.has(i):
        return None
    mask = call.x(i)
    shape = call.shape(mask)
    if len(shape) == 1:
        require_equal(shape[0], call.shape(call.x(0))[0])
        call.refuse(
            shape[0] != call.shape(call.x(0))[0],
            "masks of more than one number for a sample are not supported",
        )
        position = call.ctx.live(Index((1, 1, 1, keys), (0, 0, 0, 1)), "positions")
        return call.emit(ew.Less(), position, _column(call, mask), last=False)
    call.refuse(len(shape) > 4, f"a mask of rank {len(shape)} is not supported")
    if call.ctx.builder.graph.type(mask).dtype != "bool":
        mask = call.emit(ew.Cast("bool"), mask, last=False)
    ones = {2: (1, 1), 3: (1,), 4: ()}[len(shape)]
    return reshape_to(call, mask, (shape[0], *ones, *shape[1:]), True)


def _column(call: Call, numbers: str) -> str:
    """Integers [B] as int64 [B, 1, 1, 1]."""
    wide = call.emit(ew.Cast("int64"), numbers, last=False)
    return reshape_to(call, wide, (call.shape(numbers)[0], 1, 1, 1), True)


def _both(call: Call, *masks: str | None) -> str | None:
    """What every one of ``masks`` keeps."""
    given = [m for m in masks if m is not None]
    return functools.reduce(lambda a, b: call.emit(ew.And(), a, b, last=False), given) if given else None


def _joined(call: Call, past: int, new: str) -> str:
    """Rows [B, H, S, D] behind those of input ``past``, where there is one."""
    if not call.has(past):
        return new
    return call.emit(Concat(2), call.x(past), new, last=False)


def _past(call: Call, i: int) -> Dim:
    """How many positions input ``i`` [B, H, P, D] holds."""
    return call.shape(call.x(i))[2] if call.has(i) else 0


def _refuse_inputs(call: Call, allowed: Sequence[int]) -> None:
    given = [i for i in range(len(call.inputs)) if call.has(i) and i not in allowed]
    call.refuse(given, f"input(s) {given} (shared, indirect or quantised caches) are not supported")


def _refuse_attributes(call: Call, known: Iterable[str]) -> None:
    unknown = sorted(k for k, v in call.attributes.items() if k not in set(known) and v not in (0, 0.0, -1))
    call.refuse(unknown, f"attributes {unknown} are not supported")


def _attention(call: Call) -> list[Imported]:
    """ONNX Attention (opset 23): Q, K, V of rank 4 [B, H, S, D] or 3 [B, S, H*D]; a bool or additive mask;
    past keys and values; how many of the keys count. Outputs: the result, and all keys and values.
    """
    _refuse_inputs(call, range(7))
    _refuse_attributes(
        call,
        ("is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap",
         "softmax_precision"),
    )  # fmt: skip
    call.refuse(any(call.node.output[3:]), "the scores as an output are not supported")
    flat = len(call.shape(call.x(0))) == 3
    heads = [int(call.attributes.get(k, 0)) for k in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    q, k, v = (_split_heads(call, call.x(i), heads[i]) if flat else call.x(i) for i in range(3))
    past = _past(call, 4)
    k, v = _joined(call, 4, k), _joined(call, 5, v)
    present: list[Imported] = [k, v]
    k, v = (_repeated(call, x, call.shape(q)[1]) for x in (k, v))
    mask = bias = None
    if call.has(3):
        given = call.x(3)
        is_mask = call.ctx.builder.graph.type(given).dtype == "bool"
        mask, bias = (given, None) if is_mask else (None, given)
    causal = bool(call.attributes.get("is_causal"))
    if call.has(6):
        mask = _both(call, mask, _counted(call, call.x(6), call.shape(q)[2], call.shape(k)[2], causal))
    elif causal:
        mask = _both(call, mask, triangle(call, call.shape(q)[2], call.shape(k)[2], past))
    cap = float(call.attributes.get("softcap", 0.0))
    y = _attend(call, q, k, v, float(call.attributes.get("scale", 0.0)), mask, bias, not flat, cap)
    return [_merge_heads(call, y) if flat else y, *present]


def _counted(call: Call, count: str, queries: Dim, keys: Dim, causal: bool) -> str:
    """The keys below ``count`` [B] (and, if ``causal``, up to the query; the last one is the last key)."""
    offset, step = (queries, -1) if causal else (1, 0)
    rows = queries if causal else 1
    position = call.ctx.live(Index((1, 1, rows, keys), (0, 0, step, 1), offset), "positions")
    return call.emit(ew.LessOrEqual(), position, _column(call, count), last=False)


def _ms_attention(call: Call) -> list[Imported]:
    """``input @ weights + bias`` holds Q, K, V side by side; inputs 3 to 5 are a mask, past keys and values
    [2, B, H, P, D] and a score bias.
    """
    _refuse_inputs(call, range(6))
    _refuse_attributes(
        call, ("num_heads", "qkv_hidden_sizes", "scale", "unidirectional", "mask_filter_value")
    )
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
    past: Dim = 0
    present: Imported = None
    if call.has(4) or any(call.node.output[1:]):
        both = [reshape_to(call, x, (1, *call.shape(x)), True) for x in (k, v)]
        present = call.emit(Concat(0), *both, last=False)
        if call.has(4):
            past = call.shape(call.x(4))[3]
            present = call.emit(Concat(3), call.x(4), present, last=False)
        k, v = (
            reshape_to(
                call, call.emit(Slice(0, i, i + 1), present, last=False), call.shape(present)[1:], True
            )
            for i in (0, 1)
        )
    return [_ms_attend(call, q, k, v, 3, 5, past), present]


def _ms_attend(call: Call, q: str, k: str, v: str, mask_input: int, bias_input: int, past: Dim) -> str:
    mask = _key_mask(call, mask_input, call.shape(k)[2])
    bias = call.x(bias_input) if call.has(bias_input) else None
    if call.attributes.get("unidirectional"):
        mask = _both(call, mask, triangle(call, call.shape(q)[2], call.shape(k)[2], past))
    scale = float(call.attributes.get("scale", 0.0))
    return _merge_heads(call, _attend(call, q, k, v, scale, mask, bias, False))


def _multi_head_attention(call: Call) -> list[Imported]:
    """Query, key, value [B, S, H*D] (packed: [B, S, H, 3, D]; keys and values also [B, H, S, D], or packed
    [B, S, H, 2, D]); a bias for all three, a mask of keys, an additive bias, past keys and values.
    """
    _refuse_inputs(call, range(8))
    _refuse_attributes(call, ("num_heads", "scale", "unidirectional", "mask_filter_value"))
    call.refuse(any(call.node.output[3:]), "the scores as an output are not supported")
    heads = int(call.attributes["num_heads"])
    flat: list[str] = []  # rank 3, or 4 where there are heads already
    for i in range(3):
        if not call.has(i):
            break
        x = call.x(i)
        shape = call.shape(x)
        if len(shape) == 5:
            parts = [call.emit(Slice(3, j, j + 1), x, last=False) for j in range(int(shape[3]))]  # type: ignore[arg-type]
            flat += [reshape_to(call, p, (*shape[:2], shape[2] * shape[4]), True) for p in parts]
        else:
            flat.append(x)
    call.refuse(len(flat) != 3, "a query without keys and values is not supported")
    rows, start = [], 0
    for x in flat:
        width = call.shape(x)[-1]
        if call.has(3) and len(call.shape(x)) == 3:
            bias = np.asarray(call.known(3, "the bias"))
            assert isinstance(width, int)
            x = call.emit(ew.Add(), x, call.constant(bias[start : start + width]), last=False)
            start += width
        rows.append(x if len(call.shape(x)) == 4 else _split_heads(call, x, heads))
    q, k, v = rows
    past = _past(call, 6)
    k, v = _joined(call, 6, k), _joined(call, 7, v)
    return [_ms_attend(call, q, k, v, 4, 5, past), k, v]


def _grouped_query_attention(call: Call) -> list[Imported]:
    """GroupQueryAttention: causal, keys and values shared by several heads, past ones in front, positions
    turned by tables [positions, D/2] that start at the past's length.

    Samples of one batch have the same length: what ``seqlens_k`` says beside the sizes is not read.
    """
    _refuse_inputs(call, range(11))
    _refuse_attributes(
        call,
        ("num_heads", "kv_num_heads", "do_rotary", "rotary_interleaved", "scale", "softcap",
         "local_window_size"),
    )  # fmt: skip
    call.refuse(any(call.node.output[3:]), "the scores as an output are not supported")
    heads, groups = int(call.attributes["num_heads"]), int(call.attributes["kv_num_heads"])
    if call.has(1):
        parts = [_split_heads(call, call.x(i), h) for i, h in ((0, heads), (1, groups), (2, groups))]
    else:
        packed = _split_heads(call, call.x(0), heads + 2 * groups)
        cuts = (0, heads, heads + groups, heads + 2 * groups)
        parts = [call.emit(Slice(1, a, b), packed, last=False) for a, b in itertools.pairwise(cuts)]
    q, k, v = parts
    past, length = _past(call, 3), call.shape(q)[2]
    if call.attributes.get("do_rotary"):
        neighbours = bool(call.attributes.get("rotary_interleaved", 0))
        tables = _angles(call, (7, 8), 9, past, length)
        q, k = (_turned(call, x, tables, neighbours) for x in (q, k))
    k, v = _joined(call, 3, k), _joined(call, 4, v)
    every_key, values = (_repeated(call, x, heads) for x in (k, v))
    keys = call.shape(k)[2]
    mask = triangle(call, length, keys, past)
    window = int(call.attributes.get("local_window_size", -1))
    if window > 0:
        near = triangle(call, length, keys, past - window + 1, upper=True)
        mask = call.emit(ew.And(), mask, near, last=False)
    bias = call.x(10) if call.has(10) else None
    scale, cap = (float(call.attributes.get(key, 0.0)) for key in ("scale", "softcap"))
    y = _attend(call, q, every_key, values, scale, mask, bias, False, cap)
    return [_merge_heads(call, y), k, v]


def _angles(call: Call, tables: Sequence[int], positions: int, start: Dim, length: Dim) -> tuple[str, str]:
    """Cosines and sines [B or 1, 1, S, D/2] at input ``positions`` [B, S] or, without it, from ``start``."""
    found = []
    for i in tables:
        if call.has(positions):
            rows = call.emit(Gather(0), call.x(i), call.x(positions), last=False)
            batch, length, half = call.shape(rows)
        else:
            rows = call.emit(Slice(0, start, start + length), call.x(i), last=False)
            batch, half = 1, call.shape(rows)[-1]
        found.append(reshape_to(call, rows, (batch, 1, length, half), True))
    return found[0], found[1]


def _turned(call: Call, x: str, tables: tuple[str, str], neighbours: bool) -> str:
    """``x`` [B, H, S, D], whose first channels are pairs (two halves, or ``neighbours``), each turned by its
    angle.
    """
    cos, sin = tables
    width, half = call.shape(x)[-1], call.shape(cos)[-1]
    if not isinstance(width, int) or not isinstance(half, int) or 2 * half > width:
        raise GraphError(f"{half} angles do not fit a head of {width}")
    turned = 2 * half
    cuts = (
        (Slice(3, 0, turned, 2), Slice(3, 1, turned, 2))
        if neighbours
        else (Slice(3, 0, half), Slice(3, half, turned))
    )
    a, b = (call.emit(cut, x, last=False) for cut in cuts)

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
    return y


def _rotary(call: Call) -> list[Imported]:
    """RotaryEmbedding (opset 23): pairs of channels turned by the angles of their position.

    Inputs: x [B, H, S, D] or [B, S, H*D]; tables of cosines and sines [positions, D/2], or [B, S, D/2]
    without positions; positions [B, S]. Pairs are the two halves, or neighbours if interleaved.
    """
    x = call.x()
    flat = len(call.shape(x)) == 3
    x = _split_heads(call, x, int(call.attributes.get("num_heads", 0))) if flat else x
    if call.has(3):
        tables = _angles(call, (1, 2), 3, 0, call.shape(x)[2])
    else:
        given = [call.x(i) for i in (1, 2)]
        shapes = [call.shape(t) for t in given]
        cos, sin = (reshape_to(call, t, (s[0], 1, *s[1:]), True) for t, s in zip(given, shapes, strict=True))
        tables = (cos, sin)
    y = _turned(call, x, tables, bool(call.attributes.get("interleaved", 0)))
    return [_merge_heads(call, y) if flat else y]


def _ms_rotary(call: Call) -> list[Imported]:
    """com.microsoft RotaryEmbedding: x, positions [B, S] or the first one [1], cosines, sines."""
    _refuse_attributes(call, ("interleaved", "num_heads", "rotary_embedding_dim"))
    x = call.x()
    flat = len(call.shape(x)) == 3
    if flat:
        half = call.shape(call.x(2))[-1]
        width, heads = call.shape(x)[-1], int(call.attributes.get("num_heads", 0))
        if not heads:  # the tables give the head size
            call.refuse(not isinstance(width, int) or not isinstance(half, int), "the head size is symbolic")
            heads = int(width) // (2 * int(half))  # type: ignore[arg-type]
        x = _split_heads(call, x, heads)
    length = call.shape(x)[2]
    positions = call.shape(call.x(1))
    if len(positions) == 1:  # the position of the first row
        first = call.emit(ew.Cast("int64"), call.x(1), last=False)
        offsets = call.ctx.live(Index((1, length), (0, 1)), "positions")
        call.inputs[1] = call.emit(ew.Add(), offsets, reshape_to(call, first, (1, 1), True), last=False)
    tables = _angles(call, (2, 3), 1, 0, length)
    y = _turned(call, x, tables, bool(call.attributes.get("interleaved", 0)))
    return [_merge_heads(call, y) if flat else y]


CONVERTERS: dict[str, Converter] = {"Attention": _attention, "RotaryEmbedding": _rotary}
MICROSOFT: dict[str, Converter] = {
    "Attention": _ms_attention,
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _grouped_query_attention,
    "RotaryEmbedding": _ms_rotary,
}
