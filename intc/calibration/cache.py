"""Calibration statistics in an ``.npz`` file: a finished run is reused, an interrupted one goes on where it
stopped.

The file names the model (``key``) and, as running SHA-256 digests, every batch folded in so far. A file of
another model or other data is replaced.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from intc.calibration.histogram import Histogram
from intc.calibration.moments import Moments
from intc.calibration.observers import Observer, Statistics
from intc.calibration.peaks import Peaks
from intc.errors import CalibrationError
from intc.files import replacing
from intc.ir.op import Array

VERSION = 3
INTERVAL = 30.0  # seconds between two saves of partial progress
PARTS: dict[str, type[Histogram] | type[Moments] | type[Peaks]] = {
    "tensor": Histogram,
    "channel": Histogram,
    "moments": Moments,
    "peaks": Peaks,
}


def collect_cached(
    observer: Observer,
    batches: Iterable[Mapping[str, Array]],
    path: str | os.PathLike[str],
    key: str,
    progress: Callable[[int], None] | None = None,
    interval: float = INTERVAL,
) -> dict[str, Statistics]:
    """Like :func:`collect`, with the statistics kept in ``path``. ``key`` stands for all that they depend on
    beside the data. Batches that the file already holds are read and compared, not run.

    CalibrationError where the file is none of ours, or holds some of these batches and others behind them.
    """
    path = Path(path)
    chain, stats = _load(path, key) or ([], {})
    digest, seen, last = hashlib.sha256(), list[str](), time.monotonic()
    for number, batch in enumerate(batches):
        _fold(digest, batch)
        seen.append(digest.hexdigest())
        if number < len(chain):
            if seen[number] == chain[number]:
                continue
            if number:
                raise CalibrationError(f"{path}: holds other data from batch {number + 1} on; remove it")
            chain, stats = [], {}
        if number == len(chain):
            observer.stats, observer.done = stats, number
        observer.observe(batch)
        if progress:
            progress(observer.done)
        if time.monotonic() - last > interval:
            _save(path, key, seen, observer)
            last = time.monotonic()
    if len(seen) < len(chain):
        raise CalibrationError(f"{path}: holds {len(chain)} batches, the data {len(seen)}; remove it")
    if len(seen) > len(chain):
        _save(path, key, seen, observer)
    else:
        observer.stats, observer.done = stats, len(seen)
    return observer.finish()


def _fold(digest: Any, batch: Mapping[str, Array]) -> None:
    for name in sorted(batch):
        array = np.ascontiguousarray(batch[name])
        digest.update(f"{name} {array.dtype.str} {array.shape} ".encode())
        digest.update(array.data)


def _save(path: Path, key: str, chain: list[str], observer: Observer) -> None:
    """Write all at once: under a temporary name first."""
    names = list(observer.stats)
    arrays: dict[str, Any] = {
        "intc": np.array(VERSION),
        "key": np.array(key),
        "data": np.array(chain),
        "names": np.array(names),
    }
    for number, name in enumerate(names):
        stats = observer.stats[name]
        arrays |= {f"{number}.low": stats.low, f"{number}.high": stats.high}
        for part in PARTS:
            held = getattr(stats, part)
            for item in dataclasses.fields(held) if held is not None else ():
                arrays[f"{number}.{part}.{item.name}"] = np.asarray(getattr(held, item.name))
    with replacing(path) as file:
        np.savez(file, **arrays)


def _load(path: Path, key: str) -> tuple[list[str], dict[str, Statistics]] | None:
    """The running digests of the batches and the statistics; None for no file or another key."""
    try:
        with np.load(path, allow_pickle=False) as data:
            if int(data["intc"]) != VERSION or str(data["key"]) != key:
                return None
            stats = {str(name): _statistics(data, i) for i, name in enumerate(data["names"])}
            return [str(d) for d in data["data"]], stats
    except FileNotFoundError:
        return None
    except Exception:  # whatever numpy meets in a damaged file
        raise CalibrationError(f"{path}: not a calibration cache; remove it or name another file") from None


def _statistics(data: Mapping[str, Array], number: int) -> Statistics:
    parts: dict[str, Any] = {}
    for part, kind in PARTS.items():
        fields = [item.name for item in dataclasses.fields(kind)]
        if f"{number}.{part}.{fields[0]}" in data:
            values = {name: data[f"{number}.{part}.{name}"] for name in fields}
            made: Any = kind
            parts[part] = made(**{n: a.item() if a.ndim == 0 else a for n, a in values.items()})
    return Statistics(data[f"{number}.low"], data[f"{number}.high"], **parts)
