"""One rule per float operator: from its inputs' integer forms to its own base form.

A rule returns the base :class:`Form` of the node's output. ``RULES`` is the whole list; a float node without
a rule (or data movement) is refused by name.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from intc.calibration.moments import Moments
from intc.errors import QuantizationError
from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops.elementwise import Add, Sigmoid, Sub, Tanh
from intc.ops.gelu import Gelu
from intc.ops.im2col import Im2col
from intc.ops.layer_norm import LayerNorm
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVEMENT, Concat, Gather
from intc.ops.requantize import Clip
from intc.ops.softmax import Softmax
from intc.passes.integer import (
    codes,
    families,
    rules_attention,
    rules_curve,
    rules_elementwise,
    rules_quantised,
    rules_wide,
    rules_window,
)
from intc.passes.integer.context import Context, Rule
from intc.passes.integer.forms import LIMIT, Form, Forms, as_scale, grid_scale
from intc.passes.integer.rounding import compensated, nearest
from intc.passes.integer.widths import grid_scales, weight_scales
from intc.passes.integer.zeros import keeps_zeros
from intc.passes.match import behind_movement, biased_product, keeps_channels
from intc.passes.split_outliers import offsets

WEIGHT_LIMIT = 127
BLOCK_ELEMENTS = 2**21
WORTH_MOVING = 1 / 2  # of the noise of one scale for all channels
SMALL_TABLE = 2**20  # elements that may take two bytes
SUM_ROOM = 2.0  # how much coarser than 16 bits allow a sum may be, to be cheaper
EXACT = 2.0**-12  # of a sum's range: by how much a constant may be off in steps of what it is added to


def matmul(context: Context, node: Node) -> Form:
    weight = context.constant(node.inputs[1])
    return (
        _linear(context, node, weight)
        if weight is not None and weight.ndim == 2
        else rules_attention.product(context, node)
    )


def _linear(context: Context, node: Node, weight: Array) -> Form:
    """``acc = x_int @ round(s_x * W / s_w)`` with one weight scale per output channel; the mean error of the
    output goes to the bias.
    """
    b = context.forms.builder
    bits = context.plan.weights(node)
    limit = 2 ** (min(bits, 8) - 1) - 1
    x = rules_quantised.codes(context.forms, node.inputs[0])
    if x is None:
        x = linear_input(context, node.inputs[0], context.plan.activations(node, weight.shape[0]))
    x = rules_quantised.fitting(context.forms, node.inputs[0], x, len(weight), limit)
    if bits == 16:
        return rules_wide.two_matrices(context, node, weight, x)
    stats = context.forms.stats.get(node.inputs[0])
    moments = stats.moments if stats is not None and stats.moments and stats.moments.rows else None
    covariance = _covariance(moments, x) if moments and context.rounding == "gptq" else None
    parts = [slice(None)] if covariance is not None else _column_blocks(weight)

    def folded(part: slice) -> Array:
        return weight[:, part].astype(np.float64) * (x.scale if x.per_tensor else x.scale[:, None])

    pairs = [(grid_scales(w), weight_scales(w, limit, covariance)) for w in map(folded, parts)]
    grid, free = (np.concatenate(scales) for scales in zip(*pairs, strict=True))
    scale = context.bias_room(node, np.where(grid > 0, grid, free))
    exact = (grid > 0) & (scale == grid) & (bits == 8)
    centre = context.centre(node.inputs[0], x)
    offset = np.broadcast_to(centre, len(weight))
    known = moments is not None and not keeps_zeros(context, node)
    mean = (moments.mean - centre) / x.scale if moments is not None and known else np.zeros(len(weight))
    corrected = known or bool(centre.any())
    integers, correction = np.empty(weight.shape, np.int8), np.empty(weight.shape[1])
    for part in parts:
        w, s = folded(part), scale[part]
        rounded = nearest(w, s, limit) if covariance is None else compensated(w, s, limit, covariance)
        rounded = np.where(exact[part], np.rint(w / s), rounded)
        integers[:, part] = rounded
        if corrected:
            correction[part] = offset @ weight[:, part].astype(np.float64) + (w - rounded * s).T @ mean
    constant = b.constant(f"{node.inputs[1]}.q{bits}", integers)
    name = b.emit(MatMul(), x.name, constant, name=node.output, source=node.source, scale=as_scale(scale))
    form = Form(name, scale)
    if not corrected:
        return form
    context.corrections[node.output] = correction
    return form if _bias_follows(context, node) else _biased(context, node, node.output, form, np.zeros(1))


def _covariance(moments: Moments, x: Form) -> Array | None:
    """Of the integers of ``x``, their rounding included; None where only the mean is known."""
    covariance = moments.covariance()
    if covariance is None:
        return None
    units = np.broadcast_to(x.scale, len(covariance))
    return np.asarray(covariance / np.outer(units, units) + np.eye(len(covariance)) / 12)


def _column_blocks(weight: Array) -> list[slice]:
    """Runs of columns small enough that what is computed from them stays small beside the model."""
    width = max(1, BLOCK_ELEMENTS // len(weight))
    return [slice(start, start + width) for start in range(0, weight.shape[1], width)]


def _bias_follows(context: Context, node: Node) -> bool:
    """Whether the only reader of the product adds a constant vector in the accumulator."""
    users = context.users[node.output]
    if len(users) != 1 or type(users[0].op) is not Add or node.output in context.forms.source.outputs:
        return False
    constant = next((c for c in map(context.constant, users[0].inputs) if c is not None), None)
    return constant is not None and _is_vector(constant) and _same_shape(context, node.output, users[0])


def _codes(context: Context, value: str) -> tuple[Array, Array]:
    """The lowest real number [C] seen of ``value``, and the highest that the equalised codes of all products
    that read it reach.
    """
    stats = context.forms.stats[value]
    lowest = np.maximum(stats.low, -stats.channel_ranges(context.forms.calibrator))
    read = {context.plan.activations(n, w.shape[0]) for n, w in context.products(value)}
    highest = [context.channel_scales(value, bits) * LIMIT[bits] for bits in sorted(read)]
    return lowest, np.min(highest, axis=0)


def linear_input(context: Context, value: str, bits: int) -> Form:
    """``value`` as the ``bits``-wide operand of a constant-weight product, equalised for all products that
    read it where that is exact.
    """
    forms = context.forms
    node, base = forms.nodes.get(value), forms.base.get(value)
    if base is not None and base.fixed:
        return base
    if node is not None and isinstance(node.op, Im2col) and node.op.channels_last:
        return forms.windowed(node, linear_input(context, node.inputs[0], bits), bits)
    scales = _channel_scales(context, value, bits)
    if scales is None or not _takes_channels(forms, value):
        if bits == 8 and (found := codes.one_sided(context, value)) is not None:
            return found
        if scales is None:
            return forms.as_is(value, bits, bits)
        key = (value, "behind", scales.tobytes())
        if key not in forms.cache:
            forms.cache[key] = forms.requantised(forms.quantised(value, 16), value, bits, scales)
        return forms.cache[key]
    if bits != 8:
        return forms.quantised(value, bits, scales)
    if base is not None and base.centre is not None:  # the same highest number with about half the step
        low, high = _codes(context, value)
        scales = np.maximum(high - base.centre, base.centre - low) / 127
    elif (found := codes.one_sided(context, value, scales)) is not None:
        return found
    return forms.quantised(value, 8, forms.on_grid(value, scales))


def _channel_scales(context: Context, value: str, bits: int) -> Array | None:
    """Scales of the channels of ``value``, which products read; None where one for all of them is as good, or
    where nothing is known of them. What has to be moved in 16 bits for them must gain ``WORTH_MOVING``.
    """
    forms, node, stats = context.forms, context.forms.nodes.get(value), context.forms.stats.get(value)
    readers = (*context.products(value), *context.windows(value))
    if node is None or stats is None or not readers or stats.channels.size != len(readers[0][1]):
        return None
    moved = isinstance(node.op, MOVEMENT) or value not in forms.base
    if moved and (value in forms.base or not stats.magnitude or codes.settled(forms, value)):
        return None
    if moved and _weighted(forms, value):  # by attention, whose kernel gives the moved 8 bits at one scale
        return None
    scales = context.channel_scales(value, bits)
    if not moved:
        return scales
    squares = np.sum([np.einsum("cn,cn->c", w, w) for _, w in readers], axis=0, dtype=np.float64)
    share = float(squares @ scales**2) / (squares.sum() * float(forms.scale_for(value, bits)) ** 2)
    allowed = 1.0 if _takes_channels(forms, value) else WORTH_MOVING if bits == 8 else 0.0
    return scales if share < allowed else None


def _weighted(forms: Forms, value: str) -> bool:
    """Whether ``value`` is a product of softmax weights, moved."""
    made = behind_movement(forms.nodes, value)
    weights = forms.nodes.get(made.inputs[0]) if made is not None and isinstance(made.op, MatMul) else None
    return weights is not None and isinstance(weights.op, Softmax)


def _takes_channels(forms: Forms, value: str) -> bool:
    """Whether each channel of ``value`` may have a scale of its own: it is computed, and moved in no way that
    mixes channels.
    """
    node = forms.nodes.get(value)
    if node is None:
        return value in forms.source.constants
    if value in forms.base:
        return not isinstance(node.op, MOVEMENT)
    inner = node.inputs if isinstance(node.op, Concat) else node.inputs[:1]
    return keeps_channels(forms.source, node) and all(_takes_channels(forms, x) for x in inner)


def add(context: Context, node: Node) -> Form:
    sign = -1 if isinstance(node.op, Sub) else 1
    left, right = node.inputs
    if context.constant(left) is not None and sign == 1:
        left, right = right, left
    constant = context.constant(right)
    base = _rescaled(context, left)
    if (
        constant is not None
        and base is not None
        and _is_bias(constant, base, context)
        and _same_shape(context, left, node)
        and (left in context.corrections or _fits(constant, base, context, node.output))
    ):
        return _biased(context, node, left, base, sign * constant.astype(np.float64))
    scores = rules_attention.biased_scores(context, node, sign)
    return scores or _sum(context, node, left, right, sign)


def _rescaled(context: Context, value: str) -> Form | None:
    """The base form of ``value``, or of what it is only a constant number times."""
    forms, factor = context.forms, 1.0
    while value not in forms.base and (node := forms.nodes.get(value)) is not None:
        inner, number = forms.operand(node)
        if number is None:
            return None
        value, factor = inner, factor * number
    found = forms.base.get(value)
    return found if found is None or factor == 1.0 else replace(found, scale=found.scale * factor)


def _is_bias(constant: Array, base: Form, context: Context) -> bool:
    type_ = context.forms.builder.graph.type(base.name)
    return type_.dtype == "int32" and (_is_vector(constant) or base.per_tensor)


def _fits(constant: Array, base: Form, context: Context, total: str) -> bool:
    """Whether the constant fits beside the product in 32 bits at its scale, whose steps are fine enough for
    it in the sum ``total``: those of whole numbers are not for a half.
    """
    room = 2**31 - 1 - context.forms.builder.graph.type(base.name).magnitude
    if float(np.abs(constant).max(initial=0)) >= room * float(np.abs(base.scale).min()):
        return False
    values = constant.astype(np.float64).ravel() if _is_vector(constant) else constant.astype(np.float64)
    off = np.abs(np.rint(values / base.scale) * base.scale - values).max(initial=0)
    return total not in context.forms.stats or bool(off <= EXACT * context.forms.range_of(total))


def _is_vector(constant: Array) -> bool:
    """One number, or one per index of the last axis."""
    return constant.size in (1, constant.shape[-1] if constant.ndim else 1)


def _same_shape(context: Context, left: str, node: Node) -> bool:
    return context.forms.source.type(left).shape == context.forms.source.type(node.output).shape


def _biased(context: Context, node: Node, left: str, base: Form, constant: Array) -> Form:
    """A constant added in the 32-bit accumulator at its own scale."""
    b = context.forms.builder
    if _is_vector(constant):
        constant = np.broadcast_to(constant.ravel(), base.scale.shape or constant.ravel().shape)
    constant = constant + context.corrections.pop(left, 0.0)
    integers = np.rint(constant / base.scale)
    limit = 2**31 - 1 - b.graph.type(base.name).magnitude
    if np.abs(integers).max(initial=0) > limit:
        raise QuantizationError(
            f"node '{node.source}' (add): the constant exceeds 32 bits at the product's scale"
        )
    c = b.constant(f"{node.output}.bias", integers.astype(np.int32))
    name = b.emit(Add(), base.name, c, name=node.output, source=node.source, scale=as_scale(base.scale))
    return Form(name, base.scale)


def _sum(context: Context, node: Node, left: str, right: str, sign: int) -> Form:
    """Both branches requantised to the sum's 16-bit scale, added, saturated: the residual stream.

    Of two products one is stored, in 16 bits: the kernel of the other then takes the sum. A branch that is
    stored in 16 bits is rescaled in 16-bit lanes, for which the sum can spare a bit.
    """
    forms, b = context.forms, context.forms.builder
    scale = forms.scale_for(node.output, 16)
    if all(_product_only(context, x) for x in (left, right)) and forms.stats[right].looseness == 1.0:
        stored = forms.quantised(right, 16)
        scale = grid_scale(stored.scale, scale, SUM_ROOM)
        a = forms.quantised(left, 32, scale)
        c = forms.requantised(stored, right, 32, np.asarray(sign * scale))
    else:
        plain = scale
        scale = forms.on_grid(right, plain, SUM_ROOM)
        scale = scale if scale is not plain else forms.on_grid(left, plain, SUM_ROOM)
        a, c = forms.quantised(left, 32, scale), forms.quantised(right, 32, sign * scale)
    total = b.emit(
        Add(), a.name, c.name, name=f"{node.output}.sum", source=node.source, scale=as_scale(scale)
    )
    clip = Clip(-32767, 32767, "int16")
    return Form(b.emit(clip, total, name=node.output, source=node.source, scale=as_scale(scale)), scale)


def _product_only(context: Context, value: str) -> bool:
    """Whether ``value`` is a product with constant weights that only the sum reads."""
    forms = context.forms
    if value not in forms.stats or len(context.users[value]) != 1:
        return False
    return biased_product(forms.source, forms.nodes, value) is not None


def gelu(context: Context, node: Node) -> Form:
    """By a formula in 16 bits (SiLU, hard-swish: in every family) less the middle of each channel's codes
    where only constant products read it.
    """
    users, forms = context.users[node.output], context.forms
    only_products = len(context.products(node.output)) == len(users) > 0
    stats = forms.stats.get(node.output)
    width = forms.source.type(node.output).shape[-1:]
    free = node.output not in forms.source.outputs and stats is not None and stats.low.shape == width
    assert isinstance(node.op, Gelu)
    family = families.FAMILIES[context.plan.family(node)]
    make = family.gelu if node.op.has_families else families.poly_gelu
    if make is families.poly_gelu and only_products and free and stats is not None:
        low, high = _codes(context, node.output)
        stagger = (high - low) / 254 * offsets(forms.source, forms.nodes, node)
        return families.poly_gelu(forms, node, (low + high) / 2 + stagger)
    return make(context.forms, node)


def tanh(context: Context, node: Node) -> Form:
    return families.FAMILIES[context.plan.family(node)].tanh(context.forms, node)


def sigmoid(context: Context, node: Node) -> Form:
    return families.shift_sigmoid(context.forms, node)


def layer_norm(context: Context, node: Node) -> Form:
    """The products' own bits straight from the norm where only products read it, else sixteen."""
    forms, users = context.forms, context.users[node.output]
    readers = context.products(node.output)
    make = families.FAMILIES[context.plan.family(node)].layer_norm
    only_products = bool(users) and len(readers) == len(users) and node.output not in forms.source.outputs
    if only_products and node.output in forms.stats:
        bits = max(context.plan.activations(n, w.shape[0]) for n, w in readers)
        return make(forms, node, bits, context.channel_scales(node.output, bits))
    return make(forms, node, 16, forms.scale_for(node.output, 16))


def gather(context: Context, node: Node) -> Form:
    """An embedding: rows of a table in 8 bits per channel, by integer indices; other tables, and small ones,
    in 16 bits.
    """
    forms, table = context.forms, context.constant(node.inputs[0])
    assert isinstance(node.op, Gather) and table is not None
    small = table.size <= SMALL_TABLE and len(table) > 1
    if table.ndim != 2 or node.op.axis != 0 or small:
        whole = forms.quantised(node.inputs[0], 16)
        index = forms.index(node.inputs[1], table.shape[node.op.axis])
        name = forms.builder.emit(
            node.op, whole.name, index, name=node.output, source=node.source, scale=as_scale(whole.scale)
        )
        return Form(name, whole.scale)
    scale = np.maximum(np.abs(table).max(axis=0).astype(np.float64), 1e-30) / WEIGHT_LIMIT
    integers = np.clip(np.rint(table / scale), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)
    data = forms.builder.constant(f"{node.inputs[0]}.q8", integers)
    index = forms.index(node.inputs[1], table.shape[0])
    name = forms.builder.emit(
        node.op, data, index, name=node.output, source=node.source, scale=as_scale(scale)
    )
    return Form(name, scale)


RULES: dict[type, Rule] = {
    **rules_curve.RULES,
    **rules_elementwise.RULES,
    **rules_window.RULES,
    **rules_quantised.RULES,
    **rules_attention.RULES,
    MatMul: matmul,
    Add: add,
    Sub: add,
    Gelu: gelu,
    Tanh: tanh,
    Sigmoid: sigmoid,
    LayerNorm: layer_norm,
    Gather: gather,
}
