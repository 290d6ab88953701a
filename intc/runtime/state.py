"""``State``: what a decoder keeps of past positions, the int8 keys and values of every layer."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import ArrayLike

from intc.artifact.schema import Manifest, Port
from intc.errors import UsageError
from intc.runtime.feeds import Array
from intc.runtime.native import aligned
from intc.runtime.workspace import address

STEP: Final = 64  # working memory is planned for lengths that are multiples of this
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


class Past:
    """How the calls of a model with the tensors ``held`` differ when a state stands for them.

    ``symbol`` is the size that is the state's length, ``after`` the length that a run leaves; ``inputs`` and
    ``outputs`` are the numbers of the ports.
    """

    def __init__(self, manifest: Manifest, held: tuple[Held, ...]) -> None:
        self.held, first = held, held[0]
        self.symbol = str(first.port.shape[first.axis])
        self.after = manifest.outputs[first.output].shape[first.axis]
        self.inputs, self.outputs = ({h.input for h in held}, {h.output for h in held})
        self.first = 2  # behind the addresses of constants and arena
        writes = self.first + len(manifest.inputs)
        self.places = [*(self.first + h.input for h in held), *(writes + h.output for h in held)]
        self.place = writes + len(manifest.outputs) + manifest.symbols.index(self.symbol)
        self.exact = self._needs_exact(manifest)

    def _needs_exact(self, manifest: Manifest) -> bool:
        """Whether another port shows the length, or some memory shrinks as it grows."""
        sides = ((manifest.inputs, self.inputs), (manifest.outputs, self.outputs))
        others = [
            size for ports, own in sides for i, p in enumerate(ports) if i not in own for size in p.shape
        ]
        memory = [size for size in (*manifest.program.slots, *manifest.program.scratch) if "-" in str(size)]
        return any(self.symbol in re.split(r"\W+", str(size)) for size in (*others, *memory))

    def size(self, state: State) -> tuple[int, int]:
        """Sequences and positions to plan memory for: for many lengths at once, where that is safe."""
        return state.batch, state.length if self.exact else -(-state.length // STEP) * STEP

    def elsewhere(self, state: State, length: int) -> dict[int, int]:
        """The addresses of what ``state`` holds by number of the port, outputs behind inputs, for a run that
        leaves ``length`` positions.
        """
        ports = (at - self.first for at in self.places)
        return {port: at.value or 0 for port, at in zip(ports, state.addresses(length), strict=True)}

    def arguments(self, call: tuple[Any, ...], state: State, length: int) -> tuple[Any, ...]:
        """``call`` on the memory of ``state``, which then holds ``length`` positions."""
        out = list(call)
        out[self.place] = state.length
        for at, pointer in zip(self.places, state.addresses(length), strict=True):
            out[at] = pointer
        return tuple(out)


class Block(Protocol):
    """``nbytes`` of memory at ``address``."""

    address: int
    nbytes: int


class Home(Protocol):
    """Where states live: the host's memory, or a GPU's."""

    def allocate(self, nbytes: int) -> Block:
        """Memory with anything in it."""
        ...

    def gather(self, block: Any, pitch: int, rows: Sequence[int], width: int) -> Block:
        """New memory with the first ``width`` bytes of ``rows`` of a block, each ``pitch`` bytes long."""
        ...

    def read(self, block: Any, nbytes: int) -> Array:
        """The first ``nbytes`` of a block, uint8."""
        ...


class HostBlock:
    """Of the host's memory, aligned."""

    def __init__(self, nbytes: int) -> None:
        self.array, self.nbytes = aligned(max(nbytes, 1)), nbytes
        self.address = address(self.array)


class HostHome:
    """The host's memory; what is read there are views."""

    def allocate(self, nbytes: int) -> HostBlock:
        """As in :class:`Home`."""
        return HostBlock(nbytes)

    def gather(self, block: HostBlock, pitch: int, rows: Sequence[int], width: int) -> HostBlock:
        """As in :class:`Home`."""
        out, many = HostBlock(len(rows) * width), max(rows, default=-1) + 1
        source = block.array[: many * pitch].reshape(many, pitch)
        source[:, :width].take(rows, 0, out.array[: out.nbytes].reshape(len(rows), width))
        return out

    def read(self, block: HostBlock, nbytes: int) -> Array:
        """As in :class:`Home`."""
        return block.array[:nbytes]


HOST: Final = HostHome()


class Blocks:
    """Memory of every tensor of a state, for ``room`` positions."""

    def __init__(self, blocks: list[Block], room: int) -> None:
        self.blocks, self.room = blocks, room
        self.addresses = [ctypes.c_void_p(block.address) for block in blocks]


class State:
    """Made by :meth:`intc.runtime.Session.create_state`; passed to :meth:`intc.runtime.Session.run`, which
    appends the positions of its feeds. One run at a time may use a state.

    ``batch`` is the number of sequences, ``length`` that of positions.
    """

    def __init__(self, held: tuple[Held, ...], batch: int, home: Home = HOST) -> None:
        self.batch, self.length = batch, 0
        self.held, self.home = held, home
        self._now, self._next = (Blocks([home.allocate(0) for _ in held], 0) for _ in range(2))

    @property
    def nbytes(self) -> int:
        """The memory that the state takes."""
        return sum(block.nbytes for block in (*self._now.blocks, *self._next.blocks))

    def arrays(self) -> dict[str, Array]:
        """The integers by the name of their input: copies of what a GPU holds, else views that a later run
        overwrites.
        """
        out = {}
        for held, block in zip(self.held, self._now.blocks, strict=True):
            shape = held.shape(self.batch, self.length)
            out[held.port.name] = self.home.read(block, math.prod(shape)).view(held.port.dtype).reshape(shape)
        return out

    def copy(self) -> State:
        """A state of the same sequences that goes its own way."""
        other = State(self.held, self.batch, self.home)
        other._now, other._next, other.length = self._now, other._next, self.length
        other.truncate(self.length)
        return other

    def truncate(self, length: int) -> None:
        """Forget the positions from ``length`` on."""
        if not 0 <= length <= self.length:
            raise UsageError(f"the state holds {self.length} positions and cannot be cut to {length}")

        def pieces(held: Held) -> tuple[int, Sequence[int], int]:
            shape = held.shape(self.batch, self.length)
            rows, each = math.prod(shape[: held.axis]), math.prod(shape[held.axis + 1 :])
            return self.length * each, range(rows), length * each

        self._hold(pieces, self.batch, length)

    def select(self, rows: ArrayLike) -> None:
        """Keep the sequences ``rows``, in that order and as often as named, as a beam search does."""
        picked = np.asarray(rows)
        if picked.ndim != 1 or not picked.size or picked.dtype.kind not in "iu":
            raise UsageError("rows must be a list of sequence numbers, at least one")
        if picked.min() < 0 or picked.max() >= self.batch:
            raise UsageError(f"the state holds the sequences 0 to {self.batch - 1}, not {picked.tolist()}")

        def pieces(held: Held) -> tuple[int, Sequence[int], int]:
            each = math.prod(held.shape(self.batch, self.length)[1:])
            return each, picked.tolist(), each

        self._hold(pieces, picked.size, self.length)

    def addresses(self, length: int) -> list[ctypes.c_void_p]:
        """Where the tensors are read, then where ``length`` positions of them are to be written."""
        if length > self._next.room:
            sizes = [math.prod(held.shape(self.batch, ROOM * length)) for held in self.held]
            self._next = Blocks([self.home.allocate(size) for size in sizes], ROOM * length)
        return [*self._now.addresses, *self._next.addresses]

    def blocks(self) -> tuple[Blocks, Blocks]:
        """The memory behind :meth:`addresses`."""
        return self._now, self._next

    def advance(self, length: int) -> None:
        """What was written is what the state holds: ``length`` positions."""
        self._now, self._next, self.length = self._next, self._now, length

    def _hold(
        self, pieces: Callable[[Held], tuple[int, Sequence[int], int]], batch: int, length: int
    ) -> None:
        """Keep of every tensor, as rows of so many bytes, the rows and the bytes of each that ``pieces``
        names; an element is one byte.
        """
        kept = [
            self.home.gather(block, *pieces(held))
            for held, block in zip(self.held, self._now.blocks, strict=True)
        ]
        self._now, self._next = (
            Blocks(kept, length),
            Blocks([self.home.allocate(0) for _ in self.held], 0),
        )
        self.batch, self.length = batch, length
