"""Rules of what slides over images: convolutions in groups and the largest element."""

from __future__ import annotations

import numpy as np

from intc.errors import QuantizationError
from intc.ir.graph import Node
from intc.ops.window import GroupedConv, MaxPool
from intc.passes.integer import rules_quantised
from intc.passes.integer.context import Context, Rule
from intc.passes.integer.forms import Form, emitted
from intc.passes.integer.rounding import nearest
from intc.passes.integer.widths import grid_scales, weight_scales

WIDE_TAPS = 256  # sums of so many 16-bit products with int8 weights, and a bias, fit 32 bits


def grouped_conv(context: Context, node: Node) -> Form:
    """One weight scale per output channel, images of 16 bits where the sums allow: a convolution in groups
    does few of a network's products, so that wide images cost little.
    """
    forms, op = context.forms, node.op
    assert isinstance(op, GroupedConv)
    weight = context.constant(node.inputs[1])
    if weight is None:
        raise QuantizationError(f"node '{node.source}' (conv): the weights must be constants")
    taps = int(np.prod(weight.shape[:3]))
    bits = 16 if taps <= WIDE_TAPS else 8
    x = rules_quantised.fitting(forms, node.inputs[0], forms.as_is(node.inputs[0], bits, bits), taps, 127)
    columns = weight.reshape(-1, weight.shape[-1]).astype(np.float64) * float(x.scale)
    grid = grid_scales(columns)
    scale = context.bias_room(node, np.where(grid > 0, grid, weight_scales(columns, 127)))
    integers = nearest(columns, scale, 127).reshape(weight.shape).astype(np.int8)
    w = forms.builder.constant(f"{node.inputs[1]}.q8", integers)
    return emitted(forms, node, op, (x.name, w), scale)


def max_pool(context: Context, node: Node) -> Form:
    forms = context.forms
    x = forms.as_is(node.inputs[0], 16, 16)
    if float(x.scale) < 0:
        x = forms.quantised(node.inputs[0], 16)
    return emitted(forms, node, node.op, (x.name,), x.scale)


RULES: dict[type, Rule] = {GroupedConv: grouped_conv, MaxPool: max_pool}
