"""Feeds and results that stay on the device: taken and given by two kernels that every artifact has.

They quantise and convert real numbers by their bits, with the results of :mod:`intc.runtime.feeds`.
"""

from __future__ import annotations

import math
from ctypes import byref, c_int, c_void_p
from typing import Any, Final

import numpy as np

from intc.artifact.schema import RANGES, Port
from intc.errors import FeedError, UsageError
from intc.runtime import dlpack
from intc.runtime.cuda import driver as cuda
from intc.runtime.cuda.arrays import Lease, Pool
from intc.runtime.cuda.driver import Event, Memory, Pinned
from intc.runtime.cuda.graph import launch
from intc.runtime.cuda.loaded import Loaded
from intc.runtime.cuda.plan import Parameters
from intc.runtime.dlpack import Given

KINDS: Final = ("uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32")  # as in .cuh
THREADS: Final = 256
MOST_BLOCKS: Final = 4096
NEVER: Final = -(2**63)  # the integer of no output with a scale
WORDS: Final = 2  # of every input: an integer is outside its interval, a real number is none


class Boundary:
    """Of one artifact on one device."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded, self._device, self._stream = loaded, loaded.device, loaded.stream
        self.inputs, self.outputs = loaded.manifest.inputs, loaded.manifest.outputs
        nbytes = 4 * WORDS * len(self.inputs)
        self._problems, self._seen = Memory(self._device, nbytes), Pinned(self._device, nbytes)
        self._scales: dict[int, Memory] = {}
        self._pool = Pool(self._device, self._stream)

    # ---------------------------------------------------------------- feeds

    def read(self, port: Port, feed: Any) -> Given:
        """An array on this device as a feed of ``port``; FeedError where it cannot be one."""
        place = dlpack.place_of(port.name, feed)
        with self._device.current():
            if place[1] >= 0:
                self._check_place(port, place)
                given = dlpack.read_dlpack(port.name, feed, self._stream.value or 0)
            else:
                given, stream = dlpack.read_interface(port.name, feed)
                self._check_place(port, (dlpack.CUDA, _ordinal(given.address)))
                if stream is not None:
                    Event(self._device, c_void_p(stream)).before(self._stream)
        real, kind = "float" in given.dtype, given.dtype.replace("bool", "uint8")
        expected = port.dtype
        if port.scale is not None:
            expected = f"float32, float16, bfloat16 (or {port.dtype} to pass integers)"
        own = given.dtype == port.dtype or (port.scale is None and not real)
        if kind not in KINDS or not (own or (real and port.scale is not None)):
            raise FeedError(f"input '{port.name}' is {given.dtype} on the device, expected {expected}")
        return given

    def _check_place(self, port: Port, place: tuple[int, int]) -> None:
        if place[0] not in (dlpack.CUDA, dlpack.MANAGED) or place[1] != self._device.number:
            raise FeedError(
                f"input '{port.name}' lies on {dlpack.place_name(place)}, but the session runs on"
                f" cuda:{self._device.number}; move it there"
            )

    def begin(self) -> None:
        """Before the feeds of a run are taken."""
        cuda.call("cuMemsetD8Async", self._problems.address, 0, self._problems.nbytes, self._stream)

    def take(self, index: int, given: Given, at: int) -> None:
        """Enqueue the copy of a feed to the input of that number, which lies at address ``at``."""
        port, count = self.inputs[index], math.prod(given.shape)
        anything = port.dtype != "bool" and (port.lo, port.hi) == RANGES[port.dtype]
        if anything and given.dtype == port.dtype:
            nbytes = count * np.dtype(port.dtype).itemsize
            if nbytes:
                cuda.call("cuMemcpyDtoDAsync_v2", at, given.address, nbytes, self._stream)
            return
        factor = np.float32(1.0 / port.scale) if isinstance(port.scale, float) else np.float32(1)
        problems = self._problems.address + 4 * WORDS * index
        kinds = _kind(given.dtype), _kind(port.dtype)
        edges = int(factor.view(np.uint32)), port.lo, port.hi
        self._launch("take_feed", count, 1, (given.address, at, count, *kinds, *edges, problems))

    def end(self) -> None:
        """After the feeds of a run are taken; :meth:`check` may be called when the stream has come here."""
        size, stream = self._problems.nbytes, self._stream
        cuda.call("cuMemcpyDtoHAsync_v2", self._seen.address, self._problems.address, size, stream)

    def check(self) -> None:
        """FeedError naming an input that does not fit, as on the host."""
        words = np.frombuffer(self._seen.bytes, np.uint32).reshape(-1, WORDS)
        for port, (outside, odd) in zip(self.inputs, words, strict=True):
            if odd:
                raise FeedError(f"input '{port.name}' holds NaN or infinite values")
            if outside:
                raise FeedError(f"input '{port.name}' holds integers outside [{port.lo}, {port.hi}]")

    # ---------------------------------------------------------------- results

    def give(self, index: int, at: int, shape: tuple[int, ...], raw: bool) -> tuple[Lease, np.dtype[Any]]:
        """Enqueue the copy of the output of that number from address ``at`` into memory of its own: its
        integers, or float32 where it has a scale.
        """
        port, count = self.outputs[index], math.prod(shape)
        dtype = np.dtype(port.dtype if raw or port.scale is None else np.float32)
        lease = self._pool.take(count * dtype.itemsize)
        memory = lease.memory
        if raw or port.scale is None:
            if count:
                cuda.call("cuMemcpyDtoDAsync_v2", memory.address, at, memory.nbytes, self._stream)
            return lease, dtype
        if index not in self._scales:
            scales = np.atleast_1d(np.asarray(port.scale, np.float64))
            self._scales[index] = Memory(self._device, scales.nbytes)
            self._loaded.to_device(self._scales[index].address, scales)
        columns = shape[-1] if isinstance(port.scale, tuple) else count
        rows = count // max(columns, 1)
        scales_at, stride = self._scales[index].address, int(isinstance(port.scale, tuple))
        least = NEVER if port.lowest is None else port.lo
        lowest = int(np.float32(port.lowest or 0).view(np.uint32))
        values = (at, memory.address, rows, columns, _kind(port.dtype), scales_at, stride, least, lowest)
        self._launch("give_reals", columns, rows, values)
        return lease, dtype

    def _launch(self, name: str, columns: int, rows: int, values: tuple[int, ...]) -> None:
        if not columns or not rows:
            return
        try:
            function = self._loaded.function(name, 0)
        except UsageError:
            raise UsageError(
                f"{self._loaded.path}: the code is of an intc that takes no arrays on the device; recompile"
            ) from None
        grid = (min(-(-columns // THREADS), MOST_BLOCKS), min(rows, MOST_BLOCKS), 1)
        launch(function, grid, THREADS, 0, self._stream, Parameters([("int64", v, 0) for v in values]))


def _kind(dtype: str) -> int:
    return KINDS.index(dtype.replace("bool", "uint8"))


def _ordinal(address: int) -> int:
    """The number of the device that the memory at ``address`` is of; -1 where it is none's."""
    number = c_int(-1)
    try:
        cuda.call("cuPointerGetAttribute", byref(number), cuda.ORDINAL, address)
    except UsageError:
        return -1
    return number.value
