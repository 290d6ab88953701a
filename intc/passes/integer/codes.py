"""Eight bits for ranges that lie mostly on one side of zero: codes of which another than 0 stands for zero.

``real = (code - zero) * scale``. Only products with constants read them: what ``zero`` adds to a sum is
``-zero * sum(w)``, a constant, which joins their bias; windows have ``zero`` around the image.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops.elementwise import Add
from intc.ops.im2col import Im2col
from intc.ops.movement import MOVES, Concat
from intc.ops.requantize import Clip, Requantize
from intc.passes.integer.context import Context
from intc.passes.integer.forms import LIMIT, Form, Forms

MOVED: Final = (*MOVES, Im2col)  # of one operand, and nothing added but zeros
WORTHWHILE: Final = 0.8  # of the step of codes around 0; what is less costs two operations
UNSIGNED_STEP: Final = 127 / 255  # of a signed one over the same range


def one_sided(context: Context, value: str, scales: Array | None = None) -> Form | None:
    """``value`` in 8 bits whose ends are those of its range: unsigned where it is never negative, else as
    codes. None where neither spares much, or where it has 8 bits already.

    ``scales`` [C]: of signed integers that hold every channel; else there is one for all.
    """
    forms = context.forms
    if settled(forms, value) or value not in forms.stats:
        return None
    signed = forms.scale_for(value, 8) if scales is None else scales
    if forms.never_negative(value):
        return forms.quantised(value, 8, forms.on_grid(value, signed * UNSIGNED_STEP), unsigned=True)
    stats, limit = forms.stats[value], LIMIT[8]
    lows, highs = (stats.low, stats.high) if scales is not None else (stats.low.min(), stats.high.max())
    room = 1.0 if scales is None else stats.unseen * context.room(value)
    low, high = (min(float((x / signed).max(initial=0.0)) * room, limit) for x in (-lows, highs))
    step = (low + high) / (2 * limit)
    if step > WORTHWHILE or step <= 0:
        return None
    return _coded(forms, value, forms.on_grid(value, signed * step), round(low / step) - limit)


def settled(forms: Forms, value: str) -> bool:
    """Whether ``value`` has its 8 bits already, by itself or by the model."""
    while value not in forms.base:
        node = forms.nodes.get(value)
        if node is None or not forms.deferred(node):
            return value in forms.source.constants
        if isinstance(node.op, Concat):
            return False
        value = forms.operand(node)[0]
    form = forms.base[value]
    return form.fixed or not form.plain or forms.builder.graph.type(form.name).dtype in ("int8", "uint8")


def _coded(forms: Forms, value: str, scale: Array, zero: int) -> Form | None:
    """``value`` as int8 codes; None where it is moved in a way that they do not follow."""
    key = (value, "codes", scale.tobytes(), zero)
    if key not in forms.cache:
        name = _codes(forms, value, scale, zero)
        if name is None:
            return None
        forms.cache[key] = Form(name, scale, centre=np.atleast_1d(-zero * scale))
    return forms.cache[key]


def _codes(forms: Forms, value: str, scale: Array, zero: int) -> str | None:
    b, limit = forms.builder, LIMIT[8]
    if value in forms.source.constants:
        codes = np.rint(forms.source.constants[value].astype(np.float64) / scale) + zero
        return b.constant(f"{value}.codes", np.clip(codes, -limit, limit).astype(np.int8))
    if value in forms.base:
        op = Requantize(-limit - zero, limit - zero, "int16")
        x = forms.base[value]
        if not x.plain:
            return None
        steps = b.emit(op, x.name, *forms.ratio(x.scale / scale), name=f"{value}.steps")
        constant = b.constant(f"{value}.zero", np.array([zero], np.int16))
        moved = b.emit(Add(), steps, constant, name=f"{value}.counted")
        return b.emit(Clip(-limit, limit, "int8"), moved, name=f"{value}.codes")
    node = forms.nodes[value]
    if isinstance(node.op, Concat):
        parts = [_coded(forms, x, scale, zero) for x in node.inputs]
        names = [p.name for p in parts if p is not None]
        return b.emit(node.op, *names, name=value, source=node.source) if len(names) == len(parts) else None
    return _followed(forms, node, scale, zero)


def _followed(forms: Forms, node: Node, scale: Array, zero: int) -> str | None:
    """The codes of the operand of ``node``, moved as it does."""
    inner, factor = forms.operand(node)
    if factor is not None:
        found = _coded(forms, inner, np.asarray(scale / factor), zero) if factor > 0 else None
        return None if found is None else found.name
    if not isinstance(node.op, MOVED):
        return None
    found = _coded(forms, inner, scale, zero)
    return None if found is None else forms.move(node, found).name
