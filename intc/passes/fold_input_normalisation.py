"""Normalisation of a convolution's input, and the scales of a quantiser per channel, move into its weights.

``conv(a * x + c, W) + b = conv(x, W * a) + (b + sum_k W[:, k] * c[k])`` with a and c one number per input
channel. Where the convolution pads, only the factor moves (padding is zero after normalisation, not before).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array
from intc.ops.conv import Conv
from intc.ops.elementwise import Add, Cast, Div, Mul, Sub
from intc.ops.fake_quantize import FakeQuantize
from intc.passes.rewrite import rewrite


@dataclass(frozen=True)
class FoldInputNormalisation:
    """Chains from a graph input (or its cast from integers), or from a quantiser, to a convolution with
    constant weights.
    """

    name: str = "fold_input_normalisation"

    def run(self, graph: Graph) -> Graph:
        producers = graph.producers()

        def rule(b: Builder, node: Node, names: Mapping[str, str]) -> str | None:
            if not isinstance(node.op, Conv) or any(x not in graph.constants for x in node.inputs[1:]):
                return None
            outputs, depth = graph.constants[node.inputs[1]].shape[:2]
            channels = depth * node.op.groups
            x, factor, shift = _affine(graph, producers, node.inputs[0], channels)
            cast = producers.get(x)
            first = cast.inputs[0] if cast is not None and isinstance(cast.op, Cast) else x
            starts = first in graph.inputs or (cast is not None and isinstance(cast.op, FakeQuantize))
            if not starts or x == node.inputs[0] or (np.any(shift) and any(node.op.pads)):
                return None
            weight = graph.constants[node.inputs[1]].astype(np.float64)
            bias = graph.constants[node.inputs[2]].astype(np.float64) if len(node.inputs) == 3 else 0.0
            group = np.arange(outputs) // (outputs // node.op.groups)  # of every output
            factors, shifts = (a.reshape(node.op.groups, depth)[group] for a in (factor, shift))
            bias = bias + np.einsum("okhw,ok->o", weight, shifts)
            w = b.constant(
                f"{node.inputs[1]}.normalised", (weight * factors[:, :, None, None]).astype(np.float32)
            )
            c = b.constant(f"{node.output}.bias", np.asarray(bias, np.float32))
            return b.emit(node.op, names[x], w, c, name=node.output, source=node.source)

        return rewrite(graph, rule)


def _affine(
    graph: Graph, producers: Mapping[str, Node], value: str, channels: int
) -> tuple[str, Array, Array]:
    """(x, a, c) with ``value = a * x + c`` per channel, x as far back as constants allow."""
    factor, shift = np.ones(channels), np.zeros(channels)
    while (node := producers.get(value)) is not None and isinstance(node.op, (Add, Sub, Mul, Div)):
        left, right = node.inputs
        if left in graph.constants and isinstance(node.op, (Add, Mul)):
            left, right = right, left
        constant = graph.constants.get(right)
        vector = _per_channel(constant, channels) if constant is not None else None
        if vector is None or left in graph.constants or graph.type(left).rank != 4:
            break
        if isinstance(node.op, (Add, Sub)):
            shift = shift + factor * (vector if isinstance(node.op, Add) else -vector)
        else:
            factor = factor * (vector if isinstance(node.op, Mul) else 1.0 / vector)
        value = left
    return value, factor, shift


def _per_channel(constant: Array, channels: int) -> Array | None:
    """One number per channel of an NCHW image, or None where the constant varies otherwise."""
    if constant.ndim > 4:
        return None
    shape = (1,) * (4 - constant.ndim) + constant.shape
    if shape[0] != 1 or shape[1] not in (1, channels) or shape[2:] != (1, 1):
        return None
    return np.broadcast_to(constant.reshape(-1), (channels,)).astype(np.float64)
