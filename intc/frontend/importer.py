"""ONNX file to float graph: reads and checks the file, folds what is known, converts what is live.

Every node that cannot be converted is collected; one :class:`UnsupportedModel` lists them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from intc.errors import GraphError, ImportFailure, IntcError, UnsupportedModel, UsageError, first_line
from intc.frontend.agreement import AtMost, EqualSizes, part_of
from intc.frontend.assumed import Assumed
from intc.frontend.bodies import INNER
from intc.frontend.chosen import Entries, Numbers, Part, Parts
from intc.frontend.converters import registry
from intc.frontend.converters.between import Between
from intc.frontend.ends import check_limits, declare_input, declare_outputs, hold_states, renamed
from intc.frontend.fold import FOLD_SHARE, FOLD_TOTAL
from intc.frontend.known import FOLDED, fold
from intc.frontend.load import checked_model, decode, read_model, take_initializers
from intc.frontend.loops import at_once
from intc.frontend.symbolic import (
    Imported,
    Index,
    IndexTuple,
    Items,
    NanTest,
    Splat,
    is_symbolic,
)
from intc.frontend.tabulated import FARTHEST, LONGEST, Tabulated, emit
from intc.frontend.whole import SeveralRows, whole_rows
from intc.ir.dims import Dim, symbol, symbols
from intc.ir.graph import Builder, Graph
from intc.ir.op import Array
from intc.ir.types import TensorType, type_of_array
from intc.ops.elementwise import Cast
from intc.ops.movement import Expand
from intc.ops.positions import Positions

OLDEST_OPSET = 13
Overrides = Mapping[str, Any]


def import_onnx(
    model: str | Path | onnx.ModelProto, inputs: Overrides | None = None, longest: int = LONGEST
) -> Graph:
    """The float graph of ``model``, a file name or a proto.

    ``inputs`` maps input names to a shape (ints or symbol names) or an element type that replaces theirs.
    Functions of positions become tables of ``longest`` of them along axes of free size.
    ImportFailure for an unreadable file, UnsupportedModel for nodes outside the supported set.
    """
    if not isinstance(longest, int) or not 1 <= longest <= FARTHEST:
        raise UsageError(f"longest: from 1 to {FARTHEST} positions, not {longest!r}")
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
        return _imported(proto, source, inputs or {}, arrays, longest)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ImportFailure(f"{source}: the model is malformed ({first_line(error)})") from error


def _imported(
    proto: onnx.ModelProto, source: str, overrides: Overrides, arrays: Mapping[str, Array], longest: int
) -> Graph:
    """The graph of ``proto``; starts over whenever an operator forces sizes to be equal or limited."""
    unknown = set(overrides) - {i.name for i in proto.graph.input}
    if unknown:
        raise ImportFailure(f"{source}: no input named {', '.join(sorted(unknown))}")
    assumed = Assumed()
    while True:
        importer = Importer(proto, source, arrays, assumed, longest)
        try:
            built = importer.run(overrides)
        except UnsupportedModel:
            if not assumed.otherwise():
                raise
        except EqualSizes as found:
            try:
                assumed.equal(found, importer.builder.graph)
            except GraphError as error:
                raise ImportFailure(f"{source}: {error}") from None
        except AtMost as found:
            assumed.at_most(found)
        else:
            if not assumed.narrowed(built):
                return built


class Importer:
    """One import: ``env`` maps ONNX tensor names to live values or known data."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        source: str,
        arrays: Mapping[str, Array],
        assumed: Assumed,
        longest: int,
    ) -> None:
        self.proto, self.source, self.assumed, self.longest = proto, source, assumed, longest
        self.builder = Builder(proto.graph.name or "model")
        self.env: dict[str, Imported] = dict(arrays)
        self.problems: list[tuple[str, str, str]] = []
        self.failed: set[str] = set()
        self.constants: dict[int, str] = {}
        self.opsets = self.proto.opset_import
        self.computed: dict[object, str] = {}  # masks and positions, each emitted once
        self.numbers, self.entries = Numbers(), dict[int, Entries]()  # of conditions whose entries are chosen
        self.between: dict[str, tuple[Between, Part]] = {}  # of the symbols that count their positions
        self.joined: dict[str, int] = {}  # the last positions of rows that are joined again
        self.least: dict[Dim, int] = {}  # sizes taken to be no smaller
        self.room = FOLD_TOTAL + FOLD_SHARE * sum(array.nbytes for array in arrays.values())

    def run(self, overrides: Overrides) -> Graph:
        """The graph of the whole file. EqualSizes and AtMost say what is to be assumed before another try."""
        for info in self.proto.graph.input:
            if info.name not in self.env:
                self.env[info.name] = declare_input(self, info, overrides.get(info.name))
        for node in self.proto.graph.node:
            self.convert(node)
        if self.problems:
            raise UnsupportedModel(self.source, self.problems)
        names = declare_outputs(self)
        hold_states(self.builder.graph)
        built = self._whole(self.builder.finish(), names)
        built = renamed(built, dict(zip(built.outputs, names.values(), strict=True)))
        check_limits(self, built)
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

    def convert(self, node: onnx.NodeProto) -> None:
        label = node.name or next((o for o in node.output if o), node.op_type)
        if node.op_type in INNER and INNER[node.op_type](self, node):
            return
        if any(x in self.failed for x in node.input):
            if not registry.exists(node) and node.op_type not in FOLDED:
                self.refuse(node, label, registry.unknown(node))
            self.failed.update(node.output)
            return
        missing = [x for x in node.input if x and x not in self.env]
        if missing:
            raise ImportFailure(
                f"{self.source}: node '{label}' reads '{missing[0]}', which nothing computes before it"
            )
        try:
            if node.op_type == "Loop":
                results = at_once(self, node, label)
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
            self.refuse(node, label, "it needs to know how many entries of a condition are true")
        except IntcError as error:
            self.refuse(node, label, str(error))
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            self.refuse(node, label, f"malformed or outside the supported conditions ({first_line(error)})")

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

    def refuse(self, node: onnx.NodeProto, label: str, reason: str) -> None:
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


def _storable(array: Array) -> Array:
    if array.dtype.kind == "f":
        return np.asarray(array, np.float32)
    return array.astype(np.int64) if array.dtype == object else array
