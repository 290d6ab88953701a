"""The I-BERT operators, in 64-bit scalar arithmetic."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.elementwise import pointwise
from intc.codegen.cpu.expr_algebra import wide
from intc.codegen.cpu.ivit import centred_norm
from intc.codegen.cpu.layer_norm import integer_sqrt
from intc.codegen.cpu.softmax import softmax_rows
from intc.codegen.kernel import Expr, Frame, int64, store
from intc.codegen.program import Program
from intc.ir.graph import Node
from intc.ops.dyadic import MAX_SHIFT
from intc.ops.ibert import WEIGHT_MAX, IbertGelu, IbertLayerNorm, IbertSoftmax


def lower_softmax(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, IbertSoftmax)
    names = ("q_ln2", "qb", "qc", "m", "e")

    def weight(frame: Frame, distance: Expr) -> Expr:
        q_ln2, qb, qc, m, e = (frame.scalars[n] for n in names)
        z = T.bind(T.truncdiv(distance, q_ln2))
        base = T.bind(z * q_ln2 - distance + qb)
        shift = T.bind(T.min(e + z, int64(MAX_SHIFT)))
        rounded = (base * base + qc) * m + T.shift_left(int64(1), shift - 1)
        return T.min(T.shift_right(rounded, shift), int64(WEIGHT_MAX))

    def write(frame: Frame, weights: Expr, length: Expr, total: Expr, to: Expr) -> None:
        factor = T.bind(T.if_then_else(total > 0, T.truncdiv(int64(2**32), T.max(total, int64(1))), int64(0)))
        with T.serial(0, length) as i:
            p = T.shift_right(wide(weights[i]) * factor, int64(24))
            store(frame.buffers["y"], T.min(p, int64(255)), to + i)

    scalars = tuple((n, int(getattr(op, n))) for n in names)
    softmax_rows(program, node, (), weight, write, scalars, node.inputs[1:])


def lower_gelu(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, IbertGelu)
    qb, qc, one = int64(op.qb), int64(op.qc), int64(op.one)

    def formula(x: Expr) -> Expr:
        value = T.bind(wide(x))
        near = T.bind(T.min(T.max(value, int64(0) - value), int64(0) - qb) + qb)
        erf = T.bind(near * near + qc)
        signed = T.Select(value > 0, erf, T.Select(value < 0, int64(0) - erf, int64(0)))
        return value * (T.shift_right(signed, int64(op.n)) + one)

    pointwise(program, node, op, formula)


def lower_layer_norm(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, IbertLayerNorm)

    def factor_of(squares: Expr, shift: Expr) -> Expr:
        root = integer_sqrt(T.bind(T.max(squares, int64(1))))
        return T.truncdiv(int64(2**31), T.shift_left(root, shift))

    centred_norm(program, node, factor_of, op.shift)
