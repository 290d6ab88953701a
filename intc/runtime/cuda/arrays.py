"""``DeviceArray``: a result that stays on the device, for torch, CuPy and others without a copy."""

from __future__ import annotations

import weakref
from collections import deque
from ctypes import c_void_p
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from intc.runtime import dlpack
from intc.runtime.cuda import driver as cuda
from intc.runtime.cuda.driver import Device, Event, Memory

LEGACY, PER_THREAD = 1, 2  # the default streams, as DLPack and the driver number them
KEPT: Final = 16  # of a pool


class Lease:
    """``memory`` until the lease is gone. ``streams`` are those that others use it on; None is unknown."""

    def __init__(self, memory: Memory, streams: set[int | None]) -> None:
        self.memory, self.streams = memory, streams


class Pool:
    """Memory of results for the results of later runs in ``stream``.

    Freeing waits for the device, so what was used on default streams only, which exist for ever, is kept: its
    next user waits for what they hold by then. Other streams may be gone; what they used is freed.
    """

    def __init__(self, device: Device, stream: c_void_p) -> None:
        self._device, self._stream = device, stream
        self._kept: deque[tuple[Memory, set[int | None]]] = deque(maxlen=KEPT)

    def take(self, nbytes: int) -> Lease:
        """Memory that the stream may write to."""
        memory, used = self._find(nbytes) or (Memory(self._device, nbytes), set())
        for stream in used:
            Event(self._device, c_void_p(stream)).before(self._stream)
        lease = Lease(memory, set())
        weakref.finalize(lease, self._back, memory, lease.streams)
        return lease

    def _find(self, nbytes: int) -> tuple[Memory, set[int | None]] | None:
        for _ in range(len(self._kept)):
            memory, streams = self._kept.popleft()
            if memory.nbytes == nbytes:
                return memory, streams
            self._kept.append((memory, streams))
        return None

    def _back(self, memory: Memory, streams: set[int | None]) -> None:
        """Called in any thread at any time; what is more than the pool keeps is freed."""
        if streams <= {LEGACY, PER_THREAD}:
            self._kept.append((memory, streams))


class DeviceArray:
    """A C-contiguous array in a GPU's memory, its own: no later run writes there.

    ``torch.from_dlpack``, ``cupy.from_dlpack`` and whatever takes ``__cuda_array_interface__`` share the
    memory, and their streams wait for the run that fills it; ``numpy()`` and ``numpy.asarray`` wait and copy.
    The memory is given back when the array and all that share it are gone.
    """

    def __init__(
        self,
        device: Device,
        stream: c_void_p,
        filled: Event,
        lease: Lease,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, f"cuda:{device.number}"
        self._device, self._stream, self._filled, self._lease = device, stream, filled, lease

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self._lease.memory.nbytes

    def numpy(self) -> NDArray[Any]:
        """A copy in the host's memory."""
        out = np.empty(self.shape, self.dtype)
        with self._device.current():
            self._filled.wait()
            if out.nbytes:
                cuda.call("cuMemcpyDtoH_v2", out.ctypes.data, self._lease.memory.address, out.nbytes)
        return out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("an array on a device cannot become numpy's without a copy")
        return np.asarray(self.numpy(), dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype.name}, device={self.device})"

    def __dlpack_device__(self) -> tuple[int, int]:
        return dlpack.CUDA, self._device.number

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule for work on ``stream``: None and 1 are CUDA's default stream, -1 means not to wait."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("the array is shared where it lies; copy what was made of it")
        used = LEGACY if stream is None else stream
        self._lease.streams.add(used if used != -1 else None)
        if used != -1:
            with self._device.current():
                self._filled.before(c_void_p(used))
        address, number = self._lease.memory.address, self._device.number
        return dlpack.capsule_of(address, self.shape, self.dtype, number, self._lease)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        self._lease.streams.add(None)
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._lease.memory.address if self.nbytes else 0, False),
            "strides": None,
            "stream": self._stream.value,
            "version": 3,
        }
