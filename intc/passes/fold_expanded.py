"""Phase 1: what is computed of constants that were repeated for every sample is computed once, before.

``f(expand(c)) = expand(f(c))`` as long as f leaves the repeated axes alone; a product with a repeated matrix
is one with the matrix. Of ``concat(x, y, c) @ [U; V; W]`` the constant ``c @ W`` is a bias, and a ``y`` of
one column whose row of weights is one number v is ``v * y``: so ``torch.cdist``, which joins numbers, their
squares and ones, does not have to hold all of them in the same few bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array, Op
from intc.ops.elementwise import Abs, Add, Div, Mul, Pow, Sqrt, Sub
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Expand, Transpose
from intc.ops.reduce import ReduceMean, ReduceSum
from intc.passes.match import weight_of
from intc.passes.rewrite import Rule, rewrite

ELEMENTWISE: Final = (Add, Sub, Mul, Div, Pow, Sqrt, Abs)
FOLDED: Final = (*ELEMENTWISE, Transpose, Concat, ReduceSum, ReduceMean)


@dataclass(frozen=True)
class FoldExpanded:
    """Only of float constants."""

    name: str = "fold_expanded"

    def run(self, graph: Graph) -> Graph:
        repeated = _Repeated(graph, graph.producers())

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            if isinstance(node.op, MatMul):
                return _by_matrix(repeated, b, node, names)
            once = repeated.of(node.output) if isinstance(node.op, FOLDED) else None
            if once is None or node.output in graph.outputs:
                return None
            whole = Expand(graph.type(node.output).shape)
            return b.emit(
                whole, b.constant(f"{node.output}.once", once), name=node.output, source=node.source
            )

        folded = rewrite(graph, rule)
        return folded if folded is graph else rewrite(folded, _split(folded))


@dataclass
class _Repeated:
    """The values of ``graph`` that are constants, repeated or not."""

    graph: Graph
    producers: Mapping[str, Node]
    known: dict[str, Array | None] = field(default_factory=dict)

    def of(self, value: str) -> Array | None:
        """``value`` with axes of size 1 where it is repeated, of its own rank; None where it is computed from
        an input.
        """
        if value not in self.known:
            found = self.graph.constants.get(value)
            self.known[value] = self._made(value) if found is None else found
        return self.known[value]

    def _made(self, value: str) -> Array | None:
        node, rank = self.producers.get(value), self.graph.type(value).rank
        if node is None or not isinstance(node.op, (Expand, *FOLDED)) or not self.graph.type(value).is_float:
            return None
        once = list[Array]()
        for name in node.inputs:
            array = self.of(name)
            if array is None or array.dtype.kind != "f":
                return None
            once.append(array)
        if isinstance(node.op, (Expand, *ELEMENTWISE)):
            once = [array.reshape((1,) * (rank - array.ndim) + array.shape) for array in once]
        if isinstance(node.op, Expand):
            return once[0]
        whole = [self.graph.type(name).shape for name in node.inputs]
        axes = (node.op.axis,) if isinstance(node.op, Concat) else getattr(node.op, "axes", ())
        if any(
            array.shape[axis] != shape[axis]
            for array, shape in zip(once, whole, strict=True)
            for axis in axes
        ):
            return None
        if isinstance(node.op, Concat):
            common = np.broadcast_shapes(*(np.delete(array.shape, node.op.axis) for array in once))
            once = [np.broadcast_to(x, np.insert(common, node.op.axis, x.shape[node.op.axis])) for x in once]
        return node.op.evaluate(*once, sizes={})


def _by_matrix(repeated: _Repeated, b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
    """The product ``node`` with a matrix that is the same for every sample."""
    graph, (x, right) = repeated.graph, node.inputs
    once = None if right in graph.constants else repeated.of(right)
    if once is None or once.ndim < 2 or repeated.of(x) is not None:
        return None
    rows, columns = once.shape[-2:]
    same = once.size == rows * columns and graph.type(right).shape[-2:] == (rows, columns)
    if not same or graph.type(node.output).shape != (*graph.type(x).shape[:-1], columns):
        return None
    matrix = b.constant(f"{right}.once", once.reshape(rows, columns))
    return b.emit(MatMul(), names[x], matrix, name=node.output, source=node.source)


@dataclass
class _Parts:
    """The parts of a joined operand [.., K] of a product with a matrix [K, N]: those that stay joined, with
    their rows of the matrix; columns with the number that each is multiplied by; the bias of constants.
    """

    bias: Array
    rest: list[tuple[str, Array]] = field(default_factory=list)
    columns: dict[str, float] = field(default_factory=dict)


def _parts(repeated: _Repeated, joined: Node, weight: Array) -> _Parts:
    parts, start = _Parts(np.zeros(weight.shape[1], np.float32)), 0
    for part in joined.inputs:
        width = repeated.graph.type(part).shape[-1]
        assert isinstance(width, int)
        rows = weight[start : start + width]
        start += width
        once = repeated.of(part)
        if once is not None and once.size == width:
            parts.bias = parts.bias + once.reshape(width) @ rows
        elif width == 1 and part not in parts.columns and bool(np.all(rows == rows[0, 0])):
            parts.columns[part] = float(rows[0, 0])
        else:
            parts.rest.append((part, rows))
    return parts


def _split(graph: Graph) -> Rule:
    """The rule that takes constants, and columns that are only added up, out of joined operands."""
    repeated = _Repeated(graph, graph.producers())

    def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
        weight = weight_of(graph, node)
        joined = None if weight is None else repeated.producers.get(node.inputs[0])
        if weight is None or joined is None or joined.op != Concat(graph.type(node.output).rank - 1):
            return None
        parts = _parts(repeated, joined, weight)
        if not parts.rest or len(parts.rest) == len(joined.inputs):
            return None

        def emit(op: Op, *inputs: str, suffix: str = "") -> str:
            return b.emit(op, *inputs, name=node.output + suffix, source=node.source)

        values = [names[part] for part, _ in parts.rest]
        x = values[0] if len(values) == 1 else emit(joined.op, *values, suffix=".rest")
        matrix = b.constant(f"{node.output}.matrix", np.concatenate([rows for _, rows in parts.rest]))
        y = emit(MatMul(), x, matrix, suffix=".product")
        y = emit(Add(), y, b.constant(f"{node.output}.bias", parts.bias), suffix=".biased")
        for part, number in parts.columns.items():
            factor = b.constant(f"{node.output}.factor", np.full(1, number, np.float32))
            y = emit(Add(), y, names[part] if number == 1 else emit(Mul(), names[part], factor))
        return y

    return rule
