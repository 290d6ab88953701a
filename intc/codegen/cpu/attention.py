"""``attention``: Q K^T, softmax weights, times V, division by their sums and requantisation of one head at a
time, all in one thread's scratch memory.

The task space is batch x heads x query chunks, chunks fastest. A range of tasks packs the keys and values of
each head once.
"""

from __future__ import annotations

from typing import Any

import tvm.tirx as tir
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.attention_spec import (
    BLOCK_ROWS,
    CHUNK_ROWS,
    AttentionSpec,
    Layout,
    attention_arguments,
    up,
)
from intc.codegen.cpu.epilogue import stage_arguments
from intc.codegen.cpu.isa import Isa
from intc.codegen.cpu.probabilities import RowWeights, row_factor
from intc.codegen.cpu.tile import (
    Output,
    Packed,
    as_a,
    as_b,
    emit_pack_rows,
    emit_store,
    emit_tile,
    for_row_tiles,
)
from intc.codegen.cpu.vector import (
    buffer,
    const,
    first_lanes,
    load_some,
    pointer,
    ramp,
    stack,
    transposed,
    woven,
)


class _Attention:
    """State of one kernel under construction."""

    def __init__(self, spec: AttentionSpec, isa: Isa) -> None:
        self.spec, self.isa = spec, isa

    def emit(self, name: str) -> None:
        spec, isa = self.spec, self.isa
        dtypes = {"score": "int32", "bias": "int32", "scratch": "int32", "out": spec.out_dtype}
        dtypes |= {"q": spec.q.dtype, "k": spec.k.dtype}
        dtypes |= dict(stage_arguments(spec.stages))
        names = attention_arguments(spec)
        pointers = names[: names.index("sq")]
        T.func_name(name)
        addresses = {n: pointer(n, dtypes.get(n, "int8")) for n in pointers}
        self.sizes = {n: T.arg(n, T.int32()) for n in names[len(pointers) :]}
        self.at = {n: buffer(addresses[n], dtypes.get(n, "int8")) for n in pointers}
        self.sq, self.sk = self.sizes["sq"], self.sizes["sk"]
        self.lay = Layout(spec, isa, self.sk)
        self.words = self.at["scratch"]
        kinds = dict.fromkeys(t for i in (isa, self.lay.score) for t in (i.a_dtype, i.b_dtype))
        self.packed = {kind: buffer(addresses["scratch"], kind) for kind in kinds}
        self.bytes = buffer(addresses["scratch"], "int8")
        chunks = T.Bind((self.sq + (CHUNK_ROWS - 1)) // CHUNK_ROWS)
        softmax = RowWeights(isa, self.at["score"], self.sk, spec.left)
        with T.serial(self.sizes["begin"], self.sizes["end"]) as task:
            chunk = T.Bind(tir.floormod(task, chunks))
            index = T.Bind(tir.floordiv(task, chunks))
            head, batch = T.Bind(tir.floormod(index, spec.heads)), T.Bind(tir.floordiv(index, spec.heads))
            shared, first_of_group = head, chunk == 0
            if spec.group > 1:
                shared = T.Bind(tir.floordiv(head, spec.group))
                first_of_group = tir.And(chunk == 0, tir.floormod(head, spec.group) == 0)
            with T.If(tir.Or(task == self.sizes["begin"], first_of_group)), T.Then():
                self._pack_keys(T.Bind(spec.k.at(batch, shared, self.sk)))
                self._pack_values(T.Bind(spec.v.at(batch, shared, self.sk)))
            first = T.Bind(chunk * CHUNK_ROWS)
            rows = T.Bind(tir.Min(self.sq - first, tir.IntImm("int32", CHUNK_ROWS)))
            with T.serial(0, (rows + (BLOCK_ROWS - 1)) // BLOCK_ROWS) as block:
                row = T.Bind(first + block * BLOCK_ROWS)
                count = T.Bind(tir.Min(tir.IntImm("int32", BLOCK_ROWS), rows - block * BLOCK_ROWS))
                self._block(softmax, batch, head, row, count)

    def _pack_keys(self, base: Any) -> None:
        """K of one head as panels of B, and what accumulators start from: ``lanes`` keys at a time,
        transposed.
        """
        isa, lay = self.lay.score, self.lay
        lanes, panel_words = isa.lanes, isa.columns * lay.words
        unit = 4 // isa.b_bytes
        groups = lay.keys // lanes
        with T.serial(0, groups) as group:
            key = T.Bind(group * lanes)
            count = T.Bind(
                tir.Max(tir.Min(tir.IntImm("int32", lanes), self.sk - key), tir.IntImm("int32", 0))
            )
            emit_pack_rows(
                self.at["k"],
                base + key * self.spec.k.step,
                self.spec.k.step,
                count,
                self.spec.head_dim,
                Packed(
                    self.packed[isa.b_dtype],
                    lay.q * unit,
                    lay.q_stride * unit,
                    lay.words * isa.group,
                    isa.b_dtype,
                    as_b(isa),
                ),
            )
            panel = T.Bind(
                tir.floordiv(group, isa.vectors) * panel_words + tir.floormod(group, isa.vectors) * lanes
            )
            for w in range(0, lay.words, lanes):
                rows = [T.Bind(self.words[ramp(lay.q + i * lay.q_stride + w, lanes)]) for i in range(lanes)]
                for i, column in enumerate(transposed(rows, lanes)[: lay.words - w]):
                    T.buffer_store(self.words, column, [ramp(lay.k + panel + (w + i) * isa.columns, lanes)])
            self._start(isa, panel, key)

    def _start(self, isa: Isa, panel: Any, key: Any) -> None:
        """Accumulators of ``lanes`` keys begin at -128 times the key's sum where queries carry an offset of
        128.
        """
        lanes, step = isa.lanes, isa.lanes * isa.group
        total = const(0, lanes)
        if isa.unsigned_a:
            ones = tir.IntImm("int32", 0x01010101)
            for w in range(self.lay.words):
                at = (self.lay.k + panel + w * isa.columns) * (4 // isa.b_bytes)
                total = T.Bind(isa.emit_dot(total, ones, T.Bind(self.packed[isa.b_dtype][ramp(at, step)])))
            total = T.Bind(total * const(-128, lanes))
        T.buffer_store(self.words, total, [ramp(self.lay.start + key, lanes)])

    def _pack_values(self, base: Any) -> None:
        """V of one head as panels of B: ``group`` rows interleaved into words; rows beyond ``sk`` repeat the
        last.
        """
        isa, lay, dim = self.lay.value, self.lay, self.spec.head_dim
        v, stride, g = self.at["v"], self.spec.v.step, isa.group
        with T.serial(0, lay.value_words) as word:
            last = self.sk - 1
            rows = [T.Bind(base + tir.Min(word * g + i, last) * stride) for i in range(g)]
            for column in range(0, dim, isa.lanes):
                panel, inside = divmod(column, isa.columns)
                at = lay.v + panel * isa.columns * lay.value_words + word * isa.columns + inside
                width = isa.lanes if column + isa.lanes <= dim else 1
                for c in range(column, min(column + isa.lanes, dim), width):
                    parts = [v[ramp(row + c, width)] for row in rows]
                    T.buffer_store(self.words, woven(parts, width), [ramp(at + (c - column), width)])

    def _block(self, softmax: RowWeights, batch: Any, head: Any, row: Any, count: Any) -> None:
        """``count`` query rows from ``row``: scores, probabilities, context."""
        spec, lay, isa = self.spec, self.lay, self.lay.score
        emit_pack_rows(
            self.at["q"],
            T.Bind(spec.q.at(batch, head, self.sq, row)),
            spec.q.step,
            count,
            spec.head_dim,
            Packed(
                self.packed[isa.a_dtype],
                lay.q * isa.group,
                lay.q_stride * isa.group,
                lay.words * isa.group,
                isa.a_dtype,
                as_a(isa, spec.q.dtype),
            ),
        )
        self._scores(count)
        weights, group = self.packed[self.isa.a_dtype], self.isa.group
        with T.serial(0, count) as r:
            mask = None
            if spec.mask:
                self._load_mask(batch, head, row + r)
                mask = (self.bytes, lay.mask * 4)
            scores, p = lay.scores + r * lay.keys, (lay.p + r * lay.p_stride) * group
            if spec.bias:
                self._add_bias(T.Bind(scores), self._row_of("bias", batch, head, row + r))
            if spec.mask and spec.uniform:
                self._fill_empty(T.Bind(scores))
            total = softmax.emit(self.words, scores, weights, p, mask)
            for i, factor in enumerate(row_factor(T.Bind(T.cast(total, "int64")))):
                T.buffer_store(self.words, T.cast(factor, "int32"), [lay.factors + r * 3 + i])
        self._context(batch, head, row, count)

    def _scores(self, count: Any) -> None:
        isa, lay = self.lay.score, self.lay
        with T.serial(0, (self.sk + (isa.columns - 1)) // isa.columns) as panel:
            b_base = T.Bind((lay.k + panel * (isa.columns * lay.words)) * (4 // isa.b_bytes))
            column = T.Bind(panel * isa.columns)

            def start(vector: int) -> Any:
                return self.words[ramp(lay.start + column + vector * isa.lanes, isa.lanes)]

            def tile(size: int, first: Any) -> None:
                a_base = T.Bind(lay.q + first * lay.q_stride)
                to, stride = T.Bind(lay.scores + first * lay.keys + column), lay.keys
                a, b, words = self.words, self.packed[isa.b_dtype], lay.words
                emit_tile(isa, size, a, a_base, lay.q_stride, b, b_base, words, start, a, to, stride)

            for_row_tiles(isa, count, tile)

    def _load_mask(self, batch: Any, head: Any, row: Any) -> None:
        """One row of the mask into scratch, zero-filled to whole vectors."""
        mask, to = self.at["mask"], self.lay.mask * 4
        source = self._row_of("mask", batch, head, row)
        with T.serial(0, self.sk) as i:
            T.buffer_store(self.bytes, mask[source + i], [to + i])
        with T.serial(self.sk, up(self.sk, self.isa.epilogue)) as i:
            T.buffer_store(self.bytes, tir.IntImm("int8", 0), [to + i])

    def _fill_empty(self, scores: Any) -> None:
        """Equal scores that are all kept where the mask in scratch keeps none."""
        words, lanes, mask = self.words, self.isa.epilogue, self.lay.mask
        any_kept = stack(1, "int32")
        T.buffer_store(any_kept, tir.IntImm("int32", 0), [0])
        with T.serial(0, up(self.sk, lanes) // 4) as i:
            T.buffer_store(any_kept, any_kept[0] | words[mask + i], [0])
        with T.If(any_kept[0] == 0), T.Then(), T.serial(0, self.sk) as i:
            T.buffer_store(self.bytes, tir.IntImm("int8", 1), [mask * 4 + i])
            T.buffer_store(words, tir.IntImm("int32", 0), [scores + i])

    def _row_of(self, name: str, batch: Any, head: Any, row: Any) -> Any:
        """Where a row of the mask or the bias begins."""
        by_batch, by_head, by_row = (self.sizes[f"{name}_{axis}"] for axis in ("batch", "head", "row"))
        return T.Bind(batch * by_batch + head * by_head + row * by_row)

    def _add_bias(self, scores: Any, source: Any) -> None:
        """One row of the bias added to the scores at ``scores``."""
        words, bias, lanes = self.words, self.at["bias"], self.isa.epilogue
        whole = T.Bind(tir.floordiv(self.sk, lanes))
        with T.serial(0, whole) as i:
            at = ramp(scores + i * lanes, lanes)
            T.buffer_store(words, words[at] + bias[ramp(source + i * lanes, lanes)], [at])
        rest = T.Bind(tir.floormod(self.sk, lanes))
        with T.If(rest > 0), T.Then():
            begin = T.Bind(whole * lanes)
            at = ramp(scores + begin, lanes)
            part = load_some(bias, T.Bind(source + begin), lanes, first_lanes(rest, lanes))
            T.buffer_store(words, words[at] + part.expr, [at])

    def _context(self, batch: Any, head: Any, row: Any, count: Any) -> None:
        spec, isa, lay = self.spec, self.lay.value, self.lay
        parameters = {name: self.at[name] for name, _ in stage_arguments(spec.stages)}
        full = spec.head_dim // isa.columns

        def zero(_: int) -> Any:
            return const(0, isa.lanes)

        def emit(panel: Any, valid: int) -> None:
            column = T.Bind(panel * isa.columns)
            b_base = T.Bind((lay.v + column * lay.value_words) * (4 // isa.b_bytes))

            def tile(size: int, first: Any) -> None:
                a, a_base = self.words, T.Bind(lay.p + first * lay.p_stride)
                b, to, words = self.packed[isa.b_dtype], lay.acc, lay.value_words
                emit_tile(isa, size, a, a_base, lay.p_stride, b, b_base, words, zero, a, to, isa.columns)

            def after(first: Any, size: Any) -> None:
                channel = T.Bind(head * spec.head_dim + column)
                base = T.Bind(spec.out.at(batch, head, self.sq, row + first) + column)

                def factors(r: Any) -> tuple[Any, Any, Any]:
                    at = T.Bind(lay.factors + (first + r) * 3)
                    a, b, c = (T.Bind(self.words[at + i]) for i in range(3))
                    return a, b, c

                def place(r: Any) -> Any:
                    return base + r * spec.out.step

                out, kind = self.at["out"], spec.out_dtype
                to = Output(spec.stages, parameters, out, kind, channel, place, factors=factors)
                emit_store(isa, self.words, lay.acc, size, valid, to)

            for_row_tiles(isa, count, tile, after)

        if full:
            with T.serial(0, full) as whole:
                emit(whole, isa.columns)
        if spec.head_dim % isa.columns:
            emit(tir.IntImm("int32", full), spec.head_dim % isa.columns)


def attention(spec: AttentionSpec, isa: Isa, name: str = "attention") -> tir.PrimFunc:
    """The private kernel ``name`` with the parameters of :func:`attention_arguments`; runs tasks [begin,
    end).
    """
    with IRBuilder() as builder:
        with T.prim_func(is_private=True):
            _Attention(spec, isa).emit(name)
    return builder.get()
