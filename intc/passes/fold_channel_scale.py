"""A factor and a shift per output channel behind a convolution or product move into its weights and bias.

``conv(x, W) * a + c = conv(x, W * a) + c`` with a and c one number per channel ([C, 1, 1] behind a
convolution, [C] behind a product with constant weights): batch normalisation, where exporters leave it, and
layer scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array
from intc.ops.conv import Conv
from intc.ops.elementwise import Add, Mul
from intc.ops.matmul import MatMul
from intc.passes.match import Uses
from intc.passes.rewrite import rewrite


@dataclass(frozen=True)
class _Scaled:
    """``product * factor + shift``, both [C]."""

    product: Node
    factor: Array
    shift: Array


@dataclass(frozen=True)
class FoldChannelScale:
    """Runs of products and sums with constants whose only reader is the next one."""

    name: str = "fold_channel_scale"

    def run(self, graph: Graph) -> Graph:
        uses, known = Uses.of(graph), dict[str, _Scaled | None]()

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            found = known[node.output] = _scaled(graph, uses, node, known)
            user = uses.sole_user(node.output, Add, Mul)
            more = user is not None and _scaled(graph, uses, user, known) is not None
            if found is None or more:
                return None  # nothing to fold, or not the last step
            if isinstance(found.product.op, MatMul) and (found.factor == 1).all():
                return None  # a bias, which stays where it is
            op, x = found.product.op, names[found.product.inputs[0]]
            weight = graph.constants[found.product.inputs[1]]
            if isinstance(op, MatMul):
                w = b.constant(f"{node.output}.weight", (weight * found.factor).astype(np.float32))
                if not found.shift.any():
                    return b.emit(op, x, w, name=node.output, source=found.product.source)
                c = b.constant(f"{node.output}.shift", found.shift.astype(np.float32))
                y = b.emit(op, x, w, name=f"{node.output}.product", source=found.product.source)
                return b.emit(Add(), y, c, name=node.output, source=node.source)
            w = b.constant(f"{node.output}.weight", (weight.T * found.factor).T.astype(np.float32))
            c = b.constant(f"{node.output}.bias", found.shift.astype(np.float32))
            return b.emit(op, x, w, c, name=node.output, source=found.product.source)

        return rewrite(graph, rule)


def _step(graph: Graph, node: Node, axis: int) -> tuple[str, Array] | None:
    """The value and the [C] constant that ``node`` combines along ``axis``."""
    shape = graph.type(node.output).shape
    if not shape or not isinstance(shape[axis], int):
        return None
    for value, other in (node.inputs, node.inputs[::-1]):
        constant = graph.constants.get(other)
        if constant is None or constant.ndim > len(shape) or graph.type(value).shape != shape:
            continue
        full = constant.reshape((1,) * (len(shape) - constant.ndim) + constant.shape)
        if full.size in (1, full.shape[axis]):
            return value, np.broadcast_to(full.reshape(-1).astype(np.float64), shape[axis : axis + 1 or None])  # type: ignore[arg-type]
    return None


def _scaled(graph: Graph, uses: Uses, node: Node, known: Mapping[str, _Scaled | None]) -> _Scaled | None:
    """``node`` as a product with constant weights times a factor plus a shift; what it reads is ``known``."""
    if not isinstance(node.op, Add | Mul):
        return None
    for axis, kind in ((1, Conv), (-1, MatMul)):
        if kind is Conv and graph.type(node.output).rank != 4:
            continue
        step = _step(graph, node, axis)
        inner = uses.only(step[0], kind, Add, Mul) if step is not None else None
        if step is None or inner is None:
            continue
        found = _whole(graph, inner) if isinstance(inner.op, kind) else known[inner.output]
        if found is None or not isinstance(found.product.op, kind):
            continue
        if isinstance(node.op, Add):
            return _Scaled(found.product, found.factor, found.shift + step[1])
        return _Scaled(found.product, found.factor * step[1], found.shift * step[1])
    return None


def _whole(graph: Graph, product: Node) -> _Scaled | None:
    weight = graph.constants.get(product.inputs[1])
    if weight is None or weight.ndim != (2 if isinstance(product.op, MatMul) else 4):
        return None
    if product.inputs[0] in graph.constants or any(x not in graph.constants for x in product.inputs[2:]):
        return None
    channels = weight.shape[-1] if isinstance(product.op, MatMul) else weight.shape[0]
    bias = graph.constants[product.inputs[2]] if len(product.inputs) == 3 else np.zeros(1)
    return _Scaled(product, np.ones(channels), np.zeros(channels) + bias)
