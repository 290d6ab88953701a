"""``conv(x, w)[b, o, i, j] = sum_k im2col(x)[b, p(i, j), k] * w[o, k]``: a convolution becomes one matrix
product.
"""

from __future__ import annotations

from dataclasses import dataclass

from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ops.conv import Conv
from intc.ops.elementwise import Add
from intc.ops.im2col import Im2col
from intc.ops.matmul import MatMul
from intc.ops.movement import Reshape, Transpose


@dataclass(frozen=True)
class LowerConv:
    """Ungrouped 2-D convolutions with constant weights; others stay and are refused by the integer phase."""

    name: str = "lower_conv"

    def run(self, graph: Graph) -> Graph:
        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            op = node.op
            if not isinstance(op, Conv) or op.groups != 1 or node.inputs[1] not in graph.constants:
                return None
            weight = graph.constants[node.inputs[1]]
            if weight.ndim != 4:
                return None
            out = graph.type(node.output)
            columns = Im2col((weight.shape[2], weight.shape[3]), op.strides, op.pads, op.dilations)
            patches = b.emit(columns, inputs[0], name=f"{node.output}.patches", source=node.source)
            matrix = b.constant(f"{node.inputs[1]}.matrix", weight.reshape(weight.shape[0], -1).T)
            y = b.emit(MatMul(), patches, matrix, name=f"{node.output}.product", source=node.source)
            if len(inputs) == 3:
                y = b.emit(Add(), y, inputs[2], name=f"{node.output}.biased", source=node.source)
            y = b.emit(Transpose((0, 2, 1)), y, name=f"{node.output}.channels_first", source=node.source)
            return b.emit(Reshape(out.shape), y, name=node.output, source=node.source)

        return rebuild(graph, visit)
