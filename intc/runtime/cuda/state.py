"""Where the states of a session on a GPU live: in the device's memory, from run to run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from intc.runtime.cuda import driver as cuda
from intc.runtime.cuda.driver import Memory
from intc.runtime.cuda.loaded import Loaded
from intc.runtime.feeds import Array
from intc.runtime.workspace import address


class DeviceHome:
    """As :class:`intc.runtime.state.HostHome`; copies are enqueued behind the session's runs."""

    def __init__(self, loaded: Loaded) -> None:
        self._device, self._stream = loaded.device, loaded.stream

    def allocate(self, nbytes: int) -> Memory:
        """Memory with anything in it."""
        with self._device.current():
            return Memory(self._device, nbytes)

    def gather(self, block: Memory, pitch: int, rows: Sequence[int], width: int) -> Memory:
        """New memory with the first ``width`` bytes of ``rows`` of a block, each ``pitch`` bytes long."""
        out = self.allocate(len(rows) * width)
        at = out.address
        with self._device.current():
            for first, count in _runs(rows) if width == pitch else ((row, 1) for row in rows):
                if width:
                    source = block.address + first * pitch
                    cuda.call("cuMemcpyDtoDAsync_v2", at, source, count * width, self._stream)
                at += count * width
        return out

    def read(self, block: Memory, nbytes: int) -> Array:
        """The first ``nbytes`` of a block, copied to the host."""
        out = np.empty(nbytes, np.uint8)
        with self._device.current():
            if nbytes:
                cuda.call("cuMemcpyDtoHAsync_v2", address(out), block.address, nbytes, self._stream)
            cuda.call("cuStreamSynchronize", self._stream)
        return out


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Consecutive rows as (first, how many).

    >>> list(_runs([4, 5, 6, 0, 1, 1]))
    [(4, 3), (0, 2), (1, 1)]
    """
    first = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i] != rows[i - 1] + 1:
            yield rows[first], i - first
            first = i
