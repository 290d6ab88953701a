"""LayerNorm and RMSNorm from their decompositions.

``d / sqrt(mean(d^2) + eps) * gamma + beta`` over the last axis is ``layer_norm(x, gamma, beta)`` with
``d = x - mean(x)``, and the form that is not centred (RMSNorm) with ``d = x``. ``d^2`` may be a power or a
product, ``d`` may be computed twice, the root may be a reciprocal, a power or a sum in place of the mean
(division by a norm), bounded from below instead of ``eps``; gamma or beta may be missing (1 and 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array
from intc.ops.elementwise import Add, Div, Max, Mul, Pow, Sqrt, Sub
from intc.ops.layer_norm import LayerNorm
from intc.ops.movement import Expand
from intc.ops.reduce import ReduceMean, ReduceSum
from intc.passes.match import Uses
from intc.passes.rewrite import rewrite, scalar_of


@dataclass(frozen=True)
class _Norm:
    """``x`` normalised over its last axis, times ``gamma``, plus ``beta``."""

    x: str
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
            if found is None:
                return None
            shape = graph.type(found.x).shape[-1:]
            vectors = [
                b.constant(f"{node.output}.{key}", np.array(np.broadcast_to(v, shape), np.float32))  # type: ignore[arg-type]
                for key, v in (("gamma", found.gamma), ("beta", found.beta))
            ]
            op = LayerNorm(-1, found.epsilon, found.centred)
            return b.emit(op, names[found.x], *vectors, name=node.output, source=node.source)

        return rewrite(graph, rule)


@dataclass(frozen=True)
class _Matcher:
    graph: Graph
    uses: Uses

    def affine(self, node: Node) -> _Norm | None:
        """The norm that ``node`` ends: its division, scaling or shift."""
        if isinstance(node.op, (Add, Mul)):
            for value, constant in self._with_vector(node):
                inner = self.uses.producer(value, Mul, Div)
                found = self.affine(inner) if inner is not None else None
                if found is not None and isinstance(node.op, Add):
                    return replace(found, beta=found.beta + constant)
                if found is not None and not found.beta.any():
                    return replace(found, gamma=found.gamma * constant)
        return self.core(node)

    def core(self, node: Node) -> _Norm | None:
        """``d / root`` or ``d * (1 / root)``."""
        if isinstance(node.op, Div):
            return self._divided(node.inputs[0], self.root(node.inputs[1]))
        if isinstance(node.op, Mul):
            for value, other in (node.inputs, node.inputs[::-1]):
                found = self._divided(value, self.inverse_root(other))
                if found is not None:
                    return found
        return None

    def _divided(self, d: str, root: tuple[str, float, float] | None) -> _Norm | None:
        if root is None:
            return None
        other, epsilon, factor = root
        x = self._centred(d)
        if other != d and (x is None or self._centred(other) != x):
            return None
        return _Norm(x or d, epsilon, x is not None, np.full(1, factor), np.zeros(1))

    def inverse_root(self, value: str) -> tuple[str, float, float] | None:
        """Like :meth:`root`, of ``1 / root``."""
        node = self.uses.producer(value, Div, Pow)
        if node is None:
            return None
        if isinstance(node.op, Pow):
            half = scalar_of(self.graph, self.uses.producers, node.inputs[1]) == -0.5
            return self.moment(node.inputs[0]) if half else None
        one = scalar_of(self.graph, self.uses.producers, node.inputs[0]) == 1.0
        return self.root(node.inputs[1]) if one else None

    def root(self, value: str) -> tuple[str, float, float] | None:
        """``(d, eps, f)`` with ``1 / value = f / sqrt(mean(d^2) + eps)``."""
        node = self.uses.producer(value, Sqrt, Pow, Max, Expand)
        if node is None:
            return None
        if isinstance(node.op, Expand):
            return self.root(node.inputs[0])
        if isinstance(node.op, Max):  # max(n, low) for sqrt(n^2 + low^2): the same wherever n is not tiny
            for inner, other in (node.inputs, node.inputs[::-1]):
                low, found = scalar_of(self.graph, self.uses.producers, other), self.root(inner)
                if low is not None and found is not None:
                    return found[0], found[1] + (low * found[2]) ** 2, found[2]
            return None
        if isinstance(node.op, Pow) and scalar_of(self.graph, self.uses.producers, node.inputs[1]) != 0.5:
            return None
        return self.moment(node.inputs[0])

    def moment(self, value: str) -> tuple[str, float, float] | None:
        """``(d, eps, f)`` with ``1 / sqrt(value) = f / sqrt(mean(d^2) + eps)``."""
        node = self.uses.producer(value, Add, Max)
        if node is not None:
            for inner, other in (node.inputs, node.inputs[::-1]):
                epsilon, found = scalar_of(self.graph, self.uses.producers, other), self.moment(inner)
                if epsilon is not None and found is not None:
                    return found[0], found[1] + epsilon * found[2] ** 2, found[2]
            return None
        reduced = self.uses.producer(value, ReduceMean, ReduceSum)
        if reduced is None or not self._last_axis(reduced):
            return None
        d = self._squared(reduced.inputs[0])
        size = self.graph.type(reduced.inputs[0]).shape[-1]
        if d is None or not isinstance(size, int):
            return None
        return d, 0.0, size**-0.5 if isinstance(reduced.op, ReduceSum) else 1.0

    def _squared(self, value: str) -> str | None:
        """d of ``d^2``."""
        node = self.uses.producer(value, Pow, Mul)
        if node is None:
            return None
        a, b = node.inputs
        if isinstance(node.op, Pow):
            return a if scalar_of(self.graph, self.uses.producers, b) == 2.0 else None
        return (
            a if a == b or (self._centred(a) is not None and self._centred(a) == self._centred(b)) else None
        )

    def _centred(self, value: str) -> str | None:
        """x of ``x - mean(x)``."""
        node = self.uses.producer(value, Sub)
        mean = self.uses.producer(node.inputs[1], ReduceMean) if node is not None else None
        if node is None or mean is None or not self._last_axis(mean) or mean.inputs[0] != node.inputs[0]:
            return None
        return node.inputs[0]

    def _last_axis(self, node: Node) -> bool:
        assert isinstance(node.op, (ReduceMean, ReduceSum))
        rank = self.graph.type(node.inputs[0]).rank
        return node.op.keepdims and [a % rank for a in node.op.axes] == [rank - 1]

    def _with_vector(self, node: Node) -> list[tuple[str, Array]]:
        """The pairs (value, constant vector along the last axis) among the two operands."""
        out = []
        size = self.graph.type(node.output).shape[-1] if self.graph.type(node.output).rank else 1
        for value, other in (node.inputs, node.inputs[::-1]):
            constant = self.graph.constants.get(other)
            if (
                constant is not None
                and constant.size in (1, size)
                and constant.size == (constant.shape or (1,))[-1]
            ):
                if self.graph.type(value).shape == self.graph.type(node.output).shape:
                    out.append((value, constant.reshape(-1)))
        return out
