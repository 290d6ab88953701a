"""The text form of a graph: one line per value, printed and parsed back exactly.

::

    intc graph 1
    graph "mlp"
    input %x : int8[batch, 64] scale 0.0078125
    const %w : int8[64, 10] in [-127, 127] scale @
    const %m : int32[1] in [1073741824, 1073741824] = [1073741824]
    %acc : int32[batch, 10] in [-1040384, 1040384] = matmul(%x, %w)
    %y : int8[batch, 10] scale 0.05 = requantize(%acc, %m, %e) {lo=-128, hi=127, dtype="int8"} from "fc/Gemm"
    output %y

Last comes ``state %past 1`` for an input that output 1 continues. Names outside ``[A-Za-z0-9_./:-]`` are
quoted as JSON strings. Small constants stand inline; the others, and scales with one entry per channel
(``scale @``), live in a side table of arrays that :func:`side_tensors` gives and the parser takes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, Final

import numpy as np

from intc.errors import GraphError
from intc.ir import dims
from intc.ir.dims import Poly
from intc.ir.graph import Graph, Node, Value
from intc.ir.op import Array, Op
from intc.ir.types import DTYPES, TensorType, format_type
from intc.ir.verify import verify

HEADER: Final = "intc graph 1"
INLINE_LIMIT: Final = 8  # constants of at most this many elements stand in the text
SCALE_KEY: Final = "~scale:"  # prefix of the side table key of a value's per-channel scales
NESTING_LIMIT: Final = 8
WORDS: Final[dict[str, Any]] = {"true": True, "false": False, "none": None, "inf": math.inf, "nan": math.nan}
BARE: Final = re.compile(r"[A-Za-z0-9_./:-]+")
INTEGER: Final = re.compile(r"-?\d+")
NUMBER: Final = re.compile(r"-?(\d+|\d+\.\d*(e[+-]?\d+)?|\d+e[+-]?\d+|inf)")


# ---------------------------------------------------------------- printing


def print_graph(graph: Graph) -> str:
    """The text of ``graph``; equal graphs print equally, and the last line ends with a newline."""
    return "\n".join((HEADER, *format_lines(graph).values())) + "\n"


def format_lines(graph: Graph) -> dict[tuple[str, str], str]:
    """Every line behind the first, by what it declares: ``("input", name)``, ``("constant", name)``,
    ``("node", name)``, ``("output", "0")`` and so on.
    """
    lines = {("graph", ""): f"graph {json.dumps(graph.name)}"}
    for name in graph.inputs:
        lines["input", name] = f"input {_declare(graph.values[name])}"
    for name, array in graph.constants.items():
        lines["constant", name] = _constant_line(graph.values[name], array)
    for node in graph.nodes:
        lines["node", node.output] = format_node(graph, node)
    for index, name in enumerate(graph.outputs):
        lines["output", str(index)] = f"output {format_name(name)}"
    for name, output in graph.states.items():
        lines["state", name] = f"state {format_name(name)} {output}"
    return lines


def side_tensors(graph: Graph) -> dict[str, Array]:
    """What the text only names: large constants, and per-channel scales (float64) under ``~scale:<name>``."""
    out: dict[str, Array] = {n: a for n, a in graph.constants.items() if not _inline(a)}
    for name, value in graph.values.items():
        if isinstance(value.scale, tuple):
            if SCALE_KEY + name in out:
                raise GraphError(f"constant '{SCALE_KEY}{name}' takes a reserved name")
            out[SCALE_KEY + name] = np.asarray(value.scale, np.float64)
    return out


def format_node(graph: Graph, node: Node) -> str:
    """The line of one node."""
    inputs = ", ".join(format_name(x) for x in node.inputs)
    source = f" from {json.dumps(node.source)}" if node.source else ""
    declared = _declare(graph.values[node.output])
    return f"{declared} = {node.op.name}({inputs}){format_attributes(node.op)}{source}"


def format_attributes(op: Op) -> str:
    """`` {lo=-128, hi=127}``: every field of ``op`` in order of declaration; empty where it has none."""
    parts = [f"{f.name}={_format_attribute(getattr(op, f.name))}" for f in fields(op)]
    return f" {{{', '.join(parts)}}}" if parts else ""


def format_name(name: str) -> str:
    """``%name``, quoted where it holds other characters than ``[A-Za-z0-9_./:-]``."""
    return "%" + (name if BARE.fullmatch(name) else json.dumps(name))


def _declare(value: Value) -> str:
    scale = ""
    if isinstance(value.scale, tuple):
        scale = " scale @"
    elif value.scale is not None:
        scale = f" scale {float(value.scale)!r}"
    lowest = "" if value.lowest is None else f" lowest {float(value.lowest)!r}"
    return f"{format_name(value.name)} : {format_type(value.type)}{scale}{lowest}"


def _inline(array: Array) -> bool:
    if array.size > INLINE_LIMIT or array.ndim > 1:
        return False
    return array.dtype.kind != "f" or bool(np.isfinite(array).all())


def _constant_line(value: Value, array: Array) -> str:
    line = f"const {_declare(value)}"
    if not _inline(array):
        return line
    kind = float if array.dtype.kind == "f" else int
    return f"{line} = [{', '.join(repr(kind(x)) for x in array.reshape(-1))}]"


def _format_attribute(value: Any) -> str:
    if value is None or isinstance(value, (bool, np.bool_)):
        return str(value).lower()
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    if isinstance(value, (float, np.floating)):
        return repr(float(value))
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, Poly):
        return f"({value})" if str(value) in WORDS else str(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_format_attribute(v) for v in value)}]"
    raise GraphError(f"an attribute of type {type(value).__name__} has no text form")


# ---------------------------------------------------------------- parsing


def parse_graph(text: str, tensors: Mapping[str, Array], operators: Iterable[type[Op]]) -> Graph:
    """The graph that ``text`` describes, verified; GraphError names the line that does not fit.

    ``tensors`` is the side table of :func:`side_tensors`, in which integers may have a narrower type that
    holds them; ``operators`` are the classes that may occur.
    """
    lines = text.split("\n")
    if lines[0].strip() != HEADER:
        raise GraphError(f"line 1: the text does not start with '{HEADER}'")
    graph = Graph("")
    classes = {cls.name: cls for cls in operators}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            _parse_line(_Cursor(line.strip()), graph, tensors, classes)
        except GraphError as error:
            raise GraphError(f"line {number}: {error}") from None
    verify(graph)
    return graph


class _Cursor:
    """A position in one line; every ``take`` either advances or raises GraphError."""

    def __init__(self, line: str) -> None:
        self.line, self.at = line, 0

    def accept(self, token: str) -> bool:
        self.skip()
        if not self.line.startswith(token, self.at):
            return False
        self.at += len(token)
        return True

    def expect(self, token: str) -> None:
        if not self.accept(token):
            raise GraphError(f"expected '{token}' at '{self.line[self.at : self.at + 30]}'")

    def skip(self) -> None:
        while self.at < len(self.line) and self.line[self.at] == " ":
            self.at += 1

    def take(self, pattern: str, what: str) -> str:
        self.skip()
        match = re.compile(pattern).match(self.line, self.at)
        if match is None or match.end() == self.at:
            raise GraphError(f"expected {what} at '{self.line[self.at : self.at + 30]}'")
        self.at = match.end()
        return match.group()

    def string(self) -> str:
        quoted = self.take(r'"(?:[^"\\]|\\.)*"', "a quoted string")
        try:
            return str(json.loads(quoted))
        except ValueError:
            raise GraphError(f"{quoted} is not a JSON string") from None

    def name(self) -> str:
        self.expect("%")
        return self.string() if self.line.startswith('"', self.at) else self.take(BARE.pattern, "a name")

    def items(self, close: str, item: Callable[[], Any]) -> list[Any]:
        """Comma-separated items up to ``close``; the opening bracket is already taken."""
        out: list[Any] = []
        while not self.accept(close):
            if out:
                self.expect(",")
            out.append(item())
        return out

    def attribute(self, depth: int = 0) -> Any:
        if depth > NESTING_LIMIT:
            raise GraphError("attributes are nested too deeply")
        self.skip()
        if self.line.startswith('"', self.at):
            return self.string()
        if self.accept("["):
            return tuple(self.items("]", lambda: self.attribute(depth + 1)))
        if self.accept("("):
            size = self.size()
            self.expect(")")
            return size
        start = self.at
        word = self.take(r"[^,\]})=\"]+", "an attribute").strip()
        if word in WORDS:
            return WORDS[word]
        if NUMBER.fullmatch(word):
            return _number(word)
        self.at = start
        return self.size()

    def size(self) -> dims.Dim:
        self.skip()
        end, depth = self.at, 0
        for c in self.line[self.at :]:
            depth += (c == "(") - (c == ")")
            if depth < 0 or not (c.isalnum() or c in "_*+ -" or (c in "()/" and (depth or c == ")"))):
                break
            end += 1
        word = self.line[self.at : end].strip()
        if not word:
            raise GraphError(f"expected a size at '{self.line[self.at : self.at + 30]}'")
        self.at = end
        size = dims.as_dim(_number(word)) if INTEGER.fullmatch(word) else dims.parse(word)
        if str(size) != word:
            raise GraphError(f"'{word}' is not a size in normal form")
        return size

    def done(self) -> None:
        self.skip()
        if self.at != len(self.line):
            raise GraphError(f"unexpected '{self.line[self.at : self.at + 30]}'")


def _number(word: str) -> int | float:
    try:
        return int(word) if INTEGER.fullmatch(word) else float(word)
    except ValueError:
        raise GraphError(f"'{word[:30]}' is not a number") from None


def _real(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise GraphError(f"'{word[:30]}' is not a number") from None


def _parse_line(
    cursor: _Cursor, graph: Graph, tensors: Mapping[str, Array], classes: Mapping[str, type[Op]]
) -> None:
    if cursor.accept("graph "):
        graph.name = cursor.string()
    elif cursor.accept("input "):
        graph.inputs.append(_define(cursor, graph, tensors).name)
    elif cursor.accept("const "):
        value = _define(cursor, graph, tensors)
        graph.constants[value.name] = _constant(cursor, value, tensors)
    elif cursor.accept("output "):
        graph.outputs.append(cursor.name())
    elif cursor.accept("state "):
        name = cursor.name()
        graph.states[name] = int(_number(cursor.take(r"\d+", "the index of an output")))
    else:
        value = _define(cursor, graph, tensors)
        cursor.expect("=")
        graph.nodes.append(_node(cursor, value.name, classes))
    cursor.done()


def _define(cursor: _Cursor, graph: Graph, tensors: Mapping[str, Array]) -> Value:
    name = cursor.name()
    if name in graph.values:
        raise GraphError(f"value '{name}' is defined twice")
    cursor.expect(":")
    type_ = _type(cursor)
    scale: float | tuple[float, ...] | None = None
    if cursor.accept("scale "):
        if cursor.accept("@"):
            scale = tuple(float(x) for x in _tensor(tensors, SCALE_KEY + name).reshape(-1))
        else:
            scale = _real(cursor.take(r"[^ ]+", "a scale"))
    lowest = _real(cursor.take(r"[^ ]+", "a number")) if cursor.accept("lowest ") else None
    graph.values[name] = Value(name, type_, scale, lowest)
    return graph.values[name]


def _type(cursor: _Cursor) -> TensorType:
    dtype = cursor.take(r"\w+", "an element type")
    cursor.expect("[")
    shape = tuple(cursor.items("]", cursor.size))
    if not cursor.accept("in ["):
        return _checked_type(shape, dtype, None, None)
    lo = _number(cursor.take(r"-?\d+", "a lower bound"))
    cursor.expect(",")
    hi = _number(cursor.take(r"-?\d+", "an upper bound"))
    cursor.expect("]")
    return _checked_type(shape, dtype, int(lo), int(hi))


def _checked_type(shape: dims.Shape, dtype: str, lo: int | None, hi: int | None) -> TensorType:
    if dtype not in DTYPES:
        raise GraphError(f"element type '{dtype}' is not one of {', '.join(DTYPES)}")
    return TensorType(shape, dtype, lo, hi)  # type: ignore[arg-type]


def _tensor(tensors: Mapping[str, Array], key: str) -> Array:
    if key not in tensors:
        raise GraphError(f"tensor '{key}' is missing from the side table")
    return tensors[key]


def _constant(cursor: _Cursor, value: Value, tensors: Mapping[str, Array]) -> Array:
    if not cursor.accept("= ["):
        array = _tensor(tensors, value.name)
        narrower = array.dtype.kind in "iu" and np.can_cast(array.dtype, value.type.dtype)
        return array.astype(value.type.dtype) if narrower else array
    numbers = cursor.items("]", lambda: _number(cursor.take(r"[^,\]]+", "a number").strip()))
    try:
        return np.asarray(numbers, value.type.dtype).reshape(dims.evaluate_shape(value.type.shape, {}))
    except (ValueError, OverflowError, KeyError):
        raise GraphError(f"constant '{value.name}' does not hold {format_type(value.type)}") from None


def _node(cursor: _Cursor, output: str, classes: Mapping[str, type[Op]]) -> Node:
    operator = cursor.take(r"\w+", "an operator")
    if operator not in classes:
        raise GraphError(
            f"operator '{operator}' is not known; a family of your own is registered first, by "
            "intc.register_family"
        )
    cursor.expect("(")
    inputs = tuple(cursor.items(")", cursor.name))
    attributes: dict[str, Any] = {}
    if cursor.accept("{"):
        attributes = dict(cursor.items("}", lambda: _attribute_pair(cursor)))
    source = cursor.string() if cursor.accept("from ") else ""
    cls = classes[operator]
    if set(attributes) != {f.name for f in fields(cls)}:
        raise GraphError(f"{operator} has the attributes {', '.join(f.name for f in fields(cls)) or 'none'}")
    try:
        return Node(cls(**attributes), inputs, output, source)
    except (TypeError, ValueError) as error:
        raise GraphError(f"{operator}: {error}") from None


def _attribute_pair(cursor: _Cursor) -> tuple[str, Any]:
    key = cursor.take(r"\w+", "an attribute name")
    cursor.expect("=")
    return key, cursor.attribute()
