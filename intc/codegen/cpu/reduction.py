"""Sums, largest elements and their places, along axes of an array.

Sums and largest elements are taken in vectors, along the last axis or beside it, where whole vectors fill
that axis; elementwise operators in front are computed on the way (:mod:`intc.codegen.cpu.chains`).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu import chains
from intc.codegen.cpu.chains import Chain, loaded
from intc.codegen.cpu.isa import ISAS
from intc.codegen.cpu.strided import View, coalesce, row_major, rows
from intc.codegen.cpu.vector import Vec, const, ramp, reduce_lanes, register
from intc.codegen.cpu.vector_ops import TYPES
from intc.codegen.kernel import Expr, Frame, local, storage
from intc.codegen.program import Program
from intc.ir.dims import Shape, exact_div, product, terms_of
from intc.ir.graph import Node
from intc.ops.reduce import ArgMax, CumSum, ReduceMax, ReduceSum

TOGETHER: Final = 4  # vectors that are combined side by side
NARROWEST: Final = 8  # lanes
LOWEST: Final = {"int8": -(2**7), "uint8": 0, "int16": -(2**15), "int32": -(2**31)}


@dataclass(frozen=True)
class Vectors:
    """``node`` in vectors, on what ``chain`` computes (None: on what memory holds).

    ``sizes`` are the axes, ``views`` the leaves' and the result's; the result does not move along axes that
    are reduced.
    """

    program: Program
    node: Node
    chain: Chain | None
    sizes: Shape
    views: Sequence[View]
    lanes: int

    @classmethod
    def of(cls, program: Program, node: Node, chain: Chain | None) -> Vectors | None:
        """None where vectors do not fill the last axis, there is no form on vectors, or a convolution's sums
        begin the chain, which come in an order of their own.
        """
        x, target = node.inputs[0], program.target
        isa = ISAS[target.level] if target.native and not target.gpu else None
        if isa is None or not isa.even_odd or program.type(x).dtype not in TYPES:
            return None
        if program.type(node.output).dtype not in TYPES:
            return None
        if chain and (chain.formulas is None or chain.convolution):
            return None
        shape = program.type(x).shape
        axes = {a % len(shape) for a in node.op.axes}  # type: ignore[attr-defined]
        dense = row_major(tuple(1 if i in axes else d for i, d in enumerate(shape)))
        to = View(tuple(0 if i in axes else d for i, d in enumerate(dense)))
        leaves = [view for _, view in chain.leaves] if chain else [View(row_major(shape))]
        sizes, views = coalesce(shape, (*leaves, to))
        terms = terms_of(sizes[-1]).values()
        lanes = isa.epilogue
        while lanes >= NARROWEST and any(c % lanes for c in terms):
            lanes //= 2
        if lanes < NARROWEST or any(v.strides[-1] not in (0, 1) for v in views):
            return None
        return cls(program, node, chain, sizes, views, lanes)

    @property
    def along(self) -> bool:
        """Whether the last axis is one of those that are reduced."""
        return self.views[-1].strides[-1] == 0

    def body(self, frame: Frame) -> None:
        """Each task takes some of the results that lie apart."""
        blocks = exact_div(self.sizes[-1], self.lanes)
        together = next(n for n in (TOGETHER, 2, 1) if not any(c % n for c in terms_of(blocks).values()))
        width, count = self.lanes * together, exact_div(blocks, together)
        steps = [width * v.strides[-1] for v in self.views]
        to = self.views[-1].strides
        kept = [axis for axis, stride in enumerate(to[:-1]) if stride != 0]
        inner = [axis for axis, stride in enumerate(to[:-1]) if stride == 0]
        sizes = [self.sizes[axis] for axis in kept] + ([] if self.along else [count])
        moves = [
            View((*(v.strides[axis] for axis in kept), *([] if self.along else [step])), v.offset)
            for v, step in zip(self.views, steps, strict=True)
        ]
        with rows(frame, tuple(sizes), moves) as (_, starts):
            totals = [register(self.lanes, self._dtype) for _ in range(together)]
            for total in totals:
                T.buffer_store(total, const(self._first, self.lanes, self._dtype), [0])
            with ExitStack() as loops:
                at = list(starts[:-1])
                for axis in inner:
                    i = loops.enter_context(T.serial(0, frame.dim(self.sizes[axis])))
                    at = [
                        a + i * frame.dim(v.strides[axis]) for a, v in zip(at, self.views[:-1], strict=True)
                    ]
                if self.along:
                    i = loops.enter_context(T.serial(0, frame.dim(count)))
                    at = [a + i * step for a, step in zip(at, steps[:-1], strict=True)]
                at = [a if isinstance(a, int) else T.bind(a) for a in at]
                for k, total in enumerate(totals):
                    step = [k * self.lanes * v.strides[-1] for v in self.views[:-1]]
                    value = self._value(frame, [a + s for a, s in zip(at, step, strict=True)])
                    T.buffer_store(total, self._combine(total[0], value.cast(self._dtype).expr), [0])
            self._store(frame, totals, starts[-1])

    @property
    def _dtype(self) -> str:
        return storage(self.program.type(self.node.output).dtype)

    @property
    def _first(self) -> int:
        return 0 if isinstance(self.node.op, ReduceSum) else LOWEST[self._dtype]

    @property
    def _combine(self) -> Callable[[Any, Any], Any]:
        return _combination(self.node)

    def _value(self, frame: Frame, at: Sequence[Expr]) -> Vec:
        dense = [v.strides[-1] == 1 for v in self.views[:-1]]
        if self.chain:
            return self.chain.vector(frame, at, dense, self.lanes)
        return loaded(frame, 0, self.program.type(self.node.inputs[0]).dtype, at[0], dense[0], self.lanes)

    def _store(self, frame: Frame, totals: Sequence[Any], at: Expr) -> None:
        y = frame.buffers["y"]
        if not self.along:
            for k, total in enumerate(totals):
                T.buffer_store(y, total[0], [ramp(at + k * self.lanes, self.lanes)])
            return
        whole = totals[0][0]
        for total in totals[1:]:
            whole = T.bind(self._combine(whole, total[0]))
        T.buffer_store(y, reduce_lanes(whole, self.lanes, self._combine), [at])


def inlined(program: Program) -> frozenset[str]:
    """The values that only exist inside of kernels: those of chains, also of such that end in a reduction."""
    found = set(chains.inlined(program))
    for node in program.graph.nodes:
        if isinstance(node.op, ReduceSum | ReduceMax) and node.inputs[0] in found:
            chain = Chain(program, program.producers[node.inputs[0]], found)
            if Vectors.of(program, node, chain) is None:
                found.remove(node.inputs[0])
    return frozenset(found)


def lower_reduce(program: Program, node: Node) -> None:
    """ReduceSum and ReduceMax, and what is inlined into them."""
    x = node.inputs[0]
    chain = Chain(program, program.producers[x], program.inlined) if x in program.inlined else None
    vectors = Vectors.of(program, node, chain)
    key = (node.op, chain.key(x), tuple(view for _, view in chain.leaves)) if chain else node.op
    leaves = [name for name, _ in chain.leaves] if chain else [x]

    def body(frame: Frame) -> None:
        if vectors:
            vectors.body(frame)
        else:
            _elements(program, node, frame)

    dims = program.type(x).shape
    program.generic(node.op.name, key, leaves, node.output, body, source=node.source, dims=dims)


def _combination(node: Node) -> Callable[[Any, Any], Any]:
    """How two parts of a reduction become one."""
    return operator.add if isinstance(node.op, ReduceSum) else T.max


def _elements(program: Program, node: Node, frame: Frame) -> None:
    """One result after the other."""
    op = node.op
    assert isinstance(op, ReduceSum | ReduceMax)
    shape, dtype = program.type(node.inputs[0]).shape, storage(program.type(node.output).dtype)
    axes = {a % len(shape) for a in op.axes}
    strides = row_major(shape)
    kept = [i for i in range(len(shape)) if i not in axes]
    read = View(tuple(strides[i] for i in kept))
    x, y = frame.buffers["x0"], frame.buffers["y"]
    total = local(dtype)
    with rows(frame, tuple(shape[i] for i in kept), (read,)) as (row, (base,)):
        first = T.IntImm(dtype, 0) if isinstance(op, ReduceSum) else x[base]
        T.buffer_store(total, first, [0])
        with T.serial(0, frame.dim(product(shape[i] for i in axes))) as flat:
            position, rest = base, flat
            for i in sorted(axes, reverse=True):
                size = frame.dim(shape[i])
                position = position + T.truncmod(rest, size) * frame.dim(strides[i])
                rest = T.truncdiv(rest, size)
            value = T.cast(x[position], dtype)
            T.buffer_store(total, _combination(node)(total[0], value), [0])
        T.buffer_store(y, total[0], [row])


def lower_arg_max(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, ArgMax)
    shape = program.type(node.inputs[0]).shape
    kept = [i for i in range(len(shape)) if i != op.axis]
    strides = row_major(shape)
    read = View(tuple(strides[i] for i in kept))

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        best, at = local("int64"), local("int64")
        with rows(frame, tuple(shape[i] for i in kept), (read,)) as (row, (base,)):
            T.buffer_store(best, T.cast(x[base], "int64"), [0])
            T.buffer_store(at, T.IntImm("int64", 0), [0])
            with T.serial(0, frame.dim(shape[op.axis])) as i:
                value = T.bind(T.cast(x[base + i * frame.dim(strides[op.axis])], "int64"))
                better = T.bind(value >= best[0] if op.last else value > best[0])
                T.buffer_store(at, T.Select(better, T.cast(i, "int64"), at[0]), [0])
                T.buffer_store(best, T.max(best[0], value), [0])
            T.buffer_store(y, at[0], [row])

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)


def lower_cum_sum(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, CumSum)
    shape, dtype = program.type(node.output).shape, program.type(node.output).dtype
    kept = [i for i in range(len(shape)) if i != op.axis]
    strides = row_major(shape)
    outer = View(tuple(strides[i] for i in kept))

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        size, step = frame.dim(shape[op.axis]), frame.dim(strides[op.axis])
        total = local(dtype)
        with rows(frame, tuple(shape[i] for i in kept), (outer,)) as (_, (base,)):
            T.buffer_store(total, T.IntImm(dtype, 0), [0])
            with T.serial(0, size) as i:
                at = T.bind(base + (size - 1 - i if op.reverse else i) * step)
                value = T.bind(T.cast(x[at], dtype))
                if op.exclusive:
                    T.buffer_store(y, total[0], [at])
                T.buffer_store(total, total[0] + value, [0])
                if not op.exclusive:
                    T.buffer_store(y, total[0], [at])

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)
