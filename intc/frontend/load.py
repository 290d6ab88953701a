"""Reading and checking ONNX files. Nothing in a file is trusted: every defect becomes one ImportFailure
line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import networkx
import numpy as np
import onnx
from onnx import numpy_helper
from onnx.inliner import inline_local_functions

from intc.errors import ImportFailure, first_line
from intc.ir.op import Array
from intc.ir.spool import spooled
from intc.ir.types import MAX_RANK

FINITE_ABOVE = 16  # elements: smaller arrays may hold -inf, as mask constants do
SIZE_LIMIT = 2**36  # bytes of one weight
NODE_LIMIT = 10**6  # nodes of local functions, each written out where it is called


def element_name(number: int) -> str:
    """ONNX's name of an element type."""
    names: dict[int, str] = {value: name for name, value in onnx.TensorProto.DataType.items()}
    return names.get(number, f"number {number}")


def read_model(path: Path) -> onnx.ModelProto:
    """The model in ``path``; external weights are left where they are, for :func:`take_initializers`."""
    if not path.exists():
        raise ImportFailure(f"{path}: no such file")
    if not path.is_file():
        raise ImportFailure(f"{path}: not a regular file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImportFailure(f"{path}: cannot be read ({error.strerror})") from None
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(data)
    except Exception as error:  # protobuf's own error class depends on its build
        raise ImportFailure(f"{path}: not an ONNX model, or a truncated one ({first_line(error)})") from None
    if not proto.graph.node and not proto.graph.output:
        raise ImportFailure(f"{path}: not an ONNX model, or an empty one")
    if not proto.graph.output:
        raise ImportFailure(f"{path}: the model has no outputs")
    return proto


def _external(tensor: onnx.TensorProto, path: Path) -> Array:
    """The array that ``tensor`` refers to in a file, which must lie in the folder of the model at ``path``.

    It is read straight into the array: bytes put into the proto would stay in memory as long as that lives.
    """
    where = f"{path}: weight '{tensor.name}'"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = PurePosixPath(entries.get("location", "").replace("\\", "/"))
    if not location.parts or location.is_absolute() or ".." in location.parts:
        raise ImportFailure(
            f"{where} names external data outside the model's folder ('{str(location)[:80]}')"
        )
    file = path.parent / location
    try:
        size = file.stat().st_size if file.is_file() else -1
    except (OSError, ValueError):  # a name that no file can have
        size = -1
    if size < 0:
        raise ImportFailure(
            f"{where} needs the file '{str(location)[:80]}', which is missing beside the model"
        )
    if path.parent.resolve() not in file.resolve().parents:
        raise ImportFailure(f"{where} names external data outside the model's folder ('{location}')")
    try:
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", -1))
    except ValueError:
        raise ImportFailure(f"{where} has a malformed offset or length") from None
    length = size - offset if length < 0 else length
    if offset < 0 or length < 0 or offset + length > size:
        raise ImportFailure(
            f"{where} reads bytes {offset}..{offset + length} of '{location}', which has {size}"
        )
    _check_shape(tensor, where)
    try:
        kind = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    except KeyError:
        raise ImportFailure(f"{where} has no element type ({tensor.data_type})") from None
    plain = kind.kind in "iufb" or kind.name == "bfloat16"
    if not plain or length != math.prod(tensor.dims) * kind.itemsize:
        raise ImportFailure(
            f"{where} is {element_name(tensor.data_type)} {list(tensor.dims)[:8]}, which {length} bytes do"
            " not hold"
        )
    bits = np.dtype(f"u{kind.itemsize}")
    data = np.fromfile(file, bits.newbyteorder("<"), math.prod(tensor.dims), offset=offset)
    array = data.astype(bits, copy=False).view(kind)
    return spooled(_usable(array.reshape(tuple(tensor.dims)), where))


def checked_model(proto: onnx.ModelProto, source: str) -> onnx.ModelProto:
    """``proto`` with its local functions inlined, after onnx's structural check (weights excluded)."""
    _check_functions(proto, source)
    for info in proto.graph.input:
        if info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape"):
            raise ImportFailure(f"{source}: input '{info.name}' has no shape; export the model with one")
    try:
        if proto.functions:
            proto = inline_local_functions(proto)
        _sort(proto.graph)
        onnx.checker.check_model(_without_weights(proto))
    except Exception as error:
        if "No Op registered" in str(error):  # listed by name, with all its like, further on
            return proto
        raise ImportFailure(f"{source}: not a valid ONNX model ({_cause(error)})") from None
    return proto


def _check_functions(proto: onnx.ModelProto, source: str) -> None:
    """Refuse local functions that call themselves, or that are too many nodes once written out."""
    bodies = {(f.domain, f.name, f.overload): f.node for f in proto.functions}
    calls = networkx.DiGraph()
    for name, body in bodies.items():
        calls.add_node(name)
        calls.add_edges_from((name, callee) for callee in _called(body) if callee in bodies)
    try:
        order = list(networkx.topological_sort(calls))
    except networkx.NetworkXUnfeasible:
        raise ImportFailure(f"{source}: local functions call each other without end") from None
    sizes: dict[tuple[str, str, str], int] = {}
    for name in reversed(order):
        sizes[name] = sum(sizes.get(callee, 1) for callee in _called(bodies[name]))
    size = sum(sizes.get(callee, 1) for callee in _called(proto.graph.node))
    if sizes and size > NODE_LIMIT:
        raise ImportFailure(f"{source}: local functions become {size} nodes, more than {NODE_LIMIT}")


def _called(nodes: Iterable[onnx.NodeProto]) -> Iterator[tuple[str, str, str]]:
    """The operators of ``nodes`` and of the graphs in them."""
    for node in nodes:
        yield node.domain, node.op_type, node.overload
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from _called(graph.node)


def _sort(graph: onnx.GraphProto) -> None:
    """Put every node behind those that it reads, as tools that convert models to other precisions do not, and
    otherwise keep the order. A cycle is left for the check to name.
    """
    made = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    edges = [(made[x], i) for i, node in enumerate(graph.node) for x in _read(node) if x in made]
    if all(a < b for a, b in edges):
        return
    order = networkx.DiGraph(edges)
    order.add_nodes_from(range(len(graph.node)))
    if networkx.is_directed_acyclic_graph(order):
        nodes = [graph.node[i] for i in networkx.lexicographical_topological_sort(order)]
        ordered = onnx.GraphProto(node=nodes)
        graph.ClearField("node")
        graph.node.extend(ordered.node)


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that ``node`` and the branches inside it read."""
    yield from node.input
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)


def _cause(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines)[:200] if lines else type(error).__name__


def _without_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A light copy whose initializers are inputs."""
    light = onnx.ModelProto(ir_version=proto.ir_version)
    light.opset_import.extend(proto.opset_import)
    light.graph.name = proto.graph.name
    light.graph.node.extend(proto.graph.node)
    light.graph.input.extend(proto.graph.input)
    light.graph.output.extend(proto.graph.output)
    given = {info.name for info in proto.graph.input}
    for tensor in proto.graph.initializer:
        if tensor.name not in given:
            kind = onnx.helper.make_tensor_type_proto(tensor.data_type, list(tensor.dims))
            light.graph.input.append(onnx.helper.make_value_info(tensor.name, kind))
            given.add(tensor.name)
    return light


def take_initializers(proto: onnx.ModelProto, source: str, path: Path | None) -> Mapping[str, Array]:
    """Every weight by name; those of a model read from ``path`` leave the proto on the way."""
    if proto.graph.sparse_initializer:
        raise ImportFailure(f"{source}: sparse weights are not supported; densify them and export again")
    arrays: dict[str, Array] = {}
    for tensor in proto.graph.initializer:
        if tensor.name in arrays:
            raise ImportFailure(f"{source}: weight '{tensor.name}' is defined twice")
        if path is not None and tensor.data_location == onnx.TensorProto.EXTERNAL:
            arrays[tensor.name] = _external(tensor, path)
            continue
        arrays[tensor.name] = decode(tensor, source)
        if path is not None:
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
    return arrays


def decode(tensor: onnx.TensorProto, source: str) -> Array:
    """A tensor as an array: floats of any width as float32, other numbers as they are."""
    where = f"{source}: weight '{tensor.name}'"
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ImportFailure(f"{where} is stored outside the model; import it by file name")
    _check_shape(tensor, where)
    try:
        array = np.asarray(numpy_helper.to_array(tensor))
    except Exception as error:
        raise ImportFailure(f"{where} is unreadable ({first_line(error)})") from None
    return _usable(array, where)


def _check_shape(tensor: onnx.TensorProto, where: str) -> None:
    kind, dims = element_name(tensor.data_type), tensor.dims
    if kind.startswith(("FLOAT8", "FLOAT4")):
        raise ImportFailure(
            f"{where} is {kind}: 8-bit and 4-bit floats have no integer form; quantise to INT8"
        )
    if len(dims) > MAX_RANK or min(dims, default=0) < 0 or math.prod(map(float, dims)) > SIZE_LIMIT:
        raise ImportFailure(f"{where} has the impossible shape {list(tensor.dims)[:8]}")


def _usable(array: Array, where: str) -> Array:
    """``array`` with floats as float32, which must be numbers."""
    if array.dtype.kind in "iub":
        return array
    try:
        if array.dtype.kind == "c":
            raise TypeError
        narrow = array.astype(np.float32, copy=False)
    except (TypeError, ValueError):
        raise ImportFailure(f"{where} has an unsupported element type ({array.dtype})") from None
    if array.size > FINITE_ABOVE and np.isnan(narrow).any():
        raise ImportFailure(f"{where} holds NaN")
    return narrow
