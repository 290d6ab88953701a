"""The operators, one class each; ``OPS`` is the whole registry, by text name."""

from __future__ import annotations

from intc.ir.op import Op
from intc.ops import (
    circular,
    conv,
    curve,
    division,
    elementwise,
    fake_quantize,
    fused,
    gelu,
    ibert,
    im2col,
    ivit,
    layer_norm,
    logic,
    lut,
    matmul,
    movement,
    pointwise,
    poly,
    positions,
    reduce,
    requantize,
    row_softmax,
    shift,
    softmax,
    table,
    window,
)

OPS: dict[str, type[Op]] = {
    op.name: op
    for module in (
        movement,
        positions,
        elementwise,
        logic,
        circular,
        matmul,
        conv,
        softmax,
        gelu,
        layer_norm,
        reduce,
        im2col,
        window,
        requantize,
        shift,
        poly,
        row_softmax,
        table,
        pointwise,
        fake_quantize,
        curve,
        division,
        ivit,
        ibert,
        lut,
        fused,
    )
    for op in module.OPS
}
