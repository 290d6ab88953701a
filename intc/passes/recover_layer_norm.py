"""LayerNorm from its decomposition.

``d = x - mean(x)``, ``d / sqrt(mean(d^2) + eps) * gamma + beta = layer_norm(x, gamma, beta)`` over the last
axis. ``d^2`` may be a power or a product, ``d`` may be computed twice, and gamma or beta may be missing (1
and 0).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array
from intc.ops.elementwise import Add, Div, Mul, Pow, Sqrt, Sub
from intc.ops.layer_norm import LayerNorm
from intc.ops.reduce import ReduceMean
from intc.passes.match import Uses
from intc.passes.rewrite import rewrite, scalar_of


@dataclass(frozen=True)
class RecoverLayerNorm:
    name: str = "recover_layer_norm"

    def run(self, graph: Graph) -> Graph:
        matcher = _Matcher(graph, Uses.of(graph))

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            found = matcher.affine(node)
            if found is None:
                return None
            x, epsilon, gamma, beta = found
            g, c = b.constant(f"{node.output}.gamma", gamma), b.constant(f"{node.output}.beta", beta)
            return b.emit(LayerNorm(-1, epsilon), names[x], g, c, name=node.output, source=node.source)

        return rewrite(graph, rule)


@dataclass(frozen=True)
class _Matcher:
    graph: Graph
    uses: Uses

    def affine(self, node: Node) -> tuple[str, float, Array, Array] | None:
        """x, epsilon, gamma and beta when ``node`` ends a LayerNorm: its division, scaling or shift."""
        if isinstance(node.op, Add):
            for value, constant in self._with_vector(node):
                inner = self.uses.producer(value, Mul, Div)
                found = self.affine(inner) if inner is not None else None
                if found is not None:
                    x, epsilon, gamma, _ = found
                    return x, epsilon, gamma, self._vector(x, constant)
            return None
        if isinstance(node.op, Mul):
            for value, constant in self._with_vector(node):
                inner = self.uses.producer(value, Div)
                core = self.core(inner) if inner is not None else None
                if core is not None:
                    return *core, self._vector(core[0], constant), self._vector(core[0], np.zeros(1))
            return None
        core = self.core(node)
        return (
            None
            if core is None
            else (*core, self._vector(core[0], np.ones(1)), self._vector(core[0], np.zeros(1)))
        )

    def core(self, node: Node) -> tuple[str, float] | None:
        """x and epsilon of ``(x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon)``."""
        if not isinstance(node.op, Div):
            return None
        x = self._centred(node.inputs[0])
        root = self.uses.producer(node.inputs[1], Sqrt)
        total = self.uses.producer(root.inputs[0], Add) if root is not None else None
        if x is None or total is None or not isinstance(self.graph.type(x).shape[-1], int):
            return None
        for value, other in (total.inputs, total.inputs[::-1]):
            epsilon = scalar_of(self.graph, self.uses.producers, other)
            mean = self.uses.producer(value, ReduceMean)
            if (
                epsilon is not None
                and mean is not None
                and self._last_axis(mean)
                and self._square(mean.inputs[0]) == x
            ):
                return x, epsilon
        return None

    def _centred(self, value: str) -> str | None:
        """x of ``x - mean(x)``."""
        node = self.uses.producer(value, Sub)
        mean = self.uses.producer(node.inputs[1], ReduceMean) if node is not None else None
        if node is None or mean is None or not self._last_axis(mean) or mean.inputs[0] != node.inputs[0]:
            return None
        return node.inputs[0]

    def _square(self, value: str) -> str | None:
        """x of ``(x - mean(x))^2``."""
        node = self.uses.producer(value, Pow, Mul)
        if node is None:
            return None
        a, b = node.inputs
        if isinstance(node.op, Pow):
            return self._centred(a) if scalar_of(self.graph, self.uses.producers, b) == 2.0 else None
        left, right = self._centred(a), self._centred(b)
        return left if left == right else None

    def _last_axis(self, node: Node) -> bool:
        assert isinstance(node.op, ReduceMean)
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
                    out.append((value, constant))
        return out

    def _vector(self, x: str, constant: Array) -> Array:
        channels = self.graph.type(x).shape[-1]
        assert isinstance(channels, int)
        return np.array(np.broadcast_to(constant.reshape(-1), (channels,)), np.float32)
