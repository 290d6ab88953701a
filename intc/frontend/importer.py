"""ONNX file to float graph: reads and checks the file, folds what is known, converts what is live.

Every node that cannot be converted is collected; one :class:`UnsupportedModel` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from intc.errors import GraphError, ImportFailure, IntcError, UnsupportedModel, first_line
from intc.frontend.agreement import AtMost, EqualSizes, kept_above, kept_below, part_of, substitute
from intc.frontend.chosen import Entries, Numbers, Part, Parts
from intc.frontend.converters import registry
from intc.frontend.converters.between import Between
from intc.frontend.fold import FOLD_SHARE, FOLD_TOTAL
from intc.frontend.known import FOLDED, fold
from intc.frontend.load import checked_model, decode, element_name, read_model, take_initializers
from intc.frontend.loops import unrolled
from intc.frontend.symbolic import (
    Floors,
    Imported,
    Index,
    IndexTuple,
    Items,
    NanTest,
    Pair,
    Splat,
    is_symbolic,
)
from intc.frontend.tabulated import Tabulated, emit
from intc.frontend.whole import SeveralRows, whole_rows
from intc.ir.dims import PAST, Dim, is_symbol, symbol, symbols
from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array
from intc.ir.types import DTYPES, TensorType, type_of_array
from intc.ops.elementwise import Cast
from intc.ops.movement import Concat, Expand, Reshape
from intc.ops.positions import Positions

OLDEST_OPSET = 13
ELEMENT: dict[int, str] = {
    onnx.TensorProto.FLOAT: "float32",
    onnx.TensorProto.FLOAT16: "float32",
    onnx.TensorProto.DOUBLE: "float32",
    onnx.TensorProto.INT64: "int64",
    onnx.TensorProto.INT32: "int32",
    onnx.TensorProto.BOOL: "bool",
    onnx.TensorProto.UINT8: "uint8",
    onnx.TensorProto.INT8: "int8",
}
Overrides = Mapping[str, Any]


def import_onnx(model: str | Path | onnx.ModelProto, inputs: Overrides | None = None) -> Graph:
    """The float graph of ``model``, a file name or a proto.

    ``inputs`` maps input names to a shape (ints or symbol names) or an element type that replaces theirs.
    ImportFailure for an unreadable file, UnsupportedModel for nodes outside the supported set.
    """
    if isinstance(model, onnx.ModelProto):
        proto, source, path = model, model.graph.name or "model", None
    else:
        path = Path(model)
        proto, source = read_model(path), str(model)
    opset = next((o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise ImportFailure(f"{source}: opset {opset} is older than {OLDEST_OPSET}; re-export the model")
    proto = checked_model(proto, source)
    arrays = take_initializers(proto, source, path)
    try:
        return Importer(proto, source, inputs or {}, arrays).run()
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ImportFailure(f"{source}: the model is malformed ({first_line(error)})") from error


class Importer:
    """One import: ``env`` maps ONNX tensor names to live values or known data."""

    def __init__(
        self, proto: onnx.ModelProto, source: str, overrides: Overrides, arrays: Mapping[str, Array]
    ) -> None:
        self.proto, self.source, self.overrides, self.arrays = proto, source, overrides, arrays
        self.sizes: dict[str, Dim] = {}  # symbols found to be other sizes
        self.largest: dict[str, int] = {}  # symbols taken to be no larger
        self.floors = Floors()
        self.either: set[Pair] = set()  # symbols with numbers, of which the smaller is a size of its own
        self._reset()

    def _reset(self) -> None:
        self.builder = Builder(self.proto.graph.name or "model")
        self.env: dict[str, Imported] = dict(self.arrays)
        self.problems: list[tuple[str, str, str]] = []
        self.failed: set[str] = set()
        self.constants: dict[int, str] = {}
        self.opsets = self.proto.opset_import
        self.computed: dict[object, str] = {}  # masks and positions, each emitted once
        self.numbers, self.entries = Numbers(), dict[int, Entries]()  # of conditions whose entries are chosen
        self.between: dict[str, tuple[Between, Part]] = {}  # of the symbols that count their positions
        self.joined: dict[str, int] = {}  # the last positions of rows that are joined again
        self.least: dict[Dim, int] = {}  # sizes taken to be no smaller
        self.room = FOLD_TOTAL + FOLD_SHARE * sum(array.nbytes for array in self.arrays.values())

    def run(self) -> Graph:
        """Build the graph; start over with fewer symbols whenever an operator forces sizes to be equal."""
        unknown = set(self.overrides) - {i.name for i in self.proto.graph.input}
        if unknown:
            raise ImportFailure(f"{self.source}: no input named {', '.join(sorted(unknown))}")
        while True:
            try:
                built = self._build()
            except UnsupportedModel:
                if self.floors.taken and not self.floors.exact:
                    self.floors.exact = True
                    self._reset()
                    continue
                self.floors = Floors()
                if not self.either:
                    raise
                self._keep_below(self.either)
            except EqualSizes as found:
                if open_pairs := {pair for pair in self.either if pair[0] == found.symbol}:
                    self._keep_below(open_pairs)
                    continue
                size = substitute(self._same_axis(found), self.sizes)
                if found.symbol in symbols((size,)):
                    raise ImportFailure(f"{self.source}: {found.symbol} would have to be {size}") from None
                self.sizes[found.symbol] = size
                self._reset()
            except AtMost as found:
                pair = (found.symbol, found.largest)
                if found.symbol in self.largest or not found.either:
                    self._keep_below({pair})
                self.either |= {pair} - self.largest.items()
                self._reset()
            else:
                kept = {pair for pair in self.either if kept_below(built, *pair)}
                if not kept:
                    return built
                self._keep_below(kept)

    def _keep_below(self, pairs: Set[Pair]) -> None:
        """Start over with the symbols of ``pairs`` taken to be no larger than their numbers."""
        for name, largest in sorted(pairs):
            self.largest[name] = min(largest, self.largest.get(name, largest))
        self.either -= pairs
        self._reset()

    def _same_axis(self, found: EqualSizes) -> Dim:
        """Of several sizes that a symbol may be, one that stands at the same axis of another input."""
        axes: dict[str, int] = {}
        for name in self.builder.graph.inputs:
            axes.update((str(d), i) for i, d in enumerate(self.builder.graph.type(name).shape))
        same = [d for d in found.sizes if axes.get(str(d)) == axes.get(found.symbol)]
        return same[0] if same else found.sizes[0]

    def _build(self) -> Graph:
        graph = self.proto.graph
        for info in graph.input:
            if info.name not in self.env:
                self._input(info)
        for node in graph.node:
            self.node(node)
        if self.problems:
            raise UnsupportedModel(self.source, self.problems)
        names: dict[str, str] = {}
        for output in graph.output:
            if output.name not in self.env:
                raise ImportFailure(f"{self.source}: output '{output.name}' is computed by no node")
            try:
                known = not isinstance(self.env[output.name], str)
                value = self.live(self.env[output.name], output.name + ".value" * known)
            except IntcError as error:
                raise ImportFailure(f"{self.source}: output '{output.name}': {error}") from None
            real = self.builder.graph.type(value).is_float
            if real and ELEMENT.get(output.type.tensor_type.elem_type, "float32") != "float32":
                raise ImportFailure(
                    f"{self.source}: output '{output.name}' is declared as"
                    f" {element_name(output.type.tensor_type.elem_type)}, but computed as real numbers; end a"
                    " quantised tensor with its DequantizeLinear"
                )
            if output.name in names.values():
                raise ImportFailure(f"{self.source}: output '{output.name}' is listed twice")
            if value in (*names, *self.builder.graph.inputs, *self.builder.graph.constants):
                value = self.builder.emit(Reshape(self.shape_of(value)), value, name=output.name)
            self.builder.output(value)
            names[value] = output.name
        self._hold_states()
        built = self._whole(self.builder.finish(), names)
        built = _renamed(built, dict(zip(built.outputs, names.values(), strict=True)))
        for name, largest in self.largest.items():
            if name not in self.sizes and not kept_below(built, name, largest):
                raise ImportFailure(
                    f"{self.source}: which of {name} and {largest} is smaller depends on the input, and no"
                    f" operator refuses a larger {name}; give the inputs a fixed length"
                )
        for size, least in self.least.items():
            if not kept_above(built, size, least):
                raise ImportFailure(
                    f"{self.source}: positions are cut as if {size} were at least {least}, and no operator"
                    f" refuses a smaller one"
                )
        return built

    def counts(self) -> set[str]:
        """The symbols that count the true entries of conditions."""
        return {entries.symbol for entries in self.entries.values()}

    def _each_sample(self, entries: Entries, found: EqualSizes) -> None:
        """Start over with as many true entries for every sample, where ``found`` divides them so."""
        first, (size, *_) = entries.shape[0], found.sizes
        if size == entries.count and found.symbol == str(first):
            raise EqualSizes(entries.symbol, first * symbol(f"{entries.symbol}_each")) from None
        if (
            found.symbol == entries.symbol
            and isinstance(first, int)
            and size == first * part_of(found.symbol, first)
        ):
            raise found

    def _whole(self, graph: Graph, names: Mapping[str, str]) -> Graph:
        """``graph``, whose outputs are called ``names``, without sizes that depend on values."""
        counts = self.counts() | {f"joined_{i}" for i in self.joined.values()}
        for value, name in names.items():
            if counts & {*symbols(graph.type(value).shape)}:
                raise ImportFailure(
                    f"{self.source}: the size of output '{name}' depends on the values of the inputs"
                )
        try:
            return whole_rows(graph, tuple(self.entries.values()))
        except SeveralRows as found:
            node = found.node
            raise UnsupportedModel(
                self.source, [(node.source or node.output, node.op.name, found.reason)]
            ) from None

    def _hold_states(self) -> None:
        """Find the inputs that an output, which is also read inside, continues along one axis: the keys and
        values of past positions. Their length is the size ``PAST``, which may be 0.
        """
        graph, last = self.builder.graph, symbol(PAST)
        read = {x for n in graph.nodes for x in n.inputs}
        joins = {n.output: n for n in graph.nodes if isinstance(n.op, Concat) and n.output in read}
        for index, name in enumerate(graph.outputs):
            join = joins.get(name)
            past = join.inputs[0] if join is not None else ""
            if (
                join is None
                or past not in graph.inputs
                or past in graph.states
                or not graph.type(past).is_float
            ):
                continue
            length = graph.type(past).shape[join.op.axis]  # type: ignore[attr-defined]
            if length != last and is_symbol(length):
                raise EqualSizes(str(length), last)
            if length == last:
                graph.states[past] = index

    def _input(self, info: onnx.ValueInfoProto) -> None:
        tensor = info.type.tensor_type
        if tensor.elem_type not in ELEMENT or not tensor.HasField("shape"):
            kind = element_name(tensor.elem_type) if tensor.elem_type else "no tensor type"
            raise ImportFailure(
                f"{self.source}: input '{info.name}' has an unsupported type ({kind}) or no shape"
            )
        shape: list[Dim] = []
        for axis, dim in enumerate(tensor.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                shape.append(int(dim.dim_value))
            else:
                shape.append(symbol(dim.dim_param or f"{info.name}_{axis}"))
        element = declared = ELEMENT[tensor.elem_type]
        given = self.overrides.get(info.name)
        if isinstance(given, str) or (given is not None and not isinstance(given, Sequence)):
            element = np.dtype(given).name
            if element not in DTYPES:
                raise ImportFailure(f"{self.source}: input '{info.name}' cannot be {element}")
        elif given is not None:
            if len(given) != len(shape):
                raise ImportFailure(
                    f"{self.source}: input '{info.name}' has rank {len(shape)}, not {len(given)}"
                )
            shape = [symbol(d) if isinstance(d, str) else int(d) for d in given]
            if any(isinstance(d, int) and d < 1 for d in shape):
                raise ImportFailure(f"{self.source}: input '{info.name}' cannot have the shape {list(given)}")
        known = tuple(substitute(d, self.sizes) for d in shape)
        try:
            type_ = TensorType(known, element)  # type: ignore[arg-type]
        except GraphError as error:
            raise ImportFailure(f"{self.source}: input '{info.name}': {error}") from None
        value = self.builder.input(info.name, type_)
        if element != declared:
            value = self.builder.emit(Cast(declared), value, name=f"{info.name}.{declared}")  # type: ignore[arg-type]
        self.env[info.name] = value

    def node(self, node: onnx.NodeProto) -> None:
        label = node.name or next((o for o in node.output if o), node.op_type)
        if node.op_type == "If" and isinstance(self.env.get(node.input[0]), np.ndarray):
            return self._branch(node)
        if node.op_type == "SequenceMap" and isinstance(self.env.get(node.input[0]), Items):
            return self._map(node)
        if any(x in self.failed for x in node.input):
            if not registry.exists(node) and node.op_type not in FOLDED:
                self._refuse(node, label, registry.unknown(node))
            self.failed.update(node.output)
            return None
        missing = [x for x in node.input if x and x not in self.env]
        if missing:
            raise ImportFailure(
                f"{self.source}: node '{label}' reads '{missing[0]}', which nothing computes before it"
            )
        try:
            if node.op_type == "Loop":
                results = unrolled(self, node, label)
            else:
                attributes = {a.name: self._attribute(a) for a in node.attribute}
                inputs = [self.env[x] if x else None for x in node.input]
                results = self.results(node, inputs, attributes, label)
            self._hold(results)
            for name, result in zip(node.output, results, strict=False):
                if name:
                    self.env[name] = result
        except EqualSizes as found:
            for entries in self.entries.values():
                self._each_sample(entries, found)
            if not self.counts() & {found.symbol, *symbols(found.sizes)}:
                raise
            self._refuse(node, label, "it needs to know how many entries of a condition are true")
        except IntcError as error:
            self._refuse(node, label, str(error))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self._refuse(node, label, f"malformed or outside the supported conditions ({first_line(error)})")

    def results(
        self, node: onnx.NodeProto, inputs: Sequence[Imported | None], attributes: dict[str, Any], label: str
    ) -> list[Imported]:
        """What ``node`` gives on ``inputs``: known where it can be, else converted."""
        known = fold(self, node, inputs, attributes)
        return registry.convert(self, node, inputs, attributes, label) if known is None else known

    def _hold(self, results: Sequence[Imported]) -> None:
        """Count the memory that constants take which no weight of the file accounts for."""
        self.room -= sum(r.nbytes for r in results if isinstance(r, np.ndarray) and r.base is None)
        if self.room < 0:
            raise GraphError("the constants computed so far take too much memory")

    def _branch(self, node: onnx.NodeProto) -> None:
        """The nodes of the branch that a known condition takes, in place of the If."""
        taken = "then_branch" if np.asarray(self.env[node.input[0]]).all() else "else_branch"
        graph = next(a.g for a in node.attribute if a.name == taken)
        for tensor in graph.initializer:
            self.env[tensor.name] = decode(tensor, self.source)
        for inner in graph.node:
            self.node(inner)
        for name, output in zip(node.output, graph.output, strict=True):
            if output.name in self.failed:
                self.failed.add(name)
            else:
                self.env[name] = self.env[output.name]

    def _map(self, node: onnx.NodeProto) -> None:
        """The nodes of the body of a SequenceMap, once for each tensor."""
        graph, given = node.attribute[0].g, [self.env[x] for x in node.input]
        rows: list[list[Imported]] = []
        for i in range(len(given[0].values)):
            for info, value in zip(graph.input, given, strict=True):
                self.env[info.name] = value.values[i] if isinstance(value, Items) else value
            for tensor in graph.initializer:
                self.env[tensor.name] = decode(tensor, self.source)
            for inner in graph.node:
                self.node(inner)
            if any(output.name in self.failed for output in graph.output):
                self.failed.update(node.output)
                return
            rows.append([self.env[output.name] for output in graph.output])
        for name, column in zip(node.output, zip(*rows, strict=True), strict=True):
            self.env[name] = Items(column)

    def _refuse(self, node: onnx.NodeProto, label: str, reason: str) -> None:
        self.failed.update(node.output)
        self.problems.append((label, node.op_type, reason))

    def _attribute(self, attribute: onnx.AttributeProto) -> Any:
        if attribute.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS):
            raise GraphError("control flow is not supported")
        if attribute.type == onnx.AttributeProto.TENSOR:
            return decode(attribute.t, self.source)
        value = onnx.helper.get_attribute_value(attribute)
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def shape_of(self, value: Imported) -> tuple[Dim, ...]:
        if isinstance(value, str):
            return self.builder.graph.type(value).shape
        if isinstance(value, NanTest):
            return self.builder.graph.type(value.value).shape
        if isinstance(value, IndexTuple):
            return (*value.parts[0].shape, len(value.parts))
        return tuple(value.shape)

    def live(self, value: Imported | None, stem: str = "constant") -> str:
        """``value`` as a value of the graph: known data becomes a constant (float32, integer or bool)."""
        if isinstance(value, str):
            return value
        if isinstance(value, Splat) and value.value is not None:
            scalar = self.builder.constant(stem, _storable(np.asarray(value.value)))
            return self.builder.emit(Expand(value.shape), scalar, name=stem)
        if isinstance(value, Index):
            return self.once(value, lambda: self._positions(value, stem))
        if isinstance(value, Tabulated):
            return self.once(value, lambda: emit(self.builder, value, stem))
        if not isinstance(value, np.ndarray):
            if isinstance(value, Part | Parts):
                raise GraphError("which entries of a condition are true is used as data")
            kind = "sequence of tensors" if isinstance(value, Items) else "coordinate or NaN test"
            raise GraphError(f"a {kind} is used as data")
        if is_symbolic(value):
            raise GraphError("a symbolic size is used as data")
        key = id(value)
        if key not in self.constants:
            self.constants[key] = self.builder.constant(stem, _storable(value))
        return self.constants[key]

    def _positions(self, index: Index, stem: str) -> str:
        value = self.builder.emit(Positions(index.shape, index.steps, index.offset), name=stem)
        return value if index.dtype == "int64" else self.builder.emit(Cast(index.dtype), value, name=stem)

    def once(self, key: object, emit: Callable[[], str]) -> str:
        """The value that stands for ``key``, emitted on first use."""
        if key not in self.computed:
            self.computed[key] = emit()
        return self.computed[key]

    def type_of(self, value: Imported) -> TensorType:
        return (
            self.builder.graph.type(value)
            if isinstance(value, str)
            else type_of_array(_storable(np.asarray(value)))
        )


def _renamed(graph: Graph, names: Mapping[str, str]) -> Graph:
    """``graph`` with its outputs under their ONNX names; a value that holds such a name swaps with it."""
    to: dict[str, str] = {}
    for old, new in names.items():
        if new not in graph.values:
            to[old] = new
        elif new != old and new not in names and new not in graph.inputs and new not in graph.constants:
            to[old], to[new] = new, old
    nodes = [
        Node(n.op, tuple(to.get(x, x) for x in n.inputs), to.get(n.output, n.output), n.source)
        for n in graph.nodes
    ]
    values = {to.get(k, k): replace(v, name=to.get(k, k)) for k, v in graph.values.items()}
    outputs = [to.get(x, x) for x in graph.outputs]
    return Graph(graph.name, graph.inputs, outputs, nodes, values, graph.constants, graph.states)


def _storable(array: Array) -> Array:
    if array.dtype.kind == "f":
        return np.asarray(array, np.float32)
    return array.astype(np.int64) if array.dtype == object else array
