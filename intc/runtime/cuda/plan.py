"""What a network needs at one combination of sizes: kernels, their blocks, memory."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Collection, Mapping, Sequence
from ctypes import c_uint64, c_void_p
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Final

import numpy as np

from intc.artifact.fields import Size, size_value
from intc.artifact.schema import Choice, Launch, Port
from intc.errors import FeedError
from intc.runtime.cuda.loaded import Loaded
from intc.runtime.feeds import shape_of
from intc.runtime.workspace import round_up

ADDRESSES: Final = ("constants", "slot", "input", "output", "scratch", "zeros")  # kinds of arguments
COUNTERS: Final = 4096  # bytes in front of the partial sums
OPERAND_COST: Final = 64  # of a row or column of a tile, in products, as measured on an H100
VACANCY_COST: Final = 0.25  # of a block's place that stays empty on a multiprocessor, in blocks, likewise
MAX_BLOCKS_Y: Final = 65535
KEPT: Final = 256  # of the launches that depend on the same symbols, at as many values of these


class Parameters:
    """Of one kernel, each in the lowest bytes of 8; ``addresses`` are (number of the parameter, kind, which,
    offset) of those that every launch fills in.
    """

    def __init__(self, args: Sequence[tuple[str, int, int]]) -> None:
        numbers = [0 if kind in ADDRESSES else which & (2**64 - 1) for kind, which, _ in args]
        self.memory = (c_uint64 * len(args))(*numbers)
        start = ctypes.addressof(self.memory)
        self.pointers = (c_void_p * len(args))(*range(start, start + 8 * len(args), 8))
        self.addresses = [(i, *arg) for i, arg in enumerate(args) if arg[0] in ADDRESSES]


@dataclass(frozen=True)
class Work:
    """A launch at one combination of sizes: the kernel chosen, its blocks along x, y and z, the bytes of
    zeros that it takes, and its arguments with the numbers among them computed.
    """

    choice: Choice
    grid: tuple[int, ...]
    zeros: int
    args: tuple[tuple[str, int, int], ...]

    @cached_property
    def parameters(self) -> Parameters:
        """Its arguments as the driver takes them."""
        return Parameters(self.args)


@dataclass(frozen=True)
class Plan:
    """``ports``, ``slots`` and ``scratch`` are bytes; ``work`` is one for each launch of the manifest."""

    ports: tuple[int, ...]
    slots: tuple[int, ...]
    scratch: int
    work: tuple[Work, ...]

    @property
    def zeros(self) -> int:
        """Bytes that are zero before and after a run."""
        return max((work.zeros for work in self.work), default=0)


class Planner:
    """Plans of an artifact on a device. What sizes that change do not touch is planned once."""

    def __init__(self, loaded: Loaded) -> None:
        self._manifest = loaded.manifest
        alike: dict[tuple[str, ...], list[int]] = {}
        for number, launch in enumerate(loaded.manifest.program.launches):
            alike.setdefault(_symbols_of(launch), []).append(number)
        self._groups = list(alike.items())
        self._planned = lru_cache(KEPT)(partial(_plan_group, loaded, self._groups))

    def plan(self, sizes: Mapping[str, int]) -> Plan:
        """For these values of the symbols."""
        program = self._manifest.program
        work: dict[int, Work] = {}
        for number, (used, launches) in enumerate(self._groups):
            values = tuple([sizes[s] for s in used])
            work.update(zip(launches, self._planned(number, values), strict=True))
        return Plan(
            tuple(_nbytes(p, sizes) for p in (*self._manifest.inputs, *self._manifest.outputs)),
            tuple(size_value(s, sizes) for s in program.slots),
            max((size_value(s, sizes) for s in program.scratch), default=0),
            tuple([work[number] for number in range(len(work))]),
        )


def _plan_group(
    loaded: Loaded,
    groups: Sequence[tuple[tuple[str, ...], list[int]]],
    number: int,
    values: tuple[int, ...],
) -> list[Work]:
    """The launches of a group at these values of the symbols that it depends on."""
    used, launches = groups[number]
    sizes = dict(zip(used, values, strict=True))
    return [_plan_work(loaded, loaded.manifest.program.launches[i], sizes) for i in launches]


def _plan_work(loaded: Loaded, launch: Launch, sizes: Mapping[str, int]) -> Work:
    device = loaded.device
    able = [c for c in launch.choices if c.architecture in (0, device.architecture)]
    able = [c for c in able if all(size_value(s, sizes) <= most for s, most in c.limits)]
    fitting = [c for c in able if c.shared <= device.shared_bytes] or able[-1:]
    planned = [(c, grid) for c in fitting if (grid := _split(loaded, c, sizes))[1] <= MAX_BLOCKS_Y]
    if not planned:
        raise FeedError(f"{loaded.path}: a GPU has not enough blocks for such sizes; use smaller batches")
    choice, grid = planned[0] if len(planned) == 1 else min(planned, key=lambda p: _duration(loaded, *p))
    zeros = COUNTERS + grid[0] * grid[1] * choice.zeros if grid[2] > 1 else 0
    args = [(kind, size_value(which, sizes), offset) for kind, which, offset in launch.args]
    return Work(choice, tuple(grid), zeros, tuple(args))


def _split(loaded: Loaded, choice: Choice, sizes: Mapping[str, int]) -> list[int]:
    """Its blocks along x, y and z, where blocks are few as many along z as keep the device busy."""
    grid = [-(-size_value(size, sizes) // each) for size, each in choice.grid]
    grid += [1] * (3 - len(grid))
    blocks, enough = math.prod(grid), loaded.device.multiprocessors
    if choice.splits > 1 and 0 < blocks < enough:
        grid[2] = max(1, min(choice.splits, enough // blocks))
    return grid


def _duration(loaded: Loaded, choice: Choice, grid: Sequence[int]) -> float:
    """About how long a kernel of tiles takes: the blocks of a multiprocessor, each a tile's products and, for
    each of its rows and columns, operands; longer where blocks at the end have nothing to hide their waits.
    Where the choice says how long a block takes: that for each, and once more for the time that it waits.
    """
    if choice.work:
        return (-(-math.prod(grid) // loaded.device.multiprocessors) + 1) * choice.work
    resident = loaded.resident(choice)
    blocks = -(-math.prod(grid) // loaded.device.multiprocessors)
    sides = [each for _, each in choice.grid]
    tile = math.prod(sides) + OPERAND_COST * sum(sides)
    return (blocks + VACANCY_COST * (-blocks % resident)) * tile / grid[2]


def areas(plan: Plan, elsewhere: Collection[int] = ()) -> list[int]:
    """The bytes of everything that a run writes, each to begin at a multiple of the alignment; the ports
    numbered in ``elsewhere`` take none.
    """
    ports = (0 if i in elsewhere else nbytes for i, nbytes in enumerate(plan.ports))
    return [round_up(nbytes) for nbytes in (*ports, *plan.slots, plan.scratch)]


def _nbytes(port: Port, sizes: Mapping[str, int]) -> int:
    return math.prod(shape_of(port, sizes)) * np.dtype(port.dtype).itemsize


def _symbols_of(launch: Launch) -> tuple[str, ...]:
    """The symbols that blocks or arguments depend on."""
    sizes: list[Size] = [size for choice in launch.choices for size, _ in (*choice.grid, *choice.limits)]
    sizes += [which for _, which, _ in launch.args]
    names = {name for size in sizes if isinstance(size, str) for name in re.findall(r"[^\W\d]\w*", size)}
    return tuple(sorted(names - {"floor"}))
