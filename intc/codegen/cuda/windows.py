"""Windows by threads that have what one access holds, where the shared kernels give a thread whole rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.strided import View, loop, row_major
from intc.codegen.cpu.window import placed, pooled
from intc.codegen.cuda.elementwise import ACCESS, WIDTHS, divides, loaded
from intc.codegen.kernel import Expr, Frame, local, storage, store
from intc.codegen.program import Program
from intc.ir.dims import Dim, Shape, exact_div
from intc.ir.graph import Node
from intc.ops.im2col import Im2col
from intc.ops.movement import Pad
from intc.ops.window import GroupedConv, MaxPool

SUMS: Final = 8  # of a thread, at most


def lower_im2col(program: Program, node: Node) -> None:
    """Windows are a strided view of the image, framed by what stands for zero."""
    op = node.op
    assert isinstance(op, Im2col)
    x_type = program.type(node.inputs[0])
    order = (0, 2, 3, 1) if op.channels_last else (0, 1, 2, 3)
    sizes = [x_type.shape[order.index(axis)] for axis in range(4)]
    batch, channels, lines, columns = (row_major(x_type.shape)[order.index(axis)] for axis in range(4))
    oh, ow = op.output_size(x_type)
    (sy, sx), (dy, dx), (top, left) = op.strides, op.dilations, op.pads[:2]
    shape: Shape = (sizes[0], oh, ow, sizes[1], *op.kernel)
    strides: Shape = (batch, lines * sy, columns * sx, channels, lines * dy, columns * dx)
    line: Shape = (0, sy, 0, 0, dy, 0)
    column: Shape = (0, 0, sx, 0, 0, dx)
    if op.channels_last:
        shape, strides, line, column = ((*s[:3], *s[4:], s[3]) for s in (shape, strides, line, column))
    source = View(strides, 0 - lines * top - columns * left)
    places = [(View(line, -top), sizes[2]), (View(column, -left), sizes[3])]
    _lower_copy(program, node, shape, source, places if any(op.pads) else [], op.fill)


def lower_pad(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, Pad)
    inner, shape = program.type(node.inputs[0]).shape, program.type(node.output).shape
    steps = row_major(inner)
    offset = sum((0 - b * step for b, step in zip(op.before, steps, strict=True)), 0)
    places = [
        (View(tuple(int(other == axis) for other in range(len(shape))), 0 - before), inner[axis])
        for axis, (before, after) in enumerate(zip(op.before, op.after, strict=True))
        if before or after
    ]
    _lower_copy(program, node, shape, View(steps, offset), places, 0)


def _lower_copy(
    program: Program, node: Node, shape: Shape, source: View, places: Sequence[tuple[View, Dim]], fill: int
) -> None:
    """Elements of the output's ``shape`` are those of the input at ``source``, or ``fill`` where one of
    ``places`` is beyond its size.
    """
    dtype = storage(program.type(node.output).dtype)
    alone = source.strides[-1] != 1 or any(view.strides[-1] != 0 for view, _ in places)
    width = _width(dtype, (1,) if alone else (shape[-1], *source.strides[:-1], source.offset))
    groups = (*shape[:-1], exact_div(shape[-1], width))
    seen = (source, View(row_major(shape)), *(view for view, _ in places))
    views = [View((*v.strides[:-1], v.strides[-1] * width), v.offset) for v in seen]

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]

        def copy(at: list[Expr]) -> None:
            with T.vectorized(0, width) as j:
                T.buffer_store(y, x[at[0] + j], [at[1] + j])

        def group(at: list[Expr]) -> None:
            if not places:
                copy(at)
                return
            at = [T.bind(place) for place in at]
            inside: Expr = T.IntImm("bool", 1)
            for place, (_, size) in zip(at[2:], places, strict=True):
                inside = T.And(inside, T.And(place >= 0, place < frame.dim(size)))
            with T.If(inside):
                with T.Then():
                    copy(at)
                with T.Else(), T.unroll(0, width) as j:
                    store(y, T.IntImm(y.dtype, fill), at[1] + j)

        loop(frame, groups, views, group)

    key = (node.op, width)
    program.generic(node.op.name, key, node.inputs, node.output, body, source=node.source, dims=shape)


def lower_max_pool(program: Program, node: Node) -> None:
    """A few channels of a window for each thread."""
    op = node.op
    assert isinstance(op, MaxPool)
    type_ = program.type(node.inputs[0])
    batch, oh, ow, channels = program.type(node.output).shape
    lanes, lowest = _width(storage(type_.dtype), (channels,)), type_.interval[0]
    pieces = exact_div(channels, lanes)

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        with frame.share(batch * oh * ow * pieces) as item:
            pixel, piece = _pixel(frame, item, pieces)
            best = _cell(y.dtype, lanes, lowest)
            with pooled(frame, op, type_.shape, (oh, ow), pixel) as source:
                values = loaded(x, T.bind(source * frame.dim(channels) + piece * lanes), lanes)
                with T.unroll(0, lanes) as j:
                    T.buffer_store(best, T.max(best[j], values[j]), [j])
            _stored(y, best, item, lanes)

    program.generic(op.name, (op, lowest, lanes), node.inputs, node.output, body, source=node.source)


def lower_grouped_conv(program: Program, node: Node) -> None:
    """A few sums of a pixel for each thread, all of one group or each of a channel of its own."""
    op = node.op
    assert isinstance(op, GroupedConv)
    batch, height, width, channels = program.type(node.inputs[0]).shape
    kh, kw, depth, outputs = (d for d in program.type(node.inputs[1]).shape if isinstance(d, int))
    oh, ow = program.type(node.output).shape[1:3]
    (sy, sx), (dy, dx) = op.strides, op.dilations
    each = outputs // op.groups
    own = depth == 1 and each == 1
    lanes = next(w for w in WIDTHS if w <= SUMS and (outputs if own else each) % w == 0)
    pieces = outputs // lanes

    def body(frame: Frame) -> None:
        x, w, y = (frame.buffers[n] for n in ("x0", "x1", "y"))
        with frame.share(batch * oh * ow * pieces) as item:
            pixel, piece = _pixel(frame, item, pieces)
            oy, ox, image = placed(frame, pixel, (oh, ow), height * width)
            first = T.bind(piece * lanes if own else T.truncdiv(piece * lanes, each) * depth)
            sums = _cell("int32", lanes, 0)
            with T.serial(0, kh) as ky, T.serial(0, kw) as kx:
                position = image + (oy * sy + ky * dy) * frame.dim(width) + ox * sx + kx * dx
                base = T.bind(position * frame.dim(channels) + first)
                taps = T.bind((ky * kw + kx) * (depth * outputs) + piece * lanes)
                values = loaded(x, base, lanes) if own else None
                with T.serial(0, depth) as c:
                    factors = loaded(w, T.bind(taps + c * outputs), lanes)
                    value = None if own else T.bind(T.cast(x[base + c], "int32"))
                    with T.unroll(0, lanes) as j:
                        left = T.cast(values[j], "int32") if values is not None else value
                        T.buffer_store(sums, sums[j] + left * T.cast(factors[j], "int32"), [j])
            _stored(y, sums, item, lanes)

    program.generic(op.name, (op, lanes), node.inputs, node.output, body, source=node.source)


def _width(dtype: str, steps: Sequence[Dim]) -> int:
    """The elements of an access that divide all of ``steps``."""
    most = ACCESS // np.dtype(dtype).itemsize
    return next(w for w in WIDTHS if w <= most and all(divides(w, step) for step in steps))


def _pixel(frame: Frame, item: Expr, pieces: Dim) -> tuple[Expr, Expr]:
    count = frame.dim(pieces)
    return T.bind(T.truncdiv(item, count)), T.bind(T.truncmod(item, count))


def _cell(dtype: str, lanes: int, value: int) -> Any:
    """Registers that hold ``value`` each."""
    cell = local(dtype, lanes)
    with T.unroll(0, lanes) as j:
        T.buffer_store(cell, T.IntImm(dtype, value), [j])
    return cell


def _stored(y: Any, cell: Any, item: Expr, lanes: int) -> None:
    with T.vectorized(0, lanes) as j:
        T.buffer_store(y, cell[j], [item * lanes + j])
