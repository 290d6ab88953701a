"""The memory of a run: the kernels' arena, the integers of the inputs and of the outputs, in one block."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from intc.runtime.feeds import Array
from intc.runtime.native import ALIGN, aligned


def round_up(size: int) -> int:
    """``size`` at the next multiple of :data:`intc.runtime.native.ALIGN`."""
    return -(-size // ALIGN) * ALIGN


@dataclass(frozen=True)
class Layout:
    """What the inputs' shapes decide: the symbols' sizes, the arena's bytes, shape and type of ports."""

    symbols: tuple[int, ...]
    arena: int
    inputs: tuple[tuple[tuple[int, ...], str], ...]
    outputs: tuple[tuple[tuple[int, ...], str], ...]

    @property
    def nbytes(self) -> int:
        """Of the whole block."""
        return round_up(self.arena) + sum(round_up(_nbytes(*p)) for p in (*self.inputs, *self.outputs))


class Workspace:
    """A block laid out; ``call`` are the arguments of the entry point, every address among them."""

    def __init__(
        self,
        layout: Layout,
        arguments: Callable[[Sequence[ctypes.c_void_p], Sequence[int]], tuple[Any, ...]],
        block: Array | None = None,
    ) -> None:
        self.layout = layout
        self.block = aligned(max(layout.nbytes, ALIGN)) if block is None else block
        start, at = address(self.block), round_up(layout.arena)
        addresses, views = [ctypes.c_void_p(start)], []
        for shape, dtype in (*layout.inputs, *layout.outputs):
            size = _nbytes(shape, dtype)
            views.append(self.block[at : at + size].view(dtype).reshape(shape))
            addresses.append(ctypes.c_void_p(start + at))
            at += round_up(size)
        self.inputs, self.outputs = views[: len(layout.inputs)], views[len(layout.inputs) :]
        self.call = arguments(addresses, layout.symbols)


def address(array: Array) -> int:
    """Where the array's data begins."""
    start: int = array.__array_interface__["data"][0]
    return start


def _nbytes(shape: tuple[int, ...], dtype: str) -> int:
    return math.prod(shape) * np.dtype(dtype).itemsize
