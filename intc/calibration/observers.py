"""What calibration keeps of a value: ranges, histograms where the calibrator asks, second moments and the
magnitudes of the largest samples where a constant matrix multiplies it; never the activations.

Memory bound, whatever the number of samples, for a value of C channels: ``16*C`` bytes; with a calibrator
other than minmax ``8*BINS`` more, and ``8*CHANNEL_BINS*C`` for the input of a product; with moments
``4*C^2`` (see there).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from intc.calibration.histogram import CALIBRATORS, Calibrator, Histogram
from intc.calibration.moments import Moments
from intc.calibration.peaks import Peaks
from intc.errors import CalibrationError, UsageError
from intc.ir.graph import Graph, Value, prune
from intc.ir.op import Array
from intc.ops.matmul import MatMul
from intc.ops.softmax import Softmax

BINS = 2048
CHANNEL_BINS = 512
DEVIATIONS = 4.0
TELLING = 32  # samples that show how much one more would exceed them
SETTLED = 1024  # rows behind which a channel is taken to have shown its range


@dataclass
class Statistics:
    """One value over all samples; ``low`` and ``high`` are its range per index of the last axis, or of one
    element where that axis is dynamic. ``looseness``: by which factor that may exceed what occurs, where no
    data showed it; ``reach``: a magnitude that wide integers hold even if no data showed it.
    """

    low: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    high: Array = field(default_factory=lambda: np.zeros(0, np.float32))
    tensor: Histogram | None = None
    channel: Histogram | None = None
    moments: Moments | None = None
    peaks: Peaks | None = None
    looseness: float = 1.0
    reach: float = 0.0

    @property
    def channels(self) -> Array:
        """The largest magnitude per channel."""
        return np.asarray(np.maximum(np.abs(self.low), np.abs(self.high)))

    @property
    def magnitude(self) -> float:
        """The largest magnitude seen."""
        return float(self.channels.max(initial=0.0))

    @property
    def power(self) -> float:
        """The mean square; where nothing was counted, of a normal distribution that ends at DEVIATIONS."""
        if self.tensor is None or not self.tensor.limit.size:
            return (self.magnitude / DEVIATIONS) ** 2
        return float(self.tensor.powers()[0])

    def update(self, array: Array) -> None:
        """Fold in rows [R, C] of finite floats."""
        if array.size == 0:
            return
        top, bottom = array.max(axis=0), array.min(axis=0)
        if self.low.size == 0:
            self.low, self.high = bottom, top
        else:
            self._widen(bottom, top)
        if self.tensor is not None:
            self.tensor.update(array.reshape(-1, 1))
        if self.channel is not None:
            self.channel.update(array)
        if self.moments is not None:
            self.moments.update(array)

    def merge(self, other: Statistics) -> None:
        """Fold in the statistics of other samples of the same value."""
        if other.low.size == 0:
            return
        if self.low.size == 0:
            self.low, self.high = other.low, other.high
        else:
            self._widen(other.low, other.high)
        for own, their in (
            (self.tensor, other.tensor),
            (self.channel, other.channel),
            (self.moments, other.moments),
            (self.peaks, other.peaks),
        ):
            if own is not None and their is not None:
                own.merge(their)  # type: ignore[arg-type]

    def _widen(self, bottom: Array, top: Array) -> None:
        if self.low.size == top.size:
            self.low, self.high = np.minimum(self.low, bottom), np.maximum(self.high, top)
        else:  # the last axis is a dynamic one: no per-channel meaning
            self.low = np.minimum(self.low.min(), bottom.min()).reshape(1)
            self.high = np.maximum(self.high.max(), top.max()).reshape(1)

    def range(self, calibrator: Calibrator) -> float:
        """The magnitude to represent with one scale."""
        if calibrator == "minmax" or self.tensor is None or not self.low.size:
            return self.magnitude
        return min(float(self.tensor.magnitudes(calibrator)[0]), self.magnitude)

    def channel_ranges(self, calibrator: Calibrator) -> Array:
        """The magnitude to represent for every channel."""
        if calibrator == "minmax" or self.channel is None:
            return self.channels
        return np.minimum(self.channel.magnitudes(calibrator), self.channels) * self.unseen

    @property
    def unseen(self) -> float:
        """What few samples have not shown of a channel: see :meth:`unseen_of`."""
        return self.unseen_of(SETTLED)

    def unseen_of(self, settled: int) -> float:
        """By how much the largest of ``settled`` numbers of a channel exceeds that of as many as there were
        rows, and as much again as the samples' peaks tell of a tail.
        """
        if self.channel is None or not self.channel.counts.size:
            return 1.0
        rows = max(float(self.channel.counts.sum(axis=1).max()), 2.0)
        exponent = self.peaks.exponent if self.peaks is not None else 0.0
        normal = math.sqrt(math.log(settled) / math.log(rows))
        return normal * (settled / rows) ** exponent if rows < settled else 1.0

    @property
    def left_out(self) -> Array | None:
        """The mean square [C] of what samples that calibration had not seen would exceed its ranges by: what
        each one does where the others alone set them, less what it would be of as many normal values.
        None where fewer than TELLING samples were seen.
        """
        if self.channel is None or self.peaks is None or self.peaks.count < TELLING:
            return None
        rows = np.maximum(self.channel.counts.sum(axis=1), 2)
        normal = self.channel.powers() / (rows * np.log(rows))
        exceeded = self.channel.beyond(self.peaks.channels[1])  # what lies beyond is of one sample
        return np.asarray(np.maximum(exceeded - normal, 0.0))


def collect(
    graph: Graph,
    batches: Iterable[Mapping[str, Array]],
    calibrator: Calibrator = "mse",
    progress: Callable[[int], None] | None = None,
    products: bool = False,
) -> dict[str, Statistics]:
    """Run ``graph`` (float) over ``batches`` and return the statistics of every float value it computes or
    takes, with second moments of product inputs if ``products``.

    ``progress`` is called with the number of batches done. CalibrationError names the value that turns NaN or
    infinite.
    """
    observer = Observer(graph, calibrator, products)
    for batch in batches:
        observer.observe(batch)
        if progress:
            progress(observer.done)
    return observer.finish()


class Observer:
    """The running statistics of ``graph``; ``done`` counts the batches in them."""

    def __init__(self, graph: Graph, calibrator: Calibrator, products: bool) -> None:
        if calibrator not in CALIBRATORS:
            raise UsageError(f"calibrator '{calibrator}' is not one of {', '.join(CALIBRATORS)}")
        self.graph, self.calibrator, self.wide = graph, calibrator, products
        self.products = {
            n.inputs[0] for n in graph.nodes if isinstance(n.op, MatMul) and _weighs(graph, n.inputs[1])
        }
        self.mask = _key_mask(graph)
        self.stats: dict[str, Statistics] = {}
        self.done = 0

    def fresh(self, name: str) -> Statistics:
        """Empty statistics of value ``name``."""
        counted, product = self.calibrator != "minmax", name in self.products
        return Statistics(
            tensor=Histogram(BINS) if counted else None,
            channel=Histogram(CHANNEL_BINS) if counted and product else None,
            moments=Moments(self.wide) if product else None,
            peaks=Peaks() if counted and product else None,
        )

    def observe(self, batch: Mapping[str, Array]) -> None:
        """Fold in one batch."""
        kept = next(iter(self.mask.run(batch).values()))[:, 0, 0] if self.mask is not None else None

        def see(value: Value, array: Array) -> None:
            if not value.type.is_float:
                return
            if not np.isfinite(array.max(initial=0)) or not np.isfinite(array.min(initial=0)):
                raise CalibrationError(
                    f"value '{value.name}' becomes NaN or infinite on the calibration data"
                )
            if value.name not in self.stats:
                self.stats[value.name] = self.fresh(value.name)
            if kept is not None and array.ndim == 3 and array.shape[:2] == kept.shape:
                array = array[kept]
            if not array.size:
                return
            rows = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
            self.stats[value.name].update(rows)
            peaks = self.stats[value.name].peaks
            if peaks is not None and array.ndim > 1:
                peaks.update(array)

        with np.errstate(all="ignore"):  # what is not finite is refused by name
            self.graph.run(batch, see)
        self.done += 1

    def finish(self) -> dict[str, Statistics]:
        """The statistics; CalibrationError where there was no data."""
        if not self.done:
            raise CalibrationError("the calibration data is empty")
        return self.stats


def _weighs(graph: Graph, value: str) -> bool:
    return value in graph.constants and graph.type(value).rank == 2


def _key_mask(graph: Graph) -> Graph | None:
    """The part of ``graph`` that computes the mask of kept tokens [batch, 1, 1, tokens], if every softmax
    reads the same one: padding, which no other token sees, says nothing about ranges.
    """
    masks = {n.inputs[1:] for n in graph.nodes if isinstance(n.op, Softmax)}
    if len(masks) != 1 or not (mask := masks.pop()):
        return None
    type_ = graph.type(mask[0])
    if type_.rank != 4 or type_.shape[1:3] != (1, 1) or type_.dtype != "bool":
        return None
    return prune(replace(graph, outputs=[mask[0]]))
