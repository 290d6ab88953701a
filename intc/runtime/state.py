"""``State``: what a decoder keeps of past positions, the int8 keys and values of every layer."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike

from intc.artifact.schema import Manifest, Port
from intc.errors import UsageError
from intc.runtime.feeds import Array
from intc.runtime.native import aligned
from intc.runtime.workspace import address

ROOM: Final = 2  # memory is taken for this many times the positions that need it


@dataclass(frozen=True)
class Held:
    """One tensor of a state: input number ``input`` and output number ``output`` of the model, whose ``axis``
    runs over positions.
    """

    port: Port
    input: int
    output: int
    axis: int

    def shape(self, batch: int, length: int) -> tuple[int, ...]:
        """With the sizes filled in."""
        sizes = [size if isinstance(size, int) else batch for size in self.port.shape]
        sizes[self.axis] = length
        return tuple(sizes)


def held_by(manifest: Manifest) -> tuple[Held, ...]:
    """The tensors of a state."""
    inputs, outputs = [p.name for p in manifest.inputs], [p.name for p in manifest.outputs]
    found = []
    for source, target in manifest.states:
        i, o = inputs.index(source), outputs.index(target)
        before, after = manifest.inputs[i].shape, manifest.outputs[o].shape
        axis = next(k for k, (a, b) in enumerate(zip(before, after, strict=True)) if a != b)
        found.append(Held(manifest.inputs[i], i, o, axis))
    return tuple(found)


class State:
    """Made by :meth:`intc.runtime.Session.create_state`; passed to :meth:`intc.runtime.Session.run`, which
    appends the positions of its feeds. One run at a time may use a state.

    ``batch`` is the number of sequences, ``length`` that of positions.
    """

    def __init__(self, held: tuple[Held, ...], batch: int) -> None:
        self.batch, self.length = batch, 0
        self.held = held
        self._now = [aligned(1) for _ in held]
        self._next = [aligned(1) for _ in held]

    @property
    def nbytes(self) -> int:
        """The memory that the state takes."""
        return sum(block.nbytes for block in (*self._now, *self._next))

    def arrays(self) -> dict[str, Array]:
        """The integers by the name of their input, as views that a later run overwrites."""
        out = {}
        for held, block in zip(self.held, self._now, strict=True):
            shape = held.shape(self.batch, self.length)
            out[held.port.name] = block[: math.prod(shape)].view(held.port.dtype).reshape(shape)
        return out

    def copy(self) -> State:
        """A state of the same sequences that goes its own way."""
        other = State(self.held, self.batch)
        other._hold(self.arrays(), self.batch, self.length)
        return other

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on."""
        if not 0 <= length <= self.length:
            raise UsageError(f"the state holds {self.length} positions and cannot be cut to {length}")
        arrays, axes = self.arrays(), {held.port.name: held.axis for held in self.held}
        self._hold({n: a.take(range(length), axes[n]) for n, a in arrays.items()}, self.batch, length)

    def select(self, rows: ArrayLike) -> None:
        """Keep the sequences ``rows``, in that order and as often as named, as a beam search does."""
        picked = np.asarray(rows)
        if picked.ndim != 1 or not picked.size or picked.dtype.kind not in "iu":
            raise UsageError("rows must be a list of sequence numbers, at least one")
        if picked.min() < 0 or picked.max() >= self.batch:
            raise UsageError(f"the state holds the sequences 0 to {self.batch - 1}, not {picked.tolist()}")
        self._hold({n: a[picked] for n, a in self.arrays().items()}, picked.size, self.length)

    def places(self, length: int) -> dict[int, tuple[ctypes.c_void_p, int, ctypes.c_void_p]]:
        """For every tensor (address to read at, number of the output, address to write ``length`` positions
        to), by the number of its input.
        """
        out = {}
        for k, held in enumerate(self.held):
            need = math.prod(held.shape(self.batch, length))
            if self._next[k].nbytes < need:
                self._next[k] = aligned(ROOM * need)
            read, write = (ctypes.c_void_p(address(block)) for block in (self._now[k], self._next[k]))
            out[held.input] = (read, held.output, write)
        return out

    def advance(self, length: int) -> None:
        """What was written is what the state holds: ``length`` positions."""
        self._now, self._next, self.length = self._next, self._now, length

    def _hold(self, arrays: Mapping[str, Array], batch: int, length: int) -> None:
        now = []
        for held in self.held:
            array = np.ascontiguousarray(arrays[held.port.name])
            block = aligned(max(array.nbytes, 1))
            block[: array.nbytes] = array.reshape(-1).view(np.uint8)
            now.append(block)
        self._now, self.batch, self.length = now, batch, length
