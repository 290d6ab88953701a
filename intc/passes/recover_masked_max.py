"""Maxima over what a mask keeps: ``max(where(k, x, -big)) = max(where(k, x, min(x)))``, with ``k`` spelt
as in :mod:`intc.passes.recover_softmax_mask`.

A range that holds ``-big`` would leave no step for x. Of a row that keeps nothing the maximum is the least of
its entries, where it was ``-big``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ops.elementwise import Mul, Where
from intc.ops.reduce import ReduceMax
from intc.passes.recover_softmax_mask import Masks
from intc.passes.rewrite import rewrite


@dataclass(frozen=True)
class RecoverMaskedMax:
    """``big``: a number of at most ``-big`` counts as minus infinity."""

    big: float = 9999.0
    name: str = "recover_masked_max"

    def run(self, graph: Graph) -> Graph:
        masks = Masks(graph, graph.producers(), self.big)

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            if not isinstance(node.op, ReduceMax):
                return None
            x, keep, moves = masks.split(node.inputs[0])
            if isinstance(keep, bool) or not masks.fits(x, moves, graph.type(node.inputs[0]).shape):
                return None
            moved = names[x]
            for move in moves:
                moved = b.emit(move, moved, name=f"{x}.moved")
            minus = b.constant("minus", np.full(1, -1, np.float32))
            least = replace(node.op, keepdims=True)
            turned = b.emit(Mul(), moved, minus, name=f"{x}.negated")
            turned = b.emit(least, turned, name=f"{x}.negated.max", source=node.source)
            lowest = b.emit(Mul(), turned, minus, name=f"{x}.least")
            kept = b.emit(Where(), masks.emit(b, names, keep), moved, lowest, name=f"{x}.kept")
            return b.emit(node.op, kept, name=node.output, source=node.source)

        return rewrite(graph, rule)
