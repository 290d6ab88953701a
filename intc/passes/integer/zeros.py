"""Rows that a mask sets to zero, and norms behind that would magnify the least constant in their place."""

from __future__ import annotations

from typing import Final

from intc.ir.graph import Node
from intc.ops.elementwise import Cast, Mul, Relu, Tanh, Where
from intc.ops.gelu import Gelu
from intc.ops.im2col import Im2col
from intc.ops.layer_norm import LayerNorm
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVES, Concat, Pad
from intc.ops.softmax import Softmax
from intc.ops.window import GroupedConv
from intc.passes.integer.context import Context
from intc.passes.match import behind_movement

# zeros of one operand are zeros of the result
KEEPING: Final = (*MOVES, Concat, Pad, Im2col, Mul, Gelu, Relu, Tanh)


def keeps_zeros(context: Context, node: Node) -> bool:
    """Whether rows of zeros must stay zeros in the product ``node``: those of masked tokens, or of an
    attention whose mask may keep nothing, which reach a norm that is not centred.
    """
    return _reaches_norm(context, node.output) and _masked(context, node.inputs[0])


def _reaches_norm(context: Context, value: str) -> bool:
    """Whether a norm that is not centred reads ``value``, or what is zero where it is."""
    reached = {value}
    for x in (todo := [value]):
        for user in context.users[x]:
            if isinstance(user.op, LayerNorm) and not user.op.centred:
                return True
            if _passes(context, user, x) and user.output not in reached:
                reached.add(user.output)
                todo.append(user.output)
    return False


def _masked(context: Context, value: str) -> bool:
    """Whether a mask may set rows of ``value`` to zero."""
    reached = {value}
    for x in (todo := [value]):
        node = context.forms.nodes.get(x)
        if node is None:
            continue
        if _masks(context, node):
            return True
        inner = {v for v in node.inputs if _passes(context, node, v)} - reached
        reached |= inner
        todo += sorted(inner)
    return False


def _masks(context: Context, node: Node) -> bool:
    """Whether ``node`` itself sets rows to zero."""
    if isinstance(node.op, Where):
        other = context.constant(node.inputs[2])
        return other is not None and not other.any()
    if isinstance(node.op, Mul):
        return any(_is_mask(context, x) for x in node.inputs)
    if isinstance(node.op, MatMul) and node.inputs[1] not in context.forms.source.constants:
        weights = context.forms.nodes.get(node.inputs[0])
        return weights is not None and isinstance(weights.op, Softmax) and len(weights.inputs) == 2
    return False


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
