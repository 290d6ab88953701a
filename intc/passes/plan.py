"""The plan: how many bits each product computes with, and how each softmax and GELU is approximated.

A plan names nodes of the canonical float graph by their ONNX name or by the value they compute. What it does
not mention keeps its ``default``, and what that leaves open is 8 bits and the compilation's family.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from intc.errors import GraphError, UsageError
from intc.files import write_text
from intc.ir.dims import Dim, product
from intc.ir.graph import Graph, Node
from intc.ir.op import Array
from intc.ir.spool import trim
from intc.ops.gelu import Gelu
from intc.ops.im2col import Im2col
from intc.ops.matmul import MatMul
from intc.ops.softmax import Softmax
from intc.passes.integer.families import FAMILIES
from intc.passes.integer.noise import Seen, loud
from intc.passes.match import Uses, behind_movement, softmax_of, weight_of

VERSION: Final = 1
WEIGHT_BITS: Final = (4, 8, 16)
ACTIVATION_BITS: Final = (8, 16)
SUM_LIMIT: Final = 2**31 - 1
MANY: Final = 16  # rows of a sample
NARROWING: Final = 8
FEW: Final = 6  # terms of a sum
SHOWN: Final = 64
UNEVEN: Final = 1e-4  # of the squared length of vectors that are equally long and orthogonal
GATES: Final = 4  # products of one step of a recurrent layer, at most
BIAS_LIMIT: Final = 2**29  # what a product's interval leaves to its bias
ALLOWED: Final[dict[str, Collection[int | str]]] = {
    "weights": WEIGHT_BITS,
    "activations": ACTIVATION_BITS,
    "approximation": FAMILIES,
    "values": ACTIVATION_BITS,
}
LINEAR_KEYS: Final = ("weights", "activations")
SCORE_KEYS: Final = ("activations",)
VALUE_KEYS: Final = ("values",)
FAMILY_KEYS: Final = ("approximation",)


@dataclass(frozen=True)
class Choice:
    """What a plan says of one node; None leaves the field to the default."""

    weights: int | None = None
    activations: int | None = None
    approximation: str | None = None
    values: int | None = None

    def over(self, other: Choice) -> Choice:
        """This choice with its open fields taken from ``other``."""
        return Choice(*(getattr(other, k) if v is None else v for k, v in asdict(self).items()))

    def fields(self) -> dict[str, int | str]:
        """The fields that are set."""
        return {key: value for key, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Plan:
    """``nodes`` maps node or value names to choices; ``default`` holds for every other node.

    >>> Plan({"fc1/MatMul": Choice(weights=4)}).as_json()["nodes"]
    {'fc1/MatMul': {'weights': 4}}
    """

    nodes: Mapping[str, Choice] = field(default_factory=dict)
    default: Choice = Choice()

    def as_json(self) -> dict[str, Any]:
        """The plan as its file holds it."""
        body: dict[str, Any] = {"intc_plan": VERSION}
        if self.default.fields():
            body["default"] = self.default.fields()
        return {**body, "nodes": {name: choice.fields() for name, choice in self.nodes.items()}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan's file in one step."""
        write_text(Path(path), json.dumps(self.as_json(), indent=1) + "\n")

    def resolve(self, graph: Graph, family: str = "auto", seen: Seen | None = None) -> Resolved:
        """The choice of every plannable node of ``graph``; UsageError for a name or field that fits none.

        ``seen``: what calibration saw of its values, which tells whose operands 8 bits are too few for.
        """
        known = planned(graph)
        nodes, keys = [n for n, _ in known], {n.output: fields for n, fields in known}
        names = _names(nodes)
        base = self.default.over(Choice(8, 8, family))
        computed = (SCORE_KEYS, VALUE_KEYS)
        chosen = {value: self.default if fields in computed else base for value, fields in keys.items()}
        if self.default.activations is None:
            wide = [*_heads(graph, nodes), *_recurrent(graph, nodes), *_transforms(graph, nodes)]
            wide += loud(graph, seen, wide) if seen is not None else []
            chosen |= {n.output: Choice(activations=16).over(base) for n in wide}
        for name, choice in self.nodes.items():
            found = names.get(name)
            if not found:
                close = difflib.get_close_matches(name, names, 1, 0.3)
                hint = f"; did you mean '{close[0]}'?" if close else ""
                raise UsageError(f"plan: '{name}' is no product, softmax or GELU of '{graph.name}'{hint}")
            for node in found:
                allowed = keys[node.output]
                wrong = next((key for key in choice.fields() if key not in allowed), None)
                if wrong:
                    raise UsageError(f"plan: node '{name}' is a {node.op.name}, which takes "
                                     f"{' and '.join(allowed)}, not {wrong}")  # fmt: skip
                chosen[node.output] = choice.over(chosen[node.output])
        return Resolved(chosen, base)


@dataclass(frozen=True)
class Resolved:
    """The choice of every plannable node, by the value it computes."""

    choices: Mapping[str, Choice]
    default: Choice

    def family(self, node: Node) -> str:
        """The approximation family of ``node`` (of any operator)."""
        return self.choices.get(node.output, self.default).approximation or "auto"

    def weights(self, node: Node) -> int:
        """The weight bits of a product."""
        return self.choices.get(node.output, self.default).weights or 8

    def scores(self, node: Node) -> int | None:
        """The bits of the operands of a product of attention scores; None where their noise decides."""
        return self.choices.get(node.output, Choice()).activations

    def values(self, node: Node) -> int:
        """The bits of softmax weights and of the values that they weigh, operands of a product."""
        return self.choices.get(node.output, Choice()).values or 8

    def activations(self, node: Node, k: int) -> int:
        """The bits of the left operand of a product over ``k``: at most what provably sums in 32 bits."""
        bits = self.choices.get(node.output, self.default).activations or 8
        return proven_bits(bits, k, 2 ** (min(self.weights(node), 8) - 1) - 1)


def proven_bits(bits: int, k: int, weight: int) -> int:
    """The widest activation up to ``bits`` (not below 8) for which ``k`` products with weights up to
    ``weight`` and a bias up to ``BIAS_LIMIT`` stay below ``2**31``.

    >>> [proven_bits(16, k, 127) for k in (384, 768, 1536, 3072)], proven_bits(16, 3072, 7)
    ([16, 15, 14, 13], 16)
    """
    while bits > 8 and k * weight * (2 ** (bits - 1) - 1) > SUM_LIMIT - BIAS_LIMIT:
        bits -= 1
    return bits


def planned(graph: Graph) -> list[tuple[Node, tuple[str, ...]]]:
    """The nodes of a canonical float graph that a plan can name, in order, each with the fields that a choice
    for it may set.
    """
    uses = Uses.of(graph)
    fields = ((node, _keys_of(graph, uses, node)) for node in graph.nodes)
    return [(node, keys) for node, keys in fields if keys]


def _keys_of(graph: Graph, uses: Uses, node: Node) -> tuple[str, ...]:
    """The fields that a choice for ``node`` may set; empty for a node that is not planned."""
    if isinstance(node.op, Softmax) or (isinstance(node.op, Gelu) and node.op.has_families):
        return FAMILY_KEYS
    if is_linear(graph, node):
        return LINEAR_KEYS
    if not isinstance(node.op, MatMul) or any(x in graph.constants for x in node.inputs):
        return ()
    if uses.producer(node.inputs[0], Softmax) is not None:
        return VALUE_KEYS
    return SCORE_KEYS if softmax_of(graph, uses.users, node.output) is not None else ()


def _heads(graph: Graph, nodes: list[Node]) -> list[Node]:
    """The products that take little time: of one row a sample where others have many (classifiers of pooled
    tokens), of few columns (classifiers of tokens, gates of experts) or few terms (interpolations). Nothing
    averages the errors of their inputs, and some of them decide.
    """
    producers = graph.producers()
    narrow = [n for n in nodes if is_linear(graph, n) and _narrows(graph, producers, n)]
    return narrow + _pooled(graph, nodes)


def _narrows(graph: Graph, producers: Mapping[str, Node], node: Node) -> bool:
    """Whether a product has at most a ``NARROWING``-th as many columns as its operand, which is no window, or
    sums at most ``FEW`` terms.
    """
    k, n = graph.constants[node.inputs[1]].shape
    made = producers.get(node.inputs[0])
    return (n * NARROWING <= k or k <= FEW) and not (made is not None and isinstance(made.op, Im2col))


def _pooled(graph: Graph, nodes: list[Node]) -> list[Node]:
    """The products of one row a sample where others have many."""
    samples = (graph.type(graph.inputs[0]).shape or (1,))[0]
    rows = {n.output: product(graph.type(n.output).shape[:-1]) for n in nodes if is_linear(graph, n)}
    if not any(_many(samples, each) for each in rows.values()):
        return []
    return [n for n in nodes if rows.get(n.output) == samples]


def _transforms(graph: Graph, nodes: list[Node]) -> list[Node]:
    """The products that change the basis, as Fourier transforms do: nothing of them was learned, and all that
    they read counts alike.
    """
    found = []
    for node in nodes:
        if is_linear(graph, node) and _orthogonal(graph.constants[node.inputs[1]]):
            found.append(node)
        trim()
    return found


def _orthogonal(matrix: Array) -> bool:
    """Whether the rows or the columns of ``matrix`` are equally long and orthogonal to each other, and some
    columns sum up several elements.
    """
    if np.count_nonzero(matrix, axis=0).max(initial=0) < 2:
        return False
    squares = np.einsum("kn,kn->k", matrix, matrix), np.einsum("kn,kn->n", matrix, matrix)
    for lengths, vectors in zip(squares, (matrix, matrix.T), strict=True):
        allowed = UNEVEN * lengths.mean()
        if len(lengths) < 2 or not allowed or np.ptp(lengths) > allowed:
            continue
        blocks = range(0, len(vectors), SHOWN)  # the first one shows most that are not
        if all(np.abs(_products(vectors, start)).max() <= allowed for start in blocks):
            return True
    return False


def _products(vectors: Array, start: int) -> Array:
    """Those of SHOWN of the ``vectors`` with all others."""
    part = vectors[start : start + SHOWN]
    products = part @ vectors.T
    products[np.arange(len(part)), start + np.arange(len(part))] = 0
    return np.asarray(products)


def _recurrent(graph: Graph, nodes: list[Node]) -> list[Node]:
    """The products of recurrent layers (of one ONNX node that multiplies by the same weights at every step)
    and those that read their states in no more columns: what enters a step stays in the states behind it.
    """
    parts: dict[str, list[Node]] = {}
    for node in nodes:
        if node.source and is_linear(graph, node):
            parts.setdefault(node.source, []).append(node)
    layers = {s: graph.type(p[-1].output).shape[-1] for s, p in parts.items() if _steps(graph, p)}
    producers = graph.producers()

    def reads(node: Node) -> bool:
        made = behind_movement(producers, node.inputs[0])
        width = layers.get(made.source) if made is not None else None
        return isinstance(width, int) and graph.constants[node.inputs[1]].shape[1] <= width

    return [n for part in parts.values() for n in part if n.source in layers or reads(n)]


def _steps(graph: Graph, nodes: list[Node]) -> bool:
    """Whether the last of these products has the weights of one of the GATES before it."""
    *before, last = (graph.constants[n.inputs[1]] for n in nodes[-1 - GATES :])
    return any(np.array_equal(weights, last) for weights in before)


def _many(few: Dim, rows: Dim) -> bool:
    """Whether ``rows`` are at least ``MANY`` times ``few``, or a symbolic size times."""
    try:
        ratio = rows // few
    except GraphError:
        return False
    return not isinstance(ratio, int) or ratio >= MANY


def is_linear(graph: Graph, node: Node) -> bool:
    """Whether ``node`` is a product with a constant matrix."""
    weight = weight_of(graph, node)
    return weight is not None and weight.dtype.kind == "f"


def names_of(nodes: list[Node]) -> dict[str, str]:
    """The name a plan should use for each of these nodes, by value: the ONNX name where only one of them has
    it, else the value's.
    """
    named = _names(nodes)
    return {n.output: n.source if len(named.get(n.source, [])) == 1 else n.output for n in nodes}


def _names(nodes: list[Node]) -> dict[str, list[Node]]:
    """Every name that means one of ``nodes``; an ONNX node that was split means all of its parts."""
    out: dict[str, list[Node]] = {}
    for node in nodes:
        for name in {node.source, node.output} - {""}:
            out.setdefault(name, []).append(node)
    return out


PlanLike: TypeAlias = int | str | os.PathLike[str] | Mapping[str, Any] | Plan


def read_plan(bits: PlanLike) -> Plan:
    """The plan that ``bits`` means: 8, a :class:`Plan`, the content of a plan file, or a path of one."""
    if isinstance(bits, Plan):
        return bits
    if isinstance(bits, int):
        if isinstance(bits, bool) or bits not in (8, 16):
            raise UsageError(f"bits={bits!r}: 8, 16 (activations), 'auto' or a plan")
        return Plan() if bits == 8 else Plan(default=Choice(activations=16))
    if isinstance(bits, Mapping):
        return parse_plan(bits, "plan")
    path = Path(bits)
    try:
        body = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except OSError as error:
        cause = error.strerror or type(error).__name__
        raise UsageError(f"plan '{path}' cannot be read ({cause}); bits is 8, 16, 'auto' or a plan") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"plan '{path}' is not JSON ({error})") from None
    return parse_plan(body, f"plan '{path}'")


def parse_plan(body: Any, where: str) -> Plan:
    """The plan in the JSON object ``body``: ``{"nodes": {...}, "default": {...}}`` or the nodes alone."""
    if not isinstance(body, Mapping):
        raise UsageError(f"{where}: expected an object, not {type(body).__name__}")
    if "nodes" not in body and "default" not in body and "intc_plan" not in body:
        body = {"nodes": body}
    unknown = sorted(set(body) - {"intc_plan", "default", "nodes"})
    if unknown:
        raise UsageError(f"{where}: unknown key '{unknown[0]}'; a plan has intc_plan, default and nodes")
    if body.get("intc_plan", VERSION) != VERSION:
        raise UsageError(f"{where}: version {body['intc_plan']!r}; this intc reads version {VERSION}")
    nodes = body.get("nodes", {})
    if not isinstance(nodes, Mapping):
        raise UsageError(f"{where}: nodes must be an object of node names, not {type(nodes).__name__}")
    default = _choice(body.get("default", {}), f"{where}: default")
    return Plan({str(n): _choice(c, f"{where}: node '{n}'") for n, c in nodes.items()}, default)


def _choice(body: Any, where: str) -> Choice:
    if not isinstance(body, Mapping):
        raise UsageError(f'{where}: expected an object such as {{"weights": 8}}, not {body!r}')
    for key, value in body.items():
        if key not in ALLOWED:
            raise UsageError(f"{where}: unknown key '{key}'; one of {', '.join(ALLOWED)}")
        if isinstance(value, bool) or value not in ALLOWED[key]:
            allowed = ", ".join(map(str, ALLOWED[key]))
            raise UsageError(f"{where}: {key} {value!r} is not supported; one of {allowed}")
    return Choice(**body)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for name, _ in pairs:
        if sum(name == other for other, _ in pairs) > 1:
            raise ValueError(f"key '{name}' occurs twice")
    return dict(pairs)
