"""The rule of values that the model itself quantises: its scale and zero point are kept."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from intc.errors import QuantizationError
from intc.ir.graph import Node
from intc.ir.types import DType
from intc.ops.elementwise import Add
from intc.ops.fake_quantize import FakeQuantize
from intc.ops.fused import WIDE
from intc.ops.requantize import Clip, Requantize
from intc.passes.integer.codes import MOVED
from intc.passes.integer.context import Context, Rule
from intc.passes.integer.forms import LIMIT, Form, Forms, as_scale
from intc.passes.plan import proven_bits

NINE_BITS: Final = 255  # what a zero point makes of 8
HOLDERS: Final[dict[DType, tuple[int, int]]] = {
    "int8": (-128, 127),
    "uint8": (0, 255),
    "int16": (-(2**15), 2**15 - 1),
    "int32": (-WIDE, WIDE),
}


def holder(op: FakeQuantize) -> tuple[DType, int, int]:
    """The narrowest type that holds ``q - zero``, and the ends of that."""
    lo, hi = op.lo - op.zero, op.hi - op.zero
    dtype = next((d for d, (low, high) in HOLDERS.items() if low <= lo and hi <= high), None)
    if dtype is None:
        raise QuantizationError(f"[{lo}, {hi}] exceeds 31 bits")
    return dtype, lo, hi


def fake_quantize(context: Context, node: Node) -> Form:
    """The integers ``q - zero`` at the model's scale, in the narrowest type that holds them."""
    forms, op = context.forms, node.op
    assert isinstance(op, FakeQuantize)
    dtype, lo, hi = holder(op)
    scale = np.asarray(op.scale)
    base = forms.base.get(node.inputs[0])
    x = base if base is not None and base.plain else forms.as_is(node.inputs[0], 32, 16)
    type_ = forms.builder.graph.type(x.name)
    if np.array_equal(x.scale, scale) and lo <= type_.interval[0] and type_.interval[1] <= hi:
        return Form(x.name, scale, fixed=True)  # on that grid already
    m, e = forms.ratio(x.scale / op.scale)
    whole = Requantize(lo, hi, dtype)
    name = forms.builder.emit(
        whole, x.name, m, e, name=node.output, source=node.source, scale=as_scale(scale)
    )
    return Form(name, scale, fixed=True)


def codes(forms: Forms, value: str) -> Form | None:
    """``value``, on a grid of 256 numbers that its zero point puts beyond int8, as int8 and a centre; None
    for another.
    """
    key = (value, "codes")
    if key in forms.cache:
        return forms.cache[key]
    base, node = forms.base.get(value), forms.nodes.get(value)
    if base is not None:
        if not _beyond_int8(forms, base):
            return None
        forms.cache[key] = _codes(forms, value, base)
    elif node is not None and isinstance(node.op, MOVED):
        inner = codes(forms, node.inputs[0])
        if inner is None:
            return None
        forms.cache[key] = replace(inner, name=forms.move(node, inner).name)
    return forms.cache.get(key)


def fitting(forms: Forms, value: str, form: Form, count: int, weight: int) -> Form:
    """``form`` of ``value`` in as many bits as sums of ``count`` products with weights up to ``weight``
    leave.
    """
    bits = proven_bits(16, count, weight)
    magnitude = forms.builder.graph.type(form.name).magnitude
    return forms.within(value, form, bits) if magnitude > max(LIMIT[bits] + 1, NINE_BITS) else form


def _beyond_int8(forms: Forms, form: Form) -> bool:
    type_ = forms.builder.graph.type(form.name)
    lo, hi = type_.interval
    return form.fixed and form.per_tensor and type_.dtype == "int16" and hi - lo < 256


def _codes(forms: Forms, value: str, form: Form) -> Form:
    lo, hi = forms.builder.graph.type(form.name).interval
    shift = lo + 128
    constant = forms.builder.constant(f"{value}.zero", np.array([-shift], np.int16))
    moved = forms.builder.emit(Add(), form.name, constant, name=f"{value}.moved")
    name = forms.builder.emit(Clip(-128, hi - shift, "int8"), moved, name=f"{value}.codes")
    return replace(form, name=name, centre=np.atleast_1d(shift * form.scale))


RULES: dict[type, Rule] = {FakeQuantize: fake_quantize}
