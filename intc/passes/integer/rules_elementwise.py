"""Rules of element-wise operators and of sums, in the order of how much they change: scales only, integers at
16 bits, quotients and roots, any function by its curve.
"""

from __future__ import annotations

import math

import numpy as np

from intc.errors import QuantizationError
from intc.ir.dims import product
from intc.ir.graph import Node
from intc.ops.division import Divide, Root
from intc.ops.elementwise import (
    Add,
    Cast,
    Div,
    Floor,
    Max,
    Min,
    Mul,
    Pow,
    Relu,
    Round,
    Sqrt,
    Where,
)
from intc.ops.fused import WIDE
from intc.ops.movement import Concat, Expand
from intc.ops.pointwise import Pointwise
from intc.ops.positions import Positions
from intc.ops.reduce import CumSum, ReduceMax, ReduceMean, ReduceSum
from intc.ops.requantize import Clip, Requantize
from intc.passes.integer import rules_curve
from intc.passes.integer.context import Context, Rule
from intc.passes.integer.forms import LIMIT, Form, Forms, emitted

QUOTIENT: float = 2.0**28  # where the largest calibrated quotient lies: 3 bits of room to WIDE
MEAN_BITS = 10  # fraction bits of a mean
STEP_BITS = 10  # fraction bits of a number that is rounded to a whole one, at most


def multiply(context: Context, node: Node) -> Form:
    """By one constant per channel only the scale changes, of a column repeated before; value by value is a
    16 x 16-bit product.
    """
    forms = context.forms
    left, right = node.inputs
    if context.constant(left) is not None:
        left, right = right, left
    constant = context.constant(right)
    whole = forms.source.type(node.output).shape
    row = constant is not None and constant.size == (constant.shape or (1,))[-1] and constant.all()
    if constant is not None and row and forms.source.type(left).shape == whole:
        form = forms.base.get(left) or forms.quantised(left, 16)
        return Form(form.name, form.scale * constant.astype(np.float64).ravel(), fixed=form.fixed)
    if constant is not None and row and forms.source.type(left).shape == (*whole[:-1], 1):
        form = forms.as_is(left, 32, 16)
        scale = form.scale * constant.astype(np.float64).ravel()
        return emitted(forms, node, Expand(whole), (form.name,), scale)
    if left != right and (found := _by_reciprocal(context, node)) is not None:
        return found
    a, c = forms.quantised(left, 16), forms.quantised(right, 16)
    scale = np.asarray(a.scale * c.scale)
    return emitted(context.forms, node, Mul(), (a.name, c.name), scale)


def _by_reciprocal(context: Context, node: Node) -> Form | None:
    """``x * (c / y)``, ``c`` a number, as the quotient of ``c * x`` and ``y`` where 16 bits are too few for
    ``c / y``: where ``y`` is small it is far larger than elsewhere. None for another product.
    """
    forms = context.forms
    for x, other, loud in zip(node.inputs, node.inputs[::-1], forms.loud(node, 16)[::-1], strict=True):
        path, value = list[Node](), other
        while (made := forms.nodes.get(value)) is not None and _follows(forms, made):
            path.append(made)
            value = forms.operand(made)[0]
        constant = context.constant(made.inputs[0]) if made is not None and isinstance(made.op, Div) else None
        if made is None or constant is None or constant.size != 1 or not loud:
            continue
        a, b = forms.as_is(x, 32, 16), forms.as_is(made.inputs[1], 32, 16)
        for step in reversed(path):
            factor = forms.operand(step)[1]
            b = forms.move(step, b) if factor is None else Form(b.name, np.asarray(b.scale / factor))
        return quotient(forms, node, Form(a.name, a.scale * float(constant.ravel()[0])), b)
    return None


def _follows(forms: Forms, node: Node) -> bool:
    """Whether ``node`` moves or scales one computed value."""
    return forms.deferred(node) and not isinstance(node.op, Concat)


def divide(context: Context, node: Node) -> Form:
    """An exact integer quotient; constant divisors have become factors before."""
    forms = context.forms
    left, right = node.inputs
    constant = context.constant(right)
    if constant is not None:
        raise QuantizationError(f"node '{node.source}' (div): the divisor is zero")
    a = forms.quantised(left, 32) if context.constant(left) is not None else forms.as_is(left, 32, 16)
    return quotient(forms, node, a, forms.as_is(right, 32, 16))


def quotient(forms: Forms, node: Node, a: Form, b: Form) -> Form:
    """``a / b`` as what ``node`` computes, with the fraction bits that its calibrated range leaves."""
    ratio = float(a.scale / b.scale)
    room = 61 - forms.builder.graph.type(a.name).magnitude.bit_length()
    shift = math.floor(math.log2(QUOTIENT * abs(ratio) / forms.range_of(node.output)))
    shift = min(max(shift, 0), room)
    return emitted(forms, node, Divide(shift, WIDE), (a.name, b.name), np.asarray(ratio / 2.0**shift))


def root(context: Context, node: Node) -> Form:
    x = context.forms.as_is(node.inputs[0], 32, 16)
    return emitted(context.forms, node, Root(30), (x.name,), np.asarray(np.sqrt(float(x.scale)) / 2.0**15))


def power(context: Context, node: Node) -> Form:
    """Squares and roots by their own operators, other constant exponents by a curve."""
    exponent = context.constant(node.inputs[1])
    if exponent is None or exponent.size != 1:
        raise QuantizationError(f"node '{node.source}' (pow): the exponent must be one constant")
    x, e = node.inputs[0], float(exponent.ravel()[0])
    if e == 2.0:
        return multiply(context, Node(Mul(), (x, x), node.output, node.source))
    if e == 0.5:
        return root(context, node)
    return rules_curve.curve(context, Node(Pointwise(f"(pow x {e!r})"), (x,), node.output, node.source))


def whole(context: Context, node: Node) -> Form:
    """Whole numbers at scale 1, exact for the input in steps of a power of two."""
    forms, value = context.forms, node.inputs[0]
    bits = min(max(math.floor(math.log2(LIMIT[32] / forms.range_of(value, 32))) - 1, 1), STEP_BITS)
    x = forms.quantised(value, 32, np.asarray(2.0**-bits))
    if isinstance(node.op, Floor):
        half = forms.builder.constant(f"{node.output}.half", np.full(1, -(2 ** (bits - 1)), np.int32))
        x = emitted(forms, node, Add(), (x.name, half), x.scale, ".lower")
    limit = LIMIT[32]
    op = Requantize(-limit, limit, "int32")
    return emitted(forms, node, op, (x.name, *forms.ratio(x.scale)), np.asarray(1.0))


def extreme(context: Context, node: Node) -> Form:
    """The larger or smaller of two: a clip where one is a constant number, else at one 16-bit scale."""
    forms = context.forms
    assert isinstance(node.op, Max | Min)
    for value, other in (node.inputs, node.inputs[::-1]):
        constant = context.constant(other)
        same = forms.source.type(value).shape == forms.source.type(node.output).shape
        if constant is None or constant.size != 1 or not same:
            continue
        form = forms.as_is(value, 32, 16)
        type_ = forms.builder.graph.type(form.name)
        lo, hi = type_.interval
        bound = int(np.clip(np.rint(float(constant.ravel()[0]) / float(form.scale)), lo, hi))
        largest = isinstance(node.op, Max) == (float(form.scale) > 0)
        op = Clip(bound, hi, type_.dtype) if largest else Clip(lo, bound, type_.dtype)
        return emitted(context.forms, node, op, (form.name,), form.scale)
    scale = forms.scale_for(node.output, 16)
    a, b = (forms.quantised(x, 16, scale) for x in node.inputs)
    clip = emitted(context.forms, node, node.op, (a.name, b.name), scale, ".wide")
    return emitted(context.forms, node, Clip(-32767, 32767, "int16"), (clip.name,), scale)


def where(context: Context, node: Node) -> Form:
    """Both branches at the result's 16-bit scale; what a caller reads as a far number below the others is the
    least integer, and nothing else is.
    """
    forms, limit = context.forms, LIMIT[16]
    scale = forms.scale_for(node.output, 16)
    branches = [forms.quantised(x, 16, scale).name for x in node.inputs[1:]]
    rest = forms.sentinels.rest(node.output)
    far = forms.sentinels.branch(node, rest.number) if rest is not None and rest.returned else None
    if far is not None:
        branches[far] = forms.builder.constant(f"{node.output}.least", np.full(1, -limit, np.int16))
        above = Clip(1 - limit, limit, "int16")
        branches[1 - far] = forms.builder.emit(above, branches[1 - far], name=f"{node.output}.above")
    return emitted(context.forms, node, Where(), (forms.integer(node.inputs[0]), *branches), scale)


def relu(context: Context, node: Node) -> Form:
    forms = context.forms
    form = forms.base.get(node.inputs[0]) or forms.as_is(node.inputs[0], 32, 16)
    if np.any(form.scale < 0):
        form = forms.quantised(node.inputs[0], 16)
    hi = max(forms.builder.graph.type(form.name).interval[1], 0)
    dtype = forms.builder.graph.type(form.name).dtype
    return emitted(forms, node, Clip(0, hi, dtype), (form.name,), form.scale)


def reduce_mean(context: Context, node: Node) -> Form:
    """A sum whose scale is divided by the count; an integer quotient where the count is a symbolic size."""
    assert isinstance(node.op, ReduceMean)
    forms = context.forms
    x = forms.source.type(node.inputs[0])
    count = product(x.shape[a % x.rank] for a in node.op.axes)
    form = rules_curve.small_terms(context, node, count) or forms.as_is(node.inputs[0], 16, 16)
    op = ReduceSum(tuple(a % x.rank for a in node.op.axes), node.op.keepdims)
    if isinstance(count, int):
        return emitted(context.forms, node, op, (form.name,), form.scale / count)
    total = emitted(context.forms, node, op, (form.name,), form.scale, ".sum")
    divisor = forms.builder.emit(
        Positions((1,), (0,), count), name=f"{node.output}.count", source=node.source
    )
    scale = form.scale / 2.0**MEAN_BITS
    return emitted(context.forms, node, Divide(MEAN_BITS, WIDE), (total.name, divisor), scale)


def reduce_sum(context: Context, node: Node) -> Form:
    """Sums, whole and running, of 16-bit integers."""
    assert isinstance(node.op, ReduceSum | CumSum)
    axes = node.op.axes if isinstance(node.op, ReduceSum) else (node.op.axis,)
    count = product(context.forms.source.type(node.inputs[0]).shape[a] for a in axes)
    form = rules_curve.small_terms(context, node, count) or context.forms.as_is(node.inputs[0], 16, 16)
    return emitted(context.forms, node, node.op, (form.name,), form.scale)


def reduce_max(context: Context, node: Node) -> Form:
    form = context.forms.as_is(node.inputs[0], 32, 16)
    if float(form.scale) < 0:
        form = context.forms.quantised(node.inputs[0], 16)
    return emitted(context.forms, node, node.op, (form.name,), form.scale)


def cast(context: Context, node: Node) -> Form:
    """Integers read as numbers: the same integers at scale 1, saturated at 30 bits."""
    forms = context.forms
    name = forms.integer(node.inputs[0])
    type_ = forms.builder.graph.type(name)
    if type_.magnitude <= WIDE and type_.dtype != "bool":
        return Form(name, np.asarray(1.0))
    op = Cast("int8") if type_.dtype == "bool" else Clip(-WIDE, WIDE, "int32")
    return emitted(context.forms, node, op, (name,), np.asarray(1.0))


RULES: dict[type, Rule] = {
    Cast: cast,
    Mul: multiply,
    Div: divide,
    Pow: power,
    Sqrt: root,
    Max: extreme,
    Min: extreme,
    Where: where,
    Floor: whole,
    Round: whole,
    Relu: relu,
    ReduceMean: reduce_mean,
    ReduceSum: reduce_sum,
    ReduceMax: reduce_max,
    CumSum: reduce_sum,
}
