"""The register tile: packed rows of A times a packed panel of B into a block of int32 accumulators.

Packed A: row r at word ``r * stride``, ``isa.words(k)`` 32-bit words of ``isa.group`` elements. Packed B:
panels of ``isa.columns`` columns, each ``[words][columns][group]`` elements. Accumulators:
``[rows][columns]`` int32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.epilogue import Epilogue, Stage
from intc.codegen.cpu.isa import Isa
from intc.codegen.cpu.vector import Vec, const, load, ramp, register, stack, store, typed

SHORT: Final = 8  # lanes of the shortest vectors that ends of rows are cut into
Start: TypeAlias = Callable[[int], Any]
Place: TypeAlias = Callable[[Any], Any]
Convert: TypeAlias = Callable[[Any, int], Any]
Beside: TypeAlias = Callable[[Any], None]
WordOf: TypeAlias = Callable[[Any, int], list[Any]]


def emit_tile(
    isa: Isa,
    rows: int,
    a: Any,
    a_base: Any,
    a_stride: Any,
    b: Any,
    b_base: Any,
    words: Any,
    start: Start,
    out: Any,
    out_base: Any,
    out_stride: Any,
    run: int = 0,
    used: int = 0,
    beside: Beside | None = None,
    word_of: WordOf | None = None,
) -> None:
    """``out[r][c] = start(vector)[c] + sum A[r] B[c]`` for ``rows`` rows; ``a``, ``out`` in words, ``b`` in
    elements.

    ``words`` is even. ``run``: of so many words, an even number, the sums are proven to fit 16 bits; 0 for no
    such proof. ``used``: only so many vectors of columns are computed; 0 for all. ``beside`` emits what is
    done in each step of the loop, given its number: two words, or one where there are runs. ``word_of``
    gives the vectors of B in the first or the second word of a pair, in place of ``b``.
    """
    used = used or isa.vectors
    if run:
        sides = a, a_base, a_stride, b, b_base, words
        _emit_runs(isa, rows, *sides, start, out, out_base, out_stride, run, used, beside)
        return
    lanes, vectors, step = isa.lanes, used, isa.lanes * isa.group
    acc = [[register(lanes) for _ in range(vectors)] for _ in range(rows)]
    for v in range(vectors):
        initial = T.Bind(start(v))
        for r in range(rows):
            T.buffer_store(acc[r][v], initial, [0])
    with T.serial(0, tir.floordiv(words, 2) if not isinstance(words, int) else words // 2) as pair:
        if beside is not None:
            beside(pair)
        for u in range(2):
            word = pair * 2 + u
            at = b_base + word * (step * isa.vectors)
            if word_of is not None:
                b_v = word_of(pair, u)
            else:
                b_v = [T.Bind(b[ramp(at + v * step, step)]) for v in range(vectors)]
            for r in range(rows):
                a_word = T.Bind(a[a_base + r * a_stride + word])
                for v in range(vectors):
                    T.buffer_store(acc[r][v], isa.emit_dot(acc[r][v][0], a_word, b_v[v]), [0])
    for r in range(rows):
        for v in range(vectors):
            T.buffer_store(out, acc[r][v][0], [ramp(out_base + r * out_stride + v * lanes, lanes)])


def _emit_runs(
    isa: Isa,
    rows: int,
    a: Any,
    a_base: Any,
    a_stride: Any,
    b: Any,
    b_base: Any,
    words: int,
    start: Start,
    out: Any,
    out_base: Any,
    out_stride: Any,
    run: int,
    vectors: int,
    beside: Beside | None,
) -> None:
    """:func:`emit_tile` with sums of 16 bits in registers, added to those in ``out`` after every run."""
    lanes, step = isa.lanes, isa.lanes * isa.group
    tile = [(r, v) for r in range(rows) for v in range(vectors)]
    places = {(r, v): ramp(out_base + r * out_stride + v * lanes, lanes) for r, v in tile}
    for v in range(vectors):
        initial = T.Bind(start(v))
        for r in range(rows):
            T.buffer_store(out, initial, [places[r, v]])

    def some(first: Any, count: int) -> None:
        sums = {at: register(2 * lanes, "int16") for at in tile}
        for part in sums.values():
            T.buffer_store(part, const(0, 2 * lanes, "int16"), [0])
        with T.serial(0, count) as i:
            word = T.Bind(first + i)
            if beside is not None:
                beside(word)
            at = b_base + word * (step * isa.vectors)
            b_v = [T.Bind(b[ramp(at + v * step, step)]) for v in range(vectors)]
            for r in range(rows):
                a_word = T.Bind(a[a_base + r * a_stride + word])
                for v in range(vectors):
                    T.buffer_store(sums[r, v], isa.emit_pairs(sums[r, v][0], a_word, b_v[v]), [0])
        for where, part in sums.items():
            T.buffer_store(out, isa.widen_pairs(out[places[where]], part[0]), [places[where]])

    with T.serial(0, words // run) as i:
        some(T.Bind(i * run), run)
    if words % run:
        some(tir.IntImm("int32", words // run * run), words % run)


def for_row_tiles(
    isa: Isa,
    rows: Any,
    tile: Callable[[int, Any], None],
    after: Callable[[Any, Any], None] | None = None,
) -> None:
    """Cover rows [0, rows): ``tile(size, row)`` computes ``size`` rows from ``row``.

    The last tile has code for every size that it can have. ``after(first, count)`` follows each tile,
    ``count`` being a number at run time, so that its code exists once.
    """
    with T.serial(0, tir.floordiv(rows + (isa.rows - 1), isa.rows)) as i:
        first = T.Bind(i * isa.rows)
        count = T.Bind(tir.Min(rows - first, tir.IntImm("int32", isa.rows)))
        with T.If(count == isa.rows):
            with T.Then():
                tile(isa.rows, first)
            with T.Else():
                for size in range(1, isa.rows):
                    with T.If(count == size), T.Then():
                        tile(size, first)
        if after is not None:
            after(first, count)


@dataclass(frozen=True)
class Packed:
    """Where rows of a packed operand go: elements of ``buffer``, of ``dtype``, from ``base``, ``stride``
    apart, each through ``convert``, with ``rest`` behind them up to ``end`` elements.
    """

    buffer: Any
    base: Any
    stride: Any
    end: Any
    dtype: str
    convert: Convert
    rest: int = 0

    def row(self, number: Any) -> Any:
        """The place of a row's first element."""
        return T.Bind(self.base + number * self.stride)

    def fill(self, target: Any, k: Any) -> None:
        """What is behind the ``k`` elements (an int or an expression) of the row at ``target``."""

        def store(i: Any) -> None:
            T.buffer_store(self.buffer, tir.IntImm(self.dtype, self.rest), [target + i])

        if isinstance(k, int):
            for i in range(k, self.end):
                store(i)
        else:
            with T.serial(k, self.end) as i:
                store(i)


def emit_pack_rows(x: Any, x_base: Any, x_stride: Any, rows: Any, k: Any, to: Packed) -> None:
    """Copy ``rows`` rows of ``k`` elements (an int or an expression) of ``x``, ``x_stride`` apart from
    ``x_base``.
    """
    chunk, known = 32, isinstance(k, int)
    body = k // chunk * chunk if known else T.Bind(tir.floordiv(k, chunk) * chunk)
    with T.serial(0, rows) as row:
        source, target = T.Bind(x_base + row * x_stride), to.row(row)
        if not known or body:
            with T.serial(0, body // chunk if known else tir.floordiv(k, chunk)) as i:
                moved = to.convert(x[ramp(source + i * chunk, chunk)], chunk)
                T.buffer_store(to.buffer, moved, [ramp(target + i * chunk, chunk)])
        if not known or k > body:
            with T.serial(body, k) as i:
                T.buffer_store(to.buffer, to.convert(x[source + i], 1), [target + i])
        to.fill(target, k)


def offset_a(isa: Isa, dtype: str) -> int:
    """What is added to integers of ``dtype`` in packed A: 128 to int8 where A is unsigned."""
    return 128 if isa.unsigned_a and dtype == "int8" else 0


def as_a(isa: Isa, dtype: str) -> Convert:
    """Turn integers of ``dtype`` into elements of packed A, with :func:`offset_a`."""
    offset = offset_a(isa, dtype)

    def convert(value: Any, lanes: int) -> Any:
        if not isa.unsigned_a:
            return T.cast(value, typed(isa.a_dtype, lanes))
        if not offset:
            return value
        return T.bitwise_xor(T.reinterpret(typed("uint8", lanes), value), const(offset, lanes, "uint8"))

    return convert


def as_b(isa: Isa) -> Convert:
    """Turn int8 values into elements of packed B."""
    return lambda value, lanes: T.cast(value, typed(isa.b_dtype, lanes)) if isa.b_dtype != "int8" else value


@dataclass(frozen=True)
class Output:
    """Where a tile's results go: the stages on the way, ``place(r)`` the index of row r in ``out`` (of
    ``dtype``), ``beside(r)`` the same in residuals, ``channel`` the index of the first column's parameters,
    ``factors(r)`` those of a Normalise stage.
    """

    stages: tuple[Stage, ...]
    parameters: dict[str, Any]
    out: Any
    dtype: str
    channel: Any
    place: Place
    beside: Place | None = None
    factors: Callable[[Any], tuple[Any, Any, Any]] | None = None


def emit_store(isa: Isa, acc: Any, acc_base: Any, rows: Any, valid: int, to: Output) -> None:
    """The epilogue of ``rows`` rows by ``valid`` columns of accumulators, which lie as tiles do."""
    lanes, at = isa.epilogue, valid // isa.epilogue * isa.epilogue
    if at:
        with T.serial(0, valid // lanes) as step:
            _store_vectors(isa, acc, acc_base, rows, T.Bind(step * lanes), lanes, lanes, to)
    while at < valid:
        while lanes > valid - at and lanes > min(isa.lanes, SHORT):
            lanes //= 2
        _store_vectors(isa, acc, acc_base, rows, at, lanes, min(lanes, valid - at), to)
        at += lanes


def _store_vectors(
    isa: Isa, acc: Any, acc_base: Any, rows: Any, at: Any, lanes: int, valid: int, to: Output
) -> None:
    """``lanes`` columns of every row, from column ``at``, of which ``valid`` exist in the output."""
    epilogue = Epilogue(to.stages, to.parameters, T.Bind(to.channel + at), lanes, isa, to.dtype)
    edge = stack(lanes, to.dtype) if valid < lanes else None
    with T.serial(0, rows) as r:

        def residual(buf: Any, kind: str) -> Vec:
            assert to.beside is not None
            source = T.Bind(to.beside(r) + at)
            if edge is None:
                return load(buf, source, lanes, kind)
            copy = stack(lanes, kind)
            for i in range(lanes):
                T.buffer_store(copy, buf[source + i] if i < valid else tir.IntImm(kind, 0), [i])
            return load(copy, 0, lanes, kind)

        place = T.Bind(to.place(r) + at)
        acc_row = load(acc, acc_base + r * isa.columns + at, lanes, "int32")
        value = epilogue(acc_row, residual, to.factors(r) if to.factors else None)
        if edge is None:
            store(to.out, place, value, to.dtype)
        else:
            store(edge, 0, value, to.dtype)
            for i in range(valid):
                T.buffer_store(to.out, edge[i], [place + i])
