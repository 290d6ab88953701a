"""The converters of all supported operators, by domain and name.

A converter turns one ONNX node into nodes of the float graph; it raises GraphError with the reason when the
node is outside its conditions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import onnx

from intc.errors import GraphError
from intc.frontend.call import Call, Converter
from intc.frontend.converters import (
    activations,
    attention,
    between,
    cells,
    elementwise,
    fused,
    gather,
    grid,
    image,
    movement,
    nn,
    qoperator,
    quantised,
    recurrent,
    reduce,
    resize,
    rotary,
    scatter,
    select,
    sequence,
    transforms,
    whole,
    window,
)
from intc.frontend.symbolic import Imported

if TYPE_CHECKING:
    from intc.frontend.importer import Importer

STANDARD: dict[str, Converter] = {
    **elementwise.CONVERTERS,
    **activations.CONVERTERS,
    **whole.CONVERTERS,
    **movement.CONVERTERS,
    **between.CONVERTERS,
    **gather.CONVERTERS,
    **nn.CONVERTERS,
    **image.CONVERTERS,
    **window.CONVERTERS,
    **cells.CONVERTERS,
    **resize.CONVERTERS,
    **grid.CONVERTERS,
    **recurrent.CONVERTERS,
    **reduce.CONVERTERS,
    **scatter.CONVERTERS,
    **select.CONVERTERS,
    **sequence.CONVERTERS,
    **transforms.CONVERTERS,
    **attention.CONVERTERS,
    **rotary.CONVERTERS,
    **quantised.CONVERTERS,
    **qoperator.CONVERTERS,
}
MICROSOFT: dict[str, Converter] = {
    **attention.MICROSOFT,
    **rotary.MICROSOFT,
    **qoperator.MICROSOFT,
    **fused.MICROSOFT,
    **{k: nn.CONVERTERS[k] for k in ("LayerNormalization", "SimplifiedLayerNormalization")},
}
TENSORRT = quantised.TENSORRT
RANDOM = (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Bernoulli",
    "Multinomial",
)
DOMAINS: dict[str, dict[str, Converter]] = {
    "": STANDARD,
    "ai.onnx": STANDARD,
    "com.microsoft": MICROSOFT,
    "trt": TENSORRT,
}


def exists(node: onnx.NodeProto) -> bool:
    """Whether the operator has a converter."""
    return node.op_type in DOMAINS.get(node.domain, {})


def unknown(node: onnx.NodeProto) -> str:
    """Why an operator without a converter is refused."""
    if node.op_type in RANDOM:
        return "random numbers have no exact meaning; export the model with them as an input"
    domain = f" of domain '{node.domain}'" if node.domain else ""
    return f"the operator{domain} is not supported"


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
        raise GraphError(unknown(node))
    return converter(Call(ctx, node, inputs, attributes, label))
