"""ONNX's own node tests, for every operator that the importer claims."""

from __future__ import annotations

import functools
import re
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from intc.errors import ImportFailure, UnsupportedModel
from intc.frontend import import_onnx
from intc.frontend.converters.registry import STANDARD
from intc.frontend.ends import ELEMENT
from intc.frontend.importer import OLDEST_OPSET

FOLDED = {"Constant", "Shape"}  # known while importing
# Cases outside the stated conditions: operator -> what the refusal says.
REFUSED = {
    "ConvTranspose": r"only one- and two-dimensional|auto_pad|output_shape",
    "MaxPool": r"counted along columns",
    "BitwiseAnd": r"bits of 0 and 1",
    "BitwiseOr": r"bits of 0 and 1",
    "BitwiseNot": r"unsigned",
    "Split": r"the size of output '\w+' depends on the values",
    "MaxUnpool": r"not those of a MaxPool",
    "LSTM": r"peepholes",
    "DequantizeLinear": r"must be one number|depends on input",
    "DynamicQuantizeLinear": r"quantised tensor",
    "QLinearConv": r"quantised tensor|depends on input",
    "QLinearMatMul": r"quantised tensor|must be one number|depends on input",
    "QuantizeLinear": r"quantised tensor|no integer form|zero points that differ|in blocks|depends on input",
    "ConvInteger": r"quantised tensor|depends on input",
    "MatMulInteger": r"quantised tensor|depends on input",
    "Einsum": r"repeated letter",
    "Resize": r"crops|policy",
    "Attention": r"scores as an output|attributes .* are not supported|do not share|do not broadcast",
    "ScatterND": r"only plain writes",
    "ScatterElements": r"products at computed places|positions that differ|part of the other axes",
    "BatchNormalization": r"training mode",
    "Col2Im": r"only one- and two-dimensional windows",
    "NonZero": r"which entries of a condition",
    "Mod": r"the divisor of integers",
    "GridSample": r"the (padding )?mode|only images in two dimensions|fixed size",
    "Cast": r"cast to \w+ is not supported",
    "Div": r"the divisor of integers",
    "Dropout": r"training mode",
    "GatherND": r"only whole coordinates|plain index ranges|in a batch",
    "Pow": r"pow takes float operands",
    "Reshape": r"cannot reshape",  # sizes of 0
}
ONE_OUTPUT = {"Dropout", "LayerNormalization"}  # the others serve training


def _in_scope(model: onnx.ModelProto) -> bool:
    opset = next((o.version for o in model.opset_import if o.domain == ""), 0)
    kinds = {i.type.tensor_type.elem_type for i in (*model.graph.input, *model.graph.output)}
    one = len(model.graph.node) == 1 and model.graph.node[0].op_type in {*STANDARD, *FOLDED}
    return one and opset >= OLDEST_OPSET and kinds <= set(ELEMENT)


@functools.cache
def _cases() -> dict[str, Any]:
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return {
            t.name: t for t in load_model_tests(kind="node") if t.model is not None and _in_scope(t.model)
        }


def _array(value: Any) -> np.ndarray:
    return numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def _with_constants(model: onnx.ModelProto, arrays: list[np.ndarray]) -> onnx.ModelProto:
    """``model`` with every input after the first stored as a constant, as exporters write parameters."""
    out = onnx.ModelProto()
    out.CopyFrom(model)
    for info, array in zip(model.graph.input[1:], arrays[1:], strict=True):
        out.graph.initializer.append(numpy_helper.from_array(array, info.name))
    del out.graph.input[1:]
    return out


def _results(model: onnx.ModelProto, arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    graph = import_onnx(model)
    feeds = {i.name: a for i, a in zip(model.graph.input, arrays, strict=False)}
    return graph.run({n: a.astype(np.float32) if a.dtype.kind == "f" else a for n, a in feeds.items()})


@pytest.mark.parametrize("name", sorted(_cases()))
def test_node(name: str) -> None:
    case = _cases()[name]
    inputs, outputs = ([_array(x) for x in part] for part in case.data_sets[0])
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    operator = model.graph.node[0].op_type
    if operator in ONE_OUTPUT:
        del model.graph.output[1:], model.graph.node[0].output[1:]
    if any(0 in a.shape for a in (*inputs, *outputs)):
        pytest.skip("empty tensors")
    if operator in ("Mod", "IsInf", "IsNaN") and not all(np.isfinite(a).all() for a in (*inputs, *outputs)):
        pytest.skip("infinite inputs are refused")
    try:
        try:
            got = _results(model, inputs)
        except UnsupportedModel:
            got = _results(_with_constants(model, inputs), inputs)
    except ImportFailure as error:
        assert re.search(REFUSED.get(operator, r"(?!)"), str(error)), str(error)
        return
    for info, want in zip(model.graph.output, outputs, strict=False):
        assert got[info.name].shape == want.shape
        np.testing.assert_allclose(
            got[info.name].astype(np.float64),
            want.astype(np.float64),
            rtol=1e-3,
            atol=1e-4 if _half(model) else 1e-5,
        )


def _half(model: onnx.ModelProto) -> bool:
    return any(i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for i in model.graph.input)


def test_every_claimed_operator_is_covered() -> None:
    """Operators without a node test in this onnx release are listed, so that none is forgotten."""
    tested = {case.model.graph.node[0].op_type for case in _cases().values()}
    assert set(STANDARD) - tested <= {
        *("And", "Or", "Not", "Xor", "Dropout", "Swish", "Attention", "Gelu"),
        *("SimplifiedLayerNormalization", "Upsample", "Shrink"),
        *("SequenceConstruct", "SequenceAt", "SequenceErase", "SequenceInsert"),
        *("SequenceEmpty", "SequenceLength", "SplitToSequence", "ConcatFromSequence"),
        *("QLinearConv", "MatMulInteger", "ConvInteger", "DynamicQuantizeLinear"),  # quantised results
    }
