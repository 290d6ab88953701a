"""An artifact's kernels on a GPU: called like the entry point of a CPU library, with addresses of the host.

For every combination of sizes the launches of the network are captured once as a CUDA graph over memory of
its own; a run copies the inputs in, replays the graph and copies the outputs out. The last few graphs are
kept.
"""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from ctypes import byref, c_float, c_int, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from intc.artifact.fields import Size, size_value
from intc.artifact.schema import Choice, Launch, Manifest, Port
from intc.errors import ArtifactCorrupt, FeedError, IntcError, WrongTarget
from intc.runtime import cuda_driver as cuda
from intc.runtime.cuda_driver import Device, Memory
from intc.runtime.feeds import Array, shape_of
from intc.runtime.workspace import address, round_up

KEPT_GRAPHS: Final = 8
COUNTERS: Final = 4096  # bytes in front of the partial sums
OPERAND_COST: Final = 32  # of a row or column of a tile, in products, as measured on an H100
MAX_BLOCKS_Y: Final = 65535
DEFAULT_SHARED: Final = 48 << 10  # bytes a block may have without asking


class GpuEntry:
    """``main(constants, arena, inputs.., outputs.., symbols.., threads)`` of an artifact for a GPU.

    The first two and the last are not used: constants and working memory are the device's own.
    """

    def __init__(
        self, path: Path, manifest: Manifest, code: memoryview, constants: Array, device: str
    ) -> None:
        self.path, self.manifest, self.device = path, manifest, Device(device)
        needed = int(manifest.features[0].removeprefix("sm_"))
        if self.device.architecture < needed:
            raise WrongTarget(
                f"{path}: compiled for sm_{needed} and later, but {self.device.name} is"
                f" sm_{self.device.architecture}; recompile with --target cuda:sm_{self.device.architecture}"
            )
        self.device.use()
        self.stream = cuda.new("cuStreamCreate", cuda.NON_BLOCKING)
        try:
            self._module = cuda.new("cuModuleLoadData", bytes(code))
        except IntcError as error:
            raise ArtifactCorrupt(f"{path}: {self.device.name} cannot load the kernels ({error})") from None
        self._functions: dict[str, c_void_p] = {}
        self.constants = Memory(constants.nbytes)
        self._to_device(self.constants.address, address(constants), constants.nbytes)
        cuda.call("cuStreamSynchronize", self.stream)
        self._graphs: OrderedDict[tuple[int, ...], Graph] = OrderedDict()
        self._lock = threading.Lock()

    def __call__(self, *arguments: Any) -> None:
        ports = (*self.manifest.inputs, *self.manifest.outputs)
        hosts = arguments[2 : 2 + len(ports)]
        symbols = arguments[2 + len(ports) : -1]
        with self._lock:
            self.device.use()
            graph = self.graph(symbols)
            inputs = len(self.manifest.inputs)
            for host, (at, nbytes) in zip(hosts[:inputs], graph.ports[:inputs], strict=True):
                self._to_device(at, host.value, nbytes)
            graph.replay()
            for host, (at, nbytes) in zip(hosts[inputs:], graph.ports[inputs:], strict=True):
                if nbytes:
                    cuda.call("cuMemcpyDtoHAsync_v2", host, at, nbytes, self.stream)
            cuda.call("cuStreamSynchronize", self.stream)

    def graph(self, symbols: Sequence[int]) -> Graph:
        """The captured network at these sizes."""
        key = tuple(symbols)
        if key not in self._graphs:
            while len(self._graphs) >= KEPT_GRAPHS:
                self._graphs.popitem(last=False)
            self._graphs[key] = Graph(self, dict(zip(self.manifest.symbols, key, strict=True)))
        self._graphs.move_to_end(key)
        return self._graphs[key]

    def function(self, choice: Choice) -> c_void_p:
        """The kernel, allowed its shared memory."""
        if choice.kernel not in self._functions:
            if choice.shared > self.device.shared_bytes:
                raise WrongTarget(
                    f"{self.path}: kernel {choice.kernel} takes {choice.shared} bytes of shared memory, but"
                    f" {self.device.name} gives a block at most {self.device.shared_bytes}"
                )
            function = cuda.new("cuModuleGetFunction", self._module, choice.kernel.encode())
            if choice.shared > DEFAULT_SHARED:
                cuda.call("cuFuncSetAttribute", function, cuda.DYNAMIC_SHARED, choice.shared)
            self._functions[choice.kernel] = function
        return self._functions[choice.kernel]

    def resident(self, choice: Choice) -> int:
        """How many blocks of the kernel a multiprocessor holds."""
        count = c_int()
        kernel = (self.function(choice), choice.threads, choice.shared)
        cuda.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", byref(count), *kernel)
        return max(1, count.value)

    def _to_device(self, at: int, host: int, nbytes: int) -> None:
        if nbytes:
            cuda.call("cuMemcpyHtoDAsync_v2", at, host, nbytes, self.stream)


class Graph:
    """The network at one combination of sizes: its memory, and its launches as one executable graph.

    ``ports`` are (address, bytes) of the inputs and outputs on the device.
    """

    def __init__(self, entry: GpuEntry, sizes: Mapping[str, int]) -> None:
        self.entry, self.sizes = entry, sizes
        manifest = entry.manifest
        every = [_nbytes(p, sizes) for p in (*manifest.inputs, *manifest.outputs)]
        slots = [size_value(s, sizes) for s in manifest.program.slots]
        scratch = max((size_value(s, sizes) for s in manifest.program.scratch), default=0)
        planned = [self._plan(launch) for launch in manifest.program.launches]
        zeros = max((nbytes for _, _, nbytes in planned), default=0)
        areas = [*every, *slots, scratch]
        self._memory, self._zeros = Memory(sum(map(round_up, areas))), Memory(zeros)
        at, places = self._memory.address, []
        for nbytes in areas:
            places.append(at)
            at += round_up(nbytes)
        self.ports = list(zip(places, every, strict=False))
        inputs, outputs = len(manifest.inputs), len(every)
        self._bases = {
            "constants": [entry.constants.address],
            "input": places[:inputs],
            "output": places[inputs:outputs],
            "slot": places[outputs:-1],
            "scratch": places[-1:],
            "zeros": [self._zeros.address],
        }
        cuda.call("cuMemsetD8Async", self._zeros.address, 0, max(zeros, 1), entry.stream)
        cuda.call("cuStreamSynchronize", entry.stream)
        self.work = [
            Work(choice, grid, launch)
            for (choice, grid, _), launch in zip(planned, manifest.program.launches, strict=True)
            if math.prod(grid)
        ]
        self._whole = Capture(self, self.work)

    def _plan(self, launch: Launch) -> tuple[Choice, list[int], int]:
        """The kernel for these sizes, its blocks along x, y and z, and the bytes of zeros that it takes."""
        device = self.entry.device
        fitting = [c for c in launch.choices if c.shared <= device.shared_bytes] or launch.choices[-1:]
        planned = [(c, grid) for c, grid in map(self._split, fitting) if grid[1] <= MAX_BLOCKS_Y]
        if not planned:
            raise FeedError(
                f"{self.entry.path}: a GPU has not enough blocks for such sizes; use smaller batches"
            )
        choice, grid = planned[0] if len(planned) == 1 else min(planned, key=lambda p: self._duration(*p))
        return choice, grid, COUNTERS + grid[0] * grid[1] * choice.zeros if grid[2] > 1 else 0

    def _split(self, choice: Choice) -> tuple[Choice, list[int]]:
        """Its blocks along x, y and z, where blocks are few as many along z as keep the device busy."""
        grid = [-(-size_value(size, self.sizes) // each) for size, each in choice.grid]
        grid += [1] * (3 - len(grid))
        blocks, enough = math.prod(grid), self.entry.device.multiprocessors
        if choice.splits > 1 and 0 < blocks < enough:
            grid[2] = max(1, min(choice.splits, enough // blocks))
        return choice, grid

    def _duration(self, choice: Choice, grid: Sequence[int]) -> float:
        """About how long a kernel of tiles takes: as often as every multiprocessor is filled with the blocks
        that it holds, a tile's products and, for each of its rows and columns, operands.
        """
        resident = self.entry.resident(choice)
        rounds = -(-math.prod(grid) // (self.entry.device.multiprocessors * resident))
        sides = [each for _, each in choice.grid]
        return rounds * resident * (math.prod(sides) + OPERAND_COST * sum(sides)) / grid[2]

    def launch(self, work: Work) -> None:
        """Enqueue one kernel, or record it where the stream is captured."""
        choice, launch = work.choice, work.launch
        # every parameter has at most 8 bytes, the lowest of which come first
        values = (c_uint64 * len(launch.args))(*(self._argument(*a) & (2**64 - 1) for a in launch.args))
        start = ctypes.addressof(values)
        pointers = (c_void_p * len(values))(*(start + 8 * i for i in range(len(values))))
        function, stream = self.entry.function(choice), self.entry.stream
        block = (choice.threads, 1, 1)
        cuda.call("cuLaunchKernel", function, *work.grid, *block, choice.shared, stream, pointers, None)

    def _argument(self, kind: str, which: Size, offset: int) -> int:
        if kind in self._bases:
            return self._bases[kind][int(which)] + offset
        return size_value(which, self.sizes)

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
            capture = Capture(self, [work] * repeats)
            capture.milliseconds(1)
            times.append(min(capture.milliseconds(1) for _ in range(rounds)) / repeats)
        return times


@dataclass(frozen=True)
class Work:
    """A launch at one combination of sizes: the kernel chosen for it and its blocks along x, y and z."""

    choice: Choice
    grid: Sequence[int]
    launch: Launch


class Capture:
    """Launches as one executable CUDA graph."""

    def __init__(self, graph: Graph, work: Sequence[Work]) -> None:
        entry = graph.entry
        entry.device.use()
        self._entry, captured = entry, c_void_p()
        for each in work:
            entry.function(each.choice)  # loaded before the capture
        cuda.call("cuStreamBeginCapture_v2", entry.stream, cuda.RELAXED_CAPTURE)
        try:
            for each in work:
                graph.launch(each)
        finally:
            cuda.call("cuStreamEndCapture", entry.stream, byref(captured))
        self._exec = cuda.new("cuGraphInstantiateWithFlags", captured, 0)
        cuda.call("cuGraphDestroy", captured)
        weakref.finalize(self, cuda.library().cuGraphExecDestroy, self._exec)

    def replay(self) -> None:
        """Enqueue the launches."""
        cuda.call("cuGraphLaunch", self._exec, self._entry.stream)

    def milliseconds(self, repeats: int) -> float:
        """The time of one replay: ``repeats`` of them between two events of the device."""
        entry = self._entry
        entry.device.use()
        first, last = (cuda.new("cuEventCreate", 0) for _ in range(2))
        cuda.call("cuEventRecord", first, entry.stream)
        for _ in range(repeats):
            self.replay()
        cuda.call("cuEventRecord", last, entry.stream)
        cuda.call("cuEventSynchronize", last)
        elapsed = c_float()
        cuda.call("cuEventElapsedTime", byref(elapsed), first, last)
        for event in (first, last):
            cuda.call("cuEventDestroy_v2", event)
        return elapsed.value / repeats


def _nbytes(port: Port, sizes: Mapping[str, int]) -> int:
    return math.prod(shape_of(port, sizes)) * np.dtype(port.dtype).itemsize
