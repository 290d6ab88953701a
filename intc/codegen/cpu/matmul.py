"""Matrix product of two activations, and sums: plain loops that LLVM vectorises along the contiguous axis."""

from __future__ import annotations

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.strided import View, broadcast_view, row_major, rows
from intc.codegen.kernel import Frame, local, storage
from intc.codegen.program import Program
from intc.ir.dims import product
from intc.ir.graph import Node
from intc.ops.reduce import ArgMax, CumSum, ReduceMax, ReduceSum


def lower_matmul(program: Program, node: Node) -> None:
    """[.., M, K] x [.., K, N] with broadcast leading axes, int32 sums."""
    a, b, out = (program.type(n).shape for n in (*node.inputs, node.output))
    a = a if len(a) > 1 else (1, *a)
    lead = out[: len(out) - (2 if len(program.type(node.inputs[0]).shape) > 1 else 1)]
    m, k, n = a[-2], a[-1], b[-1]
    a_view, b_view = broadcast_view(a[:-2], lead), broadcast_view(b[:-2], lead)
    shape = (*lead, m)
    a_rows = View((*(s * m * k for s in a_view.strides), k))
    b_rows = View((*(s * k * n for s in b_view.strides), 0))

    def body(frame: Frame) -> None:
        x, w, y = (frame.buffers[name] for name in ("x0", "x1", "y"))
        width = frame.dim(n)
        with rows(frame, shape, (a_rows, b_rows)) as (row, (at, bt)):
            to = T.bind(row * width)
            with T.serial(0, width) as j:
                T.buffer_store(y, T.IntImm("int32", 0), [to + j])
            with T.serial(0, frame.dim(k)) as i:
                value = T.bind(T.cast(x[at + i], "int32"))
                line = T.bind(bt + i * width)
                with T.serial(0, width) as j:
                    T.buffer_store(y, y[to + j] + value * T.cast(w[line + j], "int32"), [to + j])

    program.generic("matmul", (), node.inputs, node.output, body, source=node.source)


def lower_reduce(program: Program, node: Node) -> None:
    """ReduceSum and ReduceMax."""
    op = node.op
    assert isinstance(op, ReduceSum | ReduceMax)
    shape, dtype = program.type(node.inputs[0]).shape, storage(program.type(node.output).dtype)
    axes = {a % len(shape) for a in op.axes}
    strides = row_major(shape)
    kept = [i for i in range(len(shape)) if i not in axes]
    summed = sorted(axes)
    read = View(tuple(strides[i] for i in kept))

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        total = local(dtype)
        with rows(frame, tuple(shape[i] for i in kept), (read,)) as (row, (base,)):
            first = T.IntImm(dtype, 0) if isinstance(op, ReduceSum) else x[base]
            T.buffer_store(total, first, [0])
            with T.serial(0, frame.dim(product(shape[i] for i in summed))) as flat:
                position, rest = base, flat
                for i in reversed(summed):
                    size = frame.dim(shape[i])
                    position = position + T.truncmod(rest, size) * frame.dim(strides[i])
                    rest = T.truncdiv(rest, size)
                value = T.cast(x[position], dtype)
                combined = total[0] + value if isinstance(op, ReduceSum) else T.max(total[0], value)
                T.buffer_store(total, combined, [0])
            T.buffer_store(y, total[0], [row])

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)


def lower_arg_max(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, ArgMax)
    shape = program.type(node.inputs[0]).shape
    kept = [i for i in range(len(shape)) if i != op.axis]
    strides = row_major(shape)
    read = View(tuple(strides[i] for i in kept))

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        best, at = local("int64"), local("int64")
        with rows(frame, tuple(shape[i] for i in kept), (read,)) as (row, (base,)):
            T.buffer_store(best, T.cast(x[base], "int64"), [0])
            T.buffer_store(at, T.IntImm("int64", 0), [0])
            with T.serial(0, frame.dim(shape[op.axis])) as i:
                value = T.bind(T.cast(x[base + i * frame.dim(strides[op.axis])], "int64"))
                better = T.bind(value >= best[0] if op.last else value > best[0])
                T.buffer_store(at, T.Select(better, T.cast(i, "int64"), at[0]), [0])
                T.buffer_store(best, T.max(best[0], value), [0])
            T.buffer_store(y, at[0], [row])

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)


def lower_cum_sum(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, CumSum)
    shape, dtype = program.type(node.output).shape, program.type(node.output).dtype
    kept = [i for i in range(len(shape)) if i != op.axis]
    strides = row_major(shape)
    outer = View(tuple(strides[i] for i in kept))

    def body(frame: Frame) -> None:
        x, y = frame.buffers["x0"], frame.buffers["y"]
        size, step = frame.dim(shape[op.axis]), frame.dim(strides[op.axis])
        total = local(dtype)
        with rows(frame, tuple(shape[i] for i in kept), (outer,)) as (_, (base,)):
            T.buffer_store(total, T.IntImm(dtype, 0), [0])
            with T.serial(0, size) as i:
                at = T.bind(base + (size - 1 - i if op.reverse else i) * step)
                value = T.bind(T.cast(x[at], dtype))
                if op.exclusive:
                    T.buffer_store(y, total[0], [at])
                T.buffer_store(total, total[0] + value, [0])
                if not op.exclusive:
                    T.buffer_store(y, total[0], [at])

    program.generic(op.name, op, node.inputs, node.output, body, source=node.source)
