"""``attention`` as one kernel: the template of ``attention.cuh`` around the printed requantisation."""

from __future__ import annotations

from typing import Final

import numpy as np

from intc.codegen.cpu.fused import score_strides
from intc.codegen.cuda.algebra import Dyadic, Parameter, Term, Text, method
from intc.codegen.cuda.printer import TYPES
from intc.codegen.program import Arg, IntArg, Launch, Program, SizeArg, ValueArg
from intc.errors import CodegenError
from intc.ir.dims import Dim
from intc.ir.graph import Node
from intc.ops.fused import Attention

ROWS: Final = 16  # of queries, a warp
WARPS: Final = 8  # of a block, at most
BESIDE: Final = {"mask": "u8", "summand": "i32"}
STRIDES: Final = ("batch", "head", "query")


def lower_attention(program: Program, node: Node) -> None:
    op = node.op
    assert isinstance(op, Attention)
    types = [program.type(x) for x in node.inputs[:3]]
    batch, sq, sk = types[0].shape[0], types[0].shape[-2], types[1].shape[-2]
    if any(name not in program.graph.constants for name in node.inputs[3:5]):
        raise CodegenError("multipliers must be constants")
    rows = [t.shape[-1] if t.rank == 3 else 0 for t in types]
    offsets = (op.q_offset, op.k_offset, op.v_offset)
    aligned = all(n % 16 == 0 for n in (*rows, *offsets, op.head_dim) if isinstance(n, int))
    out_row = 0 if op.heads_first else op.heads * op.head_dim
    depth = op.head_dim + -op.head_dim % 32
    warps = block_warps(sq, 4 if depth > 128 else WARPS)
    keys = 64 if depth <= 256 and not (isinstance(sk, int) and sk <= 32) else 32
    fixed = sk if isinstance(sk, int) else 0
    y = TYPES[op.dtype]
    sizes = (op.heads, op.kv_heads, op.head_dim, *rows, out_row, aligned, warps, keys, fixed)
    options = (op.masked, op.biased, op.masked and op.uniform)
    numbers = ", ".join(str(x).lower() for x in (*sizes, *options))
    multipliers = [
        f"const {TYPES[program.type(x).dtype]}* __restrict__ {f}"
        for x, f in zip(node.inputs[3:5], "me", strict=True)
    ]
    operands = ["mask"] * op.masked + ["summand"] * op.biased
    params = [f"{TYPES[t.dtype]}* {name}" for t, name in zip(types, "qkv", strict=True)]
    params += [f"{y}* out", "i32 sq", "i32 sk", *multipliers]
    params += ["i32 factor", "i32 shift", *(f"{BESIDE[name]}* {name}" for name in operands)]
    params += [f"i32 {name}_{axis}" for name in operands for axis in STRIDES]
    beside = [
        f"{{{name}, {', '.join(f'{name}_{axis}' for axis in STRIDES)}}}" if name in operands else "{}"
        for name in BESIDE
    ]
    call = f"attention<{numbers}>(q, k, v, out, sq, sk, Weights(factor, shift), {', '.join(beside)}, finish);"
    fields = "".join(f"  {field};\n" for field in multipliers)
    finish = f"{{\n{fields}{_finish(program, node)}}}"

    def build() -> str:
        name = f"attention_{len(program.kernels)}"
        return (
            f"struct Finish_{name} {finish};\n"
            f'extern "C" __global__ void __launch_bounds__({32 * warps}) {name}({", ".join(params)}) {{\n'
            f"  const Finish_{name} finish{{m, e}};\n  {call}\n}}"
        )

    kernel = program.kernel("attention", (numbers, *params, finish), build)
    args: list[Arg] = list(map(program.operand, node.inputs[:3], offsets))
    args += [ValueArg(node.output), SizeArg(sq), SizeArg(sk)]
    args += map(program.operand, node.inputs[3:5])
    args += [IntArg(op.m, "int32"), IntArg(op.shift, "int32"), *map(program.operand, node.inputs[5:])]
    for name in node.inputs[5:]:
        args += map(SizeArg, score_strides(program.type(name).shape, (batch, op.heads, sq, sk)))
    stages = 1 if 0 < fixed <= keys else 2
    q_bytes, k_bytes, v_bytes = (np.dtype(t.dtype).itemsize for t in types)
    shared = (ROWS * warps * q_bytes + stages * keys * (k_bytes + v_bytes)) * depth
    launch = Launch(kernel, ((batch * op.heads, 1), (sq, ROWS * warps)), 32 * warps, shared)
    program.add(kernel, args, node.output, node.source, [launch])


def block_warps(sq: Dim, most: int) -> int:
    """Warps a block, so that blocks of at most ``most`` of them share the rows evenly."""
    if not isinstance(sq, int):
        return min(4, most)
    groups = max(1, -(-sq // ROWS))
    return -(-groups // -(-groups // most))


def _finish(program: Program, node: Node) -> str:
    """The function that makes an output of a normalised sum."""
    op = node.op
    assert isinstance(op, Attention)
    column = "0" if program.type(node.inputs[3]).shape in ((), (1,)) else "column"
    ns, constants = Text(), program.graph.constants
    m, e = (
        Parameter(ns.bind(Term(f"{field}[{column}]")), constants[name])
        for field, name in zip("me", node.inputs[3:5], strict=True)
    )
    value = Dyadic.prepare(m, e, 32767).apply(ns, Term("value"), op.lo, op.hi)
    return method("i32 operator()(i32 value, i32 column)", [*ns.lines, f"return {value.text};"])
