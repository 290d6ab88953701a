"""Chains of elementwise operators as one loop: what lies between them never reaches memory.

A value is *inlined* where one such operator of the same elements reads it, and nothing else; a reshape may
lie between them. Where every operator has a form on vectors and whole vectors fill the rows, the loop is one
of vectors. Else it is left to LLVM, which chooses vectors for the widest type in it: so only operators with
such a form are joined on a native target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu import vector_ops
from intc.codegen.cpu.elementwise import FORMULAS
from intc.codegen.cpu.isa import ISAS
from intc.codegen.cpu.strided import View, blocks, broadcast_view, loop, row_major
from intc.codegen.cpu.vector import Vec, ramp, spread
from intc.codegen.cpu.vector import store as store_vector
from intc.codegen.cpu.vector_ops import VecFormula, vector_formula
from intc.codegen.kernel import Expr, Frame, storage, store
from intc.codegen.program import Program
from intc.ir.dims import Shape
from intc.ir.graph import Graph, Node
from intc.ops.movement import Reshape

SCALAR: Final = ("divide", "root")  # whose loops are not vectors; what stands beside them should be
LONGEST: Final = 16  # operators of a chain


def inlined(graph: Graph, native: bool) -> frozenset[str]:
    """The values that only exist inside of kernels."""
    operators = vector_ops.RULES if native else [name for name in FORMULAS if name not in SCALAR]
    users = graph.users()
    found: dict[
        str, tuple[Shape, int, bool]
    ] = {}  # shape of the chain's result, operators, reshaped before it
    for node in reversed(graph.nodes):
        readers = users[node.output]
        if len(readers) != 1 or node.output in graph.outputs:
            continue
        if node.op.name not in operators and not isinstance(node.op, Reshape):
            continue
        reader = readers[0]
        shape = graph.type(reader.output).shape
        root, length, reshaped = found.get(reader.output, (shape, 1, False))
        if isinstance(reader.op, Reshape):
            if reader.output not in found:
                continue
            reshaped = True
        elif reader.op.name not in operators or graph.type(node.output).shape != shape:
            continue
        operands = [graph.type(x).shape for x in node.inputs]
        if reader.inputs.count(node.output) > 1 or length == LONGEST:
            continue
        if reshaped and any(_placed(x, graph.type(node.output).shape, root) is None for x in operands):
            continue
        found[node.output] = root, length + 1, reshaped
    for node in graph.nodes:  # a reshape of data in memory is the same memory
        if isinstance(node.op, Reshape) and node.inputs[0] not in found:
            found.pop(node.output, None)
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


def lower_pointwise(program: Program, node: Node) -> None:
    """The stage that computes the output of ``node`` and everything inlined into it."""
    chain = _Chain(program, node)
    program.generic(
        node.op.name,
        (chain.key(node.output), tuple(view for _, view in chain.leaves)),
        [x for x, _ in chain.leaves],
        node.output,
        chain.body,
        source=node.source,
    )


@dataclass(frozen=True)
class _Chain:
    program: Program
    root: Node

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """The operators of the chain, from the last to the first."""
        producers, found, pending = self.program.producers, {}, [self.root.output]
        while pending:
            node = producers[pending.pop()]
            found[node.output] = node
            pending += [x for x in node.inputs if x in self.program.inlined]
        return found

    @cached_property
    def leaves(self) -> list[tuple[str, View]]:
        """The values that are read from memory, and how they lie under the result."""
        every = [(n, x) for n in self.nodes.values() for x in n.inputs if x not in self.nodes]
        return list(dict.fromkeys((x, self.view(n, x)) for n, x in every))

    def view(self, node: Node, operand: str) -> View:
        own, root = (self.program.type(n.output).shape for n in (node, self.root))
        found = _placed(self.program.type(operand).shape, own, root)
        assert found is not None
        return found

    def key(self, value: str) -> object:
        """What tells chains with different code apart."""
        node = self.nodes[value]
        operands = (
            self.key(x) if x in self.nodes else self.leaves.index((x, self.view(node, x)))
            for x in node.inputs
        )
        return node.op, self.program.type(value).dtype, *operands

    def body(self, frame: Frame) -> None:
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
            if isinstance(node.op, Reshape):
                continue
            formula = vector_formula(self.program, node, isa)
            if formula is None:
                return None
            found[name] = formula
        return found

    def _vectors(self, frame: Frame, shape: Shape, views: Sequence[View]) -> bool:
        """The loop over vectors; False where they do not fill the rows, or elements are not side by side."""
        lanes = ISAS[self.program.target.level].epilogue
        dtypes = [self.program.type(x).dtype for x in (*(x for x, _ in self.leaves), self.root.output)]

        def vector(at: list[Expr], dense: list[bool]) -> None:
            read = []
            for i, dtype in enumerate(dtypes[:-1]):
                buffer = frame.buffers[f"x{i}"]
                value = buffer[ramp(at[i], lanes)] if dense[i] else spread(buffer[at[i]], lanes)
                read.append(Vec(value, lanes, dtype))
            result = self.result(self.root.output, read, self._vector)
            store_vector(frame.buffers["y"], at[-1], result, dtypes[-1])

        return blocks(frame, shape, views, lanes, vector)

    def result(self, value: str, read: Sequence[Any], compute: Callable[[Node, Sequence[Any]], Any]) -> Any:
        """``value`` by ``compute`` of every operator's operands, from what was ``read`` of the leaves."""
        node = self.nodes[value]
        operands = [
            self.result(x, read, compute)
            if x in self.nodes
            else read[self.leaves.index((x, self.view(node, x)))]
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
