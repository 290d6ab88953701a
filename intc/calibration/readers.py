"""Calibration feeds: an ``.npz`` file, a dict of stacked arrays, or any iterable of ``{name: array}``.

Samples lie along axis 0. Whatever the form, :func:`open_feeds` yields small batches that have been checked
against the model's inputs, so that at most one batch is in memory beside the user's own data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import TypeAlias

import numpy as np

from intc.errors import CalibrationError, first_line
from intc.files import read_npz
from intc.ir.bound import admissible
from intc.ir.dims import PAST, Poly, evaluate_shape, format_shape, is_symbol, symbols
from intc.ir.graph import Graph
from intc.ir.op import Array

Feeds: TypeAlias = str | Path | Mapping[str, Array] | Iterable[Mapping[str, Array]]
BATCH = 8
RANDOM = "random"
RANDOM_SAMPLES = 16
RANDOM_SIZE = 32
RANDOM_LARGEST = 2**26  # elements of an input, more than any image or text has


def count_batches(graph: Graph, feeds: Feeds | None, batch: int = BATCH) -> int | None:
    """How many batches :func:`open_feeds` yields; None where only the end tells."""
    if isinstance(feeds, str | Path) and str(feeds) == RANDOM:
        return RANDOM_SAMPLES
    if not isinstance(feeds, Mapping) or not graph.inputs:
        return None
    array = np.asarray(feeds.get(graph.inputs[0], ()))
    first = graph.type(graph.inputs[0]).shape
    if not array.ndim or not first or not isinstance(first[0], Poly):
        return None
    return -(-len(array) // batch)


def open_feeds(graph: Graph, feeds: Feeds | None, batch: int = BATCH) -> Iterator[dict[str, Array]]:
    """Checked batches of ``feeds`` for the inputs of ``graph``; ``"random"`` draws standard normal samples.

    States that a feed leaves out are empty.
    CalibrationError names the input that is missing, empty, not finite, or of the wrong shape or type.
    """
    if feeds is None:
        raise CalibrationError(
            "no calibration data: pass calibration=<.npz path, dict or iterable of feeds> "
            "(--calibration NPZ), or ask for calibration='random' by name, knowing that it invents ranges"
        )
    if isinstance(feeds, str | Path) and str(feeds) == RANDOM:
        yield from _random(graph)
    elif isinstance(feeds, str | Path):
        yield from _stacked(graph, read_npz(feeds, CalibrationError), batch, str(feeds))
    elif isinstance(feeds, Mapping):
        yield from _stacked(graph, feeds, batch, "calibration data")
    elif not isinstance(feeds, Iterable):
        raise CalibrationError(f"the calibration data is a {type(feeds).__name__}, not feeds")
    else:
        count = 0
        for count, feed in enumerate(feeds, start=1):
            if not isinstance(feed, Mapping):
                raise CalibrationError(
                    f"calibration item {count} is a {type(feed).__name__}, not a dict of arrays"
                )
            yield _checked(graph, feed, f"calibration item {count}")
        if not count:
            raise CalibrationError("the calibration data is empty")


def _stacked(graph: Graph, data: Mapping[str, Array], batch: int, what: str) -> Iterator[dict[str, Array]]:
    missing = [name for name in graph.inputs if name not in data and name not in graph.states]
    if missing:
        found = ", ".join(sorted(data)) or "nothing"
        raise CalibrationError(f"{what}: input '{missing[0]}' is missing; it holds {found}")
    arrays = {name: _array(data[name], name, what) for name in graph.inputs if name in data}
    for name, array in arrays.items():
        if not array.ndim:
            raise CalibrationError(f"{what}: input '{name}' is one number, not samples along axis 0")
    lengths = {name: len(a) for name, a in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise CalibrationError(f"{what}: inputs hold different numbers of samples: {lengths}")
    total = next(iter(lengths.values()), 0)
    if arrays and not total:
        raise CalibrationError(f"{what}: the calibration data is empty")
    first = graph.type(graph.inputs[0]).shape
    step = batch if first and isinstance(first[0], Poly) else (int(first[0]) if first else 1)  # type: ignore[arg-type]
    for start in range(0, max(total, 1), step):
        part = {name: a[start : start + step] for name, a in arrays.items()}
        if start and total - start < step and not isinstance(first[0], Poly):
            return
        yield _checked(graph, part, what)


def _array(data: Array, name: str, what: str) -> Array:
    try:
        return np.asarray(data)
    except (TypeError, ValueError) as error:
        raise CalibrationError(f"{what}: input '{name}' is no array ({first_line(error)})") from None


def _checked(graph: Graph, feed: Mapping[str, Array], what: str) -> dict[str, Array]:
    out = {}
    feed = {**_empty_states(graph, feed), **feed}
    for name in graph.inputs:
        type_ = graph.type(name)
        if name not in feed:
            found = ", ".join(sorted(feed)) or "nothing"
            raise CalibrationError(f"{what}: input '{name}' is missing; it holds {found}")
        array = _array(feed[name], name, what)
        fits = array.ndim == type_.rank and all(
            isinstance(d, Poly) or d == n for d, n in zip(type_.shape, array.shape, strict=True)
        )
        if not fits:
            shape = format_shape(type_.shape)
            raise CalibrationError(f"{what}: input '{name}' has shape {list(array.shape)}, expected {shape}")
        if array.size == 0 and name not in graph.states:
            raise CalibrationError(f"{what}: input '{name}' is empty")
        if array.dtype.kind not in "fiub" or (array.dtype.kind == "f") > type_.is_float:
            raise CalibrationError(f"{what}: input '{name}' has type {array.dtype}, expected {type_.dtype}")
        with np.errstate(over="ignore"):
            array = array.astype(type_.dtype, copy=False)
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise CalibrationError(
                f"{what}: input '{name}' holds NaN or infinite values; remove those samples"
            )
        out[name] = array
    return out


def _empty_states(graph: Graph, feed: Mapping[str, Array]) -> dict[str, Array]:
    """States of no positions, for as many sequences as ``feed`` holds."""
    sizes = {PAST: 0}
    for name in graph.inputs:
        if name in feed:
            shape = zip(graph.type(name).shape, np.shape(feed[name]), strict=False)
            sizes.update((str(d), n) for d, n in shape if is_symbol(d))
    shapes = {name: graph.type(name).shape for name in graph.states if name not in feed}
    known = {name: shape for name, shape in shapes.items() if set(symbols(shape)) <= set(sizes)}
    return {name: np.zeros(evaluate_shape(shape, sizes), np.float32) for name, shape in known.items()}


def _random(graph: Graph) -> Iterator[dict[str, Array]]:
    rng = np.random.default_rng(0)
    free = symbols(d for name in graph.inputs for d in graph.type(name).shape)
    batch = {str(graph.type(name).shape[0]) for name in graph.inputs if graph.type(name).shape}
    env = admissible(graph, {name: 1 if name in batch else RANDOM_SIZE for name in free} | {PAST: 0})
    for name in graph.inputs:
        if (count := prod(evaluate_shape(graph.type(name).shape, env))) > RANDOM_LARGEST:
            raise CalibrationError(f"a random input '{name}' would have {count} elements; give real samples")
    for _ in range(RANDOM_SAMPLES):
        feed: dict[str, Array] = {}
        for name in graph.inputs:
            type_ = graph.type(name)
            shape = evaluate_shape(type_.shape, env)
            if type_.is_float:
                feed[name] = rng.standard_normal(shape).astype(np.float32)
            else:
                lo, hi = type_.interval
                feed[name] = rng.integers(max(lo, 0), min(hi, 1000) + 1, shape).astype(type_.dtype)
                if hi >= 2**31:  # no known range: an attention mask or type ids are safe with 1 and 0
                    feed[name] = (
                        np.ones(shape, type_.dtype) if "mask" in name else np.zeros(shape, type_.dtype)
                    )
        yield feed
