"""Chains of elementwise operators and moves as one kernel: what lies between them never reaches memory.

A value is *inlined* where every reader is such an operator, and no element is computed many times over; moves
cost an address, and are inlined wherever no other reader needs the moved data. A thread computes as many
neighbours as one access of 16 bytes holds, where every operand of the chain has them side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import Any, Final

import numpy as np
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.elementwise import FORMULAS, Formula
from intc.codegen.cpu.expr_algebra import EXPR, wide
from intc.codegen.cpu.strided import row_major
from intc.codegen.kernel import Expr, Frame, int64, local, storage, store
from intc.codegen.program import Program
from intc.ir.bound import admissible
from intc.ir.dims import Dim, Shape, evaluate, exact_div, product, terms_of
from intc.ir.graph import Graph, Node
from intc.ops.movement import Concat, Expand, Reshape, Slice, Transpose
from intc.ops.requantize import Clip, Requantize

MOVES: Final = (Reshape, Transpose, Slice, Concat, Expand)
OPERATORS: Final = (*FORMULAS, *(op.name for op in MOVES))
WIDTHS: Final = (16, 8, 4, 2, 1)
ACCESS: Final = 16  # bytes
LOOPS: Final = ("divide", "root")  # whose formulas are long
REPEATS: Final = 3  # how often an element may be computed rather than stored and read
COPIES: Final = 16  # how often the code of one operator may stand in a kernel
TYPICAL: Final = 64  # a size that stands for all symbolic ones where costs are compared
Elements = Callable[[Expr], Expr]  # the j-th of a thread's elements


def inlined(graph: Graph) -> frozenset[str]:
    """The values that only exist inside of kernels."""
    users = graph.users()
    sizes = admissible(graph, dict.fromkeys(graph.symbols(), TYPICAL))
    elements = {name: evaluate(product(value.type.shape), sizes) for name, value in graph.values.items()}
    found: dict[str, tuple[Fraction, int]] = {}  # how often each element is computed, and stands in the code

    def cost(reader: Node, value: str) -> tuple[Fraction, int]:
        times, copies = found.get(reader.output, (Fraction(1), 1))
        part = 1 if isinstance(reader.op, Concat) else Fraction(elements[reader.output], elements[value])
        return times * part * reader.inputs.count(value), copies * reader.inputs.count(value)

    for node in reversed(graph.nodes):
        readers = {reader.output: reader for reader in users[node.output]}
        if node.op.name not in OPERATORS or node.output in graph.outputs or not elements[node.output]:
            continue
        if not readers or any(
            r.op.name not in OPERATORS or (isinstance(r.op, Reshape) and r.output not in found)
            for r in readers.values()
        ):
            continue
        costs = [cost(reader, node.output) for reader in readers.values()]
        times, copies = sum(c[0] for c in costs), sum(c[1] for c in costs)
        limit = 1 if node.op.name in LOOPS else REPEATS
        if copies <= COPIES and (times <= limit or isinstance(node.op, MOVES)):
            found[node.output] = Fraction(times), copies
    for node in graph.nodes:  # a reshape of data in memory is the same memory
        if isinstance(node.op, Reshape) and node.inputs[0] not in found:
            found.pop(node.output, None)
    return frozenset(found)


def high_word(program: Program, node: Node) -> tuple[int, bool] | None:
    """(k, clipped): with the operand k bits further left the result is in the product's high word, and has to
    be clipped or not. None where there are no k bits to spare, or the factors are not known.
    """
    op, constants = node.op, program.graph.constants
    if not isinstance(op, Requantize) or not constants.keys() >= set(node.inputs[1:]):
        return None
    x, m, e = node.inputs
    magnitude, (low, high) = program.type(x).magnitude, program.type(e).interval
    k = max(32 - low, 0)
    if magnitude << k >= 2**31 or high + k > 62:
        return None
    reach = ((magnitude * program.type(m).magnitude) >> low) + 1
    return k, reach > min(op.hi, -op.lo)


def requantize(program: Program, node: Node) -> Formula:
    """The high word of ``x * 2**k * m + 2**(e + k - 1)``, shifted on by ``e + k - 32``."""
    op, form = node.op, high_word(program, node)
    assert isinstance(op, Requantize)
    if form is None:
        return FORMULAS["requantize"](program, node)
    k, clipped = form

    def formula(x: Expr, m: Expr, e: Expr) -> Expr:
        shift = T.bind(T.cast(e, "int32") + (k - 32))
        half = T.shift_left(int64(2**31), wide(shift))
        product = wide(T.cast(x, "int32") * 2**k) * wide(m) + half
        y = T.bind(T.shift_right(T.cast(T.shift_right(product, int64(32)), "int32"), shift))
        return EXPR.minimum(EXPR.maximum(y, op.lo), op.hi) if clipped else y

    return formula


def clip(program: Program, node: Node) -> Formula:
    op, dtype = node.op, program.type(node.inputs[0]).dtype
    assert isinstance(op, Clip)
    if dtype == "int64":
        return FORMULAS["clip"](program, node)
    return lambda x: EXPR.minimum(EXPR.maximum(T.cast(x, "int32"), op.lo), op.hi)


NARROW: Final = {"requantize": requantize, "clip": clip}  # the same in 32 bits where they suffice


def lower_chain(program: Program, node: Node) -> None:
    """The stage that computes the output of ``node`` and everything inlined into it."""
    chain = _Chain(program, node)
    program.generic(
        node.op.name,
        chain.key(node.output),
        chain.leaves,
        node.output,
        chain.body,
        (),
        (),
        node.source,
        None,
        chain.dims,
    )


@dataclass(frozen=True)
class _Chain:
    program: Program
    root: Node

    def node(self, value: str) -> Node | None:
        """The operator that computes ``value`` in this kernel; None where it is read from memory."""
        inside = value == self.root.output or value in self.program.inlined
        return self.program.producers[value] if inside else None

    def walk(self, value: str) -> Iterator[tuple[str, Node | None]]:
        """``value`` and what it is computed from, operands before results."""
        node = self.node(value)
        for x in node.inputs if node else ():
            yield from self.walk(x)
        yield value, node

    @cached_property
    def leaves(self) -> list[str]:
        """The values that are read from memory."""
        return list(dict.fromkeys(v for v, node in self.walk(self.root.output) if node is None))

    @property
    def dims(self) -> list[Dim]:
        """Every size that the kernel may need."""
        nodes = [(v, node) for v, node in self.walk(self.root.output)]
        starts = [n.op.start for _, n in nodes if n and isinstance(n.op, Slice)]
        return [*starts, *(d for v, _ in nodes for d in self.program.type(v).shape)]

    def key(self, value: str) -> object:
        """What tells chains with different code apart."""
        node, type_ = self.node(value), self.program.type(value)
        if node is None:
            return self.leaves.index(value), type_.shape
        return node.op, high_word(self.program, node), type_.shape, type_.dtype, *map(self.key, node.inputs)

    @cached_property
    def merged(self) -> int:
        """How many of the last axes are as good as one, because no operator of the chain tells them apart."""
        rank = len(self.program.type(self.root.output).shape)
        nodes = [node for _, node in self.walk(self.root.output) if node]
        return next((n for n in range(rank, 1, -1) if all(self._keeps(node, n) for node in nodes)), 1)

    def _keeps(self, node: Node, axes: int) -> bool:
        """Whether the last ``axes`` axes of the output are those of every operand, or it has none."""
        shape, op = self.program.type(node.output).shape, node.op
        operands = [self.program.type(x).shape for x in node.inputs]
        first = len(shape) - axes
        if isinstance(op, Slice | Concat) and op.axis >= first:
            return False
        if isinstance(op, Transpose) and tuple(op.perm[first:]) != tuple(range(first, len(shape))):
            return False
        return first >= 0 and all(
            product(x[-axes:]) == 1 or (len(x) >= axes and x[-axes:] == shape[-axes:]) for x in operands
        )

    def shape(self, value: str) -> Shape:
        shape = self.program.type(value).shape
        first = max(len(shape) - self.merged, 0)
        return (*shape[:first], product(shape[first:]))

    @cached_property
    def width(self) -> int:
        """How many elements a thread computes."""
        constants = self.program.graph.constants
        wide = (self.root.output, *(v for v in self.leaves if v not in constants))
        widest = max(np.dtype(storage(self.program.type(v).dtype)).itemsize for v in wide)
        return next(w for w in WIDTHS if w <= max(4, ACCESS // widest) and self.aligned(self.root.output, w))

    def aligned(self, value: str, width: int) -> bool:
        """Whether groups of ``width`` elements along the last axis are neighbours in every operand."""
        node, shape = self.node(value), self.shape(value)
        if width == 1:
            return True
        if not divides(width, shape[-1]):
            return False
        match node.op if node else None:
            case None:
                return True
            case Transpose(perm) if perm[-1] != len(perm) - 1:
                return False
            case Slice(axis, start, _, step) if axis == len(shape) - 1 and (
                step != 1 or not divides(width, start)
            ):
                return False
        assert node is not None
        return all(self.shape(x)[-1] == 1 or self.aligned(x, width) for x in node.inputs)

    def body(self, frame: Frame) -> None:
        shape, width = self.shape(self.root.output), self.width
        groups = (*shape[:-1], exact_div(shape[-1], width))
        with frame.share(product(groups)) as item:
            index = _split(frame, item, groups)
            index[-1] = index[-1] * width
            values = self.elements(frame, self.root.output, index, width)
            to = frame.buffers["y"]
            if width == 1:
                store(to, values(0), item)
            else:
                with T.vectorized(0, width) as j:
                    store(to, values(j), item * width + j)

    def elements(self, frame: Frame, value: str, index: list[Expr], width: int) -> Elements:
        """Code for ``width`` neighbours along the last axis, from ``index`` on."""
        node, shape = self.node(value), self.shape(value)
        if node is None:
            return self._loaded(frame, value, index, width)
        op = node.op
        if isinstance(op, Concat):
            rolled = self._rolled(frame, node, op.axis, index)
            if rolled is None:
                return self._joined(frame, node, op.axis, index, width)
            return self.elements(frame, *rolled, width)
        if not isinstance(op, MOVES) or isinstance(op, Expand):
            operands = [self._operand(frame, x, index, width) for x in node.inputs]
            return operands[0] if isinstance(op, Expand) else self._computed(node, operands, width)
        x = node.inputs[0]
        if isinstance(op, Transpose):
            index = [index[op.perm.index(axis)] for axis in range(len(index))]
        elif isinstance(op, Slice):
            moved = frame.dim(op.start) + index[op.axis] * op.step
            index = [moved if axis == op.axis else i for axis, i in enumerate(index)]
        else:
            index = _regrouped(frame, index, shape, self.shape(x))
        return self.elements(frame, x, index, width)

    def _operand(self, frame: Frame, value: str, index: list[Expr], width: int) -> Elements:
        """``value`` broadcast to the axes of ``index``."""
        shape = self.shape(value)
        index = [0 if d == 1 else i for d, i in zip(shape, index[len(index) - len(shape) :], strict=True)]
        return self.elements(frame, value, index, 1 if shape[-1] == 1 else width)

    def _loaded(self, frame: Frame, value: str, index: list[Expr], width: int) -> Elements:
        buffer = frame.buffers[f"x{self.leaves.index(value)}"]
        at: Expr = 0
        for i, stride in zip(index, row_major(self.shape(value)), strict=True):
            at = at + i * frame.dim(stride)
        if width == 1:
            element = T.bind(buffer[at])
            return lambda j: element
        cell = loaded(buffer, T.bind(at), width)
        return lambda j: cell[j]

    def _computed(self, node: Node, operands: Sequence[Elements], width: int) -> Elements:
        cell = local(storage(self.program.type(node.output).dtype), width)
        formula = (NARROW.get(node.op.name) or FORMULAS[node.op.name])(self.program, node)
        with T.unroll(0, width) as j:
            store(cell, formula(*(T.bind(x(j)) for x in operands)), j)
        return lambda j: cell[j if width > 1 else 0]

    def _rolled(
        self, frame: Frame, node: Node, axis: int, index: list[Expr]
    ) -> tuple[str, list[Expr]] | None:
        """The value of which all parts are slices along ``axis``, and the index there."""
        slices = [self.node(x) for x in node.inputs]
        parts = [s for s in slices if s and isinstance(s.op, Slice) and (s.op.axis, s.op.step) == (axis, 1)]
        if len(parts) < len(slices) or len({s.inputs[0] for s in parts}) > 1:
            return None
        end, moved = self.shape(node.output)[axis], None
        for part in reversed(parts):
            assert isinstance(part.op, Slice)
            begin = end - self.shape(part.output)[axis]
            here = index[axis] + frame.dim(part.op.start - begin)
            moved = here if moved is None else T.Select(index[axis] < frame.dim(end), here, moved)
            end = begin
        return parts[0].inputs[0], [T.bind(moved) if a == axis else i for a, i in enumerate(index)]

    def _joined(self, frame: Frame, node: Node, axis: int, index: list[Expr], width: int) -> Elements:
        cell = local(storage(self.program.type(node.output).dtype), width)

        def part(k: int, start: Dim) -> None:
            def fill() -> None:
                moved = T.bind(index[axis] - frame.dim(start))
                here = [moved if a == axis else i for a, i in enumerate(index)]
                values = self.elements(frame, node.inputs[k], here, width)
                with T.unroll(0, width) as j:
                    T.buffer_store(cell, values(j), [j])

            end = start + self.shape(node.inputs[k])[axis]
            if k == len(node.inputs) - 1:
                fill()
                return
            with T.If(index[axis] < frame.dim(end)):
                with T.Then():
                    fill()
                with T.Else():
                    part(k + 1, end)

        part(0, 0)
        return lambda j: cell[j if width > 1 else 0]


def loaded(buffer: Any, at: Expr, width: int) -> Any:
    """Registers with ``width`` neighbours from ``at`` on."""
    cell = local(buffer.dtype, width)
    with T.vectorized(0, width) as j:
        T.buffer_store(cell, buffer[at + j], [j])
    return cell


def divides(number: int, dim: Dim) -> bool:
    """Whether ``dim`` is a multiple of ``number`` whatever its symbols are."""
    return all(coefficient % number == 0 for coefficient in terms_of(dim).values())


def _split(frame: Frame, at: Expr, shape: Shape) -> list[Expr]:
    """The index of the ``at``-th element of ``shape`` in row-major order."""
    index: list[Expr] = []
    for axis in range(len(shape) - 1, -1, -1):
        size = frame.dim(shape[axis])
        last = axis == 0
        index.insert(0, 0 if shape[axis] == 1 else at if last else T.bind(T.truncmod(at, size)))
        at = at if last or shape[axis] == 1 else T.bind(T.truncdiv(at, size))
    return index


def _regrouped(frame: Frame, index: list[Expr], shape: Shape, to: Shape) -> list[Expr]:
    """The index in ``to`` of the element ``index`` of ``shape``; runs of axes with equal products apart."""
    out: list[Expr] = []
    i = j = 0
    while j < len(to):
        stops = ((a, b) for b in range(j + 1, len(to) + 1) for a in range(i, len(shape) + 1))
        a, b = next((a, b) for a, b in stops if product(shape[i:a]) == product(to[j:b]))
        if b == len(to):
            a = len(shape)
        at: Expr = 0
        for x, stride in zip(index[i:a], row_major(shape[i:a]), strict=True):
            at = at + x * frame.dim(stride)
        out += _split(frame, at if isinstance(at, int) else T.bind(at), to[j:b])
        i, j = a, b
    return out
