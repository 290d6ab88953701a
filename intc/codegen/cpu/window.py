"""Windows over channels-last images: the channels of a pixel are the vector lanes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu import chains, depthwise
from intc.codegen.cpu.strided import View, loop, row_major
from intc.codegen.kernel import Expr, Frame, store
from intc.codegen.program import Program
from intc.ir.dims import Dim, Shape, product
from intc.ir.graph import Node
from intc.ops.movement import Pad
from intc.ops.window import GroupedConv, MaxPool


def lower_pad(program: Program, node: Node) -> None:
    """Every run of elements behind the last padded axis is a copy, or zeros.

    Where the last axis itself is padded there are no such runs: zeros everywhere, then the image inside.
    """
    op = node.op
    assert isinstance(op, Pad)
    inner, shape = program.type(node.inputs[0]).shape, program.type(node.output).shape
    last = max(
        (i + 1 for i, ends in enumerate(zip(op.before, op.after, strict=True)) if any(ends)), default=0
    )

    def runs(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        length, steps = frame.dim(product(shape[last:])), row_major(inner[:last])
        with frame.share(product(shape[:last])) as run:
            rest, source, inside = run, T.IntImm("int32", 0), T.IntImm("bool", 1)
            for axis in range(last - 1, -1, -1):
                at = T.bind((T.truncmod(rest, frame.dim(shape[axis])) if axis else rest) - op.before[axis])
                rest = T.bind(T.truncdiv(rest, frame.dim(shape[axis]))) if axis else rest
                source = source + at * frame.dim(steps[axis])
                if op.before[axis] or op.after[axis]:
                    inside = T.And(inside, T.And(at >= 0, at < frame.dim(inner[axis])))
            base, to = T.bind(source * length), T.bind(run * length)
            with T.If(inside):
                with T.Then(), T.serial(0, length) as i:
                    store(y, x[base + i], to + i)
                with T.Else(), T.serial(0, length) as i:
                    store(y, T.IntImm(y.dtype, 0), to + i)

    if last < len(shape):
        program.generic("pad", op, node.inputs, node.output, runs, source=node.source)
        return
    strides = row_major(shape)
    offset = sum((b * s for b, s in zip(op.before, strides, strict=True)), 0)

    def fill(frame: Frame) -> None:
        y = frame.buffers["y"]
        loop(frame, shape, (View(strides),), lambda at: store(y, T.IntImm(y.dtype, 0), at[0]))

    def copy(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        views = (View(row_major(inner)), View(strides, offset))
        loop(frame, inner, views, lambda at: store(y, x[at[0]], at[1]))

    program.generic("fill", op, node.inputs, node.output, fill, source=node.source)
    program.generic("pad", op, node.inputs, node.output, copy, source=node.source)


def placed(frame: Frame, pixel: Expr, size: tuple[Dim, Dim], area: Dim) -> tuple[Expr, Expr, Expr]:
    """Row and column of a window in the output [B, *size], and the first pixel of its image of ``area``."""
    oh, ow = map(frame.dim, size)
    ox, line = T.bind(T.truncmod(pixel, ow)), T.bind(T.truncdiv(pixel, ow))
    return T.bind(T.truncmod(line, oh)), ox, T.bind(T.truncdiv(line, oh) * frame.dim(area))


@contextmanager
def pooled(frame: Frame, op: MaxPool, shape: Shape, size: tuple[Dim, Dim], pixel: Expr) -> Iterator[Expr]:
    """Loops over the window of a pixel of the output [B, *size]: the pixels of images of ``shape`` in it."""
    _, height, width, _ = shape
    (sy, sx), (dy, dx), (top, left) = op.strides, op.dilations, op.pads[:2]
    oy, ox, image = placed(frame, pixel, size, height * width)
    with T.serial(0, op.kernel[0]) as ky, T.serial(0, op.kernel[1]) as kx:
        iy, ix = T.bind(oy * sy - top + ky * dy), T.bind(ox * sx - left + kx * dx)
        inside = T.And(T.And(iy >= 0, iy < frame.dim(height)), T.And(ix >= 0, ix < frame.dim(width)))
        with T.If(inside), T.Then():
            yield image + iy * frame.dim(width) + ix


def lower_max_pool(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, MaxPool)
    type_ = program.type(node.inputs[0])
    batch, oh, ow, channels = program.type(node.output).shape
    lowest = type_.interval[0]

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        lanes = frame.dim(channels)
        with frame.share(batch * oh * ow) as pixel:
            to = T.bind(pixel * lanes)
            with T.serial(0, lanes) as c:
                store(y, T.IntImm(y.dtype, lowest), to + c)
            with pooled(frame, op, type_.shape, (oh, ow), pixel) as source:
                base = T.bind(source * lanes)
                with T.serial(0, lanes) as c:
                    T.buffer_store(y, T.max(y[to + c], x[base + c]), [to + c])

    program.generic(op.name, (op, lowest), node.inputs, node.output, body, source=node.source)


def lower_grouped_conv(program: Program, node: Node) -> None:
    """One product of a channel with the outputs of its group at a time, summed into the output row."""
    op = node.op
    assert isinstance(op, GroupedConv)
    if depthwise.applies(program, node):
        chains.lower_chain(program, node)
        return
    batch, height, width, channels = program.type(node.inputs[0]).shape
    kh, kw, depth, outputs = (d for d in program.type(node.inputs[1]).shape if isinstance(d, int))
    oh, ow = program.type(node.output).shape[1:3]
    (sy, sx), (dy, dx) = op.strides, op.dilations
    each = outputs // op.groups

    def body(frame: Frame) -> None:
        x, w, y = (frame.buffers[n] for n in ("x0", "x1", "y"))

        def add(to: Expr, value: Expr, factor: Expr) -> None:
            T.buffer_store(y, y[to] + T.cast(value, "int32") * T.cast(factor, "int32"), [to])

        with frame.share(batch * oh * ow) as pixel:
            oy, ox, image = placed(frame, pixel, (oh, ow), height * width)
            to = T.bind(pixel * outputs)
            with T.serial(0, outputs) as o:
                T.buffer_store(y, T.IntImm("int32", 0), [to + o])
            with T.serial(0, kh) as ky, T.serial(0, kw) as kx:
                position = image + (oy * sy + ky * dy) * frame.dim(width) + ox * sx + kx * dx
                base = T.bind(position * frame.dim(channels))
                taps = T.bind((ky * kw + kx) * (depth * outputs))
                if depth == 1 and each == 1:
                    with T.serial(0, outputs) as o:
                        add(to + o, x[base + o], w[taps + o])
                else:
                    with T.serial(0, op.groups) as g, T.serial(0, depth) as c:
                        value = T.bind(x[base + g * depth + c])
                        row = T.bind(taps + c * outputs + g * each)
                        with T.serial(0, each) as o:
                            add(to + g * each + o, value, w[row + o])

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)
