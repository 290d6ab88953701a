"""The hot kernels in terms of the program: weights are packed, multipliers planned, tasks shared out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import numpy as np

from intc.codegen.cpu import framed, patches, taps
from intc.codegen.cpu.attention import attention
from intc.codegen.cpu.attention_spec import (
    AttentionSpec,
    Rows,
    attention_scratch_bytes,
    attention_tasks,
)
from intc.codegen.cpu.epilogue import Pointwise, Requantize, Residual, Stage, plan_requantize
from intc.codegen.cpu.isa import ISAS, Isa
from intc.codegen.cpu.linear import (
    LinearSpec,
    linear,
    linear_scratch_bytes,
    linear_tasks,
    pad_channels,
    start_values,
    weight_layout,
)
from intc.codegen.cpu.probabilities import score_parameters
from intc.codegen.cpu.sixteen import run_words
from intc.codegen.cpu.strided import broadcast_view
from intc.codegen.program import Arg, Program, ScratchArg, ShareArg, SizeArg, ValueArg
from intc.errors import CodegenError
from intc.ir.dims import Dim, Shape, format_shape, product
from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops.dyadic import MAX_SHIFT
from intc.ops.fused import WIDE, Attention, Linear
from intc.ops.matmul import column_ends

COMMON_PRE_SHIFTS: Final = (4, 8, 0)
VALUES_BEYOND: Final = 32  # elements that the attention kernel may read after the last channel's multiplier


def isa_of(program: Program) -> Isa:
    """The instruction set of the program's target."""
    return ISAS[program.target.level]


class Multipliers:
    """Collects the requantisation stages of one kernel with the constants that they read."""

    def __init__(self, program: Program, isa: Isa) -> None:
        self.program, self.isa = program, isa
        self.args: list[Arg] = []

    def requantize(self, m: str, e: str, lo: int, hi: int, x: tuple[int, int], beyond: int = 0) -> Requantize:
        """The stage for graph constants ``m`` and ``e`` on values in ``x``; arrays can be read ``beyond``
        their end.
        """
        constants = self.program.graph.constants
        for name in (m, e):
            if name not in constants:
                raise CodegenError(f"multiplier '{name}' must be a constant")
        stage, factors, shifts = plan_requantize(constants[m], constants[e], lo, hi, *x)
        if stage.narrow:
            self.args.append(self.program.constant(np.pad(pad_channels(factors, self.isa), (0, beyond))))
            return stage
        stage, shifts = common_form(stage, shifts, x)
        fill = int(shifts.reshape(-1)[0])
        for values, rest in ((factors, 0), (shifts, fill)):
            padded_values = np.pad(pad_channels(values, self.isa, rest), (0, beyond), constant_values=rest)
            self.args.append(self.program.constant(padded_values))
        return stage


def common_form(stage: Requantize, shifts: Array, x: tuple[int, int]) -> tuple[Requantize, Array]:
    """The same requantisation with its pre-shift raised to a common value where x allows, so that layers
    share kernels.
    """
    if stage.exact64 or stage.clamp:
        return stage, shifts
    for pre in COMMON_PRE_SHIFTS:
        fits = max(-x[0], x[1]) < 2 ** (31 - pre) and int(shifts.max()) + pre - stage.pre <= MAX_SHIFT
        if pre >= stage.pre and fits:
            return replace(stage, pre=pre), shifts + np.int32(pre - stage.pre)
    return stage, shifts


def linear_ends(program: Program, node: Node) -> tuple[int, int]:
    """What the accumulators of a Linear can reach: its own weights and bias, every input in its interval."""
    w, bias = (program.graph.constants[name] for name in node.inputs[1:3])
    lo, hi = column_ends(w, *program.type(node.inputs[0]).interval)
    return int((lo + bias).min()), int((hi + bias).max())


def linear_spec(program: Program, node: Node, isa: Isa) -> tuple[LinearSpec, Multipliers]:
    """What the kernel of a Linear is specialised by, and the constants of its stages."""
    op = node.op
    assert isinstance(op, Linear)
    x, w, bias = node.inputs[:3]
    constants = program.graph.constants
    if w not in constants or bias not in constants:
        raise CodegenError("weights and bias must be constants")
    x_type, out = program.type(x), program.type(node.output)
    k, n = constants[w].shape
    factors = Multipliers(program, isa)
    sums = linear_ends(program, node)
    stages = () if op.raw else _stages(program, node, factors, sums, isa)
    w_bits = 4 if program.type(w).magnitude <= 7 else 8  # a narrow interval is a narrow type
    return LinearSpec(k, n, x_type.dtype, stages, out.dtype, w_bits=w_bits), factors


def lower_linear(program: Program, node: Node) -> None:
    x, w, bias = node.inputs[:3]
    x_type = program.type(x)
    isa, run = linear_form(program, node)
    few = taps.find(program.graph.constants[w], isa) if w in program.graph.constants else None
    isa = isa.wide() if few else isa
    spec, factors = linear_spec(program, node, isa)
    spec = replace(spec, taps=few[0]) if few else replace(spec, run=run)
    sizes: tuple[Dim, ...] = ()
    if x in program.inlined:
        made = program.producers[x]
        form, sizes = patches.windows(program, made)
        spec, x = replace(spec, windows=form), made.inputs[0]
    rows: Dim = product(x_type.shape[:-1])
    pad = program.framed.get(node.output)
    spec = replace(spec, border=framed.border(program, pad, spec.n)) if pad else spec
    out = pad.output if pad else node.output
    kernel = program.kernel("linear", (spec, isa), lambda: linear(spec, isa))
    constants = program.graph.constants
    start = start_values(constants[w], constants[bias], isa, spec.x_dtype)
    layout = weight_layout(spec.k, spec.n, isa, spec.w_bits)

    def count(size: Any) -> Any:
        return linear_tasks(spec, isa, size[0])

    args: list[Arg] = [
        program.operand(x),
        program.constant(few[1]) if few else program.graph_constant(w, layout),
        program.constant(start),
        *factors.args,
    ]
    args += [
        ValueArg(out),
        ScratchArg(linear_scratch_bytes(spec, isa)),
        *map(SizeArg, (*sizes, rows)),
    ]
    args += [ShareArg(count, (rows,), end=False), ShareArg(count, (rows,), end=True)]
    program.add(kernel, args, out, node.source)


def linear_form(program: Program, node: Node) -> tuple[Isa, int]:
    """The tile of a Linear's kernel, and how many words its sums may stay in 16 bits (0: none)."""
    isa, x_type = isa_of(program), program.type(node.inputs[0])
    if x_type.dtype == "int16":
        return isa.wide(), 0
    if isa.group != 2 or isa.dot == "generic":
        return isa, 0
    offset = 128 if x_type.dtype == "int8" else 0
    lo, hi = (end + offset for end in x_type.interval)
    run = run_words(program.graph.constants[node.inputs[1]], lo, hi, isa)
    return (isa.narrow(), run) if run else (isa, 0)


def _stages(
    program: Program, node: Node, factors: Multipliers, sums: tuple[int, int], isa: Isa
) -> tuple[Stage, ...]:
    """The epilogue of a Linear whose accumulators lie in ``sums``, in the order of its ``evaluate``."""
    op, inputs = node.op, list(node.inputs[3:])
    assert isinstance(op, Linear)
    stages: list[Stage] = []
    last = (-WIDE, WIDE) if op.residual else (op.lo, op.hi)
    interval = sums
    if op.gelu:
        stages.append(factors.requantize(inputs[0], inputs[1], -32767, 32767, interval))
        stages.append(Pointwise(op.gelu, op.frac, op.centred))
        if op.centred:
            centre = program.graph.constants[inputs[2]].astype(np.int16)
            factors.args.append(program.constant(pad_channels(centre, isa)))
        reach = 32767 << 15 if op.gelu == "shift" else 32767
        inputs, interval = inputs[2 + op.centred :], (-reach, reach)
    stages.append(factors.requantize(inputs[0], inputs[1], *last, interval))
    if op.residual:
        r_type = program.type(inputs[2])
        factors.args.append(program.operand(inputs[2]))
        scale = factors.requantize(inputs[3], inputs[4], -WIDE, WIDE, r_type.interval)
        stages.append(Residual(op.lo, op.hi, r_type.dtype, scale))
    return tuple(stages)


def attention_spec(program: Program, node: Node, isa: Isa) -> tuple[AttentionSpec, Multipliers]:
    """What the kernel of an Attention is specialised by, and the constants of its output."""
    op = node.op
    assert isinstance(op, Attention)
    types = [program.type(x) for x in node.inputs[:3]]
    factors = Multipliers(program, isa)
    context = (-32767, 32767)
    beyond = VALUES_BEYOND if isa.lanes > 1 else 0
    output = factors.requantize(node.inputs[3], node.inputs[4], op.lo, op.hi, context, beyond)
    q, k, v = (
        Rows(heads, op.head_dim, t.shape[-1] if t.rank == 3 else 0, t.dtype)  # type: ignore[arg-type]
        for heads, t in zip((op.heads, op.kv_heads, op.kv_heads), types, strict=True)
    )
    out = Rows(op.heads, op.head_dim, 0 if op.heads_first else op.heads * op.head_dim)
    return AttentionSpec(q, k, v, out, output, op.masked, op.biased, op.shift < 0, op.uniform), factors


def attention_sizes(program: Program, node: Node) -> tuple[Dim, Dim, Dim]:
    """Batch, queries and keys of an Attention."""
    q, k = (program.type(x).shape for x in node.inputs[:2])
    return q[0], q[-2], k[-2]


def attention_inputs(program: Program, node: Node) -> tuple[list[Arg], list[Dim]]:
    """q, k, v, the mask and the bias (where there are), the score's parameters; and the strides of mask and
    bias.
    """
    op = node.op
    assert isinstance(op, Attention)
    batch, sq, sk = attention_sizes(program, node)
    offsets = (op.q_offset, op.k_offset, op.v_offset)
    args: list[Arg] = list(map(program.operand, node.inputs[:3], offsets))
    strides: list[Dim] = []
    for name in node.inputs[5:]:
        args.append(program.operand(name))
        strides += score_strides(program.type(name).shape, (batch, op.heads, sq, sk))
    return [*args, program.constant(score_parameters(op.m, op.shift))], strides


def lower_attention(program: Program, node: Node) -> None:
    isa = isa_of(program)
    batch, sq, sk = attention_sizes(program, node)
    spec, factors = attention_spec(program, node, isa)
    kernel = program.kernel("attention", (spec, isa), lambda: attention(spec, isa))
    inputs, strides = attention_inputs(program, node)
    args: list[Arg] = [*inputs, *factors.args, ValueArg(node.output)]
    args += [ScratchArg(attention_scratch(spec, isa, sk)), SizeArg(sq), SizeArg(sk), *map(SizeArg, strides)]

    def count(size: Any) -> Any:
        return attention_tasks(spec, size[0], size[1])

    args += [ShareArg(count, (batch, sq), end=False), ShareArg(count, (batch, sq), end=True)]
    program.add(kernel, args, node.output, node.source)


def score_strides(operand: Shape, scores: Shape) -> tuple[Dim, Dim, Dim]:
    """Elements between batches, heads and query rows of a mask [B, Sk], or of a mask or bias that broadcasts
    to [B, H, Sq, Sk].
    """
    full = (operand[0], 1, 1, operand[1]) if len(operand) == 2 else (1,) * (4 - len(operand)) + tuple(operand)
    if full[-1] != scores[-1]:
        raise CodegenError(f"{format_shape(operand)} beside the attention scores must give every key")
    strides = broadcast_view(full, scores).strides
    return strides[0], strides[1], strides[2]


def attention_scratch(spec: AttentionSpec, isa: Isa, sk: Dim) -> Dim:
    """Scratch bytes of one task; for symbolic ``sk`` the smallest affine function that is never below the
    kernel's need.

    The need grows linearly in ``sk`` rounded up to whole blocks of 64 keys.
    """
    if isinstance(sk, int):
        return int(attention_scratch_bytes(spec, isa, sk))
    none, block = (int(attention_scratch_bytes(spec, isa, n)) for n in (0, 64))
    per_key = -(-(block - none) // 64)
    return (sk + 63) * per_key + none
