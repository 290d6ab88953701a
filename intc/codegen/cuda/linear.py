"""``linear`` on tensor cores: the template of ``linear.cuh`` around an epilogue printed from the formulas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from intc.codegen.cuda.algebra import Dyadic, Parameter, Term, Text, method
from intc.codegen.cuda.gelu import short_poly_gelu
from intc.codegen.cuda.printer import TYPES
from intc.codegen.program import Arg, Launch, Layout, Program, SizeArg, ValueArg, ZerosArg
from intc.errors import CodegenError
from intc.ir.dims import Dim, product
from intc.ir.graph import Node
from intc.ops.fused import WIDE, Linear, activation
from intc.ops.intervals import Intervals
from intc.ops.scalar import POLY_GELU

DEPTH: Final = 64  # values of a sum that lie together in the weights
GROUPS: Final = 90  # the architecture with instructions for groups of warps


@dataclass(frozen=True)
class Tile:
    """A block's rows and columns, how much of the sum a stage holds, warps along rows and columns, stages."""

    rows: int
    columns: int
    depth: int
    row_warps: int
    column_warps: int
    stages: int
    resident: int  # how many blocks a multiprocessor shall hold, where groups of warps multiply
    grouped: bool = False  # only there: elsewhere one block would take the registers of two

    @property
    def threads(self) -> int:
        return 32 * self.row_warps * self.column_warps

    def data_bytes(self, x_bytes: int, y_bytes: int) -> int:
        """Bytes for the buffers, and after them for the outputs."""
        buffers = self.stages * self.depth * (self.rows * x_bytes + self.columns)
        return max(buffers, self.rows * (self.columns * y_bytes + 16))


HUGE: Final = Tile(128, 192, 64, 2, 4, 5, 2, grouped=True)
LARGE: Final = Tile(128, 128, 64, 2, 4, 5, 2)
BROAD: Final = Tile(128, 96, 64, 4, 2, 5, 3)
MIDDLE: Final = Tile(128, 64, 64, 4, 2, 4, 2)
SMALL: Final = Tile(64, 64, 64, 2, 2, 6, 2)
DEEP: Final = Tile(64, 64, 128, 2, 2, 4, 3)


def lower_linear(program: Program, node: Node) -> None:
    op, graph = node.op, program.graph
    assert isinstance(op, Linear)
    x, w, bias = node.inputs[:3]
    if w not in graph.constants or bias not in graph.constants:
        raise CodegenError("weights and bias must be constants")
    x_type, y_type = program.type(x), program.type(node.output)
    k, n = graph.constants[w].shape
    rows: Dim = product(x_type.shape[:-1])
    tiles = _tiles(k, n, np.dtype(x_type.dtype).itemsize, GROUPS in program.target.architectures)
    depth = k + -k % max(tile.depth for tile in tiles)
    columns = n + -n % math.lcm(*(tile.columns for tile in tiles))
    blocks = (depth // DEPTH, 4, 16, columns // 8, 8)
    layout = Layout((depth - k, columns - n), blocks, (0, 3, 1, 4, 2), "int8")
    epilogue = Epilogue(program, node)
    args: list[Arg] = [program.operand(x), program.graph_constant(w, layout), program.operand(bias)]
    args += [ValueArg(node.output), ZerosArg(), SizeArg(rows), *map(program.operand, node.inputs[3:])]
    x_bytes, y_bytes = (np.dtype(t.dtype).itemsize for t in (x_type, y_type))
    splits = max(1, k // (4 * DEPTH))
    launches = []
    for tile in tiles:
        data_bytes = tile.data_bytes(x_bytes, y_bytes)
        shared = data_bytes + tile.columns // 2 * epilogue.pair_bytes + 8 * tile.stages
        shape = (tile.rows, tile.columns, tile.depth, tile.row_warps, tile.column_warps, tile.stages)
        sizes = (*shape, k, n, columns)
        source = epilogue.source(data_bytes)
        key = (sizes, x_type.dtype, y_type.dtype, source)
        head = f"{TYPES[x_type.dtype]}* x, i8* w, i32* bias, {TYPES[y_type.dtype]}* y, u8* zeros, i32 rows"
        params = ", ".join([head, *epilogue.fields])
        call = f"linear<{', '.join(map(str, sizes))}>(x, w, bias, y, zeros, rows, epilogue);"

        def build(tile: Tile = tile, call: str = call, params: str = params, source: str = source) -> str:
            name = f"linear_{len(program.kernels)}"
            names = ", ".join(field.split()[-1] for field in epilogue.fields)
            bounds = f"{tile.threads}, WARPGROUP_MMA ? {tile.resident} : 1"
            body = f"#if WARPGROUP_MMA\n  {call}\n#else\n  __trap();\n#endif" if tile.grouped else f"  {call}"
            return (
                f"{source.replace('EPILOGUE', f'Epilogue_{name}')}"
                f'extern "C" __global__ void __launch_bounds__({bounds}) {name}({params}) {{\n'
                f"  const Epilogue_{name} epilogue{{{names}}};\n{body}\n}}"
            )

        kernel = program.kernel("linear", key, build)
        grid = ((n, tile.columns), (rows, tile.rows))
        zeros, most = 4 * tile.rows * tile.columns, splits if tile.rows == SMALL.rows else 1
        only = GROUPS if tile.grouped else 0
        launches.append(Launch(kernel, grid, tile.threads, shared, most, zeros, architecture=only))
    program.add(launches[0].kernel, args, node.output, node.source, launches)


def _tiles(k: int, n: int, x_bytes: int, grouped: bool) -> list[Tile]:
    """The tiles that waste little of a sum over ``k`` and of ``n`` columns."""
    if x_bytes > 1:
        return [MIDDLE, SMALL]
    wide = [HUGE, LARGE] if grouped else [LARGE]
    wide = [tile for tile in wide if n % tile.columns == 0 or n >= 8 * LARGE.columns]
    wide += [BROAD] * (n % BROAD.columns == 0)
    return [*(wide or [MIDDLE]), DEEP if -k % DEEP.depth * 8 <= k else SMALL]


class Epilogue:
    """The struct that makes outputs of sums: ``prepare`` gathers what a column needs, once for all its rows,
    and the call turns a sum, with the residual's element, into an output. Columns lie two by two, as threads
    have them.

    ``fields`` are the kernel's parameters behind those of ``linear``, one for each input behind the bias.
    """

    def __init__(self, program: Program, node: Node) -> None:
        op = node.op
        assert isinstance(op, Linear)
        self._program = program
        self._operands, self._inputs = node.inputs[:3], iter(node.inputs[3:])
        self.fields: list[str] = []
        self._columns, self._values = Text(), Text()
        self._members: list[Term] = []
        self._residual = "i32"
        self._result = self._lines(op)

    @property
    def pair_bytes(self) -> int:
        total = sum(16 if member.wide else 8 for member in self._members)
        return total + -total % 16

    def source(self, columns_at: int) -> str:
        """The struct, called EPILOGUE; ``columns_at`` is where columns lie in shared memory."""
        members = sorted(self._members, key=lambda member: not member.wide)
        declared = " ".join(f"{member.type} {member.text}[2];" for member in members)
        residual = any(field.endswith(" residual") for field in self.fields)
        return "".join(
            [
                "struct EPILOGUE {\n",
                *(f"  {field};\n" for field in self.fields),
                f"  using Residual = {self._residual};\n",
                *([] if residual else ["  static constexpr const i32* residual = nullptr;\n"]),
                f"  static constexpr bool has_residual = {str(residual).lower()};\n",
                f"  static constexpr int columns_at = {columns_at};\n",
                f"  struct alignas(16) Pair {{ {declared} }};\n",
                method("void prepare(Pair& of, int which, i32 bias, i32 column)", self._columns.lines),
                method(
                    "i32 operator()(i32 sum, const Pair& of, int which, i32 summand)",
                    [*self._values.lines, f"return {self._result.text};"],
                ),
                "};\n",
            ]
        )

    def _lines(self, op: Linear) -> Term:
        x, w, bias = (self._program.type(name) for name in self._operands)
        depth = self._program.graph.constants[self._operands[1]].shape[0]
        total, reach = Term("sum"), x.magnitude * w.magnitude * depth
        if op.raw:
            return total + self._member(Term("bias"))
        start: tuple[Term, int] | None = (Term("bias"), bias.magnitude)
        if op.gelu:
            total, reach = self._gelu(op, self._rescaling(reach, start), total)
            start = None
            if op.centred:
                centre = self._parameter()
                start = (Term(f"-{centre.term.text}"), int(np.abs(centre.array).max()))
        rescale = self._rescaling(reach, start)
        if not op.residual:
            return rescale.apply(self._values, total, op.lo, op.hi)
        total = rescale.apply(self._values, total, -WIDE, WIDE)
        summand = self._program.type(next(self._inputs))
        self._residual = TYPES[summand.dtype]
        self.fields.append(f"const {self._residual}* __restrict__ residual")
        branch = self._rescaling(summand.magnitude).apply(self._values, Term("summand"), -WIDE, WIDE)
        return self._values.minimum(self._values.maximum(total + branch, op.lo), op.hi)

    def _gelu(self, op: Linear, rescale: Dyadic, total: Term) -> tuple[Term, int]:
        """The GELU of the rescaled sum, and how far from 0 it can be."""
        formula, bounds = activation(op.gelu, op.frac), Intervals()
        ends = formula(bounds, bounds.interval(-32767, 32767))
        if op.gelu in POLY_GELU and rescale.bound < 2**31:
            value = short_poly_gelu(self._values, rescale.unclipped(self._values, total), op.frac, op.gelu)
        else:
            value = formula(self._values, rescale.apply(self._values, total, -32767, 32767))
        return self._values.bind(value), max(-ends.lo, ends.hi)

    def _parameter(self) -> Parameter:
        """The next input's element in a column, and all of them."""
        name = next(self._inputs)
        if name not in self._program.graph.constants:
            raise CodegenError("multipliers must be constants")
        array = self._program.graph.constants[name]
        field = f"p{len(self.fields)}"
        self.fields.append(f"const {TYPES[self._program.type(name).dtype]}* __restrict__ {field}")
        element = f"{field}[{'0' if array.shape == (1,) else 'column'}]"
        return Parameter(self._columns.bind(Term(element)), array)

    def _member(self, value: Term) -> Term:
        """``value`` of a column as the call sees it."""
        member = Term(f"m{len(self._members)}", value.wide)
        self._columns.lines.append(f"of.{member.text}[which] = {value.text};")
        self._members.append(member)
        return Term(f"of.{member.text}[which]", value.wide)

    def _rescaling(self, reach: int, bias: tuple[Term, int] | None = None) -> Dyadic:
        """By the next two inputs, of numbers within ``reach`` of 0 and a bias of at most so much."""
        m, e = self._parameter(), self._parameter()
        return Dyadic.prepare(m, e, reach, bias).each(self._member)
