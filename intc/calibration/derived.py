"""Ranges that follow from the model itself, without data: of models that arrive quantised.

Forward, an interval of every value from those of its operands: a quantiser's grid, a constant, what a softmax
or a norm can reach, sums of the two. Backward, what a value's readers can tell apart: beyond the ends of a
quantiser everything is its end, and so it is before the function in front of it. The narrower of both is the
range. ``looseness`` says how far an interval may lie beyond what occurs: 1 for a grid, and for a sum of
products ``|w|_1 / |w|_2``, since independent terms add up like the second, not like the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import hypot, inf, sqrt
from typing import Final, TypeAlias

import numpy as np

from intc.calibration.observers import Statistics
from intc.ir.graph import Graph, Node
from intc.ir.op import Array
from intc.ir.types import TensorType
from intc.ops import elementwise as ew
from intc.ops.fake_quantize import FakeQuantize
from intc.ops.gelu import Gelu
from intc.ops.im2col import Im2col
from intc.ops.layer_norm import LayerNorm
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVEMENT, MOVES, Concat, Pad
from intc.ops.pointwise import UNARY, Pointwise
from intc.ops.reduce import ReduceMax, ReduceMean, ReduceSum
from intc.ops.softmax import Softmax
from intc.ops.window import GroupedConv, MaxPool

LARGEST_INTEGER: Final = 2**24  # of integers read as numbers; wider types say nothing about their values
ROOM: Final = 4.0
SQUARED: Final = 2.0  # of a square's largest: what is twice as large as was seen has four times its square
TIGHT: Final = 2.0  # the looseness of a range that is as good as the model's own
SAMPLES: Final = 4096  # points on either side of zero at which a function is looked at
FAR: Final = 2.0**20  # how far a function is looked at whose operand has no known end
SATURATED: Final = 2.0**-16  # of the readers' range: a smaller change of the result is none
FUNCTIONS: Final = (*UNARY, Gelu, Pointwise)
SUMMED: Final = (*MOVES, ReduceMean, ReduceSum, ew.Add, ew.Sub)
SAME: Final = (*MOVEMENT, Im2col, MaxPool, ReduceMax)


@dataclass(frozen=True)
class Interval:
    """All that a value can be, and by which factor that may exceed what occurs."""

    low: float
    high: float
    looseness: float = 1.0

    @property
    def magnitude(self) -> float:
        return max(abs(self.low), abs(self.high))

    @property
    def expected(self) -> float:
        return self.magnitude / self.looseness


Known: TypeAlias = dict[str, Interval]
Demand: TypeAlias = tuple[float, float]  # what the readers of a value can tell apart
EVERYTHING: Final[Demand] = (-inf, inf)


def derive(graph: Graph) -> dict[str, Statistics]:
    """Statistics of every float value of the canonical ``graph`` whose range is known without data."""
    known: Known = {}
    for name, array in graph.constants.items():
        if array.dtype.kind == "f" and array.size and np.isfinite(array).all():
            known[name] = Interval(float(array.min()), float(array.max()))
    for node in graph.nodes:
        if graph.type(node.output).is_float and (found := _forward(graph, node, known)) is not None:
            known[node.output] = found
    demands = _demands(graph, known)
    out: dict[str, Statistics] = {}
    for name, value in graph.values.items():
        if value.type.is_float and name not in graph.constants:
            found = _narrowed(known.get(name), demands.get(name, EVERYTHING))
            if found is not None:
                low, high = (np.array([x], np.float32) for x in (found.low, found.high))
                out[name] = Statistics(low, high, looseness=found.looseness)
    return out


def widened(stats: dict[str, Statistics], graph: Graph) -> dict[str, Statistics]:
    """``stats`` that also reach what the quantisers of ``graph`` let a value be, so that a few samples do not
    cut what the model itself does not; where that is loose, up to ROOM times what data showed. What is left
    of a number behind its floor reaches 1, also where data showed whole numbers only.
    """
    fractions, squares = _fractions(graph), _squares(graph)
    known = derive(graph) if is_quantised(graph) else {}

    def reach(name: str, seen: Statistics) -> float:
        if name in fractions:
            return 1.0
        if name in squares:
            return SQUARED * seen.magnitude
        if (found := known.get(name)) is None:
            return seen.reach
        return found.magnitude if found.looseness <= TIGHT else min(found.magnitude, ROOM * seen.magnitude)

    return {name: replace(seen, reach=reach(name, seen)) for name, seen in stats.items()}


def _fractions(graph: Graph) -> set[str]:
    """The values ``x - floor(x)``."""
    producers = graph.producers()

    def is_fraction(node: Node) -> bool:
        floor = producers.get(node.inputs[1]) if isinstance(node.op, ew.Sub) else None
        return floor is not None and isinstance(floor.op, ew.Floor) and floor.inputs[0] == node.inputs[0]

    return {node.output for node in graph.nodes if is_fraction(node)}


def is_square(graph: Graph, node: Node) -> bool:
    """Whether ``node`` multiplies a value by itself."""
    if isinstance(node.op, ew.Mul):
        return node.inputs[0] == node.inputs[1]
    exponent = graph.constants.get(node.inputs[1]) if isinstance(node.op, ew.Pow) else None
    return exponent is not None and bool((exponent == 2).all())


def _squares(graph: Graph) -> set[str]:
    """The squares of values, and sums and means that have them."""
    found = set[str]()
    for node in graph.nodes:
        scaled = isinstance(node.op, ew.Mul) and any(x in graph.constants for x in node.inputs)
        follows = (scaled or isinstance(node.op, SUMMED)) and not found.isdisjoint(node.inputs)
        if follows or is_square(graph, node):
            found.add(node.output)
    return found


def is_quantised(graph: Graph) -> bool:
    """Whether ``graph`` quantises values itself."""
    return any(isinstance(n.op, FakeQuantize) for n in graph.nodes)


def _narrowed(found: Interval | None, demand: Demand) -> Interval | None:
    low, high = demand
    if found is None:
        return None if inf in (-low, high) else Interval(low, high)
    inside = Interval(min(max(found.low, low), high), max(min(found.high, high), low))
    if inside.magnitude >= found.magnitude:
        return found
    return Interval(inside.low, inside.high, max(1.0, found.looseness * inside.magnitude / found.magnitude))


# ---------------------------------------------------------------- forward


def _forward(graph: Graph, node: Node, known: Known) -> Interval | None:
    op, operands = node.op, [known.get(x) for x in node.inputs]
    if isinstance(op, FakeQuantize):
        return Interval(*op.ends)
    if isinstance(op, Softmax):
        return Interval(0.0, 1.0)
    if isinstance(op, ew.Cast):
        return _number(graph.type(node.inputs[0]))
    if isinstance(op, LayerNorm):
        return _norm(graph, node)
    if isinstance(op, ew.Sigmoid | ew.Tanh | ew.Erf | ew.Sin | ew.Cos) and operands[0] is None:
        return Interval(-1.0, 1.0)
    if isinstance(op, Concat | ew.Where):
        return _hull(operands[isinstance(op, ew.Where) :])
    x = operands[0]
    if x is None:
        return None
    if isinstance(op, SAME):
        padded = isinstance(op, Pad) or (isinstance(op, Im2col) and any(op.pads))
        return _hull([x, Interval(0.0, 0.0)]) if padded else x
    if isinstance(op, ReduceMean):
        return x
    if isinstance(op, ReduceSum):
        shape = graph.type(node.inputs[0]).shape
        sizes = [shape[a] for a in op.axes]
        if not all(isinstance(d, int) for d in sizes):
            return None
        count = float(np.prod(sizes))  # type: ignore[arg-type]
        return Interval(count * min(x.low, 0.0), count * max(x.high, 0.0), x.looseness * sqrt(count))
    if isinstance(op, FUNCTIONS):
        return _image(_function(node), x)
    if isinstance(op, MatMul | GroupedConv):
        return _product(graph, node, x, operands[1])
    rule = BINARY.get(type(op))
    y = operands[1] if len(operands) > 1 else None
    return rule(x, y) if rule is not None and y is not None else None


def _hull(parts: list[Interval | None]) -> Interval | None:
    found = [p for p in parts if p is not None]
    if len(found) < len(parts) or not found:
        return None
    widest = max(found, key=lambda p: p.expected)
    magnitude = max(p.magnitude for p in found)
    looseness = magnitude / widest.expected if widest.expected else 1.0
    return Interval(min(p.low for p in found), max(p.high for p in found), looseness)


def _number(type_: TensorType) -> Interval | None:
    """An integer or bool read as a number."""
    if type_.is_float or type_.magnitude > LARGEST_INTEGER:
        return None
    return Interval(*map(float, type_.interval))


def _norm(graph: Graph, node: Node) -> Interval | None:
    """One of C normalised elements is at most ``sqrt(C)``; what occurs is taken to be eight deviations."""
    gamma, beta = (graph.constants.get(x) for x in node.inputs[1:3])
    count = graph.type(node.inputs[0]).shape[-1]
    if gamma is None or beta is None or not isinstance(count, int):
        return None
    reach = sqrt(count) * np.abs(gamma)
    return Interval(float((beta - reach).min()), float((beta + reach).max()), max(1.0, sqrt(count) / 8))


def _product(graph: Graph, node: Node, x: Interval, y: Interval | None) -> Interval | None:
    """The largest and smallest of ``sum_k x[k] * w[k, n]`` over all n."""
    weight = graph.constants.get(node.inputs[1])
    if weight is None:
        count = graph.type(node.inputs[0]).shape[-1]
        if y is None or not isinstance(count, int):
            return None
        reach = count * x.magnitude * y.magnitude
        return Interval(-reach, reach, sqrt(count) * x.looseness * y.looseness)
    axes = tuple(range(weight.ndim - 1)) if isinstance(node.op, GroupedConv) else (-2,)
    w = weight.astype(np.float64)
    above, below = np.maximum(w, 0).sum(axis=axes), np.minimum(w, 0).sum(axis=axes)
    high, low = above * x.high + below * x.low, above * x.low + below * x.high
    expected = float(sqrt((w**2).sum(axis=axes).max())) * x.expected
    reach = float(max(np.abs(high).max(), np.abs(low).max()))
    return Interval(float(low.min()), float(high.max()), max(1.0, reach / expected) if expected else 1.0)


def _image(function: Callable[[Array], Array], x: Interval) -> Interval | None:
    y = function(_points(x.low, x.high))
    y = y[np.isfinite(y)]
    if not y.size:
        return None
    low, high = float(y.min()), float(y.max())
    usual = function(_points(x.low / x.looseness, x.high / x.looseness))
    expected = float(np.abs(usual[np.isfinite(usual)]).max(initial=0.0))
    return Interval(low, high, max(1.0, max(abs(low), abs(high)) / expected) if expected else 1.0)


def _points(low: float, high: float) -> Array:
    """Points of [low, high], dense around zero, where functions bend."""
    far = max(abs(low), abs(high), 1e-30)
    side = np.geomspace(far * 2.0**-20, far, SAMPLES)
    every = np.concatenate([-side[::-1], [0.0], side, np.linspace(low, high, SAMPLES)])
    return np.unique(np.clip(every, low, high))


def _function(node: Node) -> Callable[[Array], Array]:
    op = node.op
    if isinstance(op, Pointwise):
        return op.function

    def evaluate(x: Array) -> Array:
        with np.errstate(all="ignore"):
            return op.evaluate(x.astype(np.float32), sizes={}).astype(np.float64)

    return evaluate


def _combined(low: float, high: float, expected: float) -> Interval:
    magnitude = max(abs(low), abs(high))
    return Interval(low, high, max(1.0, magnitude / expected) if expected > 0 else 1.0)


def _sum(a: Interval, b: Interval) -> Interval:
    return _combined(a.low + b.low, a.high + b.high, hypot(a.expected, b.expected))


def _difference(a: Interval, b: Interval) -> Interval:
    return _sum(a, Interval(-b.high, -b.low, b.looseness))


def _times(a: Interval, b: Interval) -> Interval:
    ends = [x * y for x in (a.low, a.high) for y in (b.low, b.high)]
    return Interval(min(ends), max(ends), a.looseness * b.looseness)


def _quotient(a: Interval, b: Interval) -> Interval | None:
    if b.low <= 0 <= b.high:
        return None
    return _times(a, Interval(1 / b.high, 1 / b.low, b.looseness))


def _power(a: Interval, b: Interval) -> Interval | None:
    return _image(lambda x: np.power(x, b.low), a) if b.low == b.high else None


def _larger(a: Interval, b: Interval) -> Interval:
    low, high = max(a.low, b.low), max(a.high, b.high)
    return _combined(low, high, max(a.expected, b.expected))


def _smaller(a: Interval, b: Interval) -> Interval:
    low, high = min(a.low, b.low), min(a.high, b.high)
    return _combined(low, high, max(a.expected, b.expected))


BINARY: Final[Mapping[type, Callable[[Interval, Interval], Interval | None]]] = {
    ew.Add: _sum,
    ew.Sub: _difference,
    ew.Mul: _times,
    ew.Div: _quotient,
    ew.Pow: _power,
    ew.Max: _larger,
    ew.Min: _smaller,
}


# ---------------------------------------------------------------- backward


def _demands(graph: Graph, known: Known) -> dict[str, Demand]:
    """What the readers of every value can tell apart; a value without readers is not in it."""
    out: dict[str, Demand] = dict.fromkeys(graph.outputs, EVERYTHING)
    for node in reversed(graph.nodes):
        demand = out.get(node.output, EVERYTHING)
        for i, name in enumerate(node.inputs):
            low, high = _wanted(node, i, demand, known)
            before = out.get(name)
            out[name] = (low, high) if before is None else (min(low, before[0]), max(high, before[1]))
    return out


def _wanted(node: Node, i: int, demand: Demand, known: Known) -> Demand:
    """What ``node`` can tell apart in operand ``i`` where its own readers tell ``demand`` apart."""
    op = node.op
    if isinstance(op, FakeQuantize):
        low, high = op.ends
        return low - op.scale, high + op.scale
    if demand == EVERYTHING:
        return EVERYTHING
    if isinstance(op, SAME) and (i == 0 or isinstance(op, Concat)):
        return demand
    if isinstance(op, ew.Where) and i > 0:
        return demand
    if isinstance(op, FUNCTIONS):
        return _telling(_function(node), demand, known.get(node.inputs[0]))
    if (
        isinstance(op, ew.Add | ew.Sub | ew.Mul | ew.Div | ew.Max | ew.Min)
        and node.inputs[0] != node.inputs[1]
    ):
        other = known.get(node.inputs[1 - i])
        return _before(node.op, i, demand, other) if other is not None else EVERYTHING
    return EVERYTHING


def _before(op: object, i: int, demand: Demand, other: Interval) -> Demand:
    """The operands ``i`` of ``op`` that lead into ``demand`` for some value of the ``other``."""
    low, high = demand
    if isinstance(op, ew.Add):
        return low - other.high, high - other.low
    if isinstance(op, ew.Sub):
        return (low + other.low, high + other.high) if i == 0 else (other.low - high, other.high - low)
    if isinstance(op, ew.Max | ew.Min):
        return demand
    nearest = min(abs(other.low), abs(other.high))
    if other.low <= 0 <= other.high or nearest == 0 or (isinstance(op, ew.Div) and i == 1):
        return EVERYTHING
    factors = (other.low, other.high) if isinstance(op, ew.Div) else (1 / other.low, 1 / other.high)
    ends = [x * f for x in demand for f in factors]
    return min(ends), max(ends)


def _telling(function: Callable[[Array], Array], demand: Demand, x: Interval | None) -> Demand:
    """The operands between which ``function``, cut to ``demand``, still changes."""
    points = _points(x.low, x.high) if x is not None else _points(-FAR, FAR)
    y = np.clip(function(points), *demand)
    usable = np.isfinite(y)
    points, y = points[usable], y[usable]
    if not y.size:
        return EVERYTHING
    step = SATURATED * (max(abs(demand[0]), abs(demand[1])) if np.isfinite(demand).all() else np.ptp(y))
    below, above = (np.flatnonzero(np.abs(y - y[end]) > step) for end in (0, -1))
    if not below.size:
        return 0.0, 0.0
    low = points[max(int(below[0]) - 1, 0)]
    high = points[min(int(above[-1]) + 1, len(points) - 1)]
    if x is None:  # where the function still changes at the edge of sight, there is no end
        return (-inf if low == points[0] else float(low)), (inf if high == points[-1] else float(high))
    return float(low), float(high)
