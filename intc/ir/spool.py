"""Large constants of large models, in a temporary file instead of memory.

The graphs of a compilation hold a model's weights several times: as they were read, folded, balanced, as
integers. During a function that is :func:`spooling`, once more than ``IN_MEMORY`` bytes of constants have
come, further ones of at least ``LARGE`` bytes are written to a file without a name (in ``TMPDIR``), of which
they become read-only views. :func:`trim` gives the pages that were read back to the system, which reads them
again when needed.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

import numpy as np
from numpy.typing import NDArray

P = ParamSpec("P")
R = TypeVar("R")
LARGE = 2**20
IN_MEMORY = 2**30
RESIDENT = 2**29  # bytes of mapped files, libraries included, from which on trim does something
SEGMENT = 2**28  # of the file; each is mapped once

_maps: WeakSet[mmap.mmap] = WeakSet()
_lock = threading.Lock()


class _Spool:
    """The file, made when it is needed; views of it outlive it."""

    def __init__(self) -> None:
        self._seen = 0
        self._file: Any = None
        self._segment: mmap.mmap | None = None
        self._end = self._used = 0  # of the file; of the segment
        self._full = False

    def take(self, array: NDArray[Any]) -> NDArray[Any]:
        """``array``, or an equal view of the file; itself where the file has no room left."""
        self._seen += array.nbytes
        if self._seen <= IN_MEMORY or self._full:
            return array
        try:
            return self._moved(np.ascontiguousarray(array))
        except OSError:
            self._full = True
            return array

    def _moved(self, array: NDArray[Any]) -> NDArray[Any]:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="intc-", buffering=0)  # noqa: SIM115
        if self._segment is None or self._used + array.nbytes > len(self._segment):
            size = -(-max(SEGMENT, array.nbytes) // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
            self._file.truncate(self._end + size)
            segment = mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ, offset=self._end)
            with _lock:
                _maps.add(segment)
            self._segment, self._end, self._used = segment, self._end + size, 0
        start = self._used
        data, at = array.data.cast("B"), self._end - len(self._segment) + start
        while data:
            written = os.pwrite(self._file.fileno(), data, at)
            data, at = data[written:], at + written
        self._used += -(-array.nbytes // 64) * 64
        return np.frombuffer(self._segment, array.dtype, array.size, start).reshape(array.shape)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


_active: ContextVar[_Spool | None] = ContextVar("spool", default=None)


def spooling(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, during which :func:`spooled` moves constants to a file."""

    @wraps(function)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        spool = _Spool()
        token = _active.set(spool)
        try:
            return function(*args, **kwargs)
        finally:
            _active.reset(token)
            spool.close()

    return inner


def spooled(array: NDArray[Any]) -> NDArray[Any]:
    """``array``, or an equal view of a file (see above); views of the file stay what they are."""
    spool = _active.get()
    return array if spool is None or array.nbytes < LARGE or _is_mapped(array) else spool.take(array)


def trim() -> None:
    """Give back the memory of pages that were read from the files, where it has become much."""
    if _maps and _resident() > RESIDENT:
        with _lock:
            for segment in list(_maps):
                segment.madvise(mmap.MADV_DONTNEED)


def _is_mapped(array: NDArray[Any]) -> bool:
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return isinstance(base.obj if isinstance(base, memoryview) else base, mmap.mmap)


def _resident() -> int:
    """Bytes of mapped files that this process holds in memory."""
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[2]) * mmap.PAGESIZE
