"""Small helpers that every pattern-matching pass shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from intc.ir.graph import Graph, Node
from intc.ir.op import Array, Op
from intc.ops.elementwise import Add, Div, Mul, Sub, Where
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVEMENT, Concat, Expand, Reshape, Slice, Transpose
from intc.ops.softmax import Softmax

SCALED = Mul | Div
SHOWN = Add | Sub | Where | Reshape | Transpose


@dataclass(frozen=True)
class Uses:
    """Producers and consumers of a graph, looked up while a pass walks it."""

    producers: dict[str, Node]
    users: dict[str, list[Node]]
    outputs: frozenset[str]

    @classmethod
    def of(cls, graph: Graph) -> Uses:
        return cls(graph.producers(), graph.users(), frozenset(graph.outputs))

    def producer(self, value: str, *kinds: type[Op]) -> Node | None:
        """The node that computes ``value`` if its operator is one of ``kinds``."""
        node = self.producers.get(value)
        return node if node is not None and isinstance(node.op, kinds) else None

    def only(self, value: str, *kinds: type[Op]) -> Node | None:
        """Like :meth:`producer`, and ``value`` has exactly one consumer and is no output: it may be
        absorbed.
        """
        node = self.producer(value, *kinds)
        return node if node is not None and self.single(value) else None

    def single(self, value: str) -> bool:
        return len(self.users[value]) == 1 and value not in self.outputs

    def sole_user(self, value: str, *kinds: type[Op]) -> Node | None:
        """The one consumer of ``value`` if its operator is one of ``kinds``."""
        users = self.users[value]
        if len(users) == 1 and value not in self.outputs and isinstance(users[0].op, kinds):
            return users[0]
        return None


def behind_movement(producers: Mapping[str, Node], value: str) -> Node | None:
    """The node that computes what is moved, if at all, to give ``value``; None for an input or a constant."""
    while (made := producers.get(value)) is not None and isinstance(made.op, MOVEMENT):
        value = made.inputs[0]
    return made


def divided(graph: Graph, producers: Mapping[str, Node], value: str) -> bool:
    """Whether ``value`` is a quotient by a computed value, moved or not."""
    made = behind_movement(producers, value)
    return made is not None and isinstance(made.op, Div) and made.inputs[1] not in graph.constants


def keeps_channels(graph: Graph, node: Node) -> bool:
    """Whether ``node`` moves its operands without touching their last axis: every index of that axis of the
    result holds what it held before.
    """
    op, out = node.op, graph.type(node.output)
    if isinstance(op, Transpose):
        return op.perm[-1] == out.rank - 1
    if isinstance(op, Slice | Concat):
        return op.axis % out.rank != out.rank - 1
    return isinstance(op, Reshape | Expand) and graph.type(node.inputs[0]).shape[-1:] == out.shape[-1:]


def weight_of(graph: Graph, node: Node) -> Array | None:
    """The constant matrix [K, N] that ``node`` multiplies by; None for any other node."""
    weight = graph.constants.get(node.inputs[1]) if isinstance(node.op, MatMul) else None
    return weight if weight is not None and weight.ndim == 2 else None


def softmax_of(graph: Graph, users: Mapping[str, list[Node]], value: str) -> tuple[Node, float] | None:
    """The softmax that reads ``value``, scaled or with something added, and the magnitude of the constants
    that scale it.
    """
    pending, seen = [(value, 1.0)], set[str]()
    while pending:
        value, factor = pending.pop()
        seen.add(value)
        for user in users[value]:
            if isinstance(user.op, Softmax):
                return user, factor
            if isinstance(user.op, SCALED | SHOWN) and user.output not in seen:
                constant = next((graph.constants[x] for x in user.inputs if x in graph.constants), None)
                scale = 1.0
                if isinstance(user.op, SCALED) and constant is not None:
                    scale = float(np.abs(constant).max(initial=0.0)) or 1.0
                pending.append((user.output, factor / scale if isinstance(user.op, Div) else factor * scale))
    return None


def biased_product(
    graph: Graph, producers: Mapping[str, Node], value: str
) -> tuple[Node, Node | None] | None:
    """The product with a constant matrix that computes ``value``, and the sum with a constant vector between
    them, where there is one.
    """
    node, bias = producers.get(value), None
    if node is not None and isinstance(node.op, Add):
        bias = node
        left, right = node.inputs if node.inputs[1] in graph.constants else node.inputs[::-1]
        vector = graph.constants.get(right)
        if vector is None or vector.shape != graph.type(value).shape[-1:]:
            return None
        node = producers.get(left)
    return (node, bias) if node is not None and weight_of(graph, node) is not None else None
