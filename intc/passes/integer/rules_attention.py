"""The rules around softmax: products of two computed values, biases of scores, and softmax itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from intc.errors import QuantizationError
from intc.ir.dims import SYMBOL_MAX
from intc.ir.graph import Node
from intc.ops.curve import KNOTS, Curve
from intc.ops.elementwise import Add, Cast, Div, Mul
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVES
from intc.ops.reduce import ReduceMax, ReduceSum
from intc.ops.requantize import Clip, Requantize
from intc.ops.row_softmax import CONTEXT_FRAC, NormaliseRows
from intc.ops.softmax import Softmax
from intc.passes.integer import families, rules_curve, rules_wide
from intc.passes.integer.context import Context, Rule
from intc.passes.integer.forms import LIMIT, Form, Forms, as_scale, emitted
from intc.passes.integer.rules_elementwise import quotient
from intc.passes.match import softmax_of

SCORE_BIAS_MAX: Final = 2**29  # so that the distance of two scores fits 32 bits
SUM_LIMIT: Final = 2**30  # of exponentials in a row
OCTAVES: Final = 32  # below the largest of a row, in which they are told apart
SCORE_NOISE: Final = 0.02  # of the exponent of e, by which softmax weights may be off


def product(context: Context, node: Node) -> Form:
    """A product of two computed values: weights times values in 8 bits, attention scores in 8 or as many as
    leave them 31, rows that a condition selects in 16, others in as many bits as their sums leave, or, where
    those are too few, in parts.
    """
    forms, b = context.forms, context.forms.builder
    count = _count(forms, node)
    weights = forms.nodes.get(node.inputs[0])
    if weights is not None and isinstance(weights.op, Softmax):
        bits = value_bits(context, node)
        a = _probabilities(forms, node.inputs[0], bits)
        if bits < context.plan.values(node) and a.row_sums:
            parts = zip(rules_wide.halves(forms, node.inputs[1]), (".high", ".low"), strict=True)
            return rules_wide.summed(forms, node, [_weighed(forms, node, a, c, end) for c, end in parts])
        c = forms.as_is(node.inputs[1], bits, bits)
    elif (reader := softmax_of(forms.source, context.users, node.output)) is not None:
        a, c = _score_operands(context, node, count, *reader)
    elif any(truth := [_is_truth(forms, x) for x in node.inputs]):
        bits = _room(count, 2**31, 1)
        widths = [8 if t else bits for t in truth]
        a, c = (forms.as_is(x, width, width) for x, width in zip(node.inputs, widths, strict=True))
    else:
        bits = _room(count, 2**31)
        if any(forms.loud(node, bits)):
            return rules_wide.of_parts(context, node, forms.loud(node, 8))
        a, c = (forms.as_is(x, bits, bits) for x in node.inputs)
    a, c = _fitting(forms, node, (a, c), count)
    scale = np.asarray(a.scale * c.scale)
    if a.row_sums:
        return _weighed(forms, node, a, c)
    name = b.emit(MatMul(), a.name, c.name, name=node.output, source=node.source, scale=as_scale(scale))
    return Form(name, scale)


def _weighed(forms: Forms, node: Node, a: Form, c: Form, suffix: str = "") -> Form:
    """The mean of the values ``c``, or of a part of them, with the weights ``a`` of softmax."""
    total = forms.builder.emit(
        MatMul(), a.name, c.name, name=f"{node.output}{suffix}.weighted", source=node.source
    )
    scale = np.asarray(a.scale * c.scale / 2.0**CONTEXT_FRAC)
    return emitted(forms, node, NormaliseRows(), (total, a.name), scale, suffix)


def _probabilities(forms: Forms, value: str, bits: int) -> Form:
    """The softmax ``value`` as a product reads it: in 8 bits none is a sign."""
    form = forms.base[value]
    if bits == 8 and form.plain and forms.builder.graph.type(form.name).dtype == "int16":
        return forms.quantised(value, 8, np.asarray(forms.range_of(value, 8) / 255), unsigned=True)
    return forms.as_is(value, bits, bits)


def _count(forms: Forms, node: Node) -> int:
    """The number of products in a sum of ``node``, at most."""
    length = forms.source.type(node.inputs[0]).shape[-1]
    return length if isinstance(length, int) else SYMBOL_MAX


def value_bits(context: Context, node: Node) -> int:
    """The bits of softmax weights and values, the operands of ``node``: 8, or where the plan says so as many
    as leave their sums 31. Where those are 8, values are of two parts.
    """
    wanted = context.plan.values(node)
    return wanted if wanted == 8 else min(wanted, _room(_count(context.forms, node), 2**31))


def _fitting(forms: Forms, node: Node, operands: tuple[Form, Form], count: int) -> Iterator[Form]:
    """The operands in as many bits as sums of ``count`` products leave: a model's own zero point takes a
    ninth, and its own 16 bits are too many.
    """
    sizes = [forms.builder.graph.type(f.name).magnitude for f in operands]
    bits = 16
    while bits > 8 and count * math.prod(min(s, LIMIT[bits]) for s in sizes) >= 2**31:
        bits -= 1
    for x, form, size in zip(node.inputs, operands, sizes, strict=True):
        unsigned = forms.builder.graph.type(form.name).dtype == "uint8"
        yield form if unsigned or size <= LIMIT[bits] + 1 else forms.within(x, form, bits)


def _score_operands(context: Context, node: Node, count: int, softmax: Node, factor: float) -> list[Form]:
    """Queries and keys in 8 bits, or in as many as leave scores 31 where the plan says so or where rounding
    to 8 would move them by more than ``SCORE_NOISE``.
    """
    forms, wanted = context.forms, context.plan.scores(node)
    if wanted is None:
        weighs = families.FAMILIES[context.plan.family(softmax)].weighs
        wanted = 16 if weighs and _score_noise(forms, node, count) * factor > SCORE_NOISE else 8
    bits = min(wanted, _room(count, 2**30))
    widths = [8 if _from_state(forms, x) else bits for x in node.inputs]
    return [forms.as_is(x, width, width) for x, width in zip(node.inputs, widths, strict=True)]


def _score_noise(forms: Forms, node: Node, count: int) -> float:
    """The deviation of the errors of sums of ``count`` products of operands that are rounded to 8 bits; 0
    where nothing is known of them.
    """
    found = [forms.stats.get(x) for x in node.inputs]
    known = [(s.range(forms.calibrator) / LIMIT[8], s.power) for s in found if s is not None]
    if len(known) < 2:
        return 0.0
    (step_q, power_q), (step_k, power_k) = known
    return math.sqrt(count / 12 * (step_q**2 * power_k + step_k**2 * power_q))


def _from_state(forms: Forms, value: str) -> bool:
    """Whether ``value`` shows a state, which has 8 bits."""
    node = forms.nodes.get(value)
    if node is None or not forms.deferred(node):
        return value in forms.source.states
    return any(_from_state(forms, x) for x in node.inputs)


def _room(count: int, limit: int, operands: int = 2) -> int:
    """The most bits, from 8 to 16, of ``operands`` (others are 0 or 1) whose ``count`` products sum up below
    ``limit``.
    """
    return next(bits for bits in range(16, 7, -1) if bits == 8 or count * LIMIT[bits] ** operands < limit)


def _is_truth(forms: Forms, value: str) -> bool:
    """Whether ``value`` is a condition as a number: which rows are summed up."""
    node = forms.nodes.get(value)
    while node is not None and isinstance(node.op, MOVES):
        node = forms.nodes.get(node.inputs[0])
    return (
        node is not None and isinstance(node.op, Cast) and forms.source.type(node.inputs[0]).dtype == "bool"
    )


def biased_scores(context: Context, node: Node, sign: int) -> Form | None:
    """A sum that only softmax reads: the other operand is brought to the product's scale and added in the
    accumulator. None where the sum is another.
    """
    forms, users = context.forms, context.users[node.output]
    if not users or not all(isinstance(n.op, Softmax) for n in users) or node.output in forms.source.outputs:
        return None
    left, right = node.inputs
    scores = _scores(forms, left)
    if scores is None and sign == 1:
        left, right = right, left
        scores = _scores(forms, left)
    if scores is None or forms.source.type(left).shape != forms.source.type(node.output).shape:
        return None
    b = forms.builder
    if (constant := context.constant(right)) is not None:
        steps = np.clip(np.rint(sign * constant / scores.scale), -SCORE_BIAS_MAX, SCORE_BIAS_MAX)
        bias = b.constant(f"{node.output}.bias", steps.astype(np.int32))
    else:
        form = forms.as_is(right, 32, 16)
        m, e = forms.ratio(sign * form.scale / scores.scale)
        op = Requantize(-SCORE_BIAS_MAX, SCORE_BIAS_MAX, "int32")
        bias = b.emit(op, form.name, m, e, name=f"{node.output}.bias", scale=as_scale(scores.scale))
    return emitted(forms, node, Add(), (scores.name, bias), scores.scale)


def _scores(forms: Forms, value: str) -> Form | None:
    """The product of two computed values that ``value`` is, up to a constant factor."""
    factor = 1.0
    while value not in forms.base and (node := forms.nodes.get(value)) is not None:
        if not isinstance(node.op, Mul | Div) or not forms.deferred(node):
            return None
        value, times = forms.operand(node)
        factor *= times or 1.0
    base = forms.base.get(value)
    if base is None or not base.per_tensor or not isinstance(forms.nodes[value].op, MatMul) or factor <= 0:
        return None
    type_ = forms.builder.graph.type(base.name)
    fits = type_.dtype == "int32" and type_.magnitude < 2**31 - 2 * SCORE_BIAS_MAX
    return Form(base.name, np.asarray(base.scale * factor)) if fits else None


def softmax(context: Context, node: Node) -> Form:
    assert isinstance(node.op, Softmax)
    rank = context.forms.source.type(node.inputs[0]).rank
    if node.op.axis not in (-1, rank - 1):
        raise QuantizationError(f"node '{node.source}' (softmax): only the last axis has an integer form")
    mask = tuple(context.forms.integer(m) for m in node.inputs[1:])
    family = families.FAMILIES[context.plan.family(node)]
    if family.weighs and _only_weighs(context, node.output):
        if any(value_bits(context, n) > 8 for n in context.users[node.output]):
            return families.shiftmax(context.forms, node, mask)
        return families.shift_weights(context.forms, node, mask)
    length = context.forms.source.type(node.inputs[0]).shape[-1]
    if (
        family.weighs
        and not mask
        and isinstance(length, int)
        and rules_curve.read_small(context, node.output)
    ):
        return _told_apart(context.forms, node, length)
    return family.softmax(context.forms, node, mask)


def _told_apart(forms: Forms, node: Node, length: int) -> Form:
    """Softmax of rows of ``length`` scores whose small weights count, as where the sums of their columns
    divide them: quotients of 32 bits, of exponentials that are squares of their roots.
    """
    b, limit = forms.builder, math.isqrt(SUM_LIMIT // length)
    step, unit = np.asarray(OCTAVES * math.log(2) / LIMIT[16]), np.asarray(1 / limit)
    scores = forms.quantised(node.inputs[0], 32, step)
    top = emitted(forms, node, ReduceMax((-1,), True), (scores.name,), step, ".top")
    minus = b.emit(
        Mul(), top.name, b.constant("minus", np.full(1, -1, np.int32)), name=f"{node.output}.minus"
    )
    below = emitted(forms, node, Add(), (scores.name, minus), step, ".below")
    below = emitted(forms, node, Clip(-LIMIT[16], 0, "int16"), (below.name,), step, ".near")
    roots = np.exp(np.minimum(np.linspace(-32768, 32768, KNOTS) * step, 0.0) / 2) * limit
    table = b.constant(f"{node.output}.curve", np.rint(roots).astype(np.int16))
    root = emitted(forms, node, Curve(), (below.name, table), unit, ".root")
    part = emitted(forms, node, Mul(), (root.name, root.name), unit**2, ".part")
    total = emitted(forms, node, ReduceSum((-1,), True), (part.name,), unit**2, ".total")
    return quotient(forms, node, part, total)


def _only_weighs(context: Context, value: str) -> bool:
    """Whether ``value`` is read by nothing but products, as their left operand, with computed values."""
    users = context.users[value]
    weighing = (isinstance(n.op, MatMul) and n.inputs[0] == value != n.inputs[1] for n in users)
    computed = (context.constant(n.inputs[1]) is None for n in users)
    return bool(users) and all(weighing) and all(computed) and value not in context.forms.source.outputs


RULES: dict[type, Rule] = {Softmax: softmax}
