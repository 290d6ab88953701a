"""Windows with one thread an element, where the shared kernel would give a thread a whole row."""

from __future__ import annotations

from intc.codegen.cpu import movement
from intc.codegen.cpu.strided import View, row_major
from intc.codegen.program import Program
from intc.ir.dims import Shape
from intc.ir.graph import Node
from intc.ops.im2col import Im2col


def lower_im2col(program: Program, node: Node) -> None:
    """Without padding, windows are a strided view of the image."""
    op = node.op
    assert isinstance(op, Im2col)
    if any(op.pads):
        movement.lower_im2col(program, node)
        return
    x_type = program.type(node.inputs[0])
    order = (0, 2, 3, 1) if op.channels_last else (0, 1, 2, 3)
    sizes = [x_type.shape[order.index(axis)] for axis in range(4)]
    batch, channels, lines, columns = (row_major(x_type.shape)[order.index(axis)] for axis in range(4))
    oh, ow = op.output_size(x_type)
    window = (lines * op.dilations[0], columns * op.dilations[1])
    shape: Shape = (sizes[0], oh, ow, sizes[1], *op.kernel)
    strides = (batch, lines * op.strides[0], columns * op.strides[1], channels, *window)
    if op.channels_last:
        shape, strides = (*shape[:3], *op.kernel, sizes[1]), (*strides[:3], *window, channels)
    read, write = View(strides), View(row_major(shape))
    movement.copy(program, node.inputs[0], node.output, shape, read, write, node.source)
