"""Weights of 16 bits: two matrices of 8, the second of what the first one's rounding leaves."""

from __future__ import annotations

import numpy as np

from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops.elementwise import Add
from intc.ops.matmul import MatMul
from intc.ops.requantize import Clip
from intc.passes.integer.context import Context
from intc.passes.integer.forms import LIMIT, Form, emitted
from intc.passes.integer.rounding import nearest

WEIGHT_LIMIT = 127
FINER = 2 * WEIGHT_LIMIT  # steps of the second matrix in one of the first


def two_matrices(context: Context, node: Node, weight: Array, x: Form) -> Form:
    """``x @ W`` as ``x @ W1 + x @ W2``, the two products summed up in 16 bits.

    ``W1`` are the integers next to ``weight`` [K, N], ``W2`` those next to the rest, in steps that are FINER
    times as small.
    """
    forms, b = context.forms, context.forms.builder
    folded = weight.astype(np.float64) * (x.scale if x.per_tensor else x.scale[:, None])
    step = np.maximum(np.abs(folded).max(axis=0) / WEIGHT_LIMIT, np.finfo(np.float32).tiny)
    high, low = nearest(folded, step, WEIGHT_LIMIT), step / FINER
    total = forms.scale_for(node.output, 16)
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
        parts.append(forms.requantised(part, part.name, 32, total).name)
    whole = emitted(forms, node, Add(), (parts[0], parts[1]), total, ".sum")
    return emitted(forms, node, Clip(-LIMIT[16], LIMIT[16], "int16"), (whole.name,), total)
