"""``DeviceArray``: a result that stays on the device, for torch, CuPy and others without a copy."""

from __future__ import annotations

from ctypes import c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intc.runtime import dlpack
from intc.runtime.cuda import driver as cuda
from intc.runtime.cuda.driver import Device, Event, Memory

LEGACY = 1  # the default stream, as DLPack and the driver number it


class DeviceArray:
    """A C-contiguous array in a GPU's memory, its own: no later run writes there.

    ``torch.from_dlpack``, ``cupy.from_dlpack`` and whatever takes ``__cuda_array_interface__`` share the
    memory, and their streams wait for the run that fills it; ``numpy()`` and ``numpy.asarray`` wait and copy.
    The memory is freed when the array and all that share it are gone; the driver then waits for the device.
    """

    def __init__(
        self,
        device: Device,
        stream: c_void_p,
        filled: Event,
        memory: Memory,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
    ) -> None:
        self.shape, self.dtype, self.device = shape, dtype, f"cuda:{device.number}"
        self._device, self._stream, self._filled, self._memory = device, stream, filled, memory

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return self._memory.nbytes

    def numpy(self) -> NDArray[Any]:
        """A copy in the host's memory."""
        out = np.empty(self.shape, self.dtype)
        with self._device.current():
            self._filled.wait()
            if out.nbytes:
                cuda.call("cuMemcpyDtoH_v2", out.ctypes.data, self._memory.address, out.nbytes)
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
        if stream != -1:
            with self._device.current():
                self._filled.before(c_void_p(LEGACY if stream is None else stream))
        return dlpack.capsule_of(
            self._memory.address, self.shape, self.dtype, self._device.number, self._memory
        )

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "typestr": self.dtype.str,
            "data": (self._memory.address if self.nbytes else 0, False),
            "strides": None,
            "stream": self._stream.value,
            "version": 3,
        }
