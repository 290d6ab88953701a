"""What each choice does to the model's output: the float graph with one unit computed in integers.

A unit's nodes are computed by the very rules that build the integer graph, on inputs of 30 bits; everything
behind them is float. The noise of a choice is the squared distance of the outputs from float, relative to
their power, averaged over samples and outputs: ``10**(-SQNR/10)``. Noises of different units are nearly
independent, so that of a plan is close to their sum. Positions that a mask hides from every query do not
count.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

import numpy as np

from intc.calibration.histogram import Calibrator
from intc.calibration.observers import Statistics
from intc.errors import GraphError, QuantizationError
from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array
from intc.ir.types import TensorType
from intc.ops.fused import WIDE
from intc.ops.im2col import Im2col
from intc.ops.matmul import MatMul
from intc.ops.softmax import Softmax
from intc.passes.integer.context import Context
from intc.passes.integer.forms import Form, Forms
from intc.passes.integer.noise import Seen
from intc.passes.integer.rules import RULES
from intc.passes.plan import VALUE_KEYS, Choice, Plan, Resolved, is_linear, names_of, planned
from intc.planning.padding import attended
from intc.report.reference import unmasked

Tell: TypeAlias = Callable[[str], None]
Measure: TypeAlias = Literal["output", "local", "hessian", "relevance", "outliers"]
MEASURES: tuple[str, ...] = ("output", "local", "hessian", "relevance", "outliers")
DRAWS: Final = 2  # random vectors of an estimated trace
SMALL: Final = 2.0**-6  # of a value's deviation: a perturbation to which the network responds linearly
FAR: Final = 6.0  # deviations: an outlier (Dettmers et al. 2022)


@dataclass(frozen=True)
class Unit:
    """Nodes that are planned together: the products that read one value, or one softmax, GELU or product of
    attention scores.

    ``choices[0]`` is the starting plan's.
    """

    nodes: tuple[Node, ...]
    names: tuple[str, ...]
    choices: tuple[Choice, ...]

    def plan(self, choice: int) -> dict[str, Choice]:
        """The plan entries of that choice."""
        return dict.fromkeys(self.names, self.choices[choice])


@dataclass(frozen=True)
class Options:
    """``weights`` (none: the start's) and ``activations`` are the widths to try, ``families`` the
    approximations, ``values`` those of softmax weights and values; ``measure`` takes the noise at the model's
    ``output``, or ``local``, at the node's own, or weighs the latter by an estimate of its effect: see
    :meth:`Probe.weight`. 16-bit weights are tried with the widest activations alone.
    """

    weights: tuple[int, ...] = (8, 4)
    activations: tuple[int, ...] = (8, 16)
    families: tuple[str, ...] = ()
    measure: Measure = "output"
    values: tuple[int, ...] = ()


def units_of(
    graph: Graph, start: Plan, family: str, options: Options, seen: Seen | None = None
) -> list[Unit]:
    """Every unit of a canonical graph with its choices, in order of the graph; ``seen`` as in
    :meth:`Plan.resolve`. Where weights are not tried, activations only grow.
    """
    resolved = start.resolve(graph, family, seen)
    groups: dict[tuple[str, str], list[Node]] = {}
    keys = planned(graph)
    named = names_of([node for node, _ in keys])
    weighing = {node.output for node, fields in keys if fields == VALUE_KEYS}
    for node in (n for n, _ in keys if n.output not in weighing or options.values):
        linear = is_linear(graph, node)
        groups.setdefault(("reads", node.inputs[0]) if linear else ("is", node.output), []).append(node)
    units = []
    for (kind, _), nodes in groups.items():
        first = resolved.choices[nodes[0].output]
        if kind == "reads":
            first = Choice(first.weights, first.activations)
            kept = (first.weights or 8,)
            pairs = itertools.product(options.weights or kept, options.activations)
            widest = max(options.activations, default=8)
            least = 8 if options.weights else first.activations or 8
            grid = [Choice(w, a) for w, a in pairs if a >= least and (w <= 8 or a == widest)]
        elif nodes[0].output in weighing:
            grid = [Choice(values=v) for v in options.values]
        elif isinstance(nodes[0].op, MatMul):
            grid = [Choice(activations=a) for a in options.activations]
        else:
            first = Choice(approximation=first.approximation)
            grid = [Choice(approximation=f) for f in options.families]
        names = tuple(named[n.output] for n in nodes)
        units.append(Unit(tuple(nodes), names, tuple(dict.fromkeys([first, *grid]))))
    return units


@dataclass
class Noises:
    """``table[u][c]`` is the noise of choice c of unit u; inf where it was not measured or is refused."""

    table: list[list[float]]
    complete: bool = True


@dataclass
class Probe:
    """The float graph on one batch, every value kept."""

    graph: Graph
    stats: dict[str, Statistics]
    calibrator: Calibrator
    feeds: Mapping[str, Array]
    values: dict[str, Array] = field(default_factory=dict)
    weights: dict[tuple[tuple[str, ...], Measure], float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.env = self.graph.bind(self.feeds)
        self.values = dict(self.graph.constants)
        self.graph.run(self.feeds, lambda value, array: self.values.__setitem__(value.name, array))
        self.users = self.graph.users()
        self.counted = attended(self.graph, self.values)

    def noise(self, unit: Unit, choice: Choice, measure: Measure) -> float:
        """The noise of ``unit`` computed as ``choice`` says."""
        changed = {node.output: self.quantised(node, choice) for node in unit.nodes}
        if measure == "output":
            return self.distance(changed)
        return self.relative_to_float(changed, list(changed)) * self.weight(unit, measure)

    def weight(self, unit: Unit, measure: Measure) -> float:
        """What the unit's own noise is multiplied by.

        ``local``: 1. ``hessian``: the response of the outputs to a small random perturbation, which estimates
        the trace of the Gauss-Newton Hessian of their distance (Hutchinson; HAWQ-V2, Dong et al. 2020).
        ``relevance``: the response to the unit's result replaced by its mean. ``outliers``: the share of the
        unit's inputs beyond FAR deviations.
        """
        if measure == "local":
            return 1.0
        key = (unit.names, measure)
        if key not in self.weights:
            self.weights[key] = WEIGHTS[measure](self, unit)
        return self.weights[key]

    def distance(self, changed: dict[str, Array]) -> float:
        """That of the model's outputs from float, with the values ``changed``."""
        self.propagate(changed)
        return self.relative_to_float(changed, self.graph.outputs)

    def relative_to_float(self, changed: Mapping[str, Array], ends: Sequence[str]) -> float:
        ends = [n for n in ends if self.graph.type(n).is_float] or ends
        pairs = [(self.counted.get(n, ...), self.values[n], changed.get(n, self.values[n])) for n in ends]
        return float(np.mean([relative(wanted[where], got[where]) for where, wanted, got in pairs]))

    def propagate(self, changed: dict[str, Array]) -> None:
        """Evaluate what depends on ``changed``."""
        for node in self.graph.nodes:
            if node.output not in changed and any(x in changed for x in node.inputs):
                inputs = (changed.get(x, self.values[x]) for x in node.inputs)
                changed[node.output] = node.op.evaluate(*inputs, sizes=self.env)

    def quantised(self, node: Node, choice: Choice) -> Array:
        """The output of ``node`` by its integer rule, as real numbers."""
        graph, form, feeds = self.integer(node, choice)
        live: dict[str, Array] = {**graph.constants, **feeds}
        for inner in graph.nodes:
            live[inner.output] = inner.op.evaluate(*(live[x] for x in inner.inputs), sizes=self.env)
        result = live[form.name] * form.scale
        if form.row_sums:
            result = result / np.maximum(result.sum(axis=-1, keepdims=True), 1e-30)
        return np.asarray(result if form.centre is None else result + form.centre, np.float32)

    def integer(self, node: Node, choice: Choice) -> tuple[Graph, Form, dict[str, Array]]:
        """The integer graph of ``node`` alone on inputs of 30 bits, its result and those inputs.

        The windows that a product reads, and the softmax that weighs its values, are part of it.
        """
        builder = Builder("probe")
        forms = Forms(self.graph, builder, self.stats, self.calibrator)
        plan = Resolved(
            {n.output: choice for n in self.users[node.inputs[0]]} | {node.output: choice}, choice
        )
        feeds: dict[str, Array] = {}
        context = Context(forms, plan, self.users)
        inner = [n for n in map(forms.nodes.get, node.inputs) if n is not None and _belongs(n, node)]
        inside = {n.output for n in inner}
        for name in dict.fromkeys(x for n in (*inner, node) for x in n.inputs if x not in inside):
            if name in self.graph.constants:
                continue
            array, type_ = self.values[name], self.graph.type(name)
            scale = 1.0
            if type_.is_float:
                scale = float(np.abs(array).max(initial=0.0)) / WIDE or 1.0
                array = np.rint(array.astype(np.float64) / scale).astype(np.int32)
                type_ = TensorType(type_.shape, "int32", -WIDE, WIDE)
            builder.input(name, type_, scale)
            forms.base[name] = Form(name, np.asarray(scale))
            feeds[name] = array
        for made in inner:
            if isinstance(made.op, Softmax):
                forms.base[made.output] = RULES[Softmax](context, made)
        form = RULES[type(node.op)](context, node)
        builder.output(form.name)
        for correction in context.corrections.values():  # what the bias behind a product would add
            form = replace(form, centre=correction)
        return builder.finish(), form, feeds


def _belongs(made: Node, node: Node) -> bool:
    """Whether ``made``, which ``node`` reads, is rounded as ``node`` needs it."""
    weighs = isinstance(node.op, MatMul) and isinstance(made.op, Softmax) and node.inputs[0] == made.output
    return weighs or isinstance(made.op, Im2col)


def _hessian(probe: Probe, unit: Unit) -> float:
    rng = np.random.default_rng(0)
    found = []
    for _ in range(DRAWS):
        changed = {}
        for node in unit.nodes:
            value = probe.values[node.output]
            signs = rng.choice(np.array([-1.0, 1.0], np.float32), value.shape)
            changed[node.output] = value + signs * (SMALL * float(value.std()))
        own = probe.relative_to_float(changed, list(changed))
        found.append(probe.distance(changed) / max(own, 1e-30))
    return float(np.mean(found))


def _relevance(probe: Probe, unit: Unit) -> float:
    return probe.distance(
        {n.output: np.full_like(probe.values[n.output], probe.values[n.output].mean()) for n in unit.nodes}
    )


def _outliers(probe: Probe, unit: Unit) -> float:
    value = probe.values[unit.nodes[0].inputs[0]].astype(np.float64)
    beyond = np.abs(value - value.mean()) > FAR * value.std()
    return float((1 + beyond.sum()) / value.size)  # none at all still leaves an order


WEIGHTS: Final[dict[Measure, Callable[[Probe, Unit], float]]] = {
    "hessian": _hessian,
    "relevance": _relevance,
    "outliers": _outliers,
}


def relative(wanted: Array, got: Array) -> float:
    """The squared distance as a share of the wanted power, where no mask has set both to minus infinity."""
    given, real = unmasked(got, wanted)
    return float(((real - given) ** 2).sum()) / max(float((real**2).sum()), 1e-30)


def measure_noises(
    graph: Graph,
    stats: dict[str, Statistics],
    calibrator: Calibrator,
    samples: Sequence[Mapping[str, Array]],
    units: Sequence[Unit],
    measure: Measure = "output",
    tell: Tell = lambda step: None,
) -> Noises:
    """The noise of every choice of every unit. An interrupt ends it early with what was measured so far."""
    table = [[0.0] * len(u.choices) for u in units]
    most = max(map(len, table), default=0)
    order = [(u, c) for c in range(most) for u in range(len(units)) if c < len(table[u])]
    done, total, start = 0, len(order) * len(samples), time.monotonic()
    for number, feeds in enumerate(samples):
        probe = Probe(graph, stats, calibrator, feeds)
        first = table if number == 0 else [row[:] for row in table]
        if number == 0:
            table = [[np.inf] * len(row) for row in table]
        try:
            for u, c in order:
                if np.isinf(first[u][c]):
                    continue
                try:
                    noise = probe.noise(units[u], units[u].choices[c], measure)
                except (QuantizationError, GraphError, KeyError):  # this choice has no proof of fit
                    noise = np.inf
                table[u][c] = (first[u][c] * number + noise) / (number + 1)
                done += 1
                left = (time.monotonic() - start) / done * (total - done)
                tell(f"sensitivity {done}/{total}, {left:.0f} s left")
        except KeyboardInterrupt:
            tell(f"interrupted: planning with {done} of {total} measurements")
            return Noises(table, complete=False)
    return Noises(table)
