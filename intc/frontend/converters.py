"""The converters of all supported operators, by domain and name.

A converter turns one ONNX node into nodes of the float graph; it raises GraphError with the reason when the
node is outside its conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx

from intc.errors import GraphError
from intc.frontend import (
    converters_attention,
    converters_elementwise,
    converters_fused,
    converters_gather,
    converters_grid,
    converters_image,
    converters_movement,
    converters_nn,
    converters_qoperator,
    converters_quantised,
    converters_recurrent,
    converters_reduce,
    converters_resize,
    converters_rotary,
    converters_scatter,
    converters_select,
    converters_sequence,
    converters_transforms,
    converters_whole,
    converters_window,
)
from intc.frontend.call import Call, Converter
from intc.frontend.symbolic import Imported

if TYPE_CHECKING:
    from intc.frontend.importer import Importer

STANDARD: dict[str, Converter] = {
    **converters_elementwise.CONVERTERS,
    **converters_whole.CONVERTERS,
    **converters_movement.CONVERTERS,
    **converters_gather.CONVERTERS,
    **converters_nn.CONVERTERS,
    **converters_image.CONVERTERS,
    **converters_window.CONVERTERS,
    **converters_resize.CONVERTERS,
    **converters_grid.CONVERTERS,
    **converters_recurrent.CONVERTERS,
    **converters_reduce.CONVERTERS,
    **converters_scatter.CONVERTERS,
    **converters_select.CONVERTERS,
    **converters_sequence.CONVERTERS,
    **converters_transforms.CONVERTERS,
    **converters_attention.CONVERTERS,
    **converters_rotary.CONVERTERS,
    **converters_quantised.CONVERTERS,
    **converters_qoperator.CONVERTERS,
}
MICROSOFT: dict[str, Converter] = {
    **converters_attention.MICROSOFT,
    **converters_rotary.MICROSOFT,
    **converters_qoperator.MICROSOFT,
    **converters_fused.MICROSOFT,
    **{k: converters_nn.CONVERTERS[k] for k in ("LayerNormalization", "SimplifiedLayerNormalization")},
}
TENSORRT = converters_quantised.TENSORRT
DOMAINS: dict[str, dict[str, Converter]] = {
    "": STANDARD,
    "ai.onnx": STANDARD,
    "com.microsoft": MICROSOFT,
    "trt": TENSORRT,
}


def exists(node: onnx.NodeProto) -> bool:
    """Whether the operator has a converter."""
    return node.op_type in DOMAINS.get(node.domain, {})


def convert(
    ctx: Importer,
    node: onnx.NodeProto,
    inputs: Sequence[Imported | None],
    attributes: dict[str, Any],
    label: str,
) -> list[Imported]:
    """The results of ``node``; GraphError when no converter exists."""
    converter = DOMAINS.get(node.domain, {}).get(node.op_type)
    if converter is None:
        domain = f" of domain '{node.domain}'" if node.domain else ""
        raise GraphError(f"the operator{domain} is not supported")
    return converter(Call(ctx, node, inputs, attributes, label))
