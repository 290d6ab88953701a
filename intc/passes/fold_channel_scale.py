"""A factor and a shift per output channel behind a convolution move into its weights and bias.

``conv(x, W) * a + c = conv(x, W * a) + c`` with a and c one number per channel [C, 1, 1]: batch
normalisation, where exporters leave it, and layer scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array
from intc.ops.conv import Conv
from intc.ops.elementwise import Add, Mul
from intc.passes.match import Uses
from intc.passes.rewrite import rewrite


@dataclass(frozen=True)
class FoldChannelScale:
    """Runs of products and sums with constants whose only reader is the next one."""

    name: str = "fold_channel_scale"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            found = _affine(graph, uses, node)
            user = uses.sole_user(node.output, Add, Mul)
            if found is None or (user is not None and _step(graph, user) is not None):
                return None  # not behind a convolution, or not the last step
            conv, factor, shift = found
            weight = graph.constants[conv.inputs[1]] * factor[:, None, None, None]
            bias = graph.constants[conv.inputs[2]] if len(conv.inputs) == 3 else np.zeros(1, np.float32)
            w = b.constant(f"{node.output}.weight", weight.astype(np.float32))
            c = b.constant(f"{node.output}.bias", (bias * factor + shift).astype(np.float32))
            return b.emit(conv.op, names[conv.inputs[0]], w, c, name=node.output, source=conv.source)

        return rewrite(graph, rule)


def _step(graph: Graph, node: Node) -> tuple[str, Array] | None:
    """The value and the [C] constant that ``node`` combines along the channels of NCHW maps."""
    shape = graph.type(node.output).shape
    if len(shape) != 4:
        return None
    for value, other in (node.inputs, node.inputs[::-1]):
        constant = graph.constants.get(other)
        if constant is None or graph.type(value).shape != shape:
            continue
        full = constant.reshape((1,) * (4 - constant.ndim) + constant.shape)
        if full.shape in ((1, 1, 1, 1), (1, shape[1], 1, 1)):
            return value, np.broadcast_to(full.reshape(-1), (shape[1],))  # type: ignore[arg-type]
    return None


def _affine(graph: Graph, uses: Uses, node: Node) -> tuple[Node, Array, Array] | None:
    """The convolution with constant weights behind which ``node`` is ``conv * factor + shift``."""
    if not isinstance(node.op, Add | Mul):
        return None
    step = _step(graph, node)
    inner = uses.only(step[0], Conv, Add, Mul) if step is not None else None
    if step is None or inner is None:
        return None
    constant = step[1]
    if isinstance(inner.op, Conv):
        if any(x not in graph.constants for x in inner.inputs[1:]):
            return None
        one, zero = np.ones(len(constant)), np.zeros(len(constant))
        return (inner, constant * one, zero) if isinstance(node.op, Mul) else (inner, one, constant + zero)
    found = _affine(graph, uses, inner)
    if found is None:
        return None
    conv, factor, shift = found
    return (
        (conv, factor * constant, shift * constant)
        if isinstance(node.op, Mul)
        else (conv, factor, shift + constant)
    )
