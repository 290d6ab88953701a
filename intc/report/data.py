"""Feeds for reports: read from a file or drawn at random, cut into batches along axis 0."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from intc.artifact.fields import size_value
from intc.artifact.schema import Manifest, Port
from intc.errors import FeedError
from intc.runtime.state import held_by

Array = NDArray[Any]
Feeds: TypeAlias = dict[str, Array]


def count(feeds: Mapping[str, Array], ports: Sequence[Port]) -> int:
    """How many samples ``feeds`` holds for ``ports``; FeedError where inputs are missing or disagree."""
    lengths = {}
    for port in ports:
        if port.name not in feeds:
            raise FeedError(f"input '{port.name}' is missing; the data holds {', '.join(feeds) or 'nothing'}")
        array = feeds[port.name]
        if array.ndim == 0 or len(array) == 0:
            raise FeedError(f"input '{port.name}' holds no samples")
        lengths[port.name] = len(array)
    if len(set(lengths.values())) > 1:
        raise FeedError(f"inputs hold different numbers of samples: {lengths}")
    return next(iter(lengths.values()))


def with_empty_states(feeds: Mapping[str, Array], manifest: Manifest) -> Feeds:
    """``feeds`` with states of no positions where a decoder's are left out."""
    held = {held.port.name: held for held in held_by(manifest) if held.port.name not in feeds}
    total = count(feeds, [p for p in manifest.inputs if p.name not in held]) if held else 0
    return {**feeds, **{n: np.zeros(h.shape(total, 0), h.port.dtype) for n, h in held.items()}}


def batches(feeds: Mapping[str, Array], ports: Sequence[Port], size: int) -> Iterator[Feeds]:
    """``feeds`` in batches of ``size``, or of the model's own batch size where that is fixed.

    FeedError where a fixed size does not divide the number of samples.
    """
    total = count(feeds, ports)
    first = ports[0].shape[0]
    if isinstance(first, int):
        size = first
        if total % size:
            raise FeedError(f"{total} samples do not fill batches of {size}, the model's fixed batch size")
    for start in range(0, total, size):
        yield {p.name: feeds[p.name][start : start + size] for p in ports}


def random_feeds(ports: Sequence[Port], sizes: Mapping[str, int], seed: int = 0) -> Feeds:
    """One feed with the symbols at ``sizes``: normal floats, uniform indices, masks of ones."""
    rng = np.random.default_rng(seed)
    return {p.name: _draw(p, tuple(size_value(s, sizes) for s in p.shape), rng) for p in ports}


def _draw(port: Port, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    if port.scale is not None:
        return rng.standard_normal(shape).astype(np.float32)
    if port.hi - port.lo <= 1 or "mask" in port.name:
        return np.ones(shape, port.dtype)
    return rng.integers(max(port.lo, 0), min(port.hi, 2**31), shape, endpoint=True).astype(port.dtype)
