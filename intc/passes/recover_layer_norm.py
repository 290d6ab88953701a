"""LayerNorm and RMSNorm from their decompositions.

``d / sqrt(mean(d^2) + eps) * gamma + beta`` over one axis of fixed size is ``layer_norm(x, gamma, beta)``
with ``d = x - mean(x)``, and the form that is not centred (RMSNorm) with ``d = x``. ``d``, the root and the
constants gamma are the factors of a tree of products and quotients, in any order. ``d^2`` may be a power or a
product, ``d`` may be computed twice, the root may be a reciprocal, a power, scaled, or a sum in place of the
mean (division by a norm, standard deviations), bounded from below instead of ``eps``; gamma or beta may be
missing (1 and 0). Where the axis is not the last, transposes go around the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array, Op
from intc.ops.elementwise import Add, Div, Max, Mul, Pow, Sqrt, Sub
from intc.ops.layer_norm import LayerNorm
from intc.ops.movement import Expand, Reshape, Transpose
from intc.ops.reduce import ReduceMean, ReduceSum
from intc.passes.match import Uses
from intc.passes.rewrite import constant_of, rewrite, scalar_of

FACTORS: Final = 8  # of a tree of products and quotients
NEGLIGIBLE: Final = 1e-5  # a number added to a root that may count as one inside: n + e is sqrt(n^2 + e^2)


@dataclass(frozen=True)
class _Root:
    """``f / sqrt(mean(d^2) + epsilon)`` over ``axis``."""

    d: str
    axis: int
    epsilon: float = 0.0
    f: float = 1.0

    def plus(self, number: float) -> _Root:
        """With ``number`` added under the root."""
        return replace(self, epsilon=self.epsilon + number * self.f**2)

    def times(self, number: float) -> _Root:
        """With what is under the root times ``number``."""
        return replace(self, f=self.f * number**-0.5)


@dataclass(frozen=True)
class _Norm:
    """``x`` normalised over ``axis``, times ``gamma``, plus ``beta``."""

    x: str
    axis: int
    epsilon: float
    centred: bool
    gamma: Array
    beta: Array


@dataclass(frozen=True)
class RecoverLayerNorm:
    name: str = "recover_layer_norm"

    def run(self, graph: Graph) -> Graph:
        matcher = _Matcher(graph, Uses.of(graph))

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            found = matcher.affine(node)
            return None if found is None else _emitted(graph, b, node, found, names[found.x])

        return rewrite(graph, rule)


def _emitted(graph: Graph, b: Builder, node: Node, norm: _Norm, x: str) -> str:
    shape = graph.type(norm.x).shape
    size, last = shape[norm.axis], len(shape) - 1
    vectors = [
        b.constant(f"{node.output}.{key}", np.array(np.broadcast_to(v, size), np.float32))  # type: ignore[arg-type]
        for key, v in (("gamma", norm.gamma), ("beta", norm.beta))
    ]
    op = LayerNorm(-1, norm.epsilon, norm.centred)
    if norm.axis == last:
        return b.emit(op, x, *vectors, name=node.output, source=node.source)
    there = (*(a for a in range(last + 1) if a != norm.axis), norm.axis)
    back = (*range(norm.axis), last, *range(norm.axis, last))
    rows = b.emit(Transpose(there), x, name=f"{node.output}.rows", source=node.source)
    y = b.emit(op, rows, *vectors, name=f"{node.output}.normalised", source=node.source)
    return b.emit(Transpose(back), y, name=node.output, source=node.source)


@dataclass(frozen=True)
class _Matcher:
    graph: Graph
    uses: Uses

    def affine(self, node: Node) -> _Norm | None:
        """The norm that ``node`` ends: its division, scaling or shift."""
        if not isinstance(node.op, Add):
            return self.product(node)
        for value, other in (node.inputs, node.inputs[::-1]):
            constant, inner = self._constant(other), self.uses.producer(value, Mul, Div)
            found = self.product(inner) if constant is not None and inner is not None else None
            beta = self._vector(constant, found.x, found.axis) if found and constant is not None else None
            if found is not None and beta is not None and self._same_shape(found.x, node.output):
                return replace(found, beta=beta)
        return None

    def product(self, node: Node) -> _Norm | None:
        """``d``, a root that divides it, and constants: the factors of what ``node`` computes."""
        if not isinstance(node.op, Mul | Div):
            return None
        for value, up in self._factors(node.output, lambda value: False, inner=True):
            root = self.inverse_root(value) if up else self.root(value)
            found = self._around(node, value, root) if root is not None else None
            if found is not None and self._same_shape(found.x, node.output):
                return found
        return None

    def _around(self, node: Node, divisor: str, root: _Root) -> _Norm | None:
        """The norm of ``root.d``, where all other factors are constants along the axis."""
        x = self._centred(root.d, root.axis)

        def normalised(value: str) -> bool:
            return value == root.d or (x is not None and self._centred(value, root.axis) == x)

        gamma, met = np.full(1, root.f), [0, 0]  # how often the root and what it divides are factors
        for value, up in self._factors(node.output, lambda v: v == divisor or normalised(v)):
            if value == divisor:
                met[0] += 1
            elif up and normalised(value):
                met[1] += 1
            else:
                constant = self._constant(value)
                vector = self._vector(constant, root.d, root.axis) if constant is not None else None
                if vector is None or not (up or vector.all()):
                    return None
                gamma = gamma * vector if up else gamma / vector
        if met != [1, 1] or not self._beside(divisor, root):
            return None
        return _Norm(x or root.d, root.axis, root.epsilon, x is not None, gamma, np.zeros(1))

    def _factors(
        self, value: str, whole: Callable[[str], bool], inner: bool = False
    ) -> Iterator[tuple[str, bool]]:
        """What products and quotients make ``value`` of, each with whether it multiplies: nothing behind what
        is ``whole``, and what is made of others only if ``inner``.
        """
        pending, count = [(value, True)], 0
        while pending and count < 2 * FACTORS:
            current, up = pending.pop()
            count += 1
            node = None if whole(current) else self.uses.producer(current, Mul, Div)
            if node is None or inner:
                yield current, up
            if node is not None:
                left, right = node.inputs
                pending += [(right, up == isinstance(node.op, Mul)), (left, up)]
        if pending:
            yield value, False  # too many: no constant

    def inverse_root(self, value: str) -> _Root | None:
        """The root that ``value`` divides by, where it is a power."""
        node = self.uses.producer(value, Pow)
        return (
            self.moment(node.inputs[0]) if node is not None and self._scalar(node.inputs[1]) == -0.5 else None
        )

    def root(self, value: str) -> _Root | None:
        """``1 / value``."""
        inner, steps = self._peeled(value)
        node = self.uses.producer(inner, Sqrt, Pow)
        if node is None or (isinstance(node.op, Pow) and self._scalar(node.inputs[1]) != 0.5):
            return None
        found = self.moment(node.inputs[0])
        for op, number in reversed(steps):
            if found is None or (op is Add and number * found.f > NEGLIGIBLE):
                return None
            found = found.times(number**2) if op is Mul else found.plus(number**2)
        return found

    def moment(self, value: str) -> _Root | None:
        """``1 / sqrt(value)``."""
        inner, steps = self._peeled(value)
        node = self.uses.producer(inner, ReduceMean, ReduceSum)
        found = self._mean_square(node) if node is not None else None
        for op, number in reversed(steps):
            found = found and (found.times(number) if op is Mul else found.plus(number))
        return found

    def _peeled(self, value: str) -> tuple[str, list[tuple[type[Op], float]]]:
        """What ``value`` is before positive numbers multiply it, are added or bound it (that is the same as
        adding them wherever it is not tiny), and those, the last first.
        """
        steps: list[tuple[type[Op], float]] = []
        while len(steps) < FACTORS:
            node = self.uses.producer(value, Add, Max, Mul, Div, Expand, Reshape)
            if node is None:
                break
            if isinstance(node.op, Expand | Reshape):
                value = node.inputs[0]
                continue
            pairs = (node.inputs,) if isinstance(node.op, Div) else (node.inputs, node.inputs[::-1])
            found = next(((x, n) for x, y in pairs if (n := self._scalar(y)) is not None), None)
            if found is None or found[1] < 0 or (found[1] == 0 and isinstance(node.op, Mul | Div)):
                break
            value, number = found
            steps.append((Mul, 1 / number) if isinstance(node.op, Div) else (type(node.op), number))
        return value, steps

    def _mean_square(self, node: Node) -> _Root | None:
        axis, size = self._axis(node), 0
        d = self._squared(node.inputs[0], axis) if axis is not None else None
        if axis is not None:
            size = self.graph.type(node.inputs[0]).shape[axis]  # type: ignore[assignment]
        if d is None or axis is None or not isinstance(size, int) or size == 1:
            return None
        return _Root(d, axis, f=size**-0.5 if isinstance(node.op, ReduceSum) else 1.0)

    def _squared(self, value: str, axis: int) -> str | None:
        """d of ``d^2``."""
        node = self.uses.producer(value, Pow, Mul)
        if node is None:
            return None
        a, b = node.inputs
        if isinstance(node.op, Pow):
            return a if self._scalar(b) == 2.0 else None
        centred = self._centred(a, axis)
        return a if a == b or (centred is not None and centred == self._centred(b, axis)) else None

    def _centred(self, value: str, axis: int) -> str | None:
        """x of ``x - mean(x)``."""
        node = self.uses.producer(value, Sub)
        mean = self.uses.producer(node.inputs[1], ReduceMean) if node is not None else None
        if node is None or mean is None or self._axis(mean) != axis or mean.inputs[0] != node.inputs[0]:
            return None
        if self.graph.type(mean.output).rank != self.graph.type(node.inputs[0]).rank:
            return None
        return node.inputs[0]

    def _axis(self, node: Node) -> int | None:
        """The one axis that ``node`` reduces."""
        assert isinstance(node.op, ReduceMean | ReduceSum)
        axes = [a % self.graph.type(node.inputs[0]).rank for a in node.op.axes]
        return axes[0] if len(axes) == 1 else None

    def _scalar(self, value: str) -> float | None:
        return scalar_of(self.graph, self.uses.producers, value)

    def _constant(self, value: str) -> Array | None:
        return constant_of(self.graph, self.uses.producers, value)

    def _vector(self, constant: Array, x: str, axis: int) -> Array | None:
        """``constant`` where it differs along ``axis`` of ``x`` only: [1] or [size]."""
        shape = self.graph.type(x).shape
        place = axis - len(shape) + constant.ndim
        if constant.size == 1:
            return constant.reshape(1)
        alone = 0 <= place < constant.ndim and constant.shape[place] == constant.size == shape[axis]
        return constant.reshape(-1) if alone else None

    def _beside(self, divisor: str, root: _Root) -> bool:
        """Whether ``divisor`` holds one root for each of the rows that are normalised."""
        have, rows = self.graph.type(divisor).shape, list(self.graph.type(root.d).shape)
        rows[root.axis] = have[root.axis] if len(have) == len(rows) else 0
        return list(have) == rows

    def _same_shape(self, x: str, value: str) -> bool:
        return self.graph.type(x).shape == self.graph.type(value).shape
