"""Data movement: every operator is a copy between two strided views, or a copy at computed positions."""

from __future__ import annotations

import numpy as np
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.strided import View, broadcast_view, loop, row_major
from intc.codegen.cpu.transpose import crossing, transposing_copy
from intc.codegen.cpu.window import placed
from intc.codegen.kernel import Expr, Frame, storage, store
from intc.codegen.program import Program
from intc.ir.dims import Dim, Shape, product
from intc.ir.graph import Node
from intc.ops.im2col import Im2col
from intc.ops.movement import Concat, Expand, Gather, GatherElements, Lookup, Slice, Transpose
from intc.ops.positions import Positions


def copy(
    program: Program, source: str, output: str, shape: Shape, read: View, write: View, label: str = ""
) -> None:
    """Append a stage that copies ``shape`` elements from one view of ``source`` to one view of ``output``."""

    itemsize = np.dtype(storage(program.type(source).dtype)).itemsize
    axis = (
        crossing(shape, read, write, itemsize) if program.target.native and not program.target.gpu else None
    )

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        if axis is None:
            loop(frame, shape, (read, write), lambda at: store(y, x[at[0]], at[1]))
        else:
            transposing_copy(frame, shape, read, write, axis, itemsize)

    sizes = (*shape, *read.strides, read.offset, *write.strides, write.offset)
    program.generic("copy", (shape, read, write), [source], output, body, source=label, dims=sizes)


def lower_reshape(program: Program, node: Node) -> None:
    """No code: the same bytes under another shape."""
    program.aliases[node.output] = node.inputs[0]


def lower_transpose(program: Program, node: Node) -> None:
    assert isinstance(node.op, Transpose)
    strides = row_major(program.type(node.inputs[0]).shape)
    shape = program.type(node.output).shape
    read = View(tuple(strides[p] for p in node.op.perm))
    copy(program, node.inputs[0], node.output, shape, read, View(row_major(shape)), node.source)


def lower_slice(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, Slice)
    strides = list(row_major(program.type(node.inputs[0]).shape))
    offset = strides[op.axis] * op.start
    strides[op.axis] = strides[op.axis] * op.step
    shape = program.type(node.output).shape
    copy(
        program,
        node.inputs[0],
        node.output,
        shape,
        View(tuple(strides), offset),
        View(row_major(shape)),
        node.source,
    )


def lower_expand(program: Program, node: Node) -> None:
    assert isinstance(node.op, Expand)
    shape = program.type(node.output).shape
    read = broadcast_view(program.type(node.inputs[0]).shape, shape)
    copy(program, node.inputs[0], node.output, shape, read, View(row_major(shape)), node.source)


def lower_concat(program: Program, node: Node) -> None:
    assert isinstance(node.op, Concat)
    strides = row_major(program.type(node.output).shape)
    offset: Dim = 0
    for name in node.inputs:
        shape = program.type(name).shape
        write = View(strides, offset * strides[node.op.axis])
        copy(program, name, node.output, shape, View(row_major(shape)), write, node.source)
        offset = offset + shape[node.op.axis]


def lower_gather(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, Gather)
    data, indices = (program.type(x) for x in node.inputs)
    outer, inner = product(data.shape[: op.axis]), product(data.shape[op.axis + 1 :])
    count, size = product(indices.shape), data.shape[op.axis]
    shape = (outer, count, inner)
    read, picked = View((size * inner, 0, 1)), View((0, 1, 0))

    def body(frame: Frame) -> None:
        x, picks, y = (frame.buffers[n] for n in ("x0", "x1", "y"))

        def element(at: list[Expr]) -> None:
            row = _wrapped(picks[at[1]], frame.dim(size))
            store(y, x[at[0] + row * frame.dim(inner)], at[2])

        loop(frame, shape, (read, picked, View(row_major(shape))), element)

    program.generic("gather", op, node.inputs, node.output, body, source=node.source)


def _wrapped(pick: Expr, size: Expr) -> Expr:
    """An index of ``size`` entries, counted from the end where it is negative."""
    place = T.bind(T.cast(pick, "int32"))
    return T.Select(place < 0, place + size, place)


def lower_gather_elements(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, GatherElements)
    data, shape = program.type(node.inputs[0]).shape, program.type(node.output).shape
    strides = row_major(data)
    along, size = strides[op.axis], data[op.axis]
    read = View(tuple(0 if i == op.axis else s for i, s in enumerate(strides)))
    dense = View(row_major(shape))

    def body(frame: Frame) -> None:
        x, picks, y = (frame.buffers[n] for n in ("x0", "x1", "y"))

        def element(at: list[Expr]) -> None:
            place = _wrapped(picks[at[1]], frame.dim(size))
            store(y, x[at[0] + place * frame.dim(along)], at[2])

        loop(frame, shape, (read, dense, dense), element)

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)


def lower_lookup(program: Program, node: Node) -> None:
    """The rows of a strided view of the table."""
    op = node.op
    assert isinstance(op, Lookup)
    table, shape = program.type(node.inputs[0]).shape, program.type(node.output).shape
    width = product(table[1:])
    strides = (*(s * width for s in op.steps), *row_major(table)[1:])
    read = View(strides, op.offset * width)
    copy(program, node.inputs[0], node.output, shape, read, View(row_major(shape)), node.source)


def lower_positions(program: Program, node: Node) -> None:
    """The positions of a strided view are the numbers themselves."""
    op = node.op
    assert isinstance(op, Positions)
    views = (View(op.steps, op.offset), View(row_major(op.shape)))

    def body(frame: Frame) -> None:
        loop(frame, op.shape, views, lambda at: store(frame.buffers["y"], at[0], at[1]))

    program.generic("positions", op, [], node.output, body, source=node.source, dims=(*op.steps, op.offset))


def lower_im2col(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, Im2col)
    if op.channels_last:
        _im2col_channels_last(program, node, op)
        return
    x_type = program.type(node.inputs[0])
    batch, channels, height, width = x_type.shape
    (oh, ow), (kh, kw) = op.output_size(x_type), op.kernel
    top, left = op.pads[:2]
    padded = any(op.pads)

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        area = height * width
        with frame.share(batch * oh) as row:
            oy = T.bind(T.truncmod(row, frame.dim(oh)))
            image = T.bind(T.truncdiv(row, frame.dim(oh)) * frame.dim(channels * area))
            start = T.bind(row * frame.dim(ow * channels * kh * kw))
            with (
                T.serial(0, frame.dim(ow)) as ox,
                T.serial(0, frame.dim(channels)) as c,
                T.serial(0, kh) as ky,
            ):
                iy = T.bind(oy * op.strides[0] - top + ky * op.dilations[0])
                to = T.bind(start + ((ox * frame.dim(channels) + c) * kh + ky) * kw)
                ix = T.bind(ox * op.strides[1] - left)
                base = T.bind(image + c * frame.dim(area) + iy * frame.dim(width) + ix)
                with T.serial(0, kw) as kx:
                    step = kx * op.dilations[1]
                    value = x[base + step]
                    if padded:
                        inside = T.And(
                            T.And(iy >= 0, iy < frame.dim(height)),
                            T.And(ix + step >= 0, ix + step < frame.dim(width)),
                        )
                        value = T.if_then_else(inside, value, T.IntImm(x.dtype, op.fill))
                    store(y, value, to + kx)

    program.generic("im2col", op, node.inputs, node.output, body, source=node.source)


def _im2col_channels_last(program: Program, node: Node, op: Im2col) -> None:
    """A run of channels for each tap of each window."""
    x_type = program.type(node.inputs[0])
    batch, height, width, channels = x_type.shape
    (oh, ow), (kh, kw) = op.output_size(x_type), op.kernel
    top, left = op.pads[:2]

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        lanes = frame.dim(channels)
        with frame.share(batch * (oh * ow)) as pixel:
            oy, ox, image = placed(frame, pixel, (oh, ow), height * width)
            with T.serial(0, kh) as ky, T.serial(0, kw) as kx:
                iy = T.bind(oy * op.strides[0] - top + ky * op.dilations[0])
                ix = T.bind(ox * op.strides[1] - left + kx * op.dilations[1])
                rows = T.And(iy >= 0, iy < frame.dim(height))
                inside = T.bind(T.And(rows, T.And(ix >= 0, ix < frame.dim(width))))
                base = T.bind(T.Select(inside, (image + iy * frame.dim(width) + ix) * lanes, 0))
                to = T.bind(((pixel * kh + ky) * kw + kx) * lanes)
                with T.serial(0, lanes) as c:
                    store(y, T.Select(inside, x[base + c], T.IntImm(x.dtype, op.fill)), to + c)

    program.generic("im2col", op, node.inputs, node.output, body, source=node.source)
