"""Operators that treat every row alone."""

from __future__ import annotations

from collections.abc import Sequence

from intc.frontend.call import BROADCASTING
from intc.ir.op import Op
from intc.ops import elementwise as ew
from intc.ops import logic
from intc.ops.conv import Conv
from intc.ops.fake_quantize import FakeQuantize
from intc.ops.gelu import Gelu
from intc.ops.layer_norm import LayerNorm
from intc.ops.matmul import MatMul
from intc.ops.movement import Concat, Expand, Gather, GatherElements, Pad, Slice, Transpose
from intc.ops.positions import Positions
from intc.ops.reduce import ArgMax, CumSum, ReduceMax, ReduceMean, ReduceSum
from intc.ops.softmax import Softmax

POINTWISE = (*BROADCASTING, ew.FloatUnary, logic.Not, ew.Cast, FakeQuantize, Gelu)


def row_wise(op: Op, along: Sequence[int | None], ranks: Sequence[int]) -> bool:
    """Whether ``op`` treats alone what stands at each position of the axes ``along`` of its inputs."""
    axis = along[0] if along else None
    if isinstance(op, Transpose | Expand):
        return True
    if isinstance(op, Positions):
        return False
    if isinstance(op, MatMul):
        left = axis is not None and axis != ranks[0] - 1
        return left and (along[1] is None or (axis < ranks[0] - 2 and along[1] - ranks[1] == axis - ranks[0]))  # type: ignore[operator]
    if isinstance(op, Gather):
        return (axis is None) != (along[1] is None) and axis != op.axis
    if isinstance(op, Concat | GatherElements):
        return len(set(along)) == 1 and axis != op.axis
    if isinstance(op, ReduceMax | ReduceMean | ReduceSum):
        return axis not in {a % ranks[0] for a in op.axes}
    if isinstance(op, LayerNorm | Softmax):
        return along[1:] == [None] * len(along[1:]) and axis != op.axis % ranks[0]
    if isinstance(op, Slice | ArgMax | CumSum):
        return axis != op.axis
    if isinstance(op, Conv):
        return axis == 0 and along[1:] == [None] * len(along[1:])
    if isinstance(op, Pad):
        return axis is not None and op.before[axis] == op.after[axis] == 0
    return False
