"""Chains of elementwise operators as one loop: what lies between them never reaches memory.

A value is *inlined* where one such operator of the same elements reads it, and nothing else; a reshape may
lie between them. Where every operator has a form on vectors and whole vectors fill the rows, the loop is one
of vectors. Else it is left to LLVM, which chooses vectors for the widest type in it: so only operators with
such a form are joined on a native target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu import depthwise, vector_ops
from intc.codegen.cpu.elementwise import FORMULAS
from intc.codegen.cpu.isa import ISAS
from intc.codegen.cpu.strided import View, blocks, broadcast_view, coalesce, loop, row_major
from intc.codegen.cpu.vector import Vec, ramp, spread
from intc.codegen.cpu.vector import store as store_vector
from intc.codegen.cpu.vector_ops import VecFormula, vector_formula
from intc.codegen.kernel import Expr, Frame, storage, store
from intc.codegen.program import Program
from intc.ir.dims import Dim, Shape
from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops.movement import Reshape
from intc.ops.reduce import ReduceMax, ReduceSum
from intc.ops.window import GroupedConv

SCALAR: Final = ("divide", "root")  # whose loops are not vectors; what stands beside them should be
LONGEST: Final = 16  # operators of a chain


def inlined(program: Program) -> frozenset[str]:
    """The values that only exist inside of kernels; every value in front of a reduction on vectors may."""
    graph, native = program.graph, program.target.native
    operators = vector_ops.RULES if native else [name for name in FORMULAS if name not in SCALAR]
    users = graph.users()
    found: dict[str, tuple[Node, int, bool]] = {}  # the chain's end, operators up to it, reshaped on the way
    for node in reversed(graph.nodes):
        readers, own = users[node.output], graph.type(node.output).shape
        convolved = depthwise.applies(program, node)
        if len(readers) != 1 or node.output in graph.outputs:
            continue
        if native and isinstance(readers[0].op, ReduceSum | ReduceMax):
            if node.op.name in operators:
                found[node.output] = node, 1, False  # the end of a chain, which the reduction continues
            continue
        if not (node.op.name in operators or isinstance(node.op, Reshape) or convolved):
            continue
        reader = readers[0]
        root, length, reshaped = found.get(reader.output, (reader, 1, False))
        if isinstance(reader.op, Reshape):
            if reader.output not in found:
                continue
            reshaped = True
        elif reader.op.name not in operators or own != graph.type(reader.output).shape:
            continue
        if reader.inputs.count(node.output) > 1 or length == LONGEST:
            continue
        shape = graph.type(root.output).shape
        operands = [] if convolved else [graph.type(x).shape for x in node.inputs]
        if reshaped and any(_placed(x, own, shape) is None for x in operands):
            continue
        found[node.output] = root, length + 1, reshaped
    for node in graph.nodes:
        if isinstance(node.op, Reshape) and node.inputs[0] not in found:
            found.pop(node.output, None)  # a reshape of data in memory is the same memory
        if isinstance(node.op, GroupedConv) and node.output in found:
            chain = Chain(program, found[node.output][0], found.keys())
            if not chain.follows(node):
                del found[node.output]
    return frozenset(found)


def _placed(operand: Shape, own: Shape, root: Shape) -> View | None:
    """Elements of ``operand`` where an operator with the result ``own`` reads them, seen as ``root``; None
    where an axis that they are repeated along is no axis of ``root``.
    """
    if own == root:
        return broadcast_view(operand, root)
    if operand == own:
        return View(row_major(root))
    last = operand[next((i for i, size in enumerate(operand) if size != 1), len(operand)) :]
    fits = len(last) <= len(root) and last == root[len(root) - len(last) :]
    return broadcast_view(last, root) if fits else None


def lower_chain(program: Program, node: Node) -> None:
    """The stage that computes the output of ``node`` and everything inlined into it."""
    chain = Chain(program, node, program.inlined)
    program.generic(
        node.op.name,
        (chain.key(node.output), tuple(view for _, view in chain.leaves)),
        [*(x for x, _ in chain.leaves), *(chain.convolution.inputs if chain.convolution else ())],
        node.output,
        chain.body,
        source=node.source,
        layouts=chain.layouts,
        dims=chain.dims,
    )


@dataclass(frozen=True)
class Chain:
    """``root`` and all values of ``inside`` that lead to it."""

    program: Program
    root: Node
    inside: Set[str]

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """The operators of the chain, from the last to the first."""
        producers, found, pending = self.program.producers, {}, [self.root.output]
        while pending:
            node = producers[pending.pop()]
            found[node.output] = node
            pending += [x for x in node.inputs if x in self.inside]
        return found

    @cached_property
    def convolution(self) -> Node | None:
        """The one among the operators, whose sums the others follow."""
        return next((n for n in self.nodes.values() if isinstance(n.op, GroupedConv)), None)

    @property
    def dims(self) -> Sequence[Dim]:
        """Sizes that the kernel may need beside those of its operands."""
        return self.program.type(self.convolution.output).shape if self.convolution else ()

    @property
    def layouts(self) -> dict[str, Array]:
        """The weights of the convolution, if there is one, as its kernel reads them."""
        if not self.convolution:
            return {}
        return {self.convolution.inputs[1]: depthwise.weights(self.program, self.convolution)}

    def follows(self, convolution: Node) -> bool:
        """Whether all can be computed where the sums of ``convolution`` are, channel by channel."""
        channels = self.program.type(self.root.output).shape[-1]
        alone = sum(isinstance(n.op, GroupedConv) for n in self.nodes.values()) == 1
        same = channels == self.program.type(convolution.output).shape[-1]
        return alone and same and self.formulas is not None and self._per_channel() is not None

    def _per_channel(self) -> list[tuple[int, int]] | None:
        """For every leaf its step between pixels and between channels; None where that is not all."""
        shape = self.program.type(self.root.output).shape
        channels = shape[-1]
        assert isinstance(channels, int)
        found = []
        for _, view in self.leaves:
            sizes, (merged, _) = coalesce(shape, (view, View(row_major(shape))))
            if len(sizes) == 1 and merged.strides in ((0,), (1,)):
                step = int(merged.strides == (1,))
                found.append((channels * step, step))
            elif len(sizes) == 2 and sizes[1] == channels and merged.strides == (0, 1):
                found.append((0, 1))
            else:
                return None
        return found

    @cached_property
    def leaves(self) -> list[tuple[str, View]]:
        """The values that are read from memory, and how they lie under the result."""
        elementwise = [n for n in self.nodes.values() if not isinstance(n.op, GroupedConv)]
        every = [(n, x) for n in elementwise for x in n.inputs if x not in self.nodes]
        return list(dict.fromkeys((x, self.view(n, x)) for n, x in every))

    def view(self, node: Node, operand: str) -> View:
        own, root = (self.program.type(n.output).shape for n in (node, self.root))
        found = _placed(self.program.type(operand).shape, own, root)
        assert found is not None
        return found

    def number(self, node: Node, operand: str) -> int:
        """Which of the leaves ``node`` reads as ``operand``."""
        return self.leaves.index((operand, self.view(node, operand)))

    def key(self, value: str) -> object:
        """What tells chains with different code apart."""
        node = self.nodes[value]
        if isinstance(node.op, GroupedConv):
            return node.op
        operands = (self.key(x) if x in self.nodes else self.number(node, x) for x in node.inputs)
        return node.op, self.program.type(value).dtype, vector_ops.form(self.program, node), *operands

    def body(self, frame: Frame) -> None:
        if self.convolution:
            self._convolved(frame, self.convolution)
            return
        shape = self.program.type(self.root.output).shape
        views = (*(view for _, view in self.leaves), View(row_major(shape)))
        if self.formulas is not None and self._vectors(frame, shape, views):
            return

        def element(at: list[Expr]) -> None:
            read = [T.bind(frame.buffers[f"x{i}"][at[i]]) for i in range(len(self.leaves))]
            store(frame.buffers["y"], self.result(self.root.output, read, self._element), at[-1])

        loop(frame, shape, views, element)

    @cached_property
    def formulas(self) -> dict[str, VecFormula] | None:
        """Those of every operator on vectors, where all have one."""
        target = self.program.target
        isa = ISAS[target.level] if target.native else None
        if isa is None or not isa.even_odd:
            return None
        found: dict[str, VecFormula] = {}
        for name, node in self.nodes.items():
            if isinstance(node.op, Reshape | GroupedConv):
                continue
            formula = vector_formula(self.program, node, isa)
            if formula is None:
                return None
            found[name] = formula
        return found

    def _vectors(self, frame: Frame, shape: Shape, views: Sequence[View]) -> bool:
        """The loop over vectors; False where they do not fill the rows, or elements are not side by side."""
        lanes = ISAS[self.program.target.level].epilogue

        def vector(at: list[Expr], dense: list[bool]) -> None:
            self._store(frame, at[-1], self.vector(frame, at, dense, lanes))

        return blocks(frame, shape, views, lanes, vector)

    def _convolved(self, frame: Frame, convolution: Node) -> None:
        """The loop over the sums of the convolution, with all that follows them."""
        steps = self._per_channel()
        channels = self.program.type(convolution.output).shape[-1]
        assert steps is not None and isinstance(channels, int)
        weights = (f"x{len(self.leaves)}", f"x{len(self.leaves) + 1}")

        def done(total: Vec, pixel: Expr, channel: Expr) -> None:
            at = [pixel * along + channel * step for along, step in (*steps, (channels, 1))]
            dense = [step > 0 for _, step in steps]
            self._store(frame, at[-1], self.vector(frame, at, dense, total.lanes, total))

        depthwise.sums(self.program, convolution, frame, *weights, done)

    def _store(self, frame: Frame, at: Expr, result: Vec) -> None:
        store_vector(frame.buffers["y"], at, result, self.program.type(self.root.output).dtype)

    def vector(
        self,
        frame: Frame,
        at: Sequence[Expr],
        dense: Sequence[bool],
        lanes: int,
        total: Vec | None = None,
    ) -> Vec:
        """``lanes`` elements of the result, from those of every leaf, which lie side by side or are one."""
        read = [
            loaded(frame, i, self.program.type(x).dtype, at[i], dense[i], lanes)
            for i, (x, _) in enumerate(self.leaves)
        ]
        result: Vec = self.result(self.root.output, read, self._vector, total)
        return result

    def result(
        self,
        value: str,
        read: Sequence[Any],
        compute: Callable[[Node, Sequence[Any]], Any],
        total: Any = None,
    ) -> Any:
        """``value`` by ``compute`` of every operator's operands, from what was ``read`` of the leaves and the
        ``total`` of the convolution.
        """
        node = self.nodes[value]
        if isinstance(node.op, GroupedConv):
            return total
        operands = [
            self.result(x, read, compute, total) if x in self.nodes else read[self.number(node, x)]
            for x in node.inputs
        ]
        return operands[0] if isinstance(node.op, Reshape) else compute(node, operands)

    def _element(self, node: Node, operands: Sequence[Expr]) -> Expr:
        """Of the type that the value would have in memory."""
        result = FORMULAS[node.op.name](self.program, node)(*operands)
        return T.bind(T.cast(result, storage(self.program.type(node.output).dtype)))

    def _vector(self, node: Node, operands: Sequence[Vec]) -> Vec:
        assert self.formulas is not None
        return self.formulas[node.output](*operands).cast(self.program.type(node.output).dtype)


def loaded(frame: Frame, number: int, dtype: str, at: Expr, dense: bool, lanes: int) -> Vec:
    """``lanes`` elements of an operand of the kernel, or one for all of them."""
    buffer = frame.buffers[f"x{number}"]
    return Vec(buffer[ramp(at, lanes)] if dense else spread(buffer[at], lanes), lanes, dtype)
