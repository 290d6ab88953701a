"""Sixteen bits where sums of products would exceed 32: two matrices of 8, the second of what the first one's
rounding leaves.
"""

from __future__ import annotations

import itertools

import numpy as np

from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops.elementwise import Add, Mul
from intc.ops.matmul import MatMul
from intc.ops.requantize import Clip, Requantize
from intc.passes.integer.context import Context
from intc.passes.integer.forms import LIMIT, Form, Forms, emitted
from intc.passes.integer.rounding import nearest

WEIGHT_LIMIT = 127
FINER = 2 * WEIGHT_LIMIT  # steps of the second matrix in one of the first
SPARE_BITS = 6  # of a sum of parts beyond 16
PART_LIMIT = 2**28  # of a part, so that the sum of four fits 32 bits


def two_matrices(context: Context, node: Node, weight: Array, x: Form) -> Form:
    """``x @ W`` as ``x @ W1 + x @ W2``, the two products summed up in 16 bits.

    ``W1`` are the integers next to ``weight`` [K, N], ``W2`` those next to the rest, in steps that are FINER
    times as small.
    """
    forms, b = context.forms, context.forms.builder
    folded = weight.astype(np.float64) * (x.scale if x.per_tensor else x.scale[:, None])
    step = np.maximum(np.abs(folded).max(axis=0) / WEIGHT_LIMIT, np.finfo(np.float32).tiny)
    high, low = nearest(folded, step, WEIGHT_LIMIT), step / FINER
    parts = []
    for suffix, integers, scale in (
        (".high", high, step),
        (".low", nearest(folded - high * step, low, WEIGHT_LIMIT), low),
    ):
        matrix = b.constant(f"{node.inputs[1]}{suffix}", integers.astype(np.int8))
        part = emitted(forms, node, MatMul(), (x.name, matrix), scale, suffix)
        if suffix == ".high" and (centre := context.centre(node.inputs[0], x)).any():
            bias = np.rint(np.broadcast_to(centre, len(weight)) @ weight.astype(np.float64) / step)
            constant = b.constant(f"{node.output}.centre", bias.astype(np.int32))
            part = emitted(forms, node, Add(), (part.name, constant), scale, ".centred")
        parts.append(part)
    return summed(forms, node, parts)


def summed(forms: Forms, node: Node, parts: list[Form]) -> Form:
    """The sum of two ``parts`` of what ``node`` computes, in 16 bits."""
    total = forms.scale_for(node.output, 16)
    names = [forms.requantised(part, part.name, 32, total).name for part in parts]
    whole = emitted(forms, node, Add(), (names[0], names[1]), total, ".sum")
    return emitted(forms, node, Clip(-LIMIT[16], LIMIT[16], "int16"), (whole.name,), total)


def of_parts(context: Context, node: Node, wide: tuple[bool, bool]) -> Form:
    """A product of two computed values over more terms than 16 bits allow: the sum of the products of their
    parts of 8 bits, two of those that are ``wide``, one of the others.
    """
    forms, pairs = context.forms, zip(node.inputs, wide, strict=True)
    left, right = (halves(forms, x) if two else [forms.as_is(x, 8, 8)] for x, two in pairs)
    total = np.asarray(forms.scale_for(node.output, 16) / 2**SPARE_BITS)
    op, whole = Requantize(-PART_LIMIT, PART_LIMIT, "int32"), None
    for a, c in itertools.product(left, right):
        scale = np.asarray(a.scale * c.scale)
        part = emitted(forms, node, MatMul(), (a.name, c.name), scale, ".part")
        part = emitted(forms, node, op, (part.name, *forms.ratio(scale / total)), total, ".term")
        whole = part if whole is None else emitted(forms, node, Add(), (whole.name, part.name), total, ".sum")
    assert whole is not None
    return whole


def halves(forms: Forms, value: str) -> list[Form]:
    """``value`` as two forms in int8: in steps FINER times as large, and the rest."""
    b = forms.builder
    scale = np.asarray(forms.scale_for(value, 16) * (LIMIT[16] / (WEIGHT_LIMIT * FINER)))
    whole, op = forms.quantised(value, 16, scale), Requantize(-WEIGHT_LIMIT, WEIGHT_LIMIT, "int8")
    high = b.emit(op, whole.name, *forms.ratio(np.asarray(1 / FINER)), name=f"{value}.high")
    steps = b.emit(Mul(), high, b.constant("finer", np.full(1, -FINER, np.int16)), name=f"{value}.steps")
    rest = b.emit(Add(), whole.name, steps, name=f"{value}.rest")
    low = b.emit(Clip(-WEIGHT_LIMIT, WEIGHT_LIMIT, "int8"), rest, name=f"{value}.low")
    return [Form(high, scale * FINER), Form(low, scale)]
