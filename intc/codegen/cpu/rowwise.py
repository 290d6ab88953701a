"""``linear`` and ``attention`` for one thread without vectors: nothing is packed, sums are plain loops.

The meaning is that of the vector kernels, through the same epilogues and row formulas at one lane. Weights
lie column by column, so that both operands of a dot product are contiguous.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from tvm.tirx.script.builder import ir as T

from intc.artifact.tensors import INT4
from intc.codegen.c.dots import MOST, dots_name
from intc.codegen.cpu.attention_spec import AttentionSpec
from intc.codegen.cpu.epilogue import Epilogue, stage_arguments
from intc.codegen.cpu.fused import attention_inputs, attention_sizes, attention_spec, linear_spec
from intc.codegen.cpu.isa import SCALAR
from intc.codegen.cpu.linear import LinearSpec
from intc.codegen.cpu.probabilities import RowWeights, row_factor
from intc.codegen.cpu.vector import Vec, load
from intc.codegen.kernel import Expr, Frame, PrimFunc, define, local, store
from intc.codegen.program import Arg, Layout, Program, ScratchArg, ValueArg
from intc.ir.dims import Dim, product
from intc.ir.graph import Node
from intc.ops.fused import Linear


def lower_linear(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, Linear)
    x, w = node.inputs[:2]
    rows = product(program.type(x).shape[:-1])
    assert isinstance(rows, int)
    spec, factors = linear_spec(program, node, SCALAR)
    kernel = program.kernel("linear", (spec, rows), lambda: linear(spec, rows))
    args: list[Arg] = [
        program.operand(x),
        program.graph_constant(w, weight_layout(spec)),
        program.operand(node.inputs[2]),
        *factors.args,
        ValueArg(node.output),
    ]
    program.add(kernel, args, node.output, node.source)


def weight_layout(spec: LinearSpec) -> Layout:
    """Weights [K, N] as rows of K; of 4-bit weights two to a byte, K padded to whole bytes."""
    if spec.w_bits == 4:
        return Layout((spec.k % 2, 0), (spec.k + spec.k % 2, spec.n), (1, 0), INT4)
    return Layout((0, 0), (spec.k, spec.n), (1, 0), "int8")


def linear(spec: LinearSpec, rows: int) -> PrimFunc:
    """``(x, w, bias, stages.., out)`` for ``rows`` rows: one column of weights under all rows at a time."""
    extra = stage_arguments(spec.stages)
    pointers = [("x", spec.x_dtype), ("w", "int8"), ("bias", "int32"), *extra, ("out", spec.out_dtype)]

    def body(frame: Frame) -> None:
        x, w, bias, out = (frame.buffers[n] for n in ("x", "w", "bias", "out"))
        k, n = spec.k, spec.n
        with T.serial(0, n) as column:
            epilogue = Epilogue(spec.stages, frame.buffers, column, 1, SCALAR, spec.out_dtype)
            first = T.bind(column * ((k + k % 2) // 2 if spec.w_bits == 4 else k))

            def tile(row: Expr, count: int) -> None:
                sums = local("int32", count)
                with T.serial(0, count) as r:
                    T.buffer_store(sums, bias[column], [r])
                if spec.w_bits == 4:
                    nibble_sums(sums, count, (x, T.bind(row * k)), (w, first), k)
                else:
                    dots((sums, 0), count, (x, T.bind(row * k)), k, (w, first), k)
                with T.serial(0, count) as r:
                    at = T.bind((row + r) * n + column)
                    value = epilogue(Vec(sums[r], 1), lambda buf, kind: load(buf, at, 1, kind))
                    store(out, value.expr, at)

            in_tiles(rows, MOST, tile)

    return define(pointers, (), (), body, "none")[0]


Place: TypeAlias = tuple[Any, Expr]  # an element of a buffer


def dots(sums: Place, rows: int, x: Place, step: Expr, w: Place, count: Expr) -> None:
    """``sums[r] += x[r * step + i] * w[i]`` for ``rows`` rows and every ``i`` below ``count``."""
    name = dots_name(rows, str(x[0].dtype), str(w[0].dtype))
    at_sums, at_x, at_w = (T.address_of(buffer[index]) for buffer, index in (sums, x, w))
    T.evaluate(T.call_extern("int32", name, at_sums, at_x, step, at_w, count))


def nibble_sums(sums: Any, rows: int, x: Place, w: Place, k: int) -> None:
    """``sums[r] += x[r * k + i] * w[i]`` for the ``k`` 4-bit weights in the bytes of ``w``."""
    values, base = x
    bases = [T.bind(base + r * k) for r in range(rows)]
    parts = [local("int32") for _ in range(rows)]
    for r, part in enumerate(parts):
        T.buffer_store(part, sums[r], [0])

    def step(i: Expr, used: int) -> None:
        for j, weight in enumerate(nibbles(T.bind(T.cast(w[0][w[1] + i], "int32")))[:used]):
            for part, row in zip(parts, bases, strict=True):
                value = T.cast(values[row + i * 2 + j], "int32")
                T.buffer_store(part, part[0] + value * weight, [0])

    with T.serial(0, k // 2) as i:
        step(i, 2)
    if k % 2:
        step(T.IntImm("int32", k // 2), 1)
    for r, part in enumerate(parts):
        T.buffer_store(sums, part[0], [r])


def nibbles(byte: Expr) -> list[Expr]:
    """The two 4-bit integers of an int8 (as int32), the low half first."""
    bits = T.shift_left(byte, T.IntImm("int32", 28))
    return [
        T.bind(T.shift_right(bits, T.IntImm("int32", 28))),
        T.bind(T.shift_right(byte, T.IntImm("int32", 4))),
    ]


def in_tiles(count: int, size: int, tile: Callable[[Expr, int], None]) -> None:
    """Cover ``range(count)``: ``tile(first, n)`` does ``n`` from ``first``, ``size`` at a time, then the
    rest.
    """
    if count >= size:
        with T.serial(0, count // size) as i:
            tile(T.bind(i * size), size)
    if count % size:
        tile(T.IntImm("int32", count // size * size), count % size)


def each(sums: Sequence[Any], finish: Callable[[Expr, Expr], None]) -> None:
    """``finish(i, sums[i])`` as a loop, so that its code exists once."""
    if len(sums) == 1:
        finish(T.IntImm("int32", 0), sums[0][0])
        return
    together = local("int32", len(sums))
    for i, part in enumerate(sums):
        T.buffer_store(together, part[0], [i])
    with T.serial(0, len(sums)) as i:
        finish(i, together[i])


def lower_attention(program: Program, node: Node) -> None:
    sizes = attention_sizes(program, node)
    spec, factors = attention_spec(program, node, SCALAR)
    inputs, strides = attention_inputs(program, node)
    key = (spec, sizes, tuple(strides))
    kernel = program.kernel("attention", key, lambda: attention(spec, *sizes, strides))
    args: list[Arg] = [*inputs, *factors.args, ValueArg(node.output), ScratchArg(5 * sizes[2])]
    program.add(kernel, args, node.output, node.source)


def attention(spec: AttentionSpec, batch: Dim, sq: Dim, sk: Dim, strides: Sequence[Dim]) -> PrimFunc:
    """``(q, k, v, [mask], [bias], score, stages.., out, scratch)``, one row of scores at a time.

    ``strides`` are those of mask and bias between batches, heads and rows. Scratch holds ``sk`` int32 scores,
    then ``sk`` uint8 weights.
    """
    assert isinstance(batch, int) and isinstance(sq, int) and isinstance(sk, int)
    dim, extra = spec.head_dim, stage_arguments(spec.stages)
    options = [(n, t) for n, t, used in (("mask", "int8", spec.mask), ("bias", "int32", spec.bias)) if used]
    rows = [(name, part.dtype) for name, part in (("q", spec.q), ("k", spec.k), ("v", spec.v))]
    pointers = [*rows, *options, ("score", "int32"), *extra]
    pointers += [("out", spec.out_dtype), ("scores", "int32")]

    def body(frame: Frame) -> None:
        at = frame.buffers
        weights = frame.view("scores", "uint8")
        softmax = RowWeights(SCALAR, at["score"], sk, spec.left)
        with T.serial(0, batch) as image, T.serial(0, spec.heads) as head, T.serial(0, sq) as row:
            shared = head if spec.group == 1 else T.bind(T.truncdiv(head, spec.group))
            query = T.bind(spec.q.at(image, head, sq, row))
            keys, values = (T.bind(r.at(image, shared, sk)) for r in (spec.k, spec.v))
            begin = {
                name: T.bind(image * strides[3 * i] + head * strides[3 * i + 1] + row * strides[3 * i + 2])
                for i, (name, _) in enumerate(options)
            }

            def scores(first: Expr, count: int) -> None:
                with T.serial(0, count) as j:
                    start = at["bias"][begin["bias"] + first + j] if spec.bias else T.IntImm("int32", 0)
                    T.buffer_store(at["scores"], start, [first + j])
                line = T.bind(keys + first * spec.k.step)
                sums = at["scores"], first
                dots(sums, count, (at["k"], line), spec.k.step, (at["q"], query), dim)

            in_tiles(sk, MOST, scores)
            mask = (at["mask"], begin["mask"]) if spec.mask else None
            total = softmax.emit(at["scores"], 0, weights, 4 * sk, mask)
            if spec.mask and spec.uniform:
                total = uniform_if_empty(total, weights, 4 * sk, sk)
            factors = [T.bind(T.cast(f, "int32")) for f in row_factor(T.bind(T.cast(total, "int64")))]
            to = T.bind(spec.out.at(image, head, sq, row))

            def context(first: Expr, count: int) -> None:
                sums = [local("int32") for _ in range(count)]
                for part in sums:
                    T.buffer_store(part, T.IntImm("int32", 0), [0])
                with T.serial(0, sk) as j:
                    weight = T.bind(T.cast(weights[4 * sk + j], "int32"))
                    line = T.bind(values + j * spec.v.step + first)
                    for d, part in enumerate(sums):
                        T.buffer_store(part, part[0] + weight * T.cast(at["v"][line + d], "int32"), [0])

                def finish(d: Expr, total: Expr) -> None:
                    column = T.bind(head * dim + first + d)
                    epilogue = Epilogue(spec.stages, at, column, 1, SCALAR, spec.out_dtype)
                    store(
                        at["out"], epilogue(Vec(total, 1), no_residual, tuple(factors)).expr, to + first + d
                    )

                each(sums, finish)

            in_tiles(dim, MOST, context)

    return define(pointers, (), (), body, "none")[0]


def uniform_if_empty(total: Expr, weights: Any, first: int, count: int) -> Expr:
    """The sum of ``count`` weights, whose sum is ``total``; all 255 where that is 0."""
    kept = local("int32")
    store(kept, total, 0)
    with T.If(kept[0] == 0), T.Then():
        store(kept, T.IntImm("int32", 255 * count), 0)
        with T.serial(0, count) as j:
            store(weights, T.IntImm("uint8", 255), first + j)
    return kept[0]


def no_residual(buf: Any, kind: str) -> Vec:
    raise AssertionError("attention has no residual")
