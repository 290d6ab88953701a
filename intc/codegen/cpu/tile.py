"""The register tile: packed rows of A times a packed panel of B into a block of int32 accumulators.

Packed A: row r at word ``r * stride``, ``isa.words(k)`` 32-bit words of ``isa.group`` elements. Packed B: panels of
``isa.columns`` columns, each ``[words][columns][group]`` elements. Accumulators: ``[rows][columns]`` int32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import Isa
from intc.codegen.cpu.vector import const, ramp, stack, typed

Start = Callable[[int], Any]


def emit_tile(
    isa: Isa, rows: int, a: Any, a_base: Any, a_stride: Any, b: Any, b_base: Any, words: Any, start: Start, out: Any,
    out_base: Any = 0,
) -> None:
    """``out[r][c] = start(vector)[c] + sum A[r] B[c]`` for ``rows`` rows; ``a`` in words, ``b`` in elements."""
    lanes, vectors, step = isa.lanes, isa.vectors, isa.lanes * isa.group
    acc = [[stack(lanes, "int32") for _ in range(vectors)] for _ in range(rows)]
    whole = ramp(0, lanes)
    for v in range(vectors):
        initial = T.Bind(start(v))
        for r in range(rows):
            T.buffer_store(acc[r][v], initial, [whole])
    with T.serial(0, tir.floordiv(words, 2) if not isinstance(words, int) else words // 2) as pair:
        for u in range(2):
            word = pair * 2 + u
            at = b_base + word * (step * vectors)
            b_v = [T.Bind(b[ramp(at + v * step, step)]) for v in range(vectors)]
            for r in range(rows):
                a_word = T.Bind(a[a_base + r * a_stride + word])
                for v in range(vectors):
                    T.buffer_store(acc[r][v], isa.emit_dot(acc[r][v][whole], a_word, b_v[v]), [whole])
    for r in range(rows):
        for v in range(vectors):
            T.buffer_store(out, acc[r][v][whole], [ramp(out_base + r * isa.columns + v * lanes, lanes)])


def for_row_tiles(isa: Isa, rows: Any, body: Callable[[int, Any], None]) -> None:
    """Cover rows [0, rows) with tiles: ``body(tile_rows, first_row)`` for full tiles, then pairs, then single rows."""
    done: Any = 0
    for size in (isa.rows, 2, 1):
        count = T.Bind(tir.floordiv(rows - done, size)) if size > 1 else T.Bind(rows - done)
        with T.serial(0, count) as i:
            body(size, T.Bind(done + i * size))
        done = T.Bind(done + count * size)


def emit_pack_rows(
    isa: Isa, x: Any, x_dtype: str, x_base: Any, x_stride: Any, a: Any, a_stride: Any, rows: Any, k: int
) -> None:
    """Pack ``rows`` rows of ``k`` elements of ``x`` (from ``x_base``) into ``a`` (in elements, row stride in elements).

    int8 becomes uint8 by an offset of 128 where the dot needs it, and int16 where that is what it multiplies.
    """
    chunk, padded = 32, isa.words(k) * isa.group
    body = k // chunk * chunk
    with T.serial(0, rows) as row:
        source, target = T.Bind(x_base + row * x_stride), T.Bind(row * a_stride)
        if body:
            with T.serial(0, body // chunk) as i:
                T.buffer_store(
                    a, widen(isa, x[ramp(source + i * chunk, chunk)], x_dtype, chunk), [ramp(target + i * chunk, chunk)]
                )
        if k > body:
            with T.serial(body, k) as i:
                T.buffer_store(a, widen(isa, x[source + i], x_dtype, 1), [target + i])
        for i in range(k, padded):
            T.buffer_store(a, tir.IntImm(isa.a_dtype, 0), [target + i])


def widen(isa: Isa, value: Any, dtype: str, lanes: int) -> Any:
    """An 8-bit value (vector) as an element of packed A."""
    if isa.unsigned_a:
        if dtype == "uint8":
            return value
        return T.bitwise_xor(T.reinterpret(typed("uint8", lanes), value), const(128, lanes, "uint8"))
    return T.cast(value, typed(isa.a_dtype, lanes))
