"""ShiftLayerNorm: exact sums, an integer square root and one reciprocal a row, then two 64-bit products an
element.
"""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.expr_algebra import wide
from intc.codegen.kernel import Expr, Frame, bit_length, local, store
from intc.codegen.program import Program
from intc.ir.dims import product
from intc.ir.graph import Node
from intc.ops.shift import ShiftLayerNorm

# the seed is at most twice the root: relative errors 1, 1/4, 2**-5.3, 2**-11.6, 2**-24, 2**-49
NEWTON_STEPS = 6


def integer_sqrt(value: Expr) -> Expr:
    """Floor of the square root of an int64 ``value`` in [1, 2**62), by Newton steps from a power of two above
    it.
    """
    one = T.IntImm("int64", 1)
    root = T.bind(T.shift_left(one, T.shift_right(bit_length(value) + 1, one)))
    for _ in range(NEWTON_STEPS):
        root = T.bind(T.shift_right(root + T.truncdiv(value, root), one))
    return T.bind(root - T.cast(root * root > value, "int64"))


def lower_shift_layer_norm(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, ShiftLayerNorm)
    shape = program.type(node.inputs[0]).shape
    channels = shape[-1]
    assert isinstance(channels, int)

    def body(frame: Frame) -> None:
        x, g, b, y = (frame.buffers[n] for n in ("x0", "x1", "x2", "y"))
        sums = local("int64", 2)
        zero, one = T.IntImm("int64", 0), T.IntImm("int64", 1)
        with frame.share(product(shape[:-1])) as row:
            base = T.bind(row * channels)
            T.buffer_store(sums, zero, [0])
            T.buffer_store(sums, zero, [1])
            with T.serial(0, channels) as i:
                value = T.bind(T.cast(x[base + i], "int32"))
                T.buffer_store(sums, sums[0] + wide(value), [0])
                T.buffer_store(sums, sums[1] + wide(value * value), [1])
            total = T.bind(sums[0])
            deviation = integer_sqrt(T.bind(sums[1] * channels - total * total + frame.scalars["eps_q"]))
            nb = T.bind(bit_length(deviation))
            factor = T.bind(T.truncdiv(T.shift_left(one, nb + 30) - 1, deviation))
            half, shift = T.bind(T.shift_left(one, nb + 9)), T.bind(nb + 10)
            e = frame.scalars["e"]
            with T.serial(0, channels) as i:
                d = wide(x[base + i]) * channels - total
                z = T.bind(T.shift_right(d * factor + half, shift))
                value = T.shift_right(z * wide(g[i]) + b[i], e)
                store(y, T.min(T.max(value, T.IntImm("int64", op.lo)), T.IntImm("int64", op.hi)), base + i)

    scalars = (("eps_q", op.eps_q), ("e", op.e))
    program.generic(
        op.name, (op.lo, op.hi), node.inputs, node.output, body, scalars=scalars, source=node.source
    )
