"""Converters of rotary embedding, and the heads of attention: rows are split into heads, whose channels turn
by the angle of their position.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.converters.movement import reshape_to
from intc.frontend.symbolic import Imported, Index
from intc.ir.dims import Dim
from intc.ops import elementwise as ew
from intc.ops.movement import Concat, Gather, Slice, Transpose

HEADS_FIRST = (0, 2, 1, 3)


def split_heads(call: Call, x: str, heads: int) -> str:
    """[B, S, H*D] to [B, H, S, D]."""
    batch, length, width = call.shape(x)
    if not isinstance(width, int) or heads < 1 or width % heads:
        raise GraphError(f"a width of {width} does not split into {heads} heads")
    split = reshape_to(call, x, (batch, length, heads, width // heads), True)
    return call.emit(Transpose(HEADS_FIRST), split, last=False)


def merge_heads(call: Call, x: str) -> str:
    """[B, H, S, D] to [B, S, H*D]."""
    batch, heads, length, width = call.shape(x)
    moved = call.emit(Transpose(HEADS_FIRST), x, last=False)
    return reshape_to(call, moved, (batch, length, heads * width), True)


def refuse_attributes(call: Call, known: Iterable[str]) -> None:
    unknown = sorted(k for k, v in call.attributes.items() if k not in set(known) and v not in (0, 0.0, -1))
    call.refuse(unknown, f"attributes {unknown} are not supported")


def onward(call: Call, first: str, length: Dim) -> str:
    """Positions [B, S] from ``first`` [B, 1] on."""
    return call.emit(ew.Add(), call.ctx.live(Index((1, length), (0, 1)), "positions"), first, last=False)


def angles(
    call: Call, tables: Sequence[int], positions: str | None, start: Dim, length: Dim
) -> tuple[str, str]:
    """Cosines and sines [B or 1, 1, S, D/2] at ``positions`` [B, S] or, without them, from ``start``."""
    found = []
    for i in tables:
        if positions is not None:
            rows = call.emit(Gather(0), call.x(i), positions, last=False)
            batch, length, half = call.shape(rows)
        else:
            rows = call.emit(Slice(0, start, start + length), call.x(i), last=False)
            batch, half = 1, call.shape(rows)[-1]
        found.append(reshape_to(call, rows, (batch, 1, length, half), True))
    return found[0], found[1]


def turned(call: Call, x: str, tables: tuple[str, str], neighbours: bool) -> str:
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
    x = split_heads(call, x, int(call.attributes.get("num_heads", 0))) if flat else x
    if call.has(3):
        tables = angles(call, (1, 2), call.x(3), 0, call.shape(x)[2])
    else:
        given = [call.x(i) for i in (1, 2)]
        shapes = [call.shape(t) for t in given]
        cos, sin = (reshape_to(call, t, (s[0], 1, *s[1:]), True) for t, s in zip(given, shapes, strict=True))
        tables = (cos, sin)
    y = turned(call, x, tables, bool(call.attributes.get("interleaved", 0)))
    return [merge_heads(call, y) if flat else y]


def _ms_rotary(call: Call) -> list[Imported]:
    """com.microsoft RotaryEmbedding: x, positions [B, S] or the first one [1], cosines, sines."""
    refuse_attributes(call, ("interleaved", "num_heads", "rotary_embedding_dim"))
    x = call.x()
    flat = len(call.shape(x)) == 3
    if flat:
        half = call.shape(call.x(2))[-1]
        width, heads = call.shape(x)[-1], int(call.attributes.get("num_heads", 0))
        if not heads:  # the tables give the head size
            call.refuse(not isinstance(width, int) or not isinstance(half, int), "the head size is symbolic")
            heads = int(width) // (2 * int(half))  # type: ignore[arg-type]
        x = split_heads(call, x, heads)
    length = call.shape(x)[2]
    positions = call.x(1)
    if len(call.shape(positions)) == 1:  # the position of the first row
        first = call.emit(ew.Cast("int64"), positions, last=False)
        positions = onward(call, reshape_to(call, first, (1, 1), True), length)
    tables = angles(call, (2, 3), positions, 0, length)
    y = turned(call, x, tables, bool(call.attributes.get("interleaved", 0)))
    return [merge_heads(call, y) if flat else y]


CONVERTERS: dict[str, Converter] = {"RotaryEmbedding": _rotary}
MICROSOFT: dict[str, Converter] = {"RotaryEmbedding": _ms_rotary}
