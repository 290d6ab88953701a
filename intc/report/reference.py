"""The float model in onnxruntime: the reference of accuracy and the opponent in benchmarks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intc.errors import UsageError, first_line
from intc.passes.masks import BIG, LEAST

Array = NDArray[Any]
_KINDS = {
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(bool)": np.bool_,
}


class Reference:
    """An onnxruntime session of the float model, on the CPU, with ``threads`` threads."""

    def __init__(self, path: str | Path, threads: int = 1) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if not Path(path).is_file():
            raise UsageError(f"{path}: no such file")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise UsageError(f"{path}: onnxruntime cannot load it ({first_line(error)})") from None
        self.inputs = {i.name: i.type for i in self._session.get_inputs()}
        self.outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """All outputs, for feeds that are converted to the model's own input types."""
        typed = {}
        for name, kind in self.inputs.items():
            if name not in feeds:
                raise UsageError(f"the float model takes an input '{name}' that the data does not hold")
            typed[name] = np.asarray(feeds[name], _KINDS.get(kind, feeds[name].dtype))
        return [np.asarray(a) for a in self._session.run(None, typed)]


def unmasked(ours: Array, theirs: Array) -> tuple[Array, Array]:
    """Both as float64, with zeros where a mask set both to one number of at most -BIG."""
    a, b = ours.astype(np.float64), np.maximum(theirs.astype(np.float64), LEAST)
    masked = (b <= -BIG) & (a == b)
    return (np.where(masked, 0.0, a), np.where(masked, 0.0, b)) if masked.any() else (a, b)


def fidelity(ours: Array, theirs: Array) -> dict[str, float]:
    """:func:`fidelity_of` one pair of results."""
    return fidelity_of([(ours, theirs)])


def fidelity_of(pairs: Iterable[tuple[Array, Array]]) -> dict[str, float]:
    """How close results are to the float model's: SQNR in dB, cosines of rows, agreement, largest error.

    ``pairs`` are (ours, theirs) of equal shapes, batch by batch; the shapes may differ between batches. Rows
    are along the last axis; ``agreement`` is the share of rows with the same largest entry.
    """
    noise = signal = largest = 0.0
    cosines, agreements = [], []
    for ours, theirs in pairs:
        a, b = (np.atleast_1d(x) for x in unmasked(ours, theirs))
        a, b = a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1])
        noise, signal = noise + float(((a - b) ** 2).sum()), signal + float((b**2).sum())
        norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosines.append((a * b).sum(axis=1) / np.where(norms == 0, 1, norms))
        agreements.append(a.argmax(axis=1) == b.argmax(axis=1))
        largest = max(largest, float(np.abs(a - b).max()))
    cosine = np.concatenate(cosines)
    return {
        "sqnr_db": 10 * float(np.log10(signal / noise)) if noise > 0 < signal else float("inf"),
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "agreement": float(np.concatenate(agreements).mean()),
        "max_abs_error": largest,
    }
