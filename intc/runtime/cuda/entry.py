"""An artifact's kernels on a GPU.

The first run at a combination of sizes launches the kernels one by one, in memory that all such runs share.
The second captures them as a CUDA graph over memory of its own, and later ones replay it; the last few graphs
are kept. Runs with a state, whose sizes change with every step, are launched one by one. All runs of one
session follow one another in one stream.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from intc.artifact.schema import Manifest, Port
from intc.runtime.cuda import driver as cuda
from intc.runtime.cuda.arrays import DeviceArray
from intc.runtime.cuda.boundary import Boundary
from intc.runtime.cuda.driver import Device, Event
from intc.runtime.cuda.graph import Graph, Placed, Shared
from intc.runtime.cuda.loaded import Loaded
from intc.runtime.cuda.plan import Planner
from intc.runtime.cuda.state import DeviceHome
from intc.runtime.dlpack import Given
from intc.runtime.feeds import Array, shape_of
from intc.runtime.workspace import address

KEPT_GRAPHS: Final = 8
REMEMBERED: Final = 256  # combinations of sizes that have been seen once


class GpuEntry:
    """``constants`` and ``code`` of an artifact, loaded into ``device``."""

    def __init__(
        self, path: Path, manifest: Manifest, code: memoryview, constants: Array, device: str
    ) -> None:
        self.manifest, self.device = manifest, Device(device)
        with self.device.current():
            self.loaded = Loaded(path, manifest, code, constants, self.device)
            self._boundary = Boundary(self.loaded)
        self.stream, self.home = self.loaded.stream, DeviceHome(self.loaded)
        self._planner = Planner(self.loaded)
        self._shared = Shared(self.loaded)
        self._graphs: OrderedDict[tuple[int, ...], Graph] = OrderedDict()
        self._once: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self._lock = threading.Lock()

    def given(self, port: Port, feed: Any) -> Given:
        """An array on the device as a feed of ``port``; FeedError where it cannot be one."""
        return self._boundary.read(port, feed)

    def run(
        self,
        symbols: Sequence[int],
        feeds: Mapping[int, Array | Given],
        results: Mapping[int, Array],
        elsewhere: Mapping[int, int] | None = None,
    ) -> None:
        """One run on ``feeds``, integers of the host or arrays of the device, by number of the input.

        The outputs that ``results`` names by number are copied there. ``elsewhere`` are addresses of what a
        state holds, by number of the port, outputs behind inputs.
        """
        with self._lock, self.device.current():
            placed, enqueue = self._place(symbols, elsewhere)
            taken = self._feed(placed, feeds)
            enqueue()
            for index, host in results.items():
                at, nbytes = placed.ports[len(self.manifest.inputs) + index]
                if nbytes:
                    cuda.call("cuMemcpyDtoHAsync_v2", address(host), at, nbytes, self.stream)
            cuda.call("cuStreamSynchronize", self.stream)
            if taken:
                self._boundary.check()

    def run_on_device(
        self,
        symbols: Sequence[int],
        feeds: Mapping[int, Array | Given],
        wanted: Sequence[int],
        raw: bool,
        elsewhere: Mapping[int, int] | None = None,
    ) -> list[DeviceArray]:
        """As :meth:`run`, but with the outputs ``wanted`` on the device; waits until the feeds are read and
        checked, not until the network has run.
        """
        sizes, first = self._sizes(symbols), len(self.manifest.inputs)
        with self._lock, self.device.current():
            placed, enqueue = self._place(symbols, elsewhere)
            taken = self._feed(placed, feeds)
            read = Event(self.device, self.stream)
            enqueue()
            found = []
            for index in wanted:
                shape = shape_of(self.manifest.outputs[index], sizes)
                found.append((shape, *self._boundary.give(index, placed.ports[first + index][0], shape, raw)))
            filled = Event(self.device, self.stream)
            read.wait()
            if taken:
                self._boundary.check()
        return [DeviceArray(self.device, self.stream, filled, lease, s, d) for s, lease, d in found]

    def graph(self, symbols: Sequence[int]) -> Graph:
        """The captured network at these sizes."""
        key = tuple(symbols)
        if key not in self._graphs:
            while len(self._graphs) >= KEPT_GRAPHS:
                self._graphs.popitem(last=False)
            with self.device.current():
                self._graphs[key] = Graph(self.loaded, self._planner.plan(self._sizes(key)))
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def _place(
        self, symbols: Sequence[int], elsewhere: Mapping[int, int] | None
    ) -> tuple[Placed, Callable[[], None]]:
        """The memory of a run, and what enqueues its kernels."""
        key = tuple(symbols)
        if elsewhere is None:
            if key in self._graphs or key in self._once:
                graph = self.graph(key)
                return graph.placed, graph.replay
            self._once[key] = None
            if len(self._once) > REMEMBERED:
                self._once.popitem(last=False)
        placed = self._shared.place(self._planner.plan(self._sizes(key)), elsewhere)
        return placed, partial(placed.enqueue, placed.plan.work, self.stream)

    def _feed(self, placed: Placed, feeds: Mapping[int, Array | Given]) -> bool:
        """Enqueue the copies of the feeds; whether some are on the device and must be checked."""
        on_device = {i: feed for i, feed in feeds.items() if isinstance(feed, Given)}
        if on_device:
            self._boundary.begin()
        for index, feed in feeds.items():
            at, _ = placed.ports[index]
            if isinstance(feed, Given):
                self._boundary.take(index, feed, at)
            else:
                self.loaded.to_device(at, feed)
        if on_device:
            self._boundary.end()
        return bool(on_device)

    def _sizes(self, symbols: Sequence[int]) -> dict[str, int]:
        return dict(zip(self.manifest.symbols, symbols, strict=True))
