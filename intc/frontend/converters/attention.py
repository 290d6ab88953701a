"""Converters of attention: ONNX's and onnxruntime's operators, taken apart again.

They arrive at the same nodes as the decomposed forms: products, transposes, one softmax with a bool mask.
Keys and values of the past are joined in front of the new ones.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np

from intc.errors import GraphError
from intc.frontend.agreement import require_equal
from intc.frontend.call import Call, Converter
from intc.frontend.converters.movement import reshape_to, triangle
from intc.frontend.converters.rotary import (
    angles,
    merge_heads,
    onward,
    refuse_attributes,
    split_heads,
    turned,
)
from intc.frontend.symbolic import Imported, Index
from intc.ir.dims import Dim, product
from intc.ops import elementwise as ew
from intc.ops import logic
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Expand, Gather, Slice, Transpose
from intc.ops.softmax import Softmax


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
        return call.emit(logic.Less(), position, _column(call, mask), last=False)
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
    return functools.reduce(lambda a, b: call.emit(logic.And(), a, b, last=False), given) if given else None


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


def _attention(call: Call) -> list[Imported]:
    """ONNX Attention (opset 23): Q, K, V of rank 4 [B, H, S, D] or 3 [B, S, H*D]; a bool or additive mask;
    past keys and values; how many of the keys count. Outputs: the result, and all keys and values.
    """
    _refuse_inputs(call, range(7))
    refuse_attributes(
        call,
        ("is_causal", "kv_num_heads", "q_num_heads", "qk_matmul_output_mode", "scale", "softcap",
         "softmax_precision"),
    )  # fmt: skip
    call.refuse(any(call.node.output[3:]), "the scores as an output are not supported")
    flat = len(call.shape(call.x(0))) == 3
    heads = [int(call.attributes.get(k, 0)) for k in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    q, k, v = (split_heads(call, call.x(i), heads[i]) if flat else call.x(i) for i in range(3))
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
    return [merge_heads(call, y) if flat else y, *present]


def _counted(call: Call, count: str, queries: Dim, keys: Dim, causal: bool) -> str:
    """The keys below ``count`` [B] (and, if ``causal``, up to the query; the last one is the last key)."""
    offset, step = (queries, -1) if causal else (1, 0)
    rows = queries if causal else 1
    position = call.ctx.live(Index((1, 1, rows, keys), (0, 0, step, 1), offset), "positions")
    return call.emit(logic.LessOrEqual(), position, _column(call, count), last=False)


def _ms_attention(call: Call) -> list[Imported]:
    """``input @ weights + bias`` holds Q, K, V side by side; inputs 3 to 5 are a mask, past keys and values
    [2, B, H, P, D] and a score bias.
    """
    _refuse_inputs(call, range(6))
    refuse_attributes(call, ("num_heads", "qkv_hidden_sizes", "scale", "unidirectional", "mask_filter_value"))
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
    q, k, v = (split_heads(call, part, heads) for part in parts)
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
    return merge_heads(call, _attend(call, q, k, v, scale, mask, bias, False))


def _multi_head_attention(call: Call) -> list[Imported]:
    """Query, key, value [B, S, H*D] (packed: [B, S, H, 3, D]; keys and values also [B, H, S, D], or packed
    [B, S, H, 2, D]); a bias for all three, a mask of keys, an additive bias, past keys and values.
    """
    _refuse_inputs(call, range(8))
    refuse_attributes(call, ("num_heads", "scale", "unidirectional", "mask_filter_value"))
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
        rows.append(x if len(call.shape(x)) == 4 else split_heads(call, x, heads))
    q, k, v = rows
    past = _past(call, 6)
    k, v = _joined(call, 6, k), _joined(call, 7, v)
    return [_ms_attend(call, q, k, v, 4, 5, past), k, v]


def _grouped_query_attention(call: Call) -> list[Imported]:
    """GroupQueryAttention: causal, keys and values shared by several heads, past ones in front, positions
    turned by tables [positions, D/2] that start at the past's length.

    Of several samples with a past, each has a length of its own (``seqlens_k`` + 1, the new rows included):
    its new keys and values stand right behind its past ones. One sample fills the sizes.
    """
    _refuse_inputs(call, range(11))
    refuse_attributes(
        call,
        ("num_heads", "kv_num_heads", "do_rotary", "rotary_interleaved", "scale", "softcap",
         "local_window_size"),
    )  # fmt: skip
    call.refuse(any(call.node.output[3:]), "the scores as an output are not supported")
    heads, groups = int(call.attributes["num_heads"]), int(call.attributes["kv_num_heads"])
    if call.has(1):
        parts = [split_heads(call, call.x(i), h) for i, h in ((0, heads), (1, groups), (2, groups))]
    else:
        packed = split_heads(call, call.x(0), heads + 2 * groups)
        cuts = (0, heads, heads + groups, heads + 2 * groups)
        parts = [call.emit(Slice(1, a, b), packed, last=False) for a, b in itertools.pairwise(cuts)]
    q, k, v = parts
    past, length = _past(call, 3), call.shape(q)[2]
    starts = _own_starts(call, length) if call.has(3) and call.shape(q)[0] != 1 else None
    if call.attributes.get("do_rotary"):
        neighbours = bool(call.attributes.get("rotary_interleaved", 0))
        positions = call.x(9) if call.has(9) else None
        if positions is None and starts is not None:
            positions = onward(call, _beside(call, starts, 2), length)
        tables = angles(call, (7, 8), positions, past, length)
        q, k = (turned(call, x, tables, neighbours) for x in (q, k))
    k, v = _joined(call, 3, k), _joined(call, 4, v)
    if starts is not None:
        at = _own_rows(call, k, starts, past)
        k, v = (_rows_at(call, x, at) for x in (k, v))
    every_key, values = (_repeated(call, x, heads) for x in (k, v))
    keys = call.shape(k)[2]
    window = int(call.attributes.get("local_window_size", -1))
    if starts is None:
        mask = triangle(call, length, keys, past)
        near = triangle(call, length, keys, past - window + 1, upper=True) if window > 0 else None
    else:
        mask = _up_to(call, starts, length, keys)
        near = (
            call.emit(logic.Not(), _up_to(call, starts, length, keys, window), last=False)
            if window > 0
            else None
        )
    keep = _both(call, mask, near)
    bias = call.x(10) if call.has(10) else None
    scale, cap = (float(call.attributes.get(key, 0.0)) for key in ("scale", "softcap"))
    y = _attend(call, q, every_key, values, scale, keep, bias, False, cap)
    return [merge_heads(call, y), k, v]


def _beside(call: Call, numbers: str, rank: int) -> str:
    """Integers [B] as int64 [B, 1, ..] of ``rank``."""
    return reshape_to(call, numbers, (call.shape(numbers)[0], *(1,) * (rank - 1)), True)


def _own_starts(call: Call, length: Dim) -> str:
    """Where the new rows of each sample begin, int64 [B]: its ``seqlens_k`` + 1 - ``length``, or 0 for a
    first prompt, which may be shorter.
    """
    last = call.emit(ew.Cast("int64"), call.x(5), last=False)
    last = reshape_to(call, last, (product(call.shape(last)),), True)
    require_equal(call.shape(last)[0], call.shape(call.x(0))[0])
    before = call.ctx.live(Index((1,), (0,), 1 - length), "before")
    zero = call.ctx.live(Index((1,), (0,), 0), "zero")
    return call.emit(ew.Max(), call.emit(ew.Add(), last, before, last=False), zero, last=False)


def _own_rows(call: Call, x: str, starts: str, past: Dim) -> str:
    """Which rows of ``x`` [B, G, P + S, D], flattened but for the last axis, are rows 0, 1, .. of each
    sample: those of the past up to ``starts`` [B], then the new ones from row ``past`` on; [B, G, P + S].
    """
    batch, groups, total, _ = call.shape(x)

    def positions(shape: tuple[Dim, ...], steps: tuple[Dim, ...], offset: Dim = 0) -> str:
        return call.ctx.live(Index(shape, steps, offset), "positions")

    row, start = positions((1, 1, total), (0, 0, 1)), _beside(call, starts, 3)
    moved = call.emit(ew.Sub(), positions((1, 1, total), (0, 0, 1), past), start, last=False)
    moved = call.emit(ew.Min(), moved, positions((1,), (0,), total - 1), last=False)
    row = call.emit(ew.Where(), call.emit(logic.Less(), row, start, last=False), row, moved, last=False)
    return call.emit(ew.Add(), row, positions((batch, groups, 1), (groups * total, total, 0)), last=False)


def _rows_at(call: Call, x: str, at: str) -> str:
    """Rows ``at`` [B, G, T] of ``x`` [B, G, T, D], flattened but for the last axis."""
    shape = call.shape(x)
    flat = reshape_to(call, x, (product(shape[:3]), shape[3]), True)
    return call.emit(Gather(0), flat, at, last=False)


def _up_to(call: Call, starts: str, queries: Dim, keys: Dim, before: int = 0) -> str:
    """bool [B, 1, S, T]: the keys up to row ``starts`` [B] + s - ``before``."""
    position = call.ctx.live(Index((1, 1, queries, keys), (0, 0, -1, 1), before), "positions")
    return call.emit(logic.LessOrEqual(), position, _beside(call, starts, 4), last=False)


CONVERTERS: dict[str, Converter] = {"Attention": _attention}
MICROSOFT: dict[str, Converter] = {
    "Attention": _ms_attention,
    "MultiHeadAttention": _multi_head_attention,
    "GroupQueryAttention": _grouped_query_attention,
}
