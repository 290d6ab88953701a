"""Mutated ONNX models: fields of the protobuf messages, names, shapes, external data, whole subgraphs."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import TensorProto, helper

import intc
from intc.frontend import import_onnx
from intc.frontend.converters import registry
from intc.passes.pipeline import canonicalise
from tests.fuzz.corpus import corpus
from tests.fuzz.edits import FLOATS, TEXTS, edit_bytes, number

DIGITS = Path(__file__).parents[2] / "examples" / "digits" / "digits_vit.onnx"
EXTERNAL = "weights.bin"
OPERATORS = sorted(
    {*registry.STANDARD, *registry.MICROSOFT, "Constant", "If", "Loop", "Range", "Shape", "LSTM"}
)


def prepare(folder: Path) -> None:
    """Write the models that :class:`Models` mutates; each must be importable as it is."""
    for index, proto in enumerate(corpus().values()):
        path = folder / f"{index}.onnx"
        path.write_bytes(proto.SerializeToString())
        canonicalise(import_onnx(path))
    shutil.copy(DIGITS, folder / "digits.onnx")


class Models:
    """The target: see :class:`tests.fuzz.watch.Target`."""

    def __init__(self, folder: Path) -> None:
        self.seeds = [path.read_bytes() for path in sorted(folder.glob("*.onnx"))]

    def write(self, rng: Random, folder: Path) -> Path:
        path = folder / "case.onnx"
        data = rng.choice(self.seeds)
        if rng.random() < 0.15:
            path.write_bytes(edit_bytes(rng, data))
            return path
        proto = onnx.load_model_from_string(data)
        if rng.random() < 0.2:
            outside(rng, proto, folder)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            rng.choice(EDITS)(rng, proto)
        path.write_bytes(proto.SerializeToString())
        return path

    def read(self, path: Path) -> None:
        with np.errstate(all="ignore"):
            canonicalise(import_onnx(path))


class Compilations(Models):
    """All passes and kernels, too, of those that can be imported; ranges are made up."""

    def read(self, path: Path) -> None:
        with np.errstate(all="ignore"):
            intc.compile(path, calibration="random", rounding="nearest", calibrator="minmax")


# ---------------------------------------------------------------- edits of messages


def messages(message: Message, out: list[Message]) -> None:
    """``message`` and all messages inside it."""
    out.append(message)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in value if repeated(field) else [value]:
                messages(part, out)


def repeated(field: Any) -> bool:
    return bool(field.is_repeated)


def edit_field(rng: Random, proto: onnx.ModelProto) -> None:
    """Any field of any message."""
    found: list[Message] = []
    messages(proto, found)
    message = rng.choice(found)
    field = rng.choice([f for f in message.DESCRIPTOR.fields if f.name != "model_version"])
    value = getattr(message, field.name)
    try:
        if repeated(field):
            edit_list(rng, message, field, value, found)
        elif field.message_type is not None:
            same = [m for m in found if m.DESCRIPTOR is field.message_type]
            if same and rng.random() < 0.5:
                value.CopyFrom(copied(rng.choice(same)))
            else:
                message.ClearField(field.name)
        else:
            setattr(message, field.name, scalar(rng, field, value, found))
    except (ValueError, TypeError, OverflowError):  # the field cannot hold such a value
        message.ClearField(field.name)


def edit_list(rng: Random, message: Message, field: Any, value: Any, found: list[Message]) -> None:
    kind = rng.randrange(5)
    if not len(value) or kind == 0:
        if field.message_type is None:
            value.append(scalar(rng, field, value[0] if len(value) else 0, found))
        else:
            same = [m for m in found if m.DESCRIPTOR is field.message_type]
            value.extend([copied(rng.choice(same)) if same else field.message_type._concrete_class()])
    elif kind == 1:
        del value[rng.randrange(len(value))]
    elif kind == 2 and field.message_type is None:
        i = rng.randrange(len(value))
        value[i] = scalar(rng, field, value[i], found)
    elif kind == 3:
        i, j = rng.randrange(len(value)), rng.randrange(len(value))
        parts = [copied(part) for part in value]
        parts[i], parts[j] = parts[j], parts[i]
        message.ClearField(field.name)
        getattr(message, field.name).extend(parts)
    else:
        value.extend([copied(value[rng.randrange(len(value))])] * rng.choice((1, 2, 20)))


def copied(part: Any) -> Any:
    """A message apart from the tree that it lies in; anything else as it is."""
    if not isinstance(part, Message):
        return part
    out = type(part)()
    out.CopyFrom(part)
    return out


def scalar(rng: Random, field: Any, value: Any, found: list[Message]) -> Any:
    """Another value for a number, a text or bytes."""
    match field.cpp_type:
        case field.CPPTYPE_STRING:
            names = [n for m in found for n in [*getattr(m, "input", []), *getattr(m, "output", [])]]
            names = [n for n in names if isinstance(n, str)]
            if field.type == field.TYPE_BYTES:
                return edit_bytes(rng, value if isinstance(value, bytes) else b"")
            return rng.choice((*names, *OPERATORS)) if names and rng.random() < 0.7 else rng.choice(TEXTS)
        case field.CPPTYPE_FLOAT | field.CPPTYPE_DOUBLE:
            return rng.choice(FLOATS)
        case _:
            if rng.random() < 0.4:
                return int(value or 0) + rng.choice((-2, -1, 1, 2))
            return number(rng) if field.enum_type is None else rng.randrange(-1, 30)


def edit_node(rng: Random, proto: onnx.ModelProto) -> None:
    """A node's operator, inputs, outputs or attributes."""
    if not proto.graph.node:
        return
    node = rng.choice(proto.graph.node)
    names = [n for m in proto.graph.node for n in (*m.input, *m.output)] + ["", "nothing"]
    match rng.randrange(7):
        case 0:
            node.op_type = rng.choice(OPERATORS)
        case 1 if node.input:
            node.input[rng.randrange(len(node.input))] = rng.choice(names)
        case 2 if node.output:
            node.output[rng.randrange(len(node.output))] = rng.choice(names)
        case 3:
            node.input.append(rng.choice(names))
        case 4 if node.input:
            del node.input[rng.randrange(len(node.input))]
        case 5:
            other = rng.choice(proto.graph.node)
            node.attribute.extend([copied(a) for a in other.attribute])
        case _:
            name = rng.choice(
                ("axis", "axes", "to", "perm", "group", "kernel_shape", "pads", "strides", "value")
            )
            ints = [number(rng) % 2**63 for _ in range(rng.randrange(5))]
            kept = [a for a in node.attribute if a.name != name]
            del node.attribute[:]
            value = rng.choice((ints, number(rng) % 2**63, rng.choice(FLOATS), "text"))
            if value != []:
                kept.append(helper.make_attribute(name, value))
            node.attribute.extend(kept)


def edit_weight(rng: Random, proto: onnx.ModelProto) -> None:
    """A weight's shape, type, data, or the values themselves."""
    if not proto.graph.initializer:
        return
    tensor = rng.choice(proto.graph.initializer)
    match rng.randrange(7):
        case 0 if tensor.dims:
            tensor.dims[rng.randrange(len(tensor.dims))] = number(rng) % 2**63
        case 1:
            tensor.data_type = rng.randrange(30)
        case 2:
            tensor.raw_data = edit_bytes(rng, tensor.raw_data)
        case 3:
            with np.errstate(over="ignore"):
                value = np.float32(rng.choice(FLOATS))
            if len(tensor.dims) < 5 and 0 <= math.prod(tensor.dims) < 10**6:
                array = np.full(tuple(tensor.dims), value)
                tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        case 4 if tensor.data_type in (TensorProto.INT64, TensorProto.INT32):
            kind = np.dtype("<i8" if tensor.data_type == TensorProto.INT64 else "<i4")
            array = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 8 * 8], kind).copy()
            if array.size:
                array[rng.randrange(array.size)] = np.int64(number(rng) % 2**63).astype(kind)
                tensor.raw_data = array.tobytes()
        case 5:
            tensor.name = rng.choice([*(t.name for t in proto.graph.initializer), *TEXTS])
        case _:
            del tensor.dims[:]
            tensor.dims.extend(rng.choice(((), (0,), (1,) * 40, (2**31, 2**31), (3, 0, 2**40), (2,))))


def edit_input(rng: Random, proto: onnx.ModelProto) -> None:
    infos = [*proto.graph.input, *proto.graph.output]
    if not infos:
        return
    info = rng.choice(infos)
    shape = info.type.tensor_type.shape
    match rng.randrange(4):
        case 0 if shape.dim:
            shape.dim[rng.randrange(len(shape.dim))].dim_value = number(rng) % 2**63
        case 1 if shape.dim:
            dim = shape.dim[rng.randrange(len(shape.dim))]
            dim.dim_param = rng.choice((*[d.dim_param for d in shape.dim], "past", "a*b", "1", *TEXTS))
        case 2:
            info.type.tensor_type.elem_type = rng.randrange(26)
        case _:
            for _ in range(rng.choice((1, 1, 30))):
                shape.dim.add().dim_value = rng.choice((1, 2, 3))


def nested(rng: Random, proto: onnx.ModelProto) -> None:
    """The whole graph inside branches of If nodes, one inside the other."""
    if not proto.graph.output:
        return
    output = proto.graph.output[0]
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.array(True), "taken"))
    body = onnx.GraphProto(name="inner", node=list(proto.graph.node), output=[output])
    for _ in range(rng.choice((1, 2, 5, 12))):
        node = helper.make_node("If", ["taken"], [output.name], then_branch=body, else_branch=body)
        if body.ByteSize() > 10**5:
            break
        body = onnx.GraphProto(name="outer", node=[node], output=[output])
    del proto.graph.node[:]
    proto.graph.node.extend(body.node)


def large(rng: Random, proto: onnx.ModelProto) -> None:
    """Constants of sizes that only their shapes know, and what multiplies them."""
    nodes = []
    sizes = rng.choice(
        ([2**28], [2**14, 2**14], [2**40], [1000, 1000, 100], [2**27 - 1], [0], [2**31, 2**31])
    )
    shape = onnx.numpy_helper.from_array(np.array(sizes, np.int64), "large_shape")
    proto.graph.initializer.append(shape)
    last = "large_shape"
    for i in range(rng.choice((1, 4, 20))):
        operator = rng.choice(
            ("ConstantOfShape", "Expand", "Tile", "Range", "NonZero", "Pad", "Neg", "Exp", "Concat")
        )
        inputs = {"Range": [last] * 3, "Expand": [last, "large_shape"], "Tile": [last, "large_shape"]}
        names = inputs.get(operator, ["large_shape"] if operator == "ConstantOfShape" else [last])
        names = [last] * 20 if operator == "Concat" else names
        nodes.append(
            helper.make_node(operator, names, [f"large{i}"], **({"axis": 0} if len(names) > 3 else {}))
        )
        last = f"large{i}"
    users = [n for n in proto.graph.node if n.input]
    if users:
        rng.choice(users).input[0] = last
    kept = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes + kept)


def edit_version(rng: Random, proto: onnx.ModelProto) -> None:
    match rng.randrange(3):
        case 0:
            proto.ir_version = number(rng) % 2**63
        case 1:
            proto.opset_import.add(domain=rng.choice(("", "ai.onnx", "com.microsoft", "x")), version=13)
        case _ if proto.opset_import:
            proto.opset_import[0].version = rng.choice((number(rng) % 2**63, rng.randrange(30)))


def outside(rng: Random, proto: onnx.ModelProto, folder: Path) -> None:
    """Weights moved to a file beside the model, about which the model may lie."""
    data = b""
    for tensor in proto.graph.initializer:
        size = math.prod(tensor.dims) * 4
        if tensor.data_type != TensorProto.FLOAT or len(tensor.raw_data) != size:
            continue
        place = {"location": EXTERNAL, "offset": str(len(data)), "length": str(size)}
        data += tensor.raw_data
        if rng.random() < 0.5:
            key = rng.choice(list(place))
            place[key] = str(
                rng.choice((number(rng), rng.choice(TEXTS), "-1", "1e3", " 4", "٣", ".", "folder"))
            )
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in place.items():
            tensor.external_data.add(key=key, value=value)
    (folder / EXTERNAL).write_bytes(data[: rng.choice((len(data), len(data), len(data) // 2))])


EDITS: tuple[Callable[[Random, onnx.ModelProto], None], ...] = (
    *[edit_field] * 6,
    *[edit_node] * 5,
    *[edit_weight] * 4,
    *[edit_input] * 2,
    nested,
    large,
    edit_version,
)
