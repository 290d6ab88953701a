"""``attention`` as one kernel: the template of ``attention.cuh`` around the printed requantisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from intc.codegen.cpu.fused import score_strides
from intc.codegen.cuda.algebra import Dyadic, Parameter, Term, Text, method
from intc.codegen.cuda.printer import TYPES
from intc.codegen.program import Arg, IntArg, Launch, Program, SizeArg, ValueArg
from intc.errors import CodegenError
from intc.ir.dims import Dim
from intc.ir.graph import Node
from intc.ops import scalar
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
    sizes = (depth, *(np.dtype(t.dtype).itemsize for t in types))
    forms = _forms(sq, sk, sizes, program.target.architectures[0])
    y = TYPES[op.dtype]
    multipliers = [
        f"const {TYPES[program.type(x).dtype]}* __restrict__ {f}"
        for x, f in zip(node.inputs[3:5], "me", strict=True)
    ]
    operands = ["mask"] * op.masked + ["summand"] * op.biased
    params = [f"{TYPES[t.dtype]}* {name}" for t, name in zip(types, "qkv", strict=True)]
    params += [f"{y}* out", "i32 sq", "i32 sk", *multipliers]
    params += ["i32 factor", "i32 shift", *(f"{BESIDE[name]}* {name}" for name in operands)]
    params += [f"i32 {name}_{axis}" for name in operands for axis in STRIDES]
    strides = [score_strides(program.type(x).shape, (batch, op.heads, sq, sk)) for x in node.inputs[5:]]
    by_query = op.masked and strides[0][2] != 0
    beside = [
        f"{{{name}, {', '.join(f'{name}_{axis}' for axis in STRIDES)}}}" if name in operands else "{}"
        for name in BESIDE
    ]
    fields = "".join(f"  {field};\n" for field in multipliers)
    finish = f"{{\n{fields}{_finish(program, node)}}}"

    args: list[Arg] = list(map(program.operand, node.inputs[:3], offsets))
    args += [ValueArg(node.output), SizeArg(sq), SizeArg(sk)]
    args += map(program.operand, node.inputs[3:5])
    args += [IntArg(op.m, "int32"), IntArg(op.shift, "int32"), *map(program.operand, node.inputs[5:])]
    args += [SizeArg(stride) for each in strides for stride in each]
    fixed = (op.heads, op.kv_heads, op.head_dim, *rows, out_row, aligned)
    known = sk if isinstance(sk, int) else 0
    options = (known, op.masked, by_query, op.biased, op.masked and op.uniform, _vanishing(program, node))
    weights = f"Weights<{str(op.shift < -10).lower()}>(factor, shift)"
    launches = []
    for form in forms:
        numbers = (*fixed, form.groups, form.splits, form.keys, form.held, *options)
        listed = ", ".join(str(x).lower() for x in numbers)
        bounds = f"{form.threads}, {form.resident(depth)}"
        call = f"attention<{listed}>(q, k, v, out, sq, sk, {weights}, {', '.join(beside)}, finish);"

        def build(call: str = call, bounds: str = bounds) -> str:
            name = f"attention_{len(program.kernels)}"
            return (
                f"struct Finish_{name} {finish};\n"
                f'extern "C" __global__ void __launch_bounds__({bounds}) {name}({", ".join(params)}) {{\n'
                f"  const Finish_{name} finish{{m, e}};\n  {call}\n}}"
            )

        kernel = program.kernel("attention", (call, *params, finish), build)
        grid = ((batch * op.heads, 1), (sq, ROWS * form.groups))
        limits = ((sk, form.keys),) * (form.held and not isinstance(sk, int))
        shared = form.shared(*sizes)
        launches.append(Launch(kernel, grid, form.threads, shared, work=form.work, limits=limits))
    program.add(launches[0].kernel, args, node.output, node.source, launches)


@dataclass(frozen=True)
class Form:
    """A block's groups of 16 rows, the warps that divide the keys of each, the keys of a tile, and whether a
    tile holds all keys, whose scores stay in registers.
    """

    groups: int
    splits: int
    keys: int
    held: bool

    @property
    def threads(self) -> int:
        return 32 * self.groups * self.splits

    def resident(self, depth: int) -> int:
        """Blocks of a multiprocessor at least, by the registers for scores, sums and the rest."""
        scores = self.keys // self.splits // 2 if self.held else 48 if depth <= 64 else 80
        registers = scores + depth // 2 + (32 if depth <= 64 else 48)
        return max(1, 65536 // (self.threads * registers)) if depth <= 128 else 1

    @property
    def work(self) -> int:
        """About how long a block takes, as measured on an H100: its rows, and fetching the keys."""
        rows = ROWS * self.groups
        return 8 + rows + rows * (self.splits - 1) // 4 if self.held else 8 + 2 * rows

    def shared(self, depth: int, q_bytes: int, k_bytes: int, v_bytes: int) -> int:
        """Bytes: queries, keys and values; what warps that share rows pass to each other."""
        queries = ROWS * self.groups * q_bytes * depth
        if not self.held:
            return queries + 2 * self.keys * (k_bytes + v_bytes) * depth
        passed = self.threads * 16 * (2 * (depth // 16) + 1) * (self.splits > 1)
        front = max(queries + self.keys * k_bytes * depth, passed)
        return front + self.keys * v_bytes * depth + 8 * self.threads * (self.splits > 1)


def _forms(sq: Dim, sk: Dim, sizes: tuple[int, ...], architecture: int) -> list[Form]:
    """The ways to compute it, of which the sizes of a run decide."""
    depth = sizes[0]
    each = 128 if depth <= 64 else 64 if depth <= 128 else 0  # keys whose scores a warp can hold
    keys = 64 if depth <= 256 and not (isinstance(sk, int) and sk <= 32) else 32
    tiled = Form(block_warps(sq, 4 if depth > 64 else WARPS), 1, keys, False)
    if not isinstance(sk, int):
        held = [_held(sq, each, 1), _held(sq, 2 * each, 2), _held(1, 2 * each, 4)]
        return [*held, tiled] if each else [tiled]
    if 0 < sk <= keys:
        return [_held(sq, keys, 1)]
    forms = [_held(sq, sk, splits) for splits in (1, 2) if sk <= splits * each][:1]
    if forms:
        forms.append(_held(1, sk, 4))
    fits = {61: 48 << 10, 70: 96 << 10, 75: 64 << 10}.get(architecture, 99 << 10)
    return forms if forms and max(form.shared(*sizes) for form in forms) <= fits else [*forms, tiled]


def _held(sq: Dim, keys: int, splits: int) -> Form:
    """For at most so many keys, divided evenly."""
    share = -(-keys // (16 * splits)) * 16
    return Form(block_warps(sq, WARPS // splits), splits, splits * share, True)


def _vanishing(program: Program, node: Node) -> bool:
    """Whether a key at the lowest 32-bit number weighs nothing, whatever the largest score of its row."""
    op = node.op
    assert isinstance(op, Attention)
    q, k = (program.type(name).magnitude for name in node.inputs[:2])
    bias = program.type(node.inputs[-1]).magnitude if op.biased else 0
    distance = scalar.bounded_distance(scalar.EXACT, 2**31 - bias - op.head_dim * q * k, op.shift)
    return bool((scalar.exp2_weight(scalar.EXACT, distance, op.m) + 64) >> 7 == 0)


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
    value, reach = Term("value"), 256 * program.type(node.inputs[2]).magnitude  # a mean of the values, in Q8
    if reach > 32767:
        value, reach = ns.minimum(ns.maximum(value, -32767), 32767), 32767
    value = Dyadic.prepare(m, e, reach).apply(ns, value, op.lo, op.hi)
    return method("i32 operator()(i32 value, i32 column)", [*ns.lines, f"return {value.text};"])
