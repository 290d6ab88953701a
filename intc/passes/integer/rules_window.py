"""Rules of what slides over images: grouped convolutions and the largest element."""

from __future__ import annotations

import numpy as np

from intc.errors import QuantizationError
from intc.ir.graph import Node
from intc.ops.conv import Conv
from intc.ops.movement import Pad
from intc.ops.window import GroupedConv, MaxPool
from intc.passes.integer.context import Context, Rule
from intc.passes.integer.forms import Form, as_scale
from intc.passes.integer.rounding import nearest
from intc.passes.integer.widths import weight_scales
from intc.passes.plan import BIAS_LIMIT

WIDE_TAPS = 256  # sums of so many 16-bit products with int8 weights, and a bias, fit 32 bits


def conv(context: Context, node: Node) -> Form:
    """A grouped convolution: one weight scale per output channel, images of 16 bits, or what sums allow.

    Its channels cannot be equalised, and it does few of a network's products: wide images cost little.
    """
    forms, op = context.forms, node.op
    assert isinstance(op, Conv)
    weight = context.constant(node.inputs[1])
    bias = context.constant(node.inputs[2]) if len(node.inputs) == 3 else np.zeros(1)
    if weight is None or bias is None:
        raise QuantizationError(f"node '{node.source}' (conv): weights and bias must be constants")
    taps = weight[0].size
    x = forms.as_is(node.inputs[0], 16 if taps <= WIDE_TAPS else 8, 16 if taps <= WIDE_TAPS else 8)
    columns = weight.reshape(len(weight), -1).T.astype(np.float64) * float(x.scale)
    bias = np.broadcast_to(bias.astype(np.float64), (len(weight),))
    scale = np.maximum(weight_scales(columns, 127), np.abs(bias) / BIAS_LIMIT)
    scale = np.where(scale > 0, scale, np.finfo(np.float32).tiny)
    integers = nearest(columns, scale, 127).T.reshape(weight.shape).astype(np.int8)
    out = forms.scale_for(node.output, 16)
    b = forms.builder
    top, left, bottom, right = op.pads
    image = x.name
    if any(op.pads):
        padding = Pad((0, 0, top, left), (0, 0, bottom, right))
        image = b.emit(
            padding, image, name=f"{node.output}.padded", source=node.source, scale=as_scale(x.scale)
        )
    constants = (
        b.constant(f"{node.inputs[1]}.q8", integers),
        b.constant(f"{node.output}.bias", np.rint(bias / scale).astype(np.int32)),
        *forms.ratio(scale / out),
    )
    whole = GroupedConv(op.strides, op.dilations, op.groups, -32767, 32767, "int16")
    name = b.emit(whole, image, *constants, name=node.output, source=node.source, scale=as_scale(out))
    return Form(name, out)


def max_pool(context: Context, node: Node) -> Form:
    forms = context.forms
    x = forms.as_is(node.inputs[0], 16, 16)
    if float(x.scale) < 0:
        x = forms.quantised(node.inputs[0], 16)
    name = forms.builder.emit(node.op, x.name, name=node.output, source=node.source, scale=as_scale(x.scale))
    return Form(name, x.scale)


RULES: dict[type, Rule] = {Conv: conv, MaxPool: max_pool}
