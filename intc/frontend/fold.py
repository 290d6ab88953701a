"""Computing nodes whose inputs are all constants, with onnx's reference implementation and a bound on the
result.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from intc.errors import GraphError, first_line
from intc.ir.op import Array

FOLD_LIMIT: Final = 2**25  # elements: larger results are refused, but for those of constants as large
FOLD_TOTAL: Final = 2**29  # bytes that a model's folded constants may take, beside
FOLD_SHARE: Final = 16  # times the bytes of its weights
# Results that are random, or of a size that depends on the values of the inputs without bound; and operators
# whose converters compute constants themselves.
UNFOLDED: Final = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
    | {
        "DequantizeLinear",
        "Dropout",
        "EyeLike",
        "Pad",
        "QuantizeLinear",
        "Resize",
        "SequenceConstruct",
        "StringSplit",
        "Tile",
        "Upsample",
    }
)
# which take integers of several types
MIXED: Final = frozenset(
    {"Expand", "Gather", "GatherND", "OneHot", "Reshape", "ScatterElements", "ScatterND", "Slice"}
)


def small(shape: Iterable[Any], given: int = 0) -> bool:
    """Whether a tensor of that (fixed) shape may be computed at import time, of ``given`` elements."""
    sizes = list(shape)
    return all(isinstance(d, (int, np.integer)) for d in sizes) and math.prod(map(float, sizes)) <= max(
        FOLD_LIMIT, 2 * given
    )


def compute(node: onnx.NodeProto, feeds: Mapping[str, Array], opsets: Any) -> list[Array]:
    """The outputs of ``node`` on constants; GraphError when they cannot be computed or would be too large."""
    if node.op_type == "GatherElements":
        return [_taken(node, *feeds.values())]
    if node.op_type == "CumSum":  # onnxruntime takes the axis with a shape of [1] as well
        feeds = {name: array.reshape(()) if i else array for i, (name, array) in enumerate(feeds.items())}
    narrow = {name: array.astype(np.int64) for name, array in feeds.items() if array.dtype == np.int32}
    if node.op_type not in MIXED and narrow and any(a.dtype == np.int64 for a in feeds.values()):
        feeds = {**feeds, **narrow}  # positions always are
    outputs = [name for name in node.output if name]
    kinds = {np.dtype(np.bool_): onnx.TensorProto.BOOL}
    infos = [
        onnx.helper.make_tensor_value_info(
            name, kinds.get(array.dtype, onnx.helper.np_dtype_to_tensor_dtype(array.dtype)), array.shape
        )
        for name, array in feeds.items()
    ]
    results = [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in outputs]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "fold", infos, results), opset_imports=list(opsets)
    )
    try:
        for info in onnx.shape_inference.infer_shapes(model).graph.output:
            sizes = [d.dim_value for d in info.type.tensor_type.shape.dim]
            if not small(sizes, max((array.size for array in feeds.values()), default=0)):
                raise GraphError(f"its constant result of shape {sizes} is too large")
        values = ReferenceEvaluator(model).run(None, dict(feeds))
    except GraphError:
        raise
    except Exception as error:
        raise GraphError(f"cannot be computed on its constants ({first_line(error)})") from None
    by_name = dict(zip(outputs, values, strict=True))
    return [_narrow(np.asarray(by_name[name])) if name else np.zeros(0, np.float32) for name in node.output]


def _taken(node: onnx.NodeProto, data: Array, indices: Array) -> Array:
    """GatherElements, whose reference implementation takes axes of at most 64 elements."""
    axis = next((a.i for a in node.attribute if a.name == "axis"), 0) % data.ndim
    size = data.shape[axis]
    if (indices < -size).any() or (indices >= size).any():
        raise GraphError(f"an index lies outside the {size} entries")
    rows = [slice(0, d) for d in indices.shape]
    rows[axis] = slice(None)
    return np.take_along_axis(data[tuple(rows)], indices % size, axis)


def _narrow(array: Array) -> Array:
    real = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    return array.astype(np.float32) if real else array
