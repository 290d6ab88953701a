"""``matmul`` of two matrices, batch by batch, in register tiles: both operands are packed on the way.

The task space is batches x row blocks x panels of columns, panels fastest. A range of tasks packs each block
of rows once, and for it every panel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import tvm.tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import Isa
from intc.codegen.cpu.tile import Packed, as_a, emit_pack_rows, emit_tile, for_row_tiles, offset_a
from intc.codegen.cpu.vector import buffer, const, pointer, ramp, register, woven
from intc.codegen.kernel import opaque
from intc.ir.dims import Dim, floor_div

DTYPES: Final = ("int8", "uint8", "int16")
BLOCK_ROWS: Final = 96  # enough to make the packing of a panel cheap; every tile's rows divide it


@dataclass(frozen=True)
class ProductSpec:
    """``a`` [.., M, K] times ``b`` [.., K, N] into int32, of these element types; ``axes`` of leading sizes
    remain, each with strides of its own. ``n`` is 0 where it is free.
    """

    a: str
    b: str
    axes: int
    n: int

    @property
    def sizes(self) -> tuple[str, ...]:
        """The kernel's sizes: M, K and N; then each leading size, and how far it moves either operand."""
        lead = (f"{name}{i}" for i in range(self.axes) for name in ("size", "a_step", "b_step"))
        return ("m", "k", "n", *lead)


def isa_for(spec: ProductSpec, isa: Isa) -> Isa:
    """The form of ``isa`` that takes these elements."""
    return isa if spec.b == "int8" and spec.a != "int16" else isa.wide()


def tasks(spec: ProductSpec, isa: Isa, batch: Any, m: Any, n: Any) -> Any:
    """How many there are (ints or int32 expressions)."""
    return batch * ((m + (BLOCK_ROWS - 1)) // BLOCK_ROWS) * ((n + (isa.columns - 1)) // isa.columns)


def scratch_bytes(isa: Isa, k: Dim) -> Dim:
    """What one thread needs: a block of rows, a panel, what its sums start from, and a tile of them."""
    words = floor_div(k + (2 * isa.group - 1), 2 * isa.group) * 2
    return 4 * (BLOCK_ROWS * (words + 16) + (words + 1 + isa.rows) * isa.columns)


class _Product:
    """State of one kernel under construction."""

    def __init__(self, spec: ProductSpec, isa: Isa) -> None:
        self.spec, self.isa = spec, isa

    def emit(self, name: str) -> None:
        spec, isa = self.spec, self.isa
        T.func_name(name)
        a, b = pointer("a", spec.a), pointer("b", spec.b)
        out, scratch = pointer("out", "int32"), pointer("scratch", "int32")
        sizes = {name: T.arg(name, T.int32()) for name in spec.sizes}
        begin, end = (T.arg(name, T.int32()) for name in ("begin", "end"))
        self.a, self.b, self.out = buffer(a, spec.a), buffer(b, spec.b), buffer(out, "int32")
        self.words = buffer(scratch, "int32")
        self.packed_a, self.packed_b = buffer(scratch, isa.a_dtype), buffer(scratch, isa.b_dtype)
        self.m, self.k, self.n = sizes["m"], sizes["k"], spec.n or sizes["n"]
        words = tir.floordiv(self.k + (2 * isa.group - 1), 2 * isa.group) * 2
        self.count = opaque(words, "int32")  # words of a row
        self.stride = T.Bind(self.count + 16)
        self.panel = T.Bind(self.stride * BLOCK_ROWS)
        self.start = T.Bind(self.panel + self.count * isa.columns)
        self.sums = T.Bind(self.start + isa.columns)
        blocks = T.Bind(tir.floordiv(self.m + (BLOCK_ROWS - 1), BLOCK_ROWS))
        panels = (self.n + (isa.columns - 1)) // isa.columns
        with T.serial(begin, end) as task:
            panel, rest = T.Bind(tir.floormod(task, panels)), opaque(tir.floordiv(task, panels), "int32")
            batch = T.Bind(tir.floordiv(rest, blocks))
            first = T.Bind(tir.floormod(rest, blocks) * BLOCK_ROWS)
            rows = T.Bind(tir.Min(self.m - first, tir.IntImm("int32", BLOCK_ROWS)))
            a_at, b_at = self._bases(batch, sizes)
            with T.If(tir.Or(task == begin, panel == 0)), T.Then():
                self._pack_rows(T.Bind(a_at + first * self.k), rows)
            column = T.Bind(panel * isa.columns)
            self._pack_panel(T.Bind(b_at + column), column)
            self._compute(opaque((batch * self.m + first) * self.n + column, "int32"), column, rows)

    def _bases(self, batch: Any, sizes: dict[str, Any]) -> tuple[Any, Any]:
        """Where the matrices of a batch begin in both operands."""
        rest, at = batch, [tir.IntImm("int32", 0)] * 2
        for axis in reversed(range(self.spec.axes)):
            size = sizes[f"size{axis}"]
            index = T.Bind(tir.floormod(rest, size)) if axis else rest
            rest = T.Bind(tir.floordiv(rest, size)) if axis else rest
            at = [base + index * sizes[f"{x}_step{axis}"] for base, x in zip(at, "ab", strict=True)]
        return opaque(at[0], "int32"), opaque(at[1], "int32")

    def _pack_rows(self, source: Any, rows: Any) -> None:
        """``rows`` rows of A, ``k`` elements each from ``source`` on, and zeros."""
        isa, k = self.isa, self.k
        convert, zero = as_a(isa, self.spec.a), offset_a(isa, self.spec.a)
        step, end = self.stride * isa.group, self.count * isa.group
        to = Packed(self.packed_a, 0, step, end, isa.a_dtype, convert, zero)
        emit_pack_rows(self.a, source, k, rows, k, to)

    def _pack_panel(self, source: Any, column: Any) -> None:
        """The columns from ``column`` on; rows beyond ``k``, which meet zeros, repeat the last."""
        isa, last = self.isa, self.k - 1
        with T.serial(0, self.count) as word:
            lines = [T.Bind(source + tir.Min(word * isa.group + i, last) * self.n) for i in range(isa.group)]
            to = T.Bind(self.panel + word * isa.columns)

            def columns(at: Any, lanes: int, lines: list[Any] = lines, to: Any = to) -> None:
                parts = [self.b[ramp(line + at, lanes)] for line in lines]
                T.buffer_store(self.words, woven(parts, lanes), [ramp(to + at, lanes)])

            for at in range(0, isa.columns, isa.lanes):
                left = T.Bind(self.n - column - at)
                with T.If(left >= isa.lanes):
                    with T.Then():
                        columns(at, isa.lanes)
                    with T.Else(), T.serial(0, tir.Max(left, tir.IntImm("int32", 0))) as i:
                        columns(at + i, 1)
        for v in range(isa.vectors):
            self._begin(v)

    def _begin(self, vector: int) -> None:
        """Sums begin at -128 times the column's where A carries an offset of 128."""
        isa, lanes, at = self.isa, self.isa.lanes, vector * self.isa.lanes
        total = register(lanes)
        T.buffer_store(total, const(0, lanes), [0])
        if offset := offset_a(isa, self.spec.a):
            ones, step = tir.IntImm("int32", 0x01010101), isa.group * lanes
            with T.serial(0, self.count) as word:
                place = (self.panel + word * isa.columns + at) * isa.group
                T.buffer_store(total, isa.emit_dot(total[0], ones, self.packed_b[ramp(place, step)]), [0])
            T.buffer_store(total, total[0] * const(-offset, lanes), [0])
        T.buffer_store(self.words, total[0], [ramp(self.start + at, lanes)])

    def _compute(self, to: Any, column: Any, rows: Any) -> None:
        """The panel under every row of the block; the first one's sums go to ``to``."""
        isa, n = self.isa, self.n
        whole = n % isa.columns == 0 if isinstance(n, int) else False

        def start(vector: int) -> Any:
            return self.words[ramp(self.start + vector * isa.lanes, isa.lanes)]

        def tile(size: int, row: Any) -> None:
            a_base, b_base = T.Bind(row * self.stride), T.Bind(self.panel * isa.group)
            target = (self.out, T.Bind(to + row * n), n) if whole else (self.words, self.sums, isa.columns)
            emit_tile(
                isa, size, self.words, a_base, self.stride, self.packed_b, b_base, self.count, start, *target
            )

        def after(row: Any, size: Any) -> None:
            left = T.Bind(tir.Min(n - column, tir.IntImm("int32", isa.columns)))
            vectors = T.Bind(tir.floordiv(left, isa.lanes))
            with T.serial(0, size) as r:
                source, target = T.Bind(self.sums + r * isa.columns), T.Bind(to + (row + r) * n)

                def copied(i: Any, lanes: int, source: Any = source, target: Any = target) -> None:
                    T.buffer_store(self.out, self.words[ramp(source + i, lanes)], [ramp(target + i, lanes)])

                with T.serial(0, vectors) as v:
                    copied(T.Bind(v * isa.lanes), isa.lanes)
                with T.serial(vectors * isa.lanes, left) as i:
                    copied(i, 1)

        for_row_tiles(isa, rows, tile, None if whole else after)


def product(spec: ProductSpec, isa: Isa, name: str = "matmul") -> tir.PrimFunc:
    """The private kernel ``name``: pointers ``a``, ``b``, ``out`` and ``scratch``, the sizes of ``spec``; it
    runs tasks [begin, end).
    """
    with IRBuilder() as builder:
        with T.prim_func(is_private=True):
            _Product(spec, isa).emit(name)
    return builder.get()
