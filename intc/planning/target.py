"""Accuracy targets: ``sqnr>=30`` (dB), ``cosine>=0.998``, or any predicate of the user's over the model."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from intc.errors import UsageError
from intc.ir.op import Array
from intc.planning.sensitivity import relative
from intc.report.reference import fidelity

Run: TypeAlias = Callable[[Mapping[str, Array]], list[Array]]
Predicate: TypeAlias = Callable[[Run], bool]
FORM: Final = re.compile(r"\s*(sqnr|cosine)\s*>=\s*([0-9.eE+-]+)\s*")


@dataclass(frozen=True)
class Target:
    """``value >= threshold``. ``sqnr``: dB over all outputs; ``cosine``: the mean over last-axis rows."""

    metric: str
    threshold: float

    @property
    def noise(self) -> float:
        """The relative noise that corresponds to the threshold."""
        return 10 ** (-self.threshold / 10) if self.metric == "sqnr" else 2 * (1 - self.threshold)

    def value(self, wanted: Sequence[Array], got: Sequence[Array]) -> float:
        """The metric of the outputs ``got`` against the float outputs ``wanted``."""
        if self.metric == "sqnr":
            return -10 * math.log10(max(float(np.mean(list(map(relative, wanted, got)))), 1e-30))
        return float(np.mean([fidelity(b, a)["cosine_mean"] for a, b in zip(wanted, got, strict=True)]))

    def mean(self, values: Sequence[float]) -> float:
        """The metric over several samples from that of each: of dB, the noises are averaged."""
        if self.metric == "sqnr":
            return -10 * math.log10(float(np.mean([10 ** (-value / 10) for value in values])))
        return float(np.mean(values))

    def __str__(self) -> str:
        return f"{self.metric}>={self.threshold:g}"


def parse_target(text: str) -> Target:
    """The target that ``text`` states; UsageError shows the form."""
    found = FORM.fullmatch(text)
    try:
        threshold = float(found[2]) if found else math.nan
    except ValueError:
        threshold = math.nan
    if found is None or not math.isfinite(threshold) or (found[1] == "cosine" and threshold > 1):
        raise UsageError(f"accuracy target '{text}': expected 'sqnr>=DB' or 'cosine>=0..1', as in 'sqnr>=30'")
    return Target(found[1], threshold)
