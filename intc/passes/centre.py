"""The inputs of constant products are centred, so that symmetric integers fit skewed channels too.

``x @ W + b = (x - c) @ W + (b + c @ W)`` for every c per channel, taken as the middle of the calibrated
range. In a LayerNorm, c folds into beta; a GELU gets one constant sum; a residual sum that reads the same
value has c added to the bias of its other branch. The function is unchanged up to float rounding.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from intc.calibration.observers import Statistics
from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Array
from intc.ops.elementwise import Add
from intc.ops.gelu import Gelu
from intc.ops.layer_norm import LayerNorm
from intc.ops.matmul import MatMul
from intc.passes.match import Uses


@dataclass(frozen=True)
class Centre:
    """``stats`` gains the statistics of the values that the pass makes; ``gelu``: whether GELUs take part."""

    stats: dict[str, Statistics] = field(repr=False)
    gelu: bool = True
    name: str = "centre"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)
        centres: dict[str, Array] = {}
        added: dict[str, Array] = {}
        for node in graph.nodes:
            centre = self._centre(graph, node)
            changes = None if centre is None else _changes(graph, uses, node, centre)
            if centre is not None and changes is not None:
                centres[node.output] = centre
                for value, change in changes:
                    added[value] = added.get(value, np.zeros(1)) + change

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            if node.output in centres:
                value = _centred(b, node, inputs, centres[node.output])
                self.stats[value] = self.stats[node.output].shifted(-centres[node.output])
                return value
            if node.output in added:
                x, bias = inputs if inputs[1] in graph.constants else inputs[::-1]
                total = (graph.constants[bias] + added[node.output]).astype(np.float32)
                return b.emit(
                    Add(), x, b.constant(f"{bias}.centred", total), name=node.output, source=node.source
                )
            return None

        return rebuild(graph, visit)

    def _centre(self, graph: Graph, node: Node) -> Array | None:
        stats = self.stats.get(node.output)
        width = graph.type(node.output).shape[-1:]
        if stats is None or stats.low.shape != width or node.output in graph.outputs:
            return None
        if isinstance(node.op, LayerNorm):
            affine = all(x in graph.constants and graph.constants[x].shape == width for x in node.inputs[1:3])
            if len(node.inputs) != 3 or not affine:
                return None
        elif not (self.gelu and isinstance(node.op, Gelu)):
            return None
        return np.asarray((stats.low.astype(np.float64) + stats.high) / 2)


def _changes(graph: Graph, uses: Uses, node: Node, centre: Array) -> list[tuple[str, Array]] | None:
    """What each biased sum must gain when ``node`` gives ``centre`` less; None where a reader is of another
    kind.
    """
    out: list[tuple[str, Array]] = []
    for user in uses.users[node.output]:
        if isinstance(user.op, MatMul) and user.inputs[0] == node.output:
            weight = graph.constants.get(user.inputs[1])
            total = uses.sole_user(user.output, Add)
            if weight is None or weight.ndim != 2 or total is None or not _biased(graph, total):
                return None
            out.append((total.output, centre @ weight.astype(np.float64)))
        elif isinstance(user.op, Add) and isinstance(node.op, LayerNorm) and len(set(user.inputs)) == 2:
            other = user.inputs[1] if user.inputs[0] == node.output else user.inputs[0]
            branch = uses.only(other, Add)
            if branch is None or not _biased(graph, branch):
                return None
            if graph.type(other).shape != graph.type(node.output).shape:
                return None
            out.append((other, centre))
        else:
            return None
    return out if any(isinstance(u.op, MatMul) for u in uses.users[node.output]) else None


def _biased(graph: Graph, node: Node) -> bool:
    """Whether ``node`` adds one constant per channel to a computed value of its own shape."""
    constants = [x for x in node.inputs if x in graph.constants]
    rest = [x for x in node.inputs if x not in graph.constants]
    if len(constants) != 1 or len(rest) != 1:
        return False
    shape = graph.type(node.output).shape
    return graph.type(rest[0]).shape == shape and graph.constants[constants[0]].shape == shape[-1:]


def _centred(b: Builder, node: Node, inputs: tuple[str, ...], centre: Array) -> str:
    name = f"{node.output}.centred"
    if isinstance(node.op, LayerNorm):
        beta = b.constant(f"{name}.beta", (b.graph.constants[inputs[2]] - centre).astype(np.float32))
        return b.emit(node.op, *inputs[:2], beta, name=name, source=node.source)
    y = b.emit(node.op, *inputs, name=node.output, source=node.source)
    return b.emit(
        Add(), y, b.constant(f"{name}.offset", (-centre).astype(np.float32)), name=name, source=node.source
    )
