"""The rule of values that the model itself quantises: its scale and zero point are kept."""

from __future__ import annotations

import numpy as np

from intc.errors import QuantizationError
from intc.ir.graph import Node
from intc.ir.types import DType
from intc.ops.fake_quantize import FakeQuantize
from intc.ops.requantize import Requantize
from intc.passes.integer.context import Context, Rule
from intc.passes.integer.forms import Form, as_scale

HOLDERS: dict[DType, tuple[int, int]] = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15) + 1, 2**15 - 1),
}


def fake_quantize(context: Context, node: Node) -> Form:
    """The integers ``q - zero`` at the model's scale, in the narrowest type that holds them."""
    forms, op = context.forms, node.op
    assert isinstance(op, FakeQuantize)
    lo, hi = op.lo - op.zero, op.hi - op.zero
    dtype = next((d for d, (low, high) in HOLDERS.items() if low <= lo and hi <= high), None)
    if dtype is None:
        raise QuantizationError(f"node '{node.source}' (fake_quantize): [{lo}, {hi}] exceeds 16 bits")
    base = forms.base.get(node.inputs[0])
    x = base if base is not None and base.plain else forms.as_is(node.inputs[0], 32, 16)
    m, e = forms.ratio(x.scale / op.scale)
    whole = Requantize(lo, hi, dtype)
    scale = np.asarray(op.scale)
    name = forms.builder.emit(
        whole, x.name, m, e, name=node.output, source=node.source, scale=as_scale(scale)
    )
    return Form(name, scale, fixed=True)


RULES: dict[type, Rule] = {FakeQuantize: fake_quantize}
