"""The hot kernels in terms of the program: weights are packed, multipliers planned, tasks shared out."""

from __future__ import annotations

import numpy as np

from intc.codegen.cpu.epilogue import Pointwise, Requantize, Residual, Stage, plan_requantize
from intc.codegen.cpu.isa import ISAS, Isa
from intc.codegen.cpu.linear import (
    LinearSpec,
    linear,
    linear_scratch_bytes,
    linear_tasks,
    pack_linear,
    pad_channels,
    padded,
)
from intc.codegen.program import Arg, ConstArg, Layout, Program, ScratchArg, ShareArg, SizeArg, ValueArg
from intc.errors import CodegenError
from intc.ir.dims import Dim, product
from intc.ir.graph import Node
from intc.ops.fused import WIDE, Linear


def isa_of(program: Program) -> Isa:
    """The instruction set of the program's target."""
    return ISAS[program.target.level]


def weight_layout(k: int, n: int, isa: Isa) -> Layout:
    """The packing of ``pack_linear`` as a recipe that the runtime can follow."""
    words = isa.words(k)
    rows = words * isa.group
    pad = (rows - k, padded(n, isa) - n)
    panels = (words, isa.group, padded(n, isa) // isa.columns, isa.columns)
    return Layout(pad, panels, (2, 0, 3, 1), isa.b_dtype)


class Multipliers:
    """Collects the requantisation stages of one kernel with the constants that they read."""

    def __init__(self, program: Program, isa: Isa) -> None:
        self.program, self.isa = program, isa
        self.args: list[Arg] = []

    def requantize(self, m: str, e: str, lo: int, hi: int, x: tuple[int, int]) -> Requantize:
        """The stage for graph constants ``m`` and ``e`` on values in ``x``."""
        constants = self.program.graph.constants
        for name in (m, e):
            if name not in constants:
                raise CodegenError(f"multiplier '{name}' must be a constant")
        stage, factors, shifts = plan_requantize(constants[m], constants[e], lo, hi, *x)
        fill = int(shifts.reshape(-1)[0])
        self.args += [self.program.constant(pad_channels(factors, self.isa))]
        self.args += [self.program.constant(pad_channels(shifts, self.isa, fill))]
        return stage


def lower_linear(program: Program, node: Node) -> None:
    op, isa = node.op, isa_of(program)
    assert isinstance(op, Linear)
    x, w, bias = node.inputs[:3]
    constants = program.graph.constants
    if w not in constants or bias not in constants:
        raise CodegenError("weights and bias must be constants")
    x_type, out = program.type(x), program.type(node.output)
    k, n = constants[w].shape
    bound = k * x_type.magnitude * program.type(w).magnitude + program.type(bias).magnitude
    factors = Multipliers(program, isa)
    stages = () if op.raw else _stages(program, node, factors, bound)
    spec = LinearSpec(k, n, x_type.dtype, stages, out.dtype)
    rows: Dim = product(x_type.shape[:-1])
    kernel = program.kernel("linear", (spec, isa), lambda: linear(spec, isa))
    _, start = pack_linear(constants[w], constants[bias], isa, x_type.dtype)
    layout = weight_layout(k, n, isa)

    def count(rows: object) -> object:
        return linear_tasks(spec, isa, rows)

    args: list[Arg] = [program.operand(x), program.graph_constant(w, layout), program.constant(start), *factors.args]
    args += [ValueArg(node.output), ScratchArg(linear_scratch_bytes(spec, isa)), SizeArg(rows)]
    args += [ShareArg(count, rows, end=False), ShareArg(count, rows, end=True)]
    program.add(kernel, args, node.output, node.source)


def _stages(program: Program, node: Node, factors: Multipliers, bound: int) -> tuple[Stage, ...]:
    """The epilogue of a Linear in the order of its ``evaluate``."""
    op, inputs = node.op, list(node.inputs[3:])
    assert isinstance(op, Linear)
    stages: list[Stage] = []
    last = (-WIDE, WIDE) if op.residual else (op.lo, op.hi)
    interval = (-bound, bound)
    if op.gelu_frac >= 0:
        stages.append(factors.requantize(inputs[0], inputs[1], -32767, 32767, interval))
        stages.append(Pointwise("gelu", op.gelu_frac))
        inputs, interval = inputs[2:], (-(32767 << 15), 32767 << 15)
    stages.append(factors.requantize(inputs[0], inputs[1], *last, interval))
    if op.residual:
        r_type = program.type(inputs[2])
        factors.args.append(program.operand(inputs[2]))
        scale = factors.requantize(inputs[3], inputs[4], -WIDE, WIDE, r_type.interval)
        stages.append(Residual(op.lo, op.hi, r_type.dtype, scale))
    return tuple(stages)


def lower_attention(program: Program, node: Node) -> None:
    raise CodegenError("not yet")


