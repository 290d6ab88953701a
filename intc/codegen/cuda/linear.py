"""``linear`` on tensor cores: the template of ``linear.cuh`` around an epilogue printed from the formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from intc.codegen.cuda.algebra import Term, Text
from intc.codegen.cuda.print_tir import TYPES
from intc.codegen.program import Arg, Launch, Layout, Program, SizeArg, ValueArg, ZerosArg
from intc.errors import CodegenError
from intc.ir.dims import Dim, product
from intc.ir.graph import Node
from intc.ops import scalar
from intc.ops.fused import WIDE, Linear, activation

DEPTH: Final = 64  # values of the sum that a stage holds
WIDEST: Final = 128  # columns to which weights are padded


@dataclass(frozen=True)
class Tile:
    """A block's rows and columns, its warps along each, and its buffers."""

    rows: int
    columns: int
    row_warps: int
    column_warps: int
    stages: int

    @property
    def threads(self) -> int:
        return 32 * self.row_warps * self.column_warps

    def shared(self, x_bytes: int, y_bytes: int) -> int:
        """Bytes for the buffers, and after them for the outputs."""
        buffers = self.stages * DEPTH * (self.rows * x_bytes + self.columns)
        return max(buffers, self.rows * (self.columns * y_bytes + 16))


LARGE: Final = Tile(128, 128, 2, 4, 4)
MIDDLE: Final = Tile(128, 64, 2, 2, 4)
SMALL: Final = Tile(64, 64, 2, 2, 4)


def lower_linear(program: Program, node: Node) -> None:
    op, graph = node.op, program.graph
    assert isinstance(op, Linear)
    x, w, bias = node.inputs[:3]
    if w not in graph.constants or bias not in graph.constants:
        raise CodegenError("weights and bias must be constants")
    x_type, y_type = program.type(x), program.type(node.output)
    k, n = graph.constants[w].shape
    rows: Dim = product(x_type.shape[:-1])
    layout = Layout((-k % DEPTH, -n % WIDEST), (k + -k % DEPTH, n + -n % WIDEST), (1, 0), "int8")
    args: list[Arg] = [program.operand(x), program.graph_constant(w, layout), program.operand(bias)]
    args += [ValueArg(node.output), ZerosArg(), SizeArg(rows), *map(program.operand, node.inputs[3:])]
    types = [TYPES[program.type(name).dtype] for name in node.inputs[3:]]
    broadcast = [program.type(name).shape == (1,) for name in node.inputs[3:]]
    epilogue, body = _epilogue(program, op, n, types, broadcast)
    x_bytes, y_bytes = (np.dtype(t.dtype).itemsize for t in (x_type, y_type))
    splits = max(1, k // (4 * DEPTH))
    wide = n % LARGE.columns == 0 or n >= 8 * LARGE.columns
    launches = []
    for tile in (LARGE if wide and x_bytes == 1 and y_bytes < 4 else MIDDLE, SMALL):
        sizes = (tile.rows, tile.columns, tile.row_warps, tile.column_warps, tile.stages, k, n)
        key = (sizes, x_type.dtype, y_type.dtype, body, tuple(types))
        head = f"{TYPES[x_type.dtype]}* x, i8* w, i32* bias, {TYPES[y_type.dtype]}* y, u8* zeros, i32 rows"
        params = ", ".join([head, *(f"{kind}* __restrict__ p{i}" for i, kind in enumerate(types))])
        call = f"linear<{', '.join(map(str, sizes))}>(x, w, bias, y, zeros, rows, epilogue);"

        def build(tile: Tile = tile, call: str = call, params: str = params) -> str:
            name = f"linear_{len(program.kernels)}"
            return (
                f"{epilogue.replace('EPILOGUE', f'Epilogue_{name}')}"
                f'extern "C" __global__ void __launch_bounds__({tile.threads}) {name}({params}) {{\n'
                f"  const Epilogue_{name} epilogue{{{', '.join(f'p{i}' for i in range(len(types)))}}};\n"
                f"  {call}\n}}"
            )

        kernel = program.kernel("linear", key, build)
        grid = ((rows, tile.rows), (n, tile.columns))
        small = tile is SMALL
        launches.append(
            Launch(
                kernel,
                grid,
                tile.threads,
                tile.shared(x_bytes, y_bytes),
                splits if small else 1,
                4 * tile.rows * tile.columns,
            )
        )
    program.add(launches[0].kernel, args, node.output, node.source, launches)


def _epilogue(
    program: Program, op: Linear, n: int, types: list[str], broadcast: list[bool]
) -> tuple[str, str]:
    """The struct ``EPILOGUE`` that makes an output of a sum, and its body; ``p0, p1, ..`` are the inputs
    behind the bias, in the order of ``Linear``.
    """
    ns, acc = Text(), Term("sum")
    number = iter(range(len(types)))

    def parameter(wide: bool = True) -> Term:
        i = next(number)
        term = ns.bind(Term(f"p{i}[{'0' if broadcast[i] else 'column'}]"))
        return term.widened() if wide else term

    def requantize(x: Term, lo: int, hi: int) -> Term:
        m, e = ns.bind(parameter()), ns.bind(parameter())
        value: Term = scalar.requantize(ns, x.widened(), m, e, lo, hi)
        return ns.bind(Term(f"(i32){value.text}"))

    if not op.raw:
        if op.gelu:
            acc = activation(op.gelu, op.frac)(ns, requantize(acc, -32767, 32767))
            if op.centred:
                acc = ns.bind(acc - parameter(wide=False))
        if op.residual:
            acc = requantize(acc, -WIDE, WIDE)
            i = next(number)
            r = ns.bind(Term(f"p{i}[(i64)row * {n} + column]"))
            total = acc + requantize(r, -WIDE, WIDE)
            acc = ns.minimum(ns.maximum(total, op.lo), op.hi)
        else:
            acc = requantize(acc, op.lo, op.hi)
    fields = " ".join(f"const {kind}* __restrict__ p{i};" for i, kind in enumerate(types))
    lines = "\n".join(f"    {line}" for line in [*ns.lines, f"return {acc.text};"])
    head = "  __device__ __forceinline__ i32 operator()(i32 sum, i32 row, i32 column) const {\n"
    return f"struct EPILOGUE {{\n  {fields}\n{head}{lines}\n  }}\n}};\n", lines
