"""The kernel of any operator with a formula: the formula itself, over an algebra of TIR expressions.

Plain 64-bit scalar code, row by row. Nothing is kept of a row but its sums: an element that a formula uses
behind a sum is computed again there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.expr_algebra import wide
from intc.codegen.cpu.layer_norm import integer_sqrt
from intc.codegen.cpu.strided import View, row_major, rows
from intc.codegen.kernel import Expr, Frame, bit_length, floor_div, int64, local, opaque, store
from intc.codegen.program import Program
from intc.ir.dims import Dim, Shape
from intc.ir.graph import Node
from intc.ir.op import FormulaOp
from intc.ir.types import TensorType

LOWEST = -(2**31)


def lower_formula(program: Program, node: Node) -> None:
    """Append the stage that computes ``node``, whose operator is a FormulaOp."""
    op = node.op
    assert isinstance(op, FormulaOp)
    types = [program.type(x) for x in node.inputs]
    shape = program.type(node.output).shape or (1,)
    views = [_row_starts(s, len(shape) - 1) for s in (*(t.shape for t in types), shape)]

    def body(frame: Frame) -> None:
        with rows(frame, shape[:-1], views) as (_, starts):
            operands = [_operand(frame, f"x{i}", t, starts[i]) for i, t in enumerate(types)]
            result = op.formula(RowExpr(frame), *operands)
            with T.serial(0, frame.dim(shape[-1])) as i:
                store(frame.buffers["y"], result.at(i), starts[-1] + i)

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)


def _row_starts(shape: Shape, axes: int) -> View:
    """Where the rows of a dense array lie, which is repeated along the axes that it lacks."""
    strides = tuple(0 if d == 1 else s for d, s in zip(shape, row_major(shape), strict=True))[:-1]
    return View((0,) * (axes - len(strides)) + strides)


def _operand(frame: Frame, name: str, type_: TensorType, start: Expr) -> Term:
    buffer = frame.buffers[name]

    def element(i: Expr) -> Expr:
        value = buffer[start + i]
        return value != T.IntImm("uint8", 0) if type_.dtype == "bool" else wide(value)

    return Term.of(type_.shape[-1] if type_.rank else 1, element, frame, buffer)


@dataclass(eq=False)
class Term:
    """A number of the row (``length`` 1), or one for each of its elements, by index ``i`` of the last axis.

    Elements are int64 expressions, or conditions. ``buffer`` is that of an operand.
    """

    length: Dim
    element: Callable[[Expr], Expr]
    frame: Frame
    buffer: Any = None
    _last: list[tuple[Expr, Expr]] = field(default_factory=list)

    @classmethod
    def of(cls, length: Dim, element: Callable[[Expr], Expr], frame: Frame, buffer: Any = None) -> Term:
        """What ``element`` gives, computed now where it is one number."""
        if length == 1:
            value = T.bind(element(T.IntImm("int32", 0)))
            return cls(1, lambda i: value, frame, buffer)
        return cls(length, element, frame, buffer)

    def at(self, i: Expr) -> Expr:
        """The element at ``i``, computed once in each loop."""
        if not self._last or self._last[0][0] is not i:
            self._last[:] = [(i, T.bind(self.element(i)))]
        return self._last[0][1]

    def apply(self, function: Callable[..., Expr], *others: Any) -> Term:
        """``function`` of the elements of this and ``others``."""
        operands = [self, *others]
        lengths = [o.length for o in operands if isinstance(o, Term) and o.length != 1]

        def element(i: Expr) -> Expr:
            return function(*(o.at(i) if isinstance(o, Term) else int64(int(o)) for o in operands))

        return Term.of(lengths[0] if lengths else 1, element, self.frame)

    def __add__(self, other: Any) -> Term:
        return self.apply(operator.add, other)

    def __sub__(self, other: Any) -> Term:
        return self.apply(operator.sub, other)

    def __rsub__(self, other: Any) -> Term:
        return self.apply(lambda a, b: b - a, other)

    def __mul__(self, other: Any) -> Term:
        return self.apply(operator.mul, other)

    __radd__, __rmul__ = __add__, __mul__

    def __rshift__(self, other: Any) -> Term:
        return self.apply(T.shift_right, other)

    def __lshift__(self, other: Any) -> Term:
        return self.apply(T.shift_left, other)

    def __rlshift__(self, other: Any) -> Term:
        return self.apply(lambda a, b: T.shift_left(b, a), other)

    def __and__(self, mask: int) -> Term:
        return self.apply(T.bitwise_and, mask)

    def __ge__(self, other: Any) -> Term:
        return self.apply(operator.ge, other)

    def __gt__(self, other: Any) -> Term:
        return self.apply(operator.gt, other)


@dataclass(frozen=True)
class RowExpr:
    """The algebra over :class:`Term`, inside the loop over rows; see :class:`intc.ops.scalar.RowAlgebra`."""

    frame: Frame

    def lift(self, value: Any) -> Term:
        return value if isinstance(value, Term) else Term.of(1, lambda i: int64(int(value)), self.frame)

    def where(self, condition: Term, a: Any, b: Any) -> Term:
        return condition.apply(T.Select, a, b)

    def minimum(self, a: Any, b: Any) -> Term:
        return self.lift(a).apply(T.min, b)

    def maximum(self, a: Any, b: Any) -> Term:
        return self.lift(a).apply(T.max, b)

    def mulhrs(self, a: Any, b: Any) -> Term:
        return (self.lift(a) * self.lift(b) + 16384) >> 15

    def assume(self, value: Any, lo: int, hi: int) -> Any:
        return value

    def product(self, a: Any, b: Any, lo: int, hi: int) -> Term:
        return self.lift(a) * self.lift(b)

    def floor_div(self, a: Any, b: Any) -> Term:
        # ``opaque``: the simplifier must not drop a guard against 0 in a branch that is computed anyway
        return self.lift(a).apply(lambda x, y: opaque(floor_div(x, opaque(y))), b)

    def bit_length(self, x: Any) -> Term:
        return self.lift(x).apply(lambda v: opaque(T.Select(v > 0, bit_length(_positive(v)), int64(0))))

    def isqrt(self, x: Any) -> Term:
        return self.lift(x).apply(lambda v: opaque(T.Select(v > 0, integer_sqrt(_positive(v)), int64(0))))

    def take(self, table: Term, index: Term) -> Term:
        return index.apply(lambda i: wide(table.buffer[T.cast(i, "int32")]))

    def size(self, x: Term) -> int:
        assert isinstance(x.length, int)
        return x.length

    def row_sum(self, x: Any) -> Term:
        return self._folded(self.lift(x), operator.add, 0)

    def row_max(self, x: Any) -> Term:
        return self._folded(self.lift(x), T.max, LOWEST)

    def _folded(self, x: Term, function: Callable[[Expr, Expr], Expr], start: int) -> Term:
        total = local("int64")
        T.buffer_store(total, int64(start), [0])
        with T.serial(0, self.frame.dim(x.length)) as i:
            T.buffer_store(total, function(total[0], x.at(i)), [0])
        return Term.of(1, lambda i: opaque(total[0]), self.frame)

    def distance(self, x: Term, keep: Term | None = None) -> Term:
        if keep is None:
            return self.row_max(x) - x
        top = self.row_max(self.where(keep, x, LOWEST))
        return self.where(keep, top - x, 0)


def _positive(value: Expr) -> Expr:
    """``value``, or 1 where it is less: never what is wanted, but always computed."""
    return opaque(T.max(value, int64(1)))
