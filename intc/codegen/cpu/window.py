"""Windows over NCHW images, a stretch of an output row at a time so that columns are vector lanes."""

from __future__ import annotations

from collections.abc import Callable

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.expr_algebra import EXPR, wide
from intc.codegen.cpu.strided import View, loop, row_major
from intc.codegen.kernel import Expr, Frame, local, store
from intc.codegen.program import Program
from intc.ir.graph import Node
from intc.ops import scalar
from intc.ops.movement import Pad
from intc.ops.window import GroupedConv, MaxPool

STRETCH = 64  # columns at a time


def lower_pad(program: Program, node: Node) -> None:
    """Zeros everywhere, then the image inside."""
    op = node.op
    assert isinstance(op, Pad)
    inner, shape = program.type(node.inputs[0]).shape, program.type(node.output).shape
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


def _stretches(width: int, body: Callable[[Expr, Expr], None]) -> None:
    """``body(first, count)`` for every stretch of a row of ``width`` columns."""
    with T.serial(0, -(-width // STRETCH)) as part:
        first = T.bind(part * STRETCH)
        body(first, width if width <= STRETCH else T.bind(T.min(STRETCH, width - first)))


def lower_max_pool(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, MaxPool)
    batch, channels, height, width = program.type(node.inputs[0]).shape
    oh, ow = (int(d) for d in program.type(node.output).shape[2:])  # type: ignore[arg-type]
    dtype = program.type(node.output).dtype
    (sy, sx), (dy, dx), (top, left) = op.strides, op.dilations, op.pads[:2]

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        best = local("int32")
        with frame.share(batch * channels * oh) as row:
            image = T.bind(T.truncdiv(row, oh) * frame.dim(height * width))
            oy = T.bind(T.truncmod(row, oh))
            with T.serial(0, ow) as ox:
                T.buffer_store(best, T.IntImm("int32", -(2**31)), [0])
                with T.serial(0, op.kernel[0]) as ky, T.serial(0, op.kernel[1]) as kx:
                    iy, ix = oy * sy - top + ky * dy, ox * sx - left + kx * dx
                    inside = T.And(T.And(iy >= 0, iy < height), T.And(ix >= 0, ix < width))
                    value = T.if_then_else(
                        inside, T.cast(x[image + iy * width + ix], "int32"), T.IntImm("int32", -(2**31))
                    )
                    T.buffer_store(best, T.max(best[0], value), [0])
                store(y, T.cast(best[0], dtype), row * ow + ox)

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)


def lower_grouped_conv(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, GroupedConv)
    batch, channels, height, width = program.type(node.inputs[0]).shape
    outputs, depth, kh, kw = (int(d) for d in program.type(node.inputs[1]).shape)  # type: ignore[arg-type]
    oh, ow = (int(d) for d in program.type(node.output).shape[2:])  # type: ignore[arg-type]
    (sy, sx), (dy, dx) = op.strides, op.dilations
    each = outputs // op.groups

    def body(frame: Frame) -> None:
        x, w, bias, m, e, y = (frame.buffers[n] for n in ("x0", "x1", "x2", "x3", "x4", "y"))
        acc = local("int32", STRETCH)
        with frame.share(batch * outputs * oh) as row:
            oy, plane = T.bind(T.truncmod(row, oh)), T.bind(T.truncdiv(row, oh))
            o, b = T.bind(T.truncmod(plane, outputs)), T.bind(T.truncdiv(plane, outputs))
            first = T.bind(b * frame.dim(channels) + T.truncdiv(o, each) * depth)

            def stretch(start: Expr, count: Expr) -> None:
                with T.serial(0, count) as j:
                    T.buffer_store(acc, bias[o], [j])
                with T.serial(0, depth) as c, T.serial(0, kh) as ky, T.serial(0, kw) as kx:
                    factor = T.bind(T.cast(w[((o * depth + c) * kh + ky) * kw + kx], "int32"))
                    base = T.bind(((first + c) * height + oy * sy + ky * dy) * width + start * sx + kx * dx)
                    with T.serial(0, count) as j:
                        T.buffer_store(acc, acc[j] + T.cast(x[base + j * sx], "int32") * factor, [j])
                mo, eo = T.bind(wide(m[o])), T.bind(wide(e[o]))
                with T.serial(0, count) as j:
                    value = scalar.requantize(EXPR, wide(acc[j]), mo, eo, op.lo, op.hi)
                    store(y, value, row * ow + start + j)

            _stretches(ow, stretch)

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)
