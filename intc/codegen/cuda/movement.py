"""Windows by threads that copy what one access holds, where the shared kernel gives a thread a whole row."""

from __future__ import annotations

import numpy as np
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu import movement
from intc.codegen.cpu.strided import View, loop, row_major
from intc.codegen.cuda.elementwise import ACCESS, WIDTHS, divides
from intc.codegen.kernel import Expr, Frame, storage
from intc.codegen.program import Program
from intc.ir.dims import Shape, exact_div
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
    itemsize = np.dtype(storage(x_type.dtype)).itemsize
    most = ACCESS // itemsize if strides[-1] == 1 else 1
    steps = (shape[-1], *strides[:-1])
    width = next(w for w in WIDTHS if w <= most and all(divides(w, step) for step in steps))
    groups = (*shape[:-1], exact_div(shape[-1], width))
    views = [View((*s[:-1], s[-1] * width)) for s in (strides, row_major(shape))]

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]

        def group(at: list[Expr]) -> None:
            with T.vectorized(0, width) as j:
                T.buffer_store(y, x[at[0] + j], [at[1] + j])

        loop(frame, groups, views, group)

    program.generic("im2col", (op, width), node.inputs, node.output, body, source=node.source, dims=shape)
