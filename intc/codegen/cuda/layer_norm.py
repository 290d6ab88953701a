"""``shift_layer_norm`` by as many lanes of a warp as a row is worth."""

from __future__ import annotations

from typing import Final

from intc.codegen.cuda.printer import TYPES
from intc.codegen.program import Arg, IntArg, Launch, Program, SizeArg, ValueArg
from intc.errors import CodegenError
from intc.ir.dims import product
from intc.ir.graph import Node
from intc.ops.shift import ShiftLayerNorm

THREADS: Final = 128  # as in layer_norm.cuh
PIECES: Final = 3  # of eight values, for each lane where there are lanes enough
WIDEST: Final = 2**18  # channels up to which deviations can be scaled in 32 bits


def lower_shift_layer_norm(program: Program, node: Node) -> None:
    op, shape = node.op, program.type(node.inputs[0]).shape
    assert isinstance(op, ShiftLayerNorm)
    rows, channels = product(shape[:-1]), shape[-1]
    assert isinstance(channels, int)
    if channels >= WIDEST:
        raise CodegenError(f"the GPU's kernel takes rows of less than {WIDEST} channels, not {channels}")
    lanes = next(n for n in (1, 2, 4, 8, 16, 32) if n == 32 or 8 * PIECES * n >= channels)
    names = ("x", "gamma", "beta", "y")
    types = [TYPES[program.type(v).dtype] for v in (*node.inputs, node.output)]
    pointers = [f"{kind}* {name}" for kind, name in zip(types, names, strict=True)]
    params = ", ".join([*pointers, "i64 eps, i32 e, i32 rows"])
    sizes = f"{channels}, {lanes}, {op.lo}, {op.hi}, {str(op.centred).lower()}"
    call = f"layer_norm<{sizes}>({', '.join(names)}, eps, e, rows);"

    def build() -> str:
        name = f"layer_norm_{len(program.kernels)}"
        head = f'extern "C" __global__ void __launch_bounds__({THREADS}) {name}({params})'
        return f"{head} {{\n  {call}\n}}"

    kernel = program.kernel("layer_norm", (params, call), build)
    args: list[Arg] = [*map(program.operand, node.inputs), ValueArg(node.output)]
    args += [IntArg(op.eps_q), IntArg(op.e, "int32"), SizeArg(rows)]
    program.add(
        kernel, args, node.output, node.source, [Launch(kernel, ((rows, THREADS // lanes),), THREADS)]
    )
