"""Softmax rows: weights into this task's scratch row, their sum, then one normalised reciprocal a row."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.expr_algebra import EXPR, wide
from intc.codegen.cpu.probabilities import row_factor
from intc.codegen.cpu.strided import View, broadcast_view, row_major, rows
from intc.codegen.kernel import Expr, Frame, bit_length, local, store
from intc.codegen.program import Program
from intc.ir.graph import Node
from intc.ops import scalar
from intc.ops.lut import LutSoftmax
from intc.ops.row_softmax import ShiftWeights
from intc.ops.shift import EXPONENT_MAX, Shiftmax

LOWEST = -(2**31)


def lower_shiftmax(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, Shiftmax)

    def weight(frame: Frame, distance: Expr) -> Expr:
        octaves = scalar.requantize(EXPR, distance, frame.scalars["m"], frame.scalars["e"], 0, EXPONENT_MAX)
        return scalar.exp2_neg(EXPR, T.bind(T.cast(octaves, "int32")))

    def write(frame: Frame, weights: Expr, length: Expr, total: Expr, to: Expr) -> None:
        normalise(frame, weights, length, total, to, op.bits)

    softmax_rows(program, node, op.bits, weight, write, (("m", op.m), ("e", op.e)), node.inputs[1:])


def lower_shift_weights(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, ShiftWeights)

    def weight(frame: Frame, distance: Expr) -> Expr:
        bounded = scalar.bounded_distance(EXPR, distance, op.shift)
        value = scalar.exp2_weight(EXPR, T.bind(T.cast(bounded, "int32")), T.IntImm("int32", op.m))
        return T.shift_right(value + 64, T.IntImm("int32", 7))

    def write(frame: Frame, weights: Expr, length: Expr, total: Expr, to: Expr) -> None:
        with T.serial(0, length) as i:
            value = T.Select(total == 0, T.IntImm("int32", 255), weights[i]) if op.uniform else weights[i]
            store(frame.buffers["y"], value, to + i)

    softmax_rows(program, node, op, weight, write, (), node.inputs[1:])


def lower_normalise_rows(program: Program, node: Node) -> None:
    """A row of weights summed, its reciprocal taken once, then the row of the context."""
    context, weights = (program.type(x).shape for x in node.inputs)
    lead, dim, length = context[:-1], context[-1], weights[-1]

    def body(frame: Frame) -> None:
        x, w, y = (frame.buffers[n] for n in ("x0", "x1", "y"))
        total = local("int64")
        with rows(frame, lead, (View(tuple(row_major(context)[:-1])),)) as (row, (base,)):
            T.buffer_store(total, T.IntImm("int64", 0), [0])
            with T.serial(0, frame.dim(length)) as i:
                T.buffer_store(total, total[0] + wide(w[row * frame.dim(length) + i]), [0])
            factor, left, right = row_factor(T.bind(total[0]))
            with T.serial(0, frame.dim(dim)) as i:
                moved = T.shift_right(T.shift_left(wide(x[base + i]), left), right)
                high = T.shift_right(moved * factor, T.IntImm("int64", 32)) + 4096
                value = T.shift_right(high, T.IntImm("int64", 13))
                bounded = T.min(T.max(value, T.IntImm("int64", -32767)), T.IntImm("int64", 32767))
                store(y, bounded, base + i)

    program.generic(node.op.name, (), node.inputs, node.output, body, source=node.source)


def lower_lut_softmax(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, LutSoftmax)

    def weight(frame: Frame, distance: Expr) -> Expr:
        return frame.buffers["x1"][T.cast(distance, "int32")]

    def write(frame: Frame, weights: Expr, length: Expr, total: Expr, to: Expr) -> None:
        normalise(frame, weights, length, total, to, op.bits)

    softmax_rows(program, node, op.bits, weight, write, (), node.inputs[2:], node.inputs[1:2])


def softmax_rows(
    program: Program,
    node: Node,
    key: object,
    weight: Callable[[Frame, Expr], Expr],
    write: Callable[[Frame, Expr, Expr, Expr, Expr], None],
    scalars: tuple[tuple[str, int], ...],
    mask: tuple[str, ...],
    tables: tuple[str, ...] = (),
    dtype: str = "int32",
) -> None:
    """Append rows of: ``weight`` (of type ``dtype``) of each kept element's int64 distance from the row
    maximum; ``write`` (scratch row, length, int64 total, position of the row) stores the result. Inputs are
    x, tables, mask.
    """
    shape = program.type(node.inputs[0]).shape
    lead, length = shape[:-1], shape[-1]
    views = [View(tuple(row_major(shape)[:-1]))]
    step = 0
    if mask:
        mask_view = broadcast_view(program.type(mask[0]).shape, shape)
        views.append(View(mask_view.strides[:-1]))
        step = 1 if mask_view.strides[-1] != 0 else 0
    mask_name = f"x{1 + len(tables)}"

    def body(frame: Frame) -> None:
        x, e = frame.buffers["x0"], frame.buffers["weights"]
        top, total = local("int32"), local("int64")
        size = frame.dim(length)
        with rows(frame, lead, views) as (_, bases):
            base = bases[0]

            def keep(i: Expr) -> Expr:
                return frame.buffers[mask_name][bases[1] + i * step] != T.IntImm("uint8", 0)

            T.buffer_store(top, T.IntImm("int32", LOWEST), [0])
            with T.serial(0, size) as i:
                value = T.cast(x[base + i], "int32")
                value = T.Select(keep(i), value, T.IntImm("int32", LOWEST)) if mask else value
                T.buffer_store(top, T.max(top[0], value), [0])
            T.buffer_store(total, T.IntImm("int64", 0), [0])
            highest = T.bind(wide(top[0]))
            with T.serial(0, size) as i:
                distance = T.bind(highest - wide(x[base + i]))
                if mask:
                    kept = T.bind(T.cast(keep(i), dtype))
                    distance = T.bind(T.Select(kept != 0, distance, T.IntImm("int64", 0)))
                    store(e, T.cast(weight(frame, distance), dtype) * kept, i)
                else:
                    store(e, weight(frame, distance), i)
            with T.serial(0, size) as i:
                T.buffer_store(total, total[0] + wide(e[i]), [0])
            write(frame, e, size, T.bind(total[0]), base)

    program.generic(
        node.op.name,
        (key, step, len(mask), len(tables), dtype),
        (node.inputs[0], *tables, *mask),
        node.output,
        body,
        scalars=scalars,
        scratch=(("weights", dtype, length),),
        source=node.source,
    )


def normalise(frame: Frame, weights: Expr, length: Expr, total: Expr, to: Expr, bits: int) -> None:
    """Q15 weights divided by their total (``intc.ops.shift.normalise``)."""
    safe = T.bind(T.max(total, T.IntImm("int64", 1)))
    nb = T.bind(T.max(bit_length(safe), T.IntImm("int64", 16)))
    one = T.IntImm("int64", 1)
    # Where the total is 0 all weights are, and the quotients with them. (A Select on the total would let the
    # simplifier see through the guard in its taken branch, and both branches of a Select are evaluated.)
    factor = T.bind(T.truncdiv(T.shift_left(one, nb + 15) - 1, safe))
    shift, top = (nb + 7, 255) if bits == 8 else (nb, 32767)
    shift = T.bind(shift)
    half = T.bind(T.shift_left(one, shift - 1))
    with T.serial(0, length) as i:
        value = T.shift_right(wide(weights[i]) * factor + half, shift)
        store(frame.buffers["y"], T.min(value, T.IntImm("int64", top)), to + i)
