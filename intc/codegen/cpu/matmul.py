"""Matrix product of two activations: plain loops that LLVM vectorises along the contiguous axis. Products of
more than a few rows run in register tiles, see :mod:`intc.codegen.cpu.product`.
"""

from __future__ import annotations

from typing import Any, Final

from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import ISAS
from intc.codegen.cpu.product import DTYPES, ProductSpec, isa_for, scratch_bytes, tasks
from intc.codegen.cpu.product import product as tiles
from intc.codegen.cpu.strided import View, broadcast_view, coalesce, rows
from intc.codegen.kernel import Frame
from intc.codegen.program import Arg, Program, ScratchArg, ShareArg, SizeArg, ValueArg
from intc.ir.dims import Dim, Shape, product
from intc.ir.graph import Node

FEW_ROWS: Final = 4  # each of which would have to pay for a part of the packing
FEW: Final = 8  # terms of a sum, or columns: vectors would be mostly empty


def lower_matmul(program: Program, node: Node) -> None:
    """[.., M, K] x [.., K, N] with broadcast leading axes, int32 sums."""
    a, b, out = (program.type(n).shape for n in (*node.inputs, node.output))
    a = a if len(a) > 1 else (1, *a)
    lead = out[: len(out) - (2 if len(program.type(node.inputs[0]).shape) > 1 else 1)]
    m, k, n = a[-2], a[-1], b[-1]
    a_view, b_view = broadcast_view(a[:-2], lead), broadcast_view(b[:-2], lead)
    if _tiled(program, node, m, k, n):
        _lower_tiles(program, node, coalesce(lead, (_times(a_view, m * k), _times(b_view, k * n))), (m, k, n))
        return
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


def _times(view: View, size: Dim) -> View:
    return View(tuple(s * size for s in view.strides))


def _tiled(program: Program, node: Node, m: Dim, k: Dim, n: Dim) -> bool:
    """Whether the product is worth packing its operands."""
    target = program.target
    types = {program.type(x).dtype for x in node.inputs}
    sizes = [(m, FEW_ROWS), (k, FEW), (n, FEW)]
    large = all(size >= few for size, few in sizes if isinstance(size, int))
    return target.native and not target.gpu and large and types <= {*DTYPES}


def _lower_tiles(
    program: Program, node: Node, lead: tuple[Shape, list[View]], sizes: tuple[Dim, Dim, Dim]
) -> None:
    """Leading axes along which the second operand repeats are rows of the first."""
    (shape, (a, b)), (m, k, n) = lead, sizes
    if len(shape) == 1 and b.strides[0] == 0 and a.strides[0] in (0, m * k):
        m, shape, a, b = m * shape[0], (1,), View((0,)), View((0,))
    types = [program.type(x).dtype for x in node.inputs]
    spec = ProductSpec(types[0], types[1], len(shape), n if isinstance(n, int) else 0)
    isa = isa_for(spec, ISAS[program.target.level])
    kernel = program.kernel("matmul", (spec, isa), lambda: tiles(spec, isa))

    def count(size: Any) -> Any:
        return tasks(spec, isa, *size)

    args: list[Arg] = [*map(program.operand, node.inputs), ValueArg(node.output)]
    args += [ScratchArg(scratch_bytes(isa, k)), *map(SizeArg, (m, k, n))]
    for axis in zip(shape, a.strides, b.strides, strict=True):
        args += map(SizeArg, axis)
    work = (product(shape), m, n)
    args += [ShareArg(count, work, end=False), ShareArg(count, work, end=True)]
    program.add(kernel, args, node.output, node.source)
