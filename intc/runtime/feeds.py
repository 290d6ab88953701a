"""Between the caller's arrays and the kernels' integers: shapes bound, types checked, floats quantised."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intc.artifact.fields import Size, multiple, size_value
from intc.artifact.schema import Port
from intc.errors import FeedError, beyond_limit, first_line

Array = NDArray[Any]
MAX_SIZE = 2**31 - 1  # sizes are passed to the kernels as int32


def check_names(ports: Sequence[Port], feeds: Any) -> None:
    """FeedError unless ``feeds`` is a mapping that has every input and nothing else."""
    names = [p.name for p in ports]
    if not isinstance(feeds, Mapping):
        kind, wanted = type(feeds).__name__, ", ".join(names)
        raise FeedError(f"the feeds are a {kind}, not a dict of arrays by name ({wanted})")
    for name in names:
        if name not in feeds:
            raise FeedError(f"input '{name}' is missing; the model takes {', '.join(names)}")
    for name in feeds:
        if name not in names:
            raise FeedError(f"input '{name}' is not known; the model takes {', '.join(names)}")


def bind(
    ports: Sequence[Port], shapes: Sequence[tuple[int, ...]], may_be_empty: Collection[Size] = ()
) -> dict[str, int]:
    """The size of every symbol, solved from the shapes; FeedError names the input that disagrees."""
    env: dict[str, int] = {}
    for port, shape in zip(ports, shapes, strict=True):
        fits = len(shape) == len(port.shape)
        for want, got in zip(port.shape, shape, strict=False):
            least = 0 if want in may_be_empty else 1
            fits = fits and least <= got <= MAX_SIZE and _fits(want, got, env)
        if not fits:
            _refuse(port, shape, env)
    for port, shape in zip(ports, shapes, strict=True):
        if any(
            is_sum(size) and size_value(size, env) != got for size, got in zip(port.shape, shape, strict=True)
        ):
            _refuse(port, shape, env)
    return env


def is_sum(size: Size) -> bool:
    """Whether ``size`` is computed from symbols, such as ``past + sequence``, and tells none of them."""
    return isinstance(size, str) and multiple(size) is None


def _refuse(port: Port, shape: tuple[int, ...], env: Mapping[str, int]) -> None:
    words = " ".join(size for size in port.shape if isinstance(size, str)).split()
    bound = "".join(f", {k} = {v}" for k, v in env.items() if k in words)
    raise FeedError(
        f"input '{port.name}' has shape {list(shape)}, expected {format_shape(port.shape)}{bound}"
    )


def check_limits(limits: Sequence[tuple[Size, int]], env: Mapping[str, int]) -> None:
    """FeedError naming the size that is beyond what the model was compiled for."""
    for size, largest in limits:
        if size_value(size, env) > largest:
            raise FeedError(beyond_limit(size, size_value(size, env), largest))


def _fits(want: Size, got: int, env: dict[str, int]) -> bool:
    if isinstance(want, int) or is_sum(want):
        return want == got or is_sum(want)
    found = multiple(want)
    assert found is not None
    factor, symbol = found
    return env.setdefault(symbol, got // factor) * factor == got


def format_shape(shape: Sequence[Size]) -> str:
    """``[batch, 3, 224, 224]``."""
    return f"[{', '.join(map(str, shape))}]"


def shape_of(port: Port, env: Mapping[str, int]) -> tuple[int, ...]:
    """The shape of ``port`` with its symbols bound."""
    return tuple(size_value(s, env) for s in port.shape)


def on_host(port: Port, feed: Any) -> Array:
    """``feed`` as numpy's array, without a copy where it speaks DLPack; FeedError where it cannot be one."""
    if isinstance(feed, np.ndarray):
        return np.asarray(feed)
    try:
        return np.from_dlpack(feed) if hasattr(feed, "__dlpack__") else np.asarray(feed)
    except Exception as error:  # of the other library
        cause = first_line(error)
        raise FeedError(f"input '{port.name}' cannot become an array of numpy: {cause}") from None


def write(port: Port, array: Array, out: Array) -> None:
    """``array`` as the port's integers into ``out``.

    Floats are quantised where the port has a scale: round half to even of ``array * float32(1 / scale)``,
    saturated. Integers are taken as they are and must lie in the port's interval. FeedError for NaN,
    infinities, other types.
    """
    if array.dtype.kind == "f":
        if port.scale is None:
            raise FeedError(f"input '{port.name}' is {array.dtype}, expected {port.dtype}")
        _quantise(port, array, out)
        return
    if array.dtype != out.dtype and (port.scale is not None or array.dtype.kind not in "iub"):
        expected = f"float32 (or {port.dtype} to pass integers)" if port.scale is not None else port.dtype
        raise FeedError(f"input '{port.name}' is {array.dtype}, expected {expected}")
    if array.size:
        low, high = int(array.min()), int(array.max())
        if low < port.lo or high > port.hi:
            found = low if low < port.lo else high
            raise FeedError(f"input '{port.name}' holds {found}, outside [{port.lo}, {port.hi}]")
    np.copyto(out, array, casting="unsafe")


def _quantise(port: Port, array: Array, out: Array) -> None:
    assert isinstance(port.scale, float)
    with np.errstate(over="ignore"):
        array = array.astype(np.float32, copy=False)
        scaled = array * np.float32(1.0 / port.scale)
    if not array.size:
        return
    low, high = float(scaled.min()), float(scaled.max())  # NaN where any element is
    if not (math.isfinite(low) and math.isfinite(high)) and not np.isfinite(array).all():
        raise FeedError(f"input '{port.name}' holds NaN or infinite values")
    np.rint(scaled, out=scaled)
    if low < port.lo or high > port.hi:
        np.clip(scaled, port.lo, port.hi, out=scaled)
    np.copyto(out, scaled, casting="unsafe")


def reals(port: Port, array: Array) -> Array:
    """Integers of ``port`` as float32 (array * scale, ``lowest`` for the least); unchanged where the port has
    no scale.
    """
    if port.scale is None:
        return array
    out = np.asarray(array.astype(np.float64) * np.asarray(port.scale), np.float32)
    return out if port.lowest is None else np.where(array == port.lo, np.float32(port.lowest), out)
