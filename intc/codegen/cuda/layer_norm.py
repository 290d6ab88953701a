"""``shift_layer_norm`` with one warp a row."""

from __future__ import annotations

from typing import Final

from intc.codegen.cuda.print_tir import TYPES
from intc.codegen.program import Arg, IntArg, Launch, Program, SizeArg, ValueArg
from intc.ir.dims import product
from intc.ir.graph import Node
from intc.ops.shift import ShiftLayerNorm

THREADS: Final = 128  # as in layer_norm.cuh


def lower_shift_layer_norm(program: Program, node: Node) -> None:
    op, shape = node.op, program.type(node.inputs[0]).shape
    assert isinstance(op, ShiftLayerNorm)
    rows = product(shape[:-1])
    names = ("x", "gamma", "beta", "y")
    types = [TYPES[program.type(v).dtype] for v in (*node.inputs, node.output)]
    pointers = [f"{kind}* {name}" for kind, name in zip(types, names, strict=True)]
    params = ", ".join([*pointers, "i64 eps, i64 e, i32 rows"])
    sizes = f"{shape[-1]}, {op.lo}, {op.hi}, {str(op.centred).lower()}"
    call = f"layer_norm<{sizes}>({', '.join(names)}, eps, e, rows);"

    def build() -> str:
        name = f"layer_norm_{len(program.kernels)}"
        head = f'extern "C" __global__ void __launch_bounds__({THREADS}) {name}({params})'
        return f"{head} {{\n  wait_for_inputs();\n  {call}\n}}"

    kernel = program.kernel("layer_norm", (params, call), build)
    args: list[Arg] = [*map(program.operand, node.inputs), ValueArg(node.output)]
    args += [IntArg(op.eps_q), IntArg(op.e), SizeArg(rows)]
    program.add(kernel, args, node.output, node.source, [Launch(kernel, ((rows, THREADS // 32),), THREADS)])
