"""ShiftLayerNorm: exact sums, an integer square root and one quotient a row, then two 64-bit products an
element. Where there are vectors, the roots and quotients of ``BLOCK`` rows are computed together.
"""

from __future__ import annotations

from collections.abc import Callable

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.expr_algebra import wide
from intc.codegen.cpu.isa import ISAS, Isa
from intc.codegen.cpu.roots import normalised_quotient, square_root
from intc.codegen.cpu.vector import Multiplier, Vec, const, load, ramp, reduce_lanes, typed
from intc.codegen.cpu.vector import store as store_vector
from intc.codegen.kernel import Expr, Frame, bit_length, int64, local, opaque, store
from intc.codegen.program import Layout, Program
from intc.ir.dims import product
from intc.ir.graph import Node
from intc.ops.shift import ShiftLayerNorm

BLOCK = 8  # rows
LONGEST = 2**15  # channels whose sums of halves of squares fit 32 bits
NEWTON_STEPS = 5  # from less than twice the root: relative errors 1/4, 1/40, 3e-4, 5e-8, 2e-15


def integer_sqrt(value: Expr) -> Expr:
    """Floor of the square root of an int64 ``value`` in [1, 2**62), by Newton steps from a power of two above
    it, by which the first step divides with a shift.
    """
    root = local("int64")
    half = T.bind(T.shift_right(bit_length(value) + 1, int64(1)))
    above = T.shift_left(int64(1), half)
    T.buffer_store(root, T.shift_right(above + T.shift_right(value, half), int64(1)), [0])
    with T.serial(0, NEWTON_STEPS - 1):
        T.buffer_store(root, T.shift_right(root[0] + T.truncdiv(value, root[0]), int64(1)), [0])
    return opaque(root[0] - T.cast(root[0] * root[0] > value, "int64"))


def lower_shift_layer_norm(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, ShiftLayerNorm)
    channels, isa = program.type(node.inputs[0]).shape[-1], ISAS[program.target.level]
    assert isinstance(channels, int)
    lanes, bias = min(isa.epilogue, 16), node.inputs[2]
    scalars = (("eps_q", op.eps_q), ("e", op.e))
    fits = channels % isa.epilogue == 0 and channels <= LONGEST
    whole = fits and isa.even_odd and bias in program.graph.constants
    body = _vector_rows(program, node, lanes, isa.wide()) if whole else _scalar_rows(program, node)
    split = Layout((0,), (channels // lanes, lanes // 2, 2), (0, 2, 1), "int64") if whole else None
    program.generic(
        op.name,
        (op.lo, op.hi, op.centred, whole),
        node.inputs,
        node.output,
        body,
        scalars=scalars,
        source=node.source,
        layouts={bias: split} if split else None,
    )


def _scalar_rows(program: Program, node: Node) -> Callable[[Frame], None]:
    """Rows in the words of ``evaluate``, one element at a time."""
    op, shape = node.op, program.type(node.inputs[0]).shape
    channels = shape[-1]
    assert isinstance(op, ShiftLayerNorm) and isinstance(channels, int)

    def body(frame: Frame) -> None:
        x, g, b, y = (frame.buffers[n] for n in ("x0", "x1", "x2", "y"))
        sums = local("int64", 2)
        with frame.share(product(shape[:-1])) as row:
            base = T.bind(row * channels)
            for k in range(2):
                T.buffer_store(sums, int64(0), [k])
            with T.serial(0, channels) as i:
                value = T.bind(T.cast(x[base + i], "int32"))
                T.buffer_store(sums, sums[0] + wide(value), [0])
                T.buffer_store(sums, sums[1] + wide(value * value), [1])
            total = T.bind(sums[0]) if op.centred else int64(0)
            root = integer_sqrt(opaque(sums[1] * channels - total * total + frame.scalars["eps_q"]))
            bits = opaque(bit_length(root))
            factor = opaque(T.truncdiv(T.shift_left(int64(1), bits + 30) - 1, root))
            half, shift = T.bind(T.shift_left(int64(1), bits + 9)), T.bind(bits + 10)
            with T.serial(0, channels) as i:
                d = wide(x[base + i]) * channels - total
                z = T.bind(T.shift_right(d * factor + half, shift))
                value = T.shift_right(z * wide(g[i]) + b[i], frame.scalars["e"])
                store(y, T.min(T.max(value, int64(op.lo)), int64(op.hi)), base + i)

    return body


def _vector_rows(program: Program, node: Node, lanes: int, pairs: Isa) -> Callable[[Frame], None]:
    """The same rows ``lanes`` channels at a time, sums by the dot products of int16 ``pairs``; ``b`` holds
    each block's even channels, then its odd ones.

    Both shifts are by 32 bits or more, so only the high halves of the 64-bit products on even and odd lanes
    are kept: ``(d * F + half) >> (10 + bits)`` with d shifted left first by what is missing to 32. That fits
    32 bits, because ``|d| <= sqrt(C) * 2**bits``.
    """
    op, shape = node.op, program.type(node.inputs[0]).shape
    channels = shape[-1]
    assert isinstance(op, ShiftLayerNorm) and isinstance(channels, int)
    count = lanes // 2

    def every(value: Expr) -> Vec:
        return Vec(tir.Broadcast(T.cast(value, "int32"), lanes), lanes)

    def body(frame: Frame) -> None:
        x, g, b, y = (frame.buffers[n] for n in ("x0", "x1", "x2", "y"))
        sums = [local("int32", pairs.lanes) for _ in range(3)]
        means, spreads, lengths, factors = (local("int64", BLOCK) for _ in range(4))
        all_lanes, all_rows = ramp(0, pairs.lanes), ramp(0, BLOCK)
        step = 2 * pairs.lanes
        ones, nothing = const(1, step, "int16"), const(0, pairs.lanes)
        e_high = every(frame.scalars["e"] - 32)

        def add_up(base: Expr, row: Expr) -> None:
            for part in sums:
                T.buffer_store(part, nothing, [all_lanes])
            with T.serial(0, channels // step) as i:
                value = T.bind(T.cast(x[ramp(base + i * step, step)], typed("int16", step)))
                square = Vec(pairs.emit_dot_vector(nothing, value, value), pairs.lanes)  # below 2**31
                T.buffer_store(sums[0], pairs.emit_dot_vector(sums[0][all_lanes], value, ones), [all_lanes])
                for part, term in zip(sums[1:], (square & 0xFFFF, square >> 16), strict=True):
                    T.buffer_store(part, part[all_lanes] + term.expr, [all_lanes])
            # sums of C <= 2**15 values, or halves of squares, stay below 2**31
            linear, low, high = (wide(reduce_lanes(part[all_lanes], pairs.lanes)) for part in sums)
            total = T.bind(linear) if op.centred else int64(0)
            spread = T.bind((low + high * 65536) * channels - total * total + frame.scalars["eps_q"])
            T.buffer_store(means, total, [row])
            T.buffer_store(spreads, spread, [row])

        def write(base: Expr, row: Expr) -> None:
            bits, factor = T.bind(lengths[row]), T.bind(factors[row])
            left, right = (opaque(T.max(v, int64(0))) for v in (22 - bits, bits - 22))
            half = T.bind(tir.Broadcast(T.shift_left(int64(1), bits + 9 + left), count))
            mean, up, down = every(T.bind(means[row])), every(left), every(right)
            scale = Multiplier(every(factor), True)
            with T.serial(0, channels // lanes) as i:
                at = T.bind(i * lanes)
                d = (load(x, base + at, lanes, "int16") * channels - mean) << up
                z = _high(scale, d, half, half) >> down
                gain = Multiplier(load(g, at, lanes, "int32"), True)
                even, odd = (b[ramp(at + k * count, count)] for k in range(2))
                value = (_high(gain, z, even, odd) >> e_high).clip(op.lo, op.hi)
                store_vector(y, base + at, value, op.dtype)

        T.buffer_store(spreads, const(1, BLOCK, "int64"), [all_rows])
        with frame.share_blocks(product(shape[:-1]), BLOCK) as (first, rows):
            with T.serial(0, rows) as row:
                add_up(T.bind((first + row) * channels), row)
            root, bits = square_root(Vec(spreads[all_rows], BLOCK, "int64"))
            T.buffer_store(lengths, bits.expr, [all_rows])
            T.buffer_store(factors, normalised_quotient(root, bits).expr, [all_rows])
            with T.serial(0, rows) as row:
                write(T.bind((first + row) * channels), row)

    return body


def _high(factor: Multiplier, x: Vec, even: Expr, odd: Expr) -> Vec:
    """``(x * factor + addend) >> 32`` with the int64 addends of the even and of the odd lanes."""
    x_even, x_odd = factor._split(x)
    lanes = x.lanes // 2
    low = T.bind(x_even * factor.even + even)
    high = T.bind(x_odd * factor.odd + odd)
    low = T.bitwise_and(T.shift_right(low, const(32, lanes, "int64")), const(0xFFFFFFFF, lanes, "int64"))
    high = T.bitwise_and(high, const(-(1 << 32), lanes, "int64"))
    return Vec(T.reinterpret(typed("int32", x.lanes), T.bitwise_or(low, high)), x.lanes)
