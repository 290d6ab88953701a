"""Which code computes which operator: one rule for every operator that an integer graph can hold.

An operator with a formula needs none: then its kernel is that formula, in plain code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from intc.codegen.cpu import (
    chains,
    elementwise,
    formula,
    fused,
    ibert,
    ivit,
    layer_norm,
    matmul,
    movement,
    reduction,
    rowwise,
    softmax,
    window,
)
from intc.codegen.cpu.strided import View
from intc.codegen.cuda import attention as cuda_attention
from intc.codegen.cuda import elementwise as cuda_elementwise
from intc.codegen.cuda import layer_norm as cuda_layer_norm
from intc.codegen.cuda import linear as cuda_linear
from intc.codegen.cuda import windows as cuda_windows
from intc.codegen.program import Program
from intc.errors import CodegenError
from intc.ir.dims import product
from intc.ir.graph import Node
from intc.ir.op import FormulaOp

Rule: TypeAlias = Callable[[Program, Node], None]

RULES: Final[Mapping[str, Rule]] = {
    "reshape": movement.lower_reshape,
    "transpose": movement.lower_transpose,
    "slice": movement.lower_slice,
    "concat": movement.lower_concat,
    "gather": movement.lower_gather,
    "gather_elements": movement.lower_gather_elements,
    "expand": movement.lower_expand,
    "lookup": movement.lower_lookup,
    "positions": movement.lower_positions,
    "pad": window.lower_pad,
    "max_pool": window.lower_max_pool,
    "grouped_conv": window.lower_grouped_conv,
    "im2col": movement.lower_im2col,
    "matmul": matmul.lower_matmul,
    "reduce_sum": reduction.lower_reduce,
    "reduce_max": reduction.lower_reduce,
    "arg_max": reduction.lower_arg_max,
    "cum_sum": reduction.lower_cum_sum,
    **dict.fromkeys(elementwise.FORMULAS, chains.lower_chain),
    "table": elementwise.lower_table,
    "curve": elementwise.lower_curve,
    "shiftmax": softmax.lower_shiftmax,
    "shift_layer_norm": layer_norm.lower_shift_layer_norm,
    "shift_weights": softmax.lower_shift_weights,
    "normalise_rows": softmax.lower_normalise_rows,
    "lut_softmax": softmax.lower_lut_softmax,
    "ivit_shiftmax": ivit.lower_shiftmax,
    "ivit_shift_gelu": ivit.lower_shift_gelu,
    "ivit_layer_norm": ivit.lower_layer_norm,
    "ibert_softmax": ibert.lower_softmax,
    "ibert_gelu": ibert.lower_gelu,
    "ibert_layer_norm": ibert.lower_layer_norm,
    "linear": fused.lower_linear,
    "attention": fused.lower_attention,
}
GPU_RULES: Final[Mapping[str, Rule]] = {
    **RULES,
    **dict.fromkeys(cuda_elementwise.OPERATORS, cuda_elementwise.lower_chain),
    "reshape": movement.lower_reshape,
    "linear": cuda_linear.lower_linear,
    "attention": cuda_attention.lower_attention,
    "shift_layer_norm": cuda_layer_norm.lower_shift_layer_norm,
    "im2col": cuda_windows.lower_im2col,
    "pad": cuda_windows.lower_pad,
    "max_pool": cuda_windows.lower_max_pool,
    "grouped_conv": cuda_windows.lower_grouped_conv,
}

SCALAR_RULES: Final[Mapping[str, Rule]] = {
    **RULES,
    "linear": rowwise.lower_linear,
    "attention": rowwise.lower_attention,
}


def lower_node(program: Program, node: Node) -> None:
    """Append the stages that compute ``node``; CodegenError names a node without a rule."""
    target = program.target
    rules = GPU_RULES if target.gpu else RULES if target.native else SCALAR_RULES
    rule = rules.get(node.op.name)
    if rule is None and isinstance(node.op, FormulaOp):
        rule = formula.lower_formula
    if rule is None:
        raise CodegenError(f"node '{node.source or node.output}' ({node.op.name}) has no kernel")
    try:
        rule(program, node)
    except CodegenError as error:
        raise CodegenError(f"node '{node.source or node.output}' ({node.op.name}): {error}") from None


def lower_copy(program: Program, source: str, output: str) -> None:
    """Append the stage that copies value ``source`` to ``output``, which is not a value of the graph."""
    size = product(program.type(source).shape)
    movement.copy(program, source, output, (size,), View((1,)), View((1,)))
