"""``linear``: int8, uint8 or int16 rows times constant 8-bit or 4-bit weights, with everything up to the next
store fused.

The task space is row blocks times panels of columns, panels fastest; a range of tasks packs a row block once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import tvm.tirx as tir
from numpy.typing import NDArray
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intc.artifact.tensors import INT4
from intc.codegen.cpu.epilogue import Residual, Stage, stage_arguments
from intc.codegen.cpu.framed import Border, clear
from intc.codegen.cpu.isa import Isa
from intc.codegen.cpu.patches import Windows, emit_pack_windows
from intc.codegen.cpu.taps import Taps, emit_taps
from intc.codegen.cpu.tile import (
    Output,
    Packed,
    WordOf,
    as_a,
    emit_pack_rows,
    emit_store,
    emit_tile,
    for_row_tiles,
    offset_a,
)
from intc.codegen.cpu.vector import buffer, const, pointer, prefetch, ramp, typed
from intc.codegen.program import Layout
from intc.errors import CodegenError

BLOCK_BYTES: Final = 640 * 1024  # packed rows of one block; beyond it, panels are better read twice
BLOCK_ROWS: Final = 204  # enough to make what is done once a panel negligible
IMAGE: Final = ("height", "width", "rows_out", "columns_out")  # sizes of an image and of its windows
LINE: Final = 64  # bytes that one prefetch brings
SHORTEST: Final = 16  # words of a row from which on prefetching pays
SSE_LANES: Final = 4  # of SSE, whose instructions overwrite an operand: anything more in the loop spills


@dataclass(frozen=True)
class LinearSpec:
    """Shape, types and fused stages of one linear layer; equal specs share a kernel.

    ``x`` is [M, k] of ``x_dtype``, the output [M, n] of ``out_dtype``: the int32 accumulators where there are
    no stages. ``w_bits`` is 8, or 4 for weights in [-8, 7]. ``run`` is that of
    :func:`intc.codegen.cpu.tile.emit_tile`. With ``windows``, ``x`` is an image and the rows are windows over
    it. With ``taps``, the weights are those of :func:`intc.codegen.cpu.taps.find`. With ``border``, the
    output is that of images with zeros around them.
    """

    k: int
    n: int
    x_dtype: str = "int8"
    stages: tuple[Stage, ...] = ()
    out_dtype: str = "int32"
    w_bits: int = 8
    run: int = 0
    windows: Windows | None = None
    taps: tuple[Taps, ...] = ()
    border: Border | None = None

    def __post_init__(self) -> None:
        if self.k < 1 or self.n < 1:
            raise CodegenError(f"linear of shape [{self.k}, {self.n}]: both must be positive")
        if self.x_dtype not in ("int8", "uint8", "int16"):
            raise CodegenError(f"linear takes int8, uint8 or int16 rows, not {self.x_dtype}")


def padded(n: int, isa: Isa) -> int:
    """``n`` rounded up to whole register tiles."""
    return -(-n // isa.columns) * isa.columns


def pad_channels(values: NDArray[Any], isa: Isa, fill: int = 0) -> NDArray[Any]:
    """A per-channel array as the kernel reads it: int16 or int32, padded to whole register tiles; one element
    stays one.
    """
    flat = np.asarray(values, np.int16 if values.dtype == np.int16 else np.int32).reshape(-1)
    if flat.size == 1:
        return flat
    out = np.full(padded(flat.size, isa), fill, flat.dtype)
    out[: flat.size] = flat
    return out


def weight_layout(k: int, n: int, isa: Isa, w_bits: int) -> Layout:
    """The packing of weights [K, N] in panels, as a recipe that the runtime can follow.

    Of 4-bit weights, one byte holds the elements at the same place in both words of a pair.
    """
    words, group, columns = isa.words(k), isa.group, isa.columns
    pad, count = (words * group - k, padded(n, isa) - n), padded(n, isa) // columns
    if w_bits == 4:
        return Layout(pad, (words // 2, 2, group, count, columns), (3, 0, 4, 2, 1), INT4)
    return Layout(pad, (words, group, count, columns), (2, 0, 3, 1), "int8")


def start_values(w: NDArray[np.int8], bias: NDArray[Any], isa: Isa, x_dtype: str) -> NDArray[np.int32]:
    """The padded int32 bias with the offset of unsigned rows folded in: what accumulators start from."""
    n = w.shape[1]
    start = np.zeros(padded(n, isa), np.int64)
    start[:n] = np.asarray(bias, np.int64)
    if offset := offset_a(isa, x_dtype):
        start[:n] -= offset * w.sum(axis=0, dtype=np.int64)
    return start.astype(np.int32)  # wraps modulo 2**32, as the accumulator does


def _stride(spec: LinearSpec, isa: Isa) -> int:
    """Words between packed rows: never a multiple of a page, so that rows do not share cache sets."""
    return -(-isa.words(spec.k) // 16) * 16 + 16


def block_rows(spec: LinearSpec, isa: Isa) -> int:
    """The most rows that one task packs."""
    rows = min(BLOCK_ROWS, BLOCK_BYTES // (4 * _stride(spec, isa)))
    return max(1, rows // isa.rows) * isa.rows


def panels(spec: LinearSpec, isa: Isa) -> int:
    """Tasks per row block."""
    return padded(spec.n, isa) // isa.columns


def linear_scratch_bytes(spec: LinearSpec, isa: Isa) -> int:
    """Bytes of scratch memory that one thread needs: a packed row block, one tile of accumulators and, where
    the dot takes wider elements than weights are stored in, one widened panel; the places of the rows where
    they are not side by side.
    """
    panel = isa.words(spec.k) * isa.columns if _widens(spec, isa) else 0
    places = block_rows(spec, isa) + 1 if spec.border else 0
    return 4 * (block_rows(spec, isa) * _stride(spec, isa) + isa.rows * isa.columns + panel + places)


def _widens(spec: LinearSpec, isa: Isa) -> bool:
    return (isa.b_dtype != "int8" or spec.w_bits == 4) and not spec.taps


def _even_block(rows: Any, spec: LinearSpec, isa: Isa) -> Any:
    """Rows of each block when ``rows`` rows are cut evenly into whole tiles (an int or a TIR expression)."""
    most = block_rows(spec, isa)
    some = max(rows, 1) if isinstance(rows, int) else tir.Max(rows, tir.IntImm("int32", 1))
    tiles = (some + (most - 1)) // most * isa.rows
    return (some + (tiles - 1)) // tiles * isa.rows


def linear_tasks(spec: LinearSpec, isa: Isa, rows: Any) -> Any:
    """The number of tasks for ``rows`` rows, an int or an int32 TIR expression as ``rows`` is."""
    block = _even_block(rows, spec, isa)
    return (rows + (block - 1)) // block * panels(spec, isa)


def linear_arguments(spec: LinearSpec) -> tuple[str, ...]:
    """The kernel's parameters in order."""
    stages = [name for name, _ in stage_arguments(spec.stages)]
    sizes = IMAGE if spec.windows else ()
    return ("x", "w", "bias", *stages, "out", "scratch", *sizes, "rows", "begin", "end")


class _Linear:
    """State of one kernel under construction."""

    def __init__(self, spec: LinearSpec, isa: Isa) -> None:
        self.spec, self.isa = spec, isa
        self.stride = _stride(spec, isa)
        self.acc_base = block_rows(spec, isa) * self.stride
        self.panel_base = self.acc_base + isa.rows * isa.columns
        self.places = linear_scratch_bytes(spec, isa) // 4 - block_rows(spec, isa) - 1
        self.panel_elements = isa.words(spec.k) * isa.columns * isa.group
        self.stored = self.panel_elements * spec.w_bits // 8  # bytes of a panel

    def emit(self, name: str) -> None:
        spec, isa = self.spec, self.isa
        T.func_name(name)
        x, w = pointer("x", spec.x_dtype), pointer("w", "int8")
        bias = pointer("bias", "int32")
        extra = {n: (pointer(n, dtype), dtype) for n, dtype in stage_arguments(spec.stages)}
        out, scratch = pointer("out", spec.out_dtype), pointer("scratch", "int32")
        self.image = tuple(T.arg(n, T.int32()) for n in (IMAGE if spec.windows else ()))
        rows, begin, end = (T.arg(n, T.int32()) for n in ("rows", "begin", "end"))
        self.x, self.w, self.bias = buffer(x, spec.x_dtype), buffer(w, "int8"), buffer(bias, "int32")
        self.extra = {n: buffer(p, dtype) for n, (p, dtype) in extra.items()}
        self.out = buffer(out, spec.out_dtype)
        self.words = buffer(scratch, "int32")
        self.elements = buffer(scratch, isa.a_dtype)
        self.wide = buffer(scratch, isa.b_dtype)
        self.factors = buffer(w, "int16")  # of taps
        block = T.Bind(_even_block(rows, spec, isa))
        full, total = spec.n // isa.columns, panels(spec, isa)
        with T.serial(begin, end) as task:
            row_block, panel = T.Bind(tir.floordiv(task, total)), T.Bind(tir.floormod(task, total))
            first = T.Bind(row_block * block)
            count = T.Bind(tir.Min(block, rows - first))
            with T.If(tir.Or(task == begin, panel == 0)), T.Then():
                self._pack(first, count)
                if spec.border:
                    spec.border.emit_places(self.words, self.places, first, count, rows)
            if spec.taps:
                for number in range(total):
                    with T.If(panel == number), T.Then():
                        valid = min(isa.columns, spec.n - number * isa.columns)
                        self._panel(panel, first, count, valid, number)
            elif full == total:
                self._panel(panel, first, count, isa.columns)
            elif full == 0:
                self._panel(panel, first, count, spec.n)
            else:
                with T.If(panel < full):
                    with T.Then():
                        self._panel(panel, first, count, isa.columns)
                    with T.Else():
                        self._panel(panel, first, count, spec.n - full * isa.columns)

    def _pack(self, first: Any, count: Any) -> None:
        """``count`` rows from ``first`` as packed A in scratch."""
        isa, k = self.isa, self.spec.k
        stride, end = self.stride * isa.group, isa.words(k) * isa.group
        to = Packed(self.elements, 0, stride, end, isa.a_dtype, as_a(isa, self.spec.x_dtype))
        if form := self.spec.windows:
            around = form.fill + offset_a(isa, self.spec.x_dtype)
            emit_pack_windows(form, self.image, self.x, first, count, to, around)
        else:
            emit_pack_rows(self.x, first * k, k, count, k, to)

    def _panel(self, panel: Any, first: Any, count: Any, valid: int, number: int = 0) -> None:
        """One panel of B under every row tile of the block; ``valid`` of its columns exist. With taps its
        ``number`` is known.

        Meanwhile the next panel is fetched into the second-level cache: a line in each step of the first
        tiles, so that none waits for another. Where the dot takes wider elements than are stored, they are
        read from scratch, or, by less than one tile of rows, widened on the way.
        """
        isa = self.isa
        column = T.Bind(panel * isa.columns)
        vector = number * isa.vectors
        taps = self.spec.taps[vector : vector + isa.vectors]
        places = vector * 2 * isa.lanes * len(taps[0].pairs) if taps else 0
        stored, words = T.Bind(panel * self.stored), isa.words(self.spec.k)
        b, b_base = self.w, stored
        fetches = words >= SHORTEST and isa.lanes != SSE_LANES
        direct = _widens(self.spec, isa) and fetches and not self.spec.run
        if _widens(self.spec, isa):
            b, b_base = self.wide, tir.IntImm("int32", self.panel_base * isa.group)
            with T.If(count >= (isa.rows if direct else 0)), T.Then():
                self._widen(stored)

        def start(v: int) -> Any:
            return self.bias[ramp(column + v * isa.lanes, isa.lanes)]

        def tile(size: int, row: Any) -> None:
            a, a_base = self.words, T.Bind(row * self.stride)
            to, stride = self.acc_base, self.stride
            if taps:
                base, step = T.Bind(row * (stride * isa.group)), stride * isa.group
                emit_taps(
                    taps, size, self.elements, base, step, self.factors, places, start, a, to, isa.columns
                )
                return
            width, run, used = isa.columns, self.spec.run, -(-valid // isa.lanes)
            given = a, a_base, stride, b, b_base, words, start, a, to, width, run, used
            if not fetches:
                emit_tile(isa, size, *given)
                return
            last = size < isa.rows  # or the only one
            place = 0 if last else T.Bind(tir.floordiv(row, isa.rows))
            fetch = self._fetcher(panel, place, self._lines() if last else 1)
            if last and not direct:
                emit_tile(isa, size, *given, fetch)
                return
            with T.If(row == 0 if last else place < self._lines()):
                with T.Then():
                    emit_tile(isa, size, *given, fetch, self._reader(stored, used) if last else None)
                with T.Else():
                    emit_tile(isa, size, *given, fetch if last else None)

        def after(row: Any, size: Any) -> None:
            spec, top = self.spec, T.Bind(first + row)
            to = Output(
                spec.stages,
                self.extra,
                self.out,
                spec.out_dtype,
                column,
                place=lambda r: (self._place(row + r) if spec.border else top + r) * spec.n + column,
                beside=lambda r: (top + r) * spec.n + column,
            )
            emit_store(isa, self.words, self.acc_base, size, valid, to)
            if spec.border:
                with T.If(top == 0), T.Then():
                    clear(self.out, 0, self._place(0), spec.n, column, valid)
                with T.serial(0, size) as r:
                    ends = T.Bind(self._place(row + r) + 1), T.Bind(self._place(row + r + 1))
                    clear(self.out, *ends, spec.n, column, valid)

        for_row_tiles(isa, count, tile, after)

    def _lines(self) -> int:
        """Cache lines of a panel that a step of the loop reads."""
        words = self.isa.words(self.spec.k)
        return -(-self.stored // (LINE * (words if self.spec.run else words // 2)))

    def _fetcher(self, panel: Any, first: Any, count: int) -> Callable[[Any], None]:
        """Of what each step reads of this panel, ``count`` lines from the ``first`` on of the next one."""
        ahead, each = T.Bind((panel + 1) * self.stored + first * LINE), self._lines()

        def fetch(step: Any) -> None:
            for line in range(count):
                prefetch(self.w, ahead + (step * each + line) * LINE)

        return fetch

    def _place(self, row: Any) -> Any:
        """Where a row of the block is stored."""
        return self.words[self.places + row]

    def _reader(self, panel: Any, vectors: int) -> WordOf:
        """Reads the first or the second word of a pair from the panel stored at ``panel``, widened."""
        lanes, bits = self.isa.lanes * self.isa.group, self.spec.w_bits

        def word_of(pair: Any, second: int) -> list[Any]:
            word = panel + (pair * (bits // 4) + (second if bits == 8 else 0)) * (lanes * self.isa.vectors)
            raw = [self.w[ramp(word + v * lanes, lanes)] for v in range(vectors)]
            parts = [self._parts(x, lanes)[second if bits == 4 else 0] for x in raw]
            return [T.Bind(T.cast(x, typed(self.isa.b_dtype, lanes))) for x in parts]

        return word_of

    def _widen(self, source: Any) -> None:
        """The panel at ``source`` converted into scratch."""
        isa, chunk = self.isa, self.isa.columns * self.isa.group
        to = self.panel_base * isa.group
        with T.serial(0, self.stored // chunk) as i:
            raw = self.w[ramp(source + i * chunk, chunk)]
            for part, value in enumerate(self._parts(raw, chunk)):
                wide = T.cast(value, typed(isa.b_dtype, chunk))
                place = ramp(to + (i * (8 // self.spec.w_bits) + part) * chunk, chunk)
                T.buffer_store(self.wide, wide, [place])

    def _parts(self, raw: Any, lanes: int) -> list[Any]:
        """The values in stored bytes: themselves, or the low and the high four bits of each."""
        if self.spec.w_bits == 8:
            return [raw]
        value, twelve = T.Bind(T.cast(raw, typed("int16", lanes))), const(12, lanes, "int16")
        low = T.shift_right(T.shift_left(value, twelve), twelve)
        return [low, T.shift_right(value, const(4, lanes, "int16"))]


def linear(spec: LinearSpec, isa: Isa, name: str = "linear") -> tir.PrimFunc:
    """The private kernel ``name`` with the parameters of :func:`linear_arguments`; runs tasks [begin,
    end).
    """
    if any(isinstance(s, Residual) and s.dtype not in ("int8", "int16", "int32") for s in spec.stages):
        raise CodegenError("a residual must be int8, int16 or int32")
    with IRBuilder() as builder:
        with T.prim_func(is_private=True):
            _Linear(spec, isa).emit(name)
    return builder.get()
