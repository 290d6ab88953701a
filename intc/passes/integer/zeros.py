"""Rows that a mask sets to zero, and norms behind that would magnify the least constant in their place."""

from __future__ import annotations

from typing import Final

from intc.ir.graph import Node
from intc.ops.elementwise import Cast, Mul, Where
from intc.ops.im2col import Im2col
from intc.ops.layer_norm import LayerNorm
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVES, Concat, Pad
from intc.ops.softmax import Softmax
from intc.ops.window import GroupedConv
from intc.passes.integer.context import Context
from intc.passes.match import behind_movement

KEEPING: Final = (*MOVES, Concat, Pad, Im2col, Mul)  # zeros of one operand are zeros of the result
STEPS: Final = 12  # that are looked at, one behind another


def keeps_zeros(context: Context, node: Node) -> bool:
    """Whether rows of zeros must stay zeros in the product ``node``: those of masked tokens, or of an
    attention whose mask may keep nothing, which reach a norm that is not centred.
    """
    return _reaches_norm(context, node.output, STEPS) and _masked(context, node.inputs[0], STEPS)


def _reaches_norm(context: Context, value: str, steps: int) -> bool:
    """Whether a norm that is not centred reads ``value``, or what is zero where it is."""
    for user in context.users[value] if steps else ():
        if isinstance(user.op, LayerNorm) and not user.op.centred:
            return True
        if _passes(context, user, value) and _reaches_norm(context, user.output, steps - 1):
            return True
    return False


def _masked(context: Context, value: str, steps: int) -> bool:
    """Whether a mask may set rows of ``value`` to zero."""
    node = context.forms.nodes.get(value)
    if node is None or not steps:
        return False
    if isinstance(node.op, Where):
        other = context.constant(node.inputs[2])
        return other is not None and not other.any()
    if isinstance(node.op, Mul) and any(_is_mask(context, x) for x in node.inputs):
        return True
    if isinstance(node.op, MatMul) and node.inputs[1] not in context.forms.source.constants:
        weights = context.forms.nodes.get(node.inputs[0])
        return weights is not None and isinstance(weights.op, Softmax) and len(weights.inputs) == 2
    return any(_passes(context, node, x) and _masked(context, x, steps - 1) for x in node.inputs)


def _is_mask(context: Context, value: str) -> bool:
    """Whether ``value`` is made of truth values or integers."""
    made = behind_movement(context.forms.nodes, value)
    return (
        made is not None
        and isinstance(made.op, Cast)
        and not context.forms.source.type(made.inputs[0]).is_float
    )


def _passes(context: Context, node: Node, value: str) -> bool:
    """Whether zeros of the operand ``value`` are zeros of ``node``."""
    if isinstance(node.op, MatMul | GroupedConv):
        return node.inputs[0] == value and node.inputs[1] in context.forms.source.constants
    return isinstance(node.op, KEEPING)
