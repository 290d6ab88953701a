"""GELU from whatever elementwise formula an exporter wrote.

A product is ``gelu(x)`` when it is a function of x and scalar constants only, has a gate in it (``SMOOTH`` or
``CORNERS``), and agrees with a GELU on a grid over [-8, 8] to 2e-5. The forms are told apart by that bound:
erf and tanh differ by 4.7e-4, the quick form ``x * sigmoid(1.702 x)`` from both by 2e-2, SiLU
``x * sigmoid(x)`` and hard-swish ``x * min(max(x + 3, 0), 6) / 6`` from all others by 0.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array, Op
from intc.ops.elementwise import Add, Div, Erf, Exp, Max, Min, Mul, Pow, Relu, Sigmoid, Sub, Tanh
from intc.ops.gelu import FORMS, Gelu
from intc.passes.rewrite import rewrite, scalar_of

GRID: Final = np.linspace(-8, 8, 641, dtype=np.float32)
SMOOTH: Final = (Erf, Tanh, Sigmoid)
CORNERS: Final = (Relu, Max)  # of hard-swish; else they may as well stand in front of the argument
REGION: Final = (*SMOOTH, *CORNERS, Add, Sub, Mul, Div, Pow, Exp, Min)
DEPTH: Final = 12


@dataclass(frozen=True)
class RecoverGelu:
    """``tolerance``: the largest difference from a GELU on the grid."""

    tolerance: float = 2e-5
    name: str = "recover_gelu"

    def run(self, graph: Graph) -> Graph:
        producers = graph.producers()
        want = {form: Gelu(form).evaluate(GRID, sizes={}) for form in FORMS}

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            if not isinstance(node.op, (Mul, Div)):
                return None
            for x in _arguments(graph, producers, node):
                got = _on_grid(graph, producers, node.output, x, DEPTH)
                if got is None or graph.type(x).shape != graph.type(node.output).shape:
                    continue
                for form, values in want.items():
                    if got.shape == values.shape and np.abs(got - values).max() <= self.tolerance:
                        return b.emit(Gelu(form), names[x], name=node.output, source=node.source)
            return None

        return rewrite(graph, rule)


def _arguments(graph: Graph, producers: Mapping[str, Node], root: Node) -> list[str]:
    """The values that the root's gate is a scalar function of, nearest first."""
    gate = _gate(producers, root, SMOOTH, DEPTH) or _gate(producers, root, CORNERS, DEPTH)
    found: dict[str, None] = {}
    pending = list(gate.inputs) if gate else []
    while pending and len(found) < DEPTH:
        value = pending.pop(0)
        if scalar_of(graph, producers, value) is None and value not in found:
            found[value] = None
            node = producers.get(value)
            if node is not None and isinstance(node.op, REGION):
                pending += node.inputs
    return list(found)


def _gate(producers: Mapping[str, Node], node: Node, kinds: tuple[type[Op], ...], depth: int) -> Node | None:
    """The first operator of ``kinds`` that ``node`` adds up, multiplies or cuts off."""
    if isinstance(node.op, kinds):
        return node
    if depth == 0 or not isinstance(node.op, (Add, Mul, Div, Min)):
        return None
    inner = (producers[x] for x in node.inputs if x in producers)
    return next((gate for n in inner if (gate := _gate(producers, n, kinds, depth - 1))), None)


def _on_grid(graph: Graph, producers: Mapping[str, Node], value: str, x: str, depth: int) -> Array | None:
    """``value`` as a function of ``x`` on the grid; None if it depends on anything else."""
    if value == x:
        return GRID
    constant = scalar_of(graph, producers, value)
    if constant is not None:
        return np.full(1, constant, np.float32)
    node = producers.get(value)
    if node is None or depth == 0 or not isinstance(node.op, REGION):
        return None
    inputs = [_on_grid(graph, producers, i, x, depth - 1) for i in node.inputs]
    known = [a for a in inputs if a is not None]
    if len(known) != len(inputs):
        return None
    with np.errstate(all="ignore"):
        return node.op.evaluate(*known, sizes={})
