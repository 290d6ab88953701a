"""Elementwise operators with numpy broadcasting, each given by one scalar expression."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.expr_algebra import EXPR, wide
from intc.codegen.cpu.layer_norm import integer_sqrt
from intc.codegen.cpu.strided import View, broadcast_view, loop, row_major
from intc.codegen.kernel import Expr, Frame, floor_div, int64, store
from intc.codegen.program import Program
from intc.ir.graph import Node
from intc.ops import scalar
from intc.ops.curve import Curve
from intc.ops.division import Divide, Root
from intc.ops.poly import PolyGelu
from intc.ops.requantize import Clip, Requantize
from intc.ops.shift import ShiftGelu, ShiftSigmoid, ShiftTanh
from intc.ops.table import Table

Formula = Callable[..., Expr]


def pointwise(
    program: Program, node: Node, key: object, formula: Formula, inputs: Sequence[str] = ()
) -> None:
    """Append ``output[i] = formula(*inputs[i])``; the formula gets values of their own element types (bool as
    uint8).
    """
    names = tuple(inputs) or node.inputs
    shape = program.type(node.output).shape
    views = [broadcast_view(program.type(x).shape, shape) for x in names]

    def body(frame: Frame) -> None:
        sources = [frame.buffers[f"x{i}"] for i in range(len(names))]

        def element(at: list[Expr]) -> None:
            values = [T.bind(x[i]) for x, i in zip(sources, at, strict=False)]
            store(frame.buffers["y"], formula(*values), at[-1])

        loop(frame, shape, (*views, View(row_major(shape))), element)

    program.generic(node.op.name, key, names, node.output, body, source=node.source)


def int32(value: Expr) -> Expr:
    return T.bind(T.cast(value, "int32"))


def requantize(program: Program, node: Node) -> Formula:
    op = node.op
    assert isinstance(op, Requantize)
    return lambda x, m, e: scalar.requantize(EXPR, wide(x), wide(m), wide(e), op.lo, op.hi)


def clip(program: Program, node: Node) -> Formula:
    op = node.op
    assert isinstance(op, Clip)
    return lambda x: EXPR.minimum(EXPR.maximum(wide(x), op.lo), op.hi)


def fixed_point(program: Program, node: Node) -> Formula:
    """ShiftGelu, ShiftTanh and ShiftSigmoid: the 32-bit formulas of :mod:`intc.ops.scalar`."""
    op = node.op
    assert isinstance(op, ShiftGelu | ShiftTanh | ShiftSigmoid)
    function: Any = {ShiftGelu: scalar.gelu, ShiftTanh: scalar.tanh, ShiftSigmoid: scalar.sigmoid}[type(op)]
    return lambda x: function(EXPR, int32(x), op.frac)


def poly_gelu(program: Program, node: Node) -> Formula:
    op = node.op
    assert isinstance(op, PolyGelu)

    def formula(x: Expr, centre: Expr = 0) -> Expr:
        return scalar.poly_gelu(EXPR, int32(x), op.frac, op.kind) - T.cast(centre, "int32")

    return formula


def lower_table(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, Table)
    lowest = 128 if program.type(node.inputs[0]).dtype == "int8" else 0
    shape = program.type(node.output).shape
    dense = View(row_major(shape))

    def body(frame: Frame) -> None:
        x, table, y = (frame.buffers[n] for n in ("x0", "x1", "y"))
        loop(
            frame,
            shape,
            (dense, dense),
            lambda at: store(y, table[T.cast(x[at[0]], "int32") + lowest], at[1]),
        )

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)


def arithmetic(program: Program, node: Node) -> Formula:
    """Add, Sub, Mul, Max and Min in the output's element type, which holds the exact interval (64-bit
    results may wrap).
    """
    dtype = program.type(node.output).dtype
    compute = {"add": operator.add, "sub": operator.sub, "mul": operator.mul, "max": T.max, "min": T.min}[
        node.op.name
    ]
    return lambda a, b: compute(T.cast(a, dtype), T.cast(b, dtype))


def comparison(program: Program, node: Node) -> Formula:
    """Comparisons and the logic of bools (bytes 0 and 1)."""
    compare = {"equal": operator.eq, "less": operator.lt, "less_or_equal": operator.le}
    logic: dict[str, Formula] = {"and": T.bitwise_and, "or": T.bitwise_or}
    if node.op.name in logic:
        return logic[node.op.name]
    return lambda a, b: T.cast(compare[node.op.name](wide(a), wide(b)), "uint8")


def divide(program: Program, node: Node) -> Formula:
    op = node.op
    assert isinstance(op, Divide)

    signed = program.type(node.inputs[1]).dtype not in ("bool", "uint8")

    def formula(a: Expr, b: Expr) -> Expr:
        a, divisor = wide(a), wide(b)
        if signed:
            down = T.bind(wide(b) < 0)
            a, divisor = T.Select(down, -a, a), T.Select(down, -divisor, divisor)
        numerator = T.bind(a * int64(2**op.shift))
        divisor = T.bind(T.max(divisor, int64(1)))
        q = floor_div(T.bind(numerator + T.shift_right(divisor, int64(1))), divisor)
        q = T.bind(T.Select(wide(b) == 0, int64(0), q))
        return T.min(T.max(q, int64(-op.limit)), int64(op.limit))

    return formula


def root(program: Program, node: Node) -> Formula:
    op = node.op
    assert isinstance(op, Root)

    def formula(x: Expr) -> Expr:
        scaled = T.bind(T.shift_left(T.max(wide(x), int64(0)), int64(op.shift)))
        return T.Select(scaled > 0, integer_sqrt(T.bind(T.max(scaled, int64(1)))), int64(0))

    return formula


def negation(program: Program, node: Node) -> Formula:
    return lambda x: T.bitwise_xor(x, T.IntImm("uint8", 1))


def cast(program: Program, node: Node) -> Formula:
    to_bool = program.type(node.output).dtype == "bool"
    return lambda x: T.cast(wide(x) != 0, "uint8") if to_bool else x


def where(program: Program, node: Node) -> Formula:
    return lambda c, a, b: T.Select(c != T.IntImm("uint8", 0), a, b)


FORMULAS: Final[Mapping[str, Callable[[Program, Node], Formula]]] = {
    "requantize": requantize,
    "clip": clip,
    "shift_gelu": fixed_point,
    "poly_gelu": poly_gelu,
    "shift_tanh": fixed_point,
    "shift_sigmoid": fixed_point,
    "divide": divide,
    "root": root,
    "add": arithmetic,
    "sub": arithmetic,
    "mul": arithmetic,
    "max": arithmetic,
    "min": arithmetic,
    "equal": comparison,
    "less": comparison,
    "less_or_equal": comparison,
    "and": comparison,
    "or": comparison,
    "not": negation,
    "cast": cast,
    "where": where,
}


def lower_curve(program: Program, node: Node) -> None:
    s = Curve.step_bits(program.type(node.inputs[1]))
    shape = program.type(node.output).shape
    dense = View(row_major(shape))

    def body(frame: Frame) -> None:
        x, table, y = (frame.buffers[n] for n in ("x0", "x1", "y"))

        def element(at: list[Expr]) -> None:
            u = T.bind(T.cast(x[at[0]], "int32") + 2**15)
            i, f = T.bind(T.shift_right(u, T.IntImm("int32", s))), T.bind(T.bitwise_and(u, 2**s - 1))
            low, high = (T.cast(table[i + k], "int32") for k in range(2))
            value = low * (2**s - f) + high * f + 2 ** (s - 1)
            store(y, T.shift_right(value, T.IntImm("int32", s)), at[1])

        loop(frame, shape, (dense, dense), element)

    program.generic("curve", s, node.inputs, node.output, body, source=node.source)
