"""Rules of what slides over images: convolutions in groups and the largest element."""

from __future__ import annotations

import numpy as np

from intc.errors import QuantizationError
from intc.ir.graph import Node
from intc.ir.types import narrowest
from intc.ops.window import GroupedConv, MaxPool
from intc.passes.integer import rules_quantised
from intc.passes.integer.context import Context, Rule
from intc.passes.integer.forms import LIMIT, Form, emitted
from intc.passes.integer.rounding import nearest
from intc.passes.integer.widths import grid_scales, weight_scales
from intc.passes.plan import BIAS_LIMIT, SUM_LIMIT

WIDE_TAPS = 256  # sums of so many 16-bit products with int8 weights, and a bias, fit 32 bits
NARROW = 127


def grouped_conv(context: Context, node: Node) -> Form:
    """One weight scale per output channel, images of 16 bits where the sums allow, and weights as fine as
    they then may be: a convolution in groups does few of a network's products, so that both cost little.
    """
    forms, op = context.forms, node.op
    assert isinstance(op, GroupedConv)
    weight = context.constant(node.inputs[1])
    if weight is None:
        raise QuantizationError(f"node '{node.source}' (conv): the weights must be constants")
    taps = int(np.prod(weight.shape[:3]))
    bits = 16 if taps <= WIDE_TAPS else 8
    x = rules_quantised.fitting(forms, node.inputs[0], forms.as_is(node.inputs[0], bits, bits), taps, NARROW)
    type_ = forms.builder.graph.type(x.name)
    columns = weight.reshape(-1, weight.shape[-1]).astype(np.float64) * float(x.scale)
    limit = max(NARROW, min(LIMIT[16], (SUM_LIMIT - BIAS_LIMIT) // (taps * type_.magnitude)))
    grid = grid_scales(columns)
    scale = context.bias_room(node, np.where(grid > 0, grid, weight_scales(columns, limit)))
    integers = nearest(columns, scale, limit).reshape(weight.shape)
    w = forms.builder.constant(f"{node.inputs[1]}.integers", integers.astype(narrowest(-limit, limit)))
    return emitted(forms, node, op, (x.name, w), scale)


def max_pool(context: Context, node: Node) -> Form:
    forms = context.forms
    x = forms.as_is(node.inputs[0], 16, 16)
    if float(x.scale) < 0:
        x = forms.quantised(node.inputs[0], 16)
    return emitted(forms, node, node.op, (x.name,), x.scale)


RULES: dict[type, Rule] = {GroupedConv: grouped_conv, MaxPool: max_pool}
