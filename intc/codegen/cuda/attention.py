"""``attention`` as one kernel: the template of ``attention.cuh`` around the printed formulas."""

from __future__ import annotations

from typing import Final

from intc.codegen.cpu.fused import score_strides
from intc.codegen.cuda.algebra import Natural, Term, Text
from intc.codegen.cuda.print_tir import TYPES
from intc.codegen.program import Arg, IntArg, Launch, Program, SizeArg, ValueArg
from intc.errors import CodegenError
from intc.ir.graph import Node
from intc.ops import scalar
from intc.ops.fused import Attention

KEYS, QUERIES, THREADS = 64, 64, 128  # as in attention.cuh
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
    widths = [n for n in (*rows, *offsets, op.head_dim) if isinstance(n, int)]
    aligned = all(n % 16 == 0 for n in widths)
    words = all(n % 4 == 0 for n in (rows[2], op.v_offset, op.head_dim) if isinstance(n, int))
    out_row = 0 if op.heads_first else op.heads * op.head_dim
    rule, fields = _rule(program, node)
    args: list[Arg] = [ValueArg(x, o) for x, o in zip(node.inputs[:3], offsets, strict=True)]
    args += [ValueArg(node.output), SizeArg(sq), SizeArg(sk)]
    args += map(program.operand, node.inputs[3:5])
    args += [IntArg(op.m, "int32"), IntArg(op.shift, "int32"), *map(program.operand, node.inputs[5:])]
    for name in node.inputs[5:]:
        args += map(SizeArg, score_strides(program.type(name).shape, (batch, op.heads, sq, sk)))
    y = TYPES[op.dtype]
    sizes = (op.heads, op.kv_heads, op.head_dim, *rows, out_row, str(aligned).lower(), str(words).lower())
    call = f"attention<{', '.join(map(str, sizes))}>(q, k, v, out, sq, sk, rule);"

    def build() -> str:
        name = f"attention_{len(program.kernels)}"
        params = ["i8* q", "i8* k", "i8* v", f"{y}* out", "i32 sq", "i32 sk", *fields]
        values = ", ".join(field.split()[-1] for field in fields)
        return (
            f"struct Rule_{name} {{\n{rule}}};\n"
            f'extern "C" __global__ void __launch_bounds__({THREADS}) {name}({", ".join(params)}) {{\n'
            f"  const Rule_{name} rule{{{values}}};\n  wait_for_inputs();\n  {call}\n}}"
        )

    kernel = program.kernel("attention", (call, y, rule), build)
    depth, columns = op.head_dim + -op.head_dim % 32, op.head_dim + -op.head_dim % 16
    shared = (QUERIES + 2 * KEYS) * depth + KEYS * columns
    launch = Launch(kernel, ((batch * op.heads, 1), (sq, QUERIES)), THREADS, shared)
    program.add(kernel, args, node.output, node.source, [launch])


def _rule(program: Program, node: Node) -> tuple[str, list[str]]:
    """The members of the kernel's rule, and its fields, which are parameters of the kernel."""
    op = node.op
    assert isinstance(op, Attention)
    fields = [
        f"const {TYPES[program.type(x).dtype]}* __restrict__ {f}"
        for x, f in zip(node.inputs[3:5], "me", strict=True)
    ]
    operands = ["mask"] * op.masked + ["summand"] * op.biased
    kinds = [f"const {'u8' if name == 'mask' else 'i32'}* __restrict__ {name}" for name in operands]
    fields += ["i32 factor", "i32 shift", *kinds]
    fields += [f"i32 {name}_{axis}" for name in operands for axis in STRIDES]
    place = "batch * {0}_batch + head * {0}_head + (i64)query * {0}_query + key"
    where = "i64 batch, i32 head, i32 query, i32 key"
    keep = f"mask[{place.format('mask')}]" if op.masked else "true"
    bias = f"summand[{place.format('summand')}]" if op.biased else "0"
    column = "0" if program.type(node.inputs[3]).shape in ((), (1,)) else "column"
    parts = [
        *(f"  {field};\n" for field in fields),
        f"  static constexpr bool uniform = {str(op.masked and op.uniform).lower()};\n",
        _method(f"bool keep({where})", [f"return {keep};"]),
        _method(f"i32 bias({where})", [f"return {bias};"]),
    ]
    ns = Text()
    shift = Natural("shift") if op.shift >= 0 else op.shift
    value = scalar.exp2_weight(ns, scalar.bounded_distance(ns, Term("distance"), shift), Term("factor"))
    parts.append(_method("i32 weight(i32 distance)", [*ns.lines, f"return {((value + 64) >> 7).text};"]))
    ns = Text()
    m, e = (ns.bind(Term(f"(i64){f}[{column}]", True)) for f in "me")
    value = scalar.requantize(ns, Term("value").widened(), m, e, op.lo, op.hi)
    parts.append(_method("i32 finish(i32 value, i32 column)", [*ns.lines, f"return (i32){value.text};"]))
    return "".join(parts), fields


def _method(head: str, lines: list[str]) -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return f"  __device__ __forceinline__ {head} const {{\n{body}  }}\n"
