"""The I-ViT operators, in 64-bit scalar arithmetic."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.expr_algebra import wide
from intc.codegen.cpu.softmax import softmax_rows
from intc.codegen.kernel import Expr, Frame, floor_div, int64, local, store
from intc.codegen.program import Program
from intc.ir.dims import product
from intc.ir.graph import Node
from intc.ops.ivit import NEWTON_START, NEWTON_STEPS, SHIFT_MAX, SUM_MAX, IvitShiftGelu, IvitShiftmax


def shift_exp(x: Expr, x0: Expr, n: Expr) -> Expr:
    """``intc.ops.ivit.shift_exp`` of an int64."""
    octaves = T.bind(T.max(x + T.shift_right(x, int64(1)) - T.shift_right(x, int64(4)), n * x0))
    q = T.bind(floor_div(octaves, x0))
    r = octaves - q * x0
    return T.bind(T.shift_right(T.shift_left(r - 2 * x0, T.min(n - q, int64(SHIFT_MAX))), int64(1)))


def reciprocal(total: Expr) -> Expr:
    """``fl((2**31-1) / total)`` with the sum cut at 2**31 - 1; 0 where it is 0."""
    cut = T.bind(T.min(total, int64(SUM_MAX)))
    return T.bind(T.if_then_else(cut > 0, T.truncdiv(int64(SUM_MAX), T.max(cut, int64(1))), int64(0)))


def lower_shiftmax(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, IvitShiftmax)

    def weight(frame: Frame, distance: Expr) -> Expr:
        return shift_exp(T.bind(int64(0) - distance), frame.scalars["x0"], frame.scalars["n"])

    def write(frame: Frame, weights: Expr, length: Expr, total: Expr, to: Expr) -> None:
        factor = reciprocal(total)
        with T.serial(0, length) as i:
            store(frame.buffers["y"], T.shift_right(weights[i] * factor, int64(32 - op.bits)), to + i)

    softmax_rows(
        program, node, op.bits, weight, write, (("x0", op.x0), ("n", op.n)), node.inputs[1:], dtype="int64"
    )


def lower_shift_gelu(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, IvitShiftGelu)
    shape = program.type(node.inputs[0]).shape

    def body(frame: Frame) -> None:
        x, y, x0, n = frame.buffers["x0"], frame.buffers["y"], frame.scalars["origin"], frame.scalars["n"]
        size = frame.dim(shape[-1])
        top = local("int32")
        with frame.share(product(shape[:-1])) as row:
            base = T.bind(row * size)
            T.buffer_store(top, T.IntImm("int32", -(2**15)), [0])
            with T.serial(0, size) as i:
                T.buffer_store(top, T.max(top[0], T.cast(x[base + i], "int32")), [0])
            highest = T.bind(wide(top[0]))
            pivot = shift_exp(T.bind(int64(0) - highest), x0, n)
            with T.serial(0, size) as i:
                value = T.bind(wide(x[base + i]))
                e = shift_exp(T.bind(value - highest), x0, n)
                gate = T.shift_right(e * reciprocal(T.bind(e + pivot)), int64(32 - op.bits))
                store(y, value * gate, base + i)

    scalars = (("origin", op.x0), ("n", op.n))
    program.generic(op.name, op.bits, node.inputs, node.output, body, scalars=scalars, source=node.source)


def lower_layer_norm(program: Program, node: Node) -> None:
    def root_of(squares: Expr, _shift: Expr) -> Expr:
        root = local("int64")
        T.buffer_store(root, int64(NEWTON_START), [0])
        with T.serial(0, NEWTON_STEPS):
            T.buffer_store(root, T.shift_right(root[0] + T.truncdiv(squares, root[0]), int64(1)), [0])
        return T.truncdiv(int64(SUM_MAX), root[0])

    centred_norm(program, node, root_of, 0)


def centred_norm(program: Program, node: Node, factor_of: Callable[[Expr, Expr], Expr], shift: int) -> None:
    """Append rows of ``min((y * factor) >> 1, 2**30) + b``, y = x - mean rounded half to even, with the
    factor computed from the int64 sum of ``(y >> shift)**2``."""
    shape = program.type(node.inputs[0]).shape
    channels = shape[-1]
    assert isinstance(channels, int)

    def body(frame: Frame) -> None:
        x, b, y, by = frame.buffers["x0"], frame.buffers["x1"], frame.buffers["y"], frame.scalars["shift"]
        total = local("int64")
        with frame.share(product(shape[:-1])) as row:
            base = T.bind(row * channels)
            T.buffer_store(total, int64(0), [0])
            with T.serial(0, channels) as i:
                T.buffer_store(total, total[0] + wide(x[base + i]), [0])
            mean = round_mean(T.bind(total[0]), channels)
            T.buffer_store(total, int64(0), [0])
            with T.serial(0, channels) as i:
                part = T.bind(T.shift_right(wide(x[base + i]) - mean, by))
                T.buffer_store(total, total[0] + part * part, [0])
            factor = T.bind(factor_of(T.bind(total[0]), by))
            with T.serial(0, channels) as i:
                value = T.shift_right((wide(x[base + i]) - mean) * factor, int64(1))
                store(y, T.min(value, int64(2**30)) + wide(b[i]), base + i)

    scalars = (("shift", shift),)
    program.generic(node.op.name, (), node.inputs, node.output, body, scalars=scalars, source=node.source)


def round_mean(total: Expr, count: int) -> Expr:
    """``total / count`` to the nearest integer, ties to even."""
    q = T.bind(floor_div(total, int64(count)))
    twice = T.bind(2 * (total - q * count))
    odd = T.bitwise_and(q, int64(1))
    return T.bind(q + T.Select(twice > count, int64(1), T.Select(twice < count, int64(0), odd)))
