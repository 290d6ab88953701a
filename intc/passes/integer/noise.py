"""How loud rounding is, estimated from what calibration saw: the power of its error as a share of a value's.

An error of every element of a channel, independent of all others, reaches the outputs of ``x @ W`` with the
squares of that channel's weights. There it counts against the power of the value that the product ends in: of
the sum with the stream where it is a residual branch, else of its own result. In a product of two computed
values the errors of one come with the power of the other.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from intc.calibration.histogram import Calibrator
from intc.calibration.observers import Statistics
from intc.ir.dims import Shape
from intc.ir.graph import Graph, Node
from intc.ir.op import Array
from intc.ir.spool import trim
from intc.ops.elementwise import Add
from intc.ops.fake_quantize import FakeQuantize
from intc.ops.im2col import Im2col
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVEMENT, Concat
from intc.passes.integer.equalise import channel_scales, room
from intc.passes.integer.widths import NARROW
from intc.passes.match import Uses, behind_movement, biased_product, divided, keeps_channels, weight_of

LOUD: Final = 10**-3.2
MODEST: Final = 10**-3.6
QUIET: Final = 10**-4.0  # what is less is left as it is, however cheap more bits would be
MOST: Final = 1 / 4
CHEAP: Final = 1 / 8  # of the multiply-accumulates of all products
TAIL: Final = 1 / 32
FEWEST: Final = 256  # rows: fewer say too little of a tail to widen anything for
LEAST: Final = float(np.finfo(np.float32).tiny)
STEPS: Final = 127  # of 8 bits, on either side of zero


def rounding(seen: Statistics, step: float) -> float:
    """The share of rounding a value to multiples of ``step``."""
    return step**2 / 12 / max(seen.power, LEAST)


def in_product(
    stats: Mapping[str, Statistics], node: Node, shape: Shape | None, steps: tuple[float, float]
) -> tuple[float, float]:
    """The shares, in the result of ``node``, of rounding its left and its right operand to multiples of
    ``steps``; zeros where one of the three values was not counted.

    ``shape``: the row and the columns of a matrix product [K, N], of which one may be symbolic; None element
    by element.
    """
    found = [stats.get(value) for value in (*node.inputs, node.output)]
    counts = [s.tensor.counts.sum() if s is not None and s.tensor is not None else 0 for s in found]
    left, right, result = (s.power if s is not None else 0.0 for s in found)
    terms = 1.0 if shape is None else _terms(shape, *counts[::2])
    if not all(counts) or not result or not terms:
        return 0.0, 0.0
    return steps[0] ** 2 * right * terms / 12 / result, steps[1] ** 2 * left * terms / 12 / result


def _terms(shape: Shape, left: int, result: int) -> float:
    """The terms of a sum; where they are symbolic, their mean in calibration, by the numbers of elements of
    the ``left`` operand and of the ``result``; 0 where those do not tell.
    """
    terms, columns = shape
    if isinstance(terms, int):
        return terms
    return left * columns / result if isinstance(columns, int) and result else 0.0


@dataclass(frozen=True)
class Seen:
    """What calibration saw of the values of a graph, and how it chooses 8-bit ranges."""

    stats: Mapping[str, Statistics]
    calibrator: Calibrator


def loud(graph: Graph, seen: Seen, wide: Collection[Node] = ()) -> list[Node]:
    """The products with constant matrices, but those ``wide`` already, of which 8 bits of the operand would
    be louder than ``LOUD``; and cheap ones that lose ``MOST`` of what all that have 8 bits then lose.
    """
    operands = Operands(graph, seen.stats, seen.calibrator, Uses.of(graph))
    noises = {node.output: operands.noise(node) for node in graph.nodes if node not in wide}
    found = [node for node in graph.nodes if noises.get(node.output, 0.0) > LOUD]
    work = {n.output: _work(graph, seen.stats, n) for n in graph.nodes}
    spare = CHEAP * sum(work.values())
    left = {n.output: n for n in graph.nodes if 0 < noises.get(n.output, 0.0) <= LOUD}
    for name in sorted(left, key=noises.__getitem__, reverse=True):
        if noises[name] < max(QUIET, MOST * sum(noises[x] for x in left)):
            break
        if work[name] <= spare:
            spare -= work[name]
            found.append(left.pop(name))
    return found


def limit(graph: Graph, stats: Mapping[str, Statistics], node: Node) -> float:
    """The share of noise that is too loud in ``node``, a product of two computed values."""
    if not isinstance(node.op, MatMul):
        return LOUD
    own = _work(graph, stats, node)
    return MODEST if own <= CHEAP * sum(_work(graph, stats, n) for n in graph.nodes) else LOUD


def _work(graph: Graph, stats: Mapping[str, Statistics], node: Node) -> float:
    """The multiply-accumulates of a matrix product in calibration; 0 for other nodes."""
    counts = [s.tensor.counts.sum() for x in (*node.inputs, node.output) if (s := stats.get(x)) and s.tensor]
    if not isinstance(node.op, MatMul) or len(counts) < 2:
        return 0.0
    shape = graph.type(node.inputs[1]).shape[-2:]
    return float(_terms(shape, counts[0], counts[-1]) * counts[-1])


@dataclass(frozen=True)
class Operands:
    """The operands of a graph's products with constant matrices, in 8 bits."""

    graph: Graph
    stats: Mapping[str, Statistics]
    calibrator: Calibrator
    uses: Uses
    known: dict[str, Array | None] = field(default_factory=dict)

    def noise(self, node: Node) -> float:
        """The share of the error of the operand of ``node``; 0 for other nodes, or where nothing was seen."""
        weight = weight_of(self.graph, node)
        if weight is None or self._quantised(node.inputs[0]):
            return 0.0
        value = node.inputs[0]
        seen, end = self.stats.get(value), self.stats.get(self._end(node.output))
        if seen is None or end is None:
            return 0.0
        if value not in self.known:
            self.known[value] = self._noise(value, seen)
        noise = self.known[value]
        if noise is None or noise.size != len(weight):
            return 0.0
        trim()
        squares = np.einsum("kn,kn->k", weight, weight, dtype=np.float64) / weight.shape[1]
        return float(squares @ noise) / max(end.power, LEAST)

    def _noise(self, value: str, seen: Statistics) -> Array | None:
        """The mean square of the error [K] of every channel of ``value`` in 8 bits: of rounding, of clipping
        what calibration saw, and of clipping what it did not see; None where nothing was counted.

        Where few samples were seen, the tail is taken to fall as fast as the largest ``TAIL`` of the values
        do: it exceeds the largest of n in one of n cases, and a limit beyond it ``exp(-distance / excess)``
        times as often.
        """
        channel = seen.channel
        if channel is None or not channel.limit.size:
            return None
        steps = self._steps(value, seen)
        limits, unseen = steps * STEPS, seen.left_out
        if unseen is None or unseen.shape != steps.shape:
            excess = np.maximum(channel.excesses(TAIL), LEAST)
            cases = max(int(channel.counts[0].sum()), FEWEST)
            unseen = 2 * excess**2 / cases * np.exp(np.minimum((seen.channels - limits) / excess, 0.0))
        return np.asarray(self._finer(seen) * steps**2 / 12 + channel.beyond(limits) + unseen)

    def _steps(self, value: str, seen: Statistics) -> Array:
        """The steps [K] of ``value`` in 8 bits, on both sides of zero."""
        alike = np.full(seen.channels.shape, seen.range(self.calibrator) / STEPS)
        if not self._computed(value):
            return alike
        readers = [w for n in self.uses.users[value] if (w := weight_of(self.graph, n)) is not None]
        scales = channel_scales(seen.channel_ranges(self.calibrator), readers, 8, NARROW)
        quotient = divided(self.graph, self.uses.producers, value)
        return scales * room(seen, scales, readers, NARROW, quotient)

    def _computed(self, value: str) -> bool:
        """Whether every channel of ``value`` may have a step of its own: it is computed, and moved in no way
        that mixes channels.
        """
        made = self.uses.producers.get(value)
        if made is None or not isinstance(made.op, MOVEMENT) or isinstance(made.op, Im2col):
            return made is not None
        moved = made.inputs if isinstance(made.op, Concat) else made.inputs[:1]
        return keeps_channels(self.graph, made) and all(map(self._computed, moved))

    def _finer(self, seen: Statistics) -> float:
        """By how much less the square of a step is where codes are counted from one end."""
        low, high = (float(np.maximum(end, 0).max()) for end in (-seen.low, seen.high))
        largest = max(low, high)
        return ((low + high) / (2 * largest)) ** 2 if largest else 1.0

    def _end(self, value: str) -> str:
        """What the product ``value`` ends in, behind constants and movement: the stream that it joins, which
        the sum of two products is not.
        """
        while (user := self.uses.sole_user(value, Add, *MOVEMENT)) is not None:
            if isinstance(user.op, Add) and not any(x in self.graph.constants for x in user.inputs):
                alone = (biased_product(self.graph, self.uses.producers, x) for x in user.inputs)
                return value if all(found is not None for found in alone) else user.output
            value = user.output
        return value

    def _quantised(self, value: str) -> bool:
        """Whether the model itself quantises ``value``."""
        made = behind_movement(self.uses.producers, value)
        return made is not None and isinstance(made.op, FakeQuantize)
