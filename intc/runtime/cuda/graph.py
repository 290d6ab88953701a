"""A network at one combination of sizes, in memory: its launches one by one, or captured as a CUDA graph."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from ctypes import byref, c_float, c_void_p
from typing import Final

from intc.runtime.cuda import driver as cuda
from intc.runtime.cuda.driver import Memory
from intc.runtime.cuda.loaded import Loaded
from intc.runtime.cuda.plan import Parameters, Plan, Work, areas

ROOM: Final = 2  # memory is taken for this many times what needs it


class Placed:
    """A plan whose ports, slots and scratch memory begin at ``area``, and whose zeros are at ``zeros``.

    The ports numbered in ``elsewhere``, outputs behind inputs, lie at the addresses given there. ``ports``
    are (address, bytes).
    """

    def __init__(
        self, loaded: Loaded, plan: Plan, area: int, zeros: int, elsewhere: Mapping[int, int] | None = None
    ) -> None:
        self.loaded, self.plan = loaded, plan
        elsewhere, places = elsewhere or {}, []
        for nbytes in areas(plan, elsewhere):
            places.append(area)
            area += nbytes
        for port, at in elsewhere.items():
            places[port] = at
        self.ports = list(zip(places, plan.ports, strict=False))
        inputs, outputs = len(loaded.manifest.inputs), len(plan.ports)
        self._bases = {
            "constants": [loaded.constants.address],
            "input": places[:inputs],
            "output": places[inputs:outputs],
            "slot": places[outputs:-1],
            "scratch": places[-1:],
            "zeros": [zeros],
        }

    def enqueue(self, work: Sequence[Work], stream: c_void_p) -> None:
        """Launch kernels, or record them where the stream is captured."""
        for each in work:
            if math.prod(each.grid):
                self._launch(each, stream)

    def _launch(self, work: Work, stream: c_void_p) -> None:
        choice, bases, parameters = work.choice, self._bases, work.parameters
        for number, kind, which, offset in parameters.addresses:
            parameters.memory[number] = bases[kind][which] + offset
        function = self.loaded.function(choice.kernel, choice.shared)
        launch(function, work.grid, choice.threads, choice.shared, stream, parameters)


def launch(
    function: c_void_p,
    grid: Sequence[int],
    threads: int,
    shared: int,
    stream: c_void_p,
    parameters: Parameters,
) -> None:
    """Enqueue one kernel; its parameters may be overwritten afterwards."""
    x, y, z = grid
    pointers = parameters.pointers
    cuda.call("cuLaunchKernel", function, x, y, z, threads, 1, 1, shared, stream, pointers, None)


class Shared:
    """Memory for one run after the other, of any sizes: as much as the largest took, with room to grow."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._area: Memory | None = None
        self._zeros: Memory | None = None

    def place(self, plan: Plan, elsewhere: Mapping[int, int] | None = None) -> Placed:
        """``plan`` in this memory, until the next one is."""
        area, zeros, loaded = sum(areas(plan, elsewhere or ())), plan.zeros, self._loaded
        if self._area is None or self._area.nbytes < area:
            self._area = None  # freed before there is more
            self._area = Memory(loaded.device, ROOM * area)
        if self._zeros is None or self._zeros.nbytes < zeros:
            self._zeros = Memory(loaded.device, max(ROOM * zeros, 1))
            cuda.call("cuMemsetD8Async", self._zeros.address, 0, self._zeros.nbytes, loaded.stream)
        return Placed(loaded, plan, self._area.address, self._zeros.address, elsewhere)


class Graph:
    """A network in memory of its own, captured."""

    def __init__(self, loaded: Loaded, plan: Plan) -> None:
        device = loaded.device
        self._memory, self._zeros = Memory(device, sum(areas(plan))), Memory(device, plan.zeros)
        cuda.call("cuMemsetD8Async", self._zeros.address, 0, max(plan.zeros, 1), loaded.stream)
        self.placed = Placed(loaded, plan, self._memory.address, self._zeros.address)
        self._whole = Capture(self.placed, plan.work)

    @property
    def work(self) -> tuple[Work, ...]:
        """The launches, as in the manifest; without blocks where these sizes leave nothing to do."""
        return self.placed.plan.work

    def replay(self) -> None:
        """Enqueue the whole network."""
        self._whole.replay()

    def milliseconds(self, repeats: int) -> float:
        """The time of one replay: ``repeats`` of them between two events of the device."""
        return self._whole.milliseconds(repeats)

    def profile(self, repeats: int = 20, rounds: int = 5) -> list[float]:
        """Milliseconds of each of ``work`` alone: the best of ``rounds`` of ``repeats`` launches in a row."""
        times = []
        for work in self.work:
            if not math.prod(work.grid):
                times.append(0.0)
                continue
            with self.placed.loaded.device.current():
                capture = Capture(self.placed, [work] * repeats)
            capture.milliseconds(1)
            times.append(min(capture.milliseconds(1) for _ in range(rounds)) / repeats)
        return times


class Capture:
    """Launches as one executable CUDA graph."""

    def __init__(self, placed: Placed, work: Sequence[Work]) -> None:
        self._loaded, captured = placed.loaded, c_void_p()
        for each in work:
            self._loaded.function(each.choice.kernel, each.choice.shared)  # loaded before the capture
        stream = placed.loaded.capture_stream
        cuda.call("cuStreamBeginCapture_v2", stream, cuda.RELAXED_CAPTURE)
        try:
            placed.enqueue(work, stream)
        finally:
            cuda.call("cuStreamEndCapture", stream, byref(captured))
        self._exec = cuda.new("cuGraphInstantiateWithFlags", captured, 0)
        cuda.call("cuGraphDestroy", captured)
        self._loaded.device.free_later(self, "cuGraphExecDestroy", self._exec)

    def replay(self) -> None:
        """Enqueue the launches."""
        cuda.call("cuGraphLaunch", self._exec, self._loaded.stream)

    def milliseconds(self, repeats: int) -> float:
        """The time of one replay: ``repeats`` of them between two events of the device."""
        loaded = self._loaded
        with loaded.device.current():
            first, last = (cuda.new("cuEventCreate", 0) for _ in range(2))
            cuda.call("cuEventRecord", first, loaded.stream)
            for _ in range(repeats):
                self.replay()
            cuda.call("cuEventRecord", last, loaded.stream)
            cuda.call("cuEventSynchronize", last)
            elapsed = c_float()
            cuda.call("cuEventElapsedTime", byref(elapsed), first, last)
            for event in (first, last):
                cuda.call("cuEventDestroy_v2", event)
        return elapsed.value / repeats
