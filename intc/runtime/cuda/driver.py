"""The CUDA driver's library, as far as the runtime uses it: one function each, every status checked.

Only the driver is needed, which comes with the GPU: no CUDA toolkit, no compiler, no TVM.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_ubyte, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any, Final

from intc.errors import FeedError, UsageError

LIBRARIES: Final = ("libcuda.so.1", "libcuda.so", "nvcuda.dll")
MULTIPROCESSORS, MAJOR, MINOR, SHARED_BYTES = 16, 75, 76, 97  # CUdevice_attribute
DYNAMIC_SHARED = 8  # CUfunction_attribute
ORDINAL = 9  # CUpointer_attribute
NON_BLOCKING = 1  # CUstream_flags
NO_TIMING = 2  # CUevent_flags
RELAXED_CAPTURE = 2
OUT_OF_MEMORY = 2

_OUT = POINTER(c_void_p)
SIGNATURES: Final[dict[str, tuple[Any, ...]]] = {
    "cuInit": (c_uint,),
    "cuDeviceGetCount": (POINTER(c_int),),
    "cuDeviceGet": (POINTER(c_int), c_int),
    "cuDeviceGetName": (c_char_p, c_int, c_int),
    "cuDeviceGetAttribute": (POINTER(c_int), c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_OUT, c_int),
    "cuCtxPushCurrent_v2": (c_void_p,),
    "cuCtxPopCurrent_v2": (_OUT,),
    "cuModuleLoadData": (_OUT, c_void_p),
    "cuModuleGetFunction": (_OUT, c_void_p, c_char_p),
    "cuOccupancyMaxActiveBlocksPerMultiprocessor": (POINTER(c_int), c_void_p, c_int, c_size_t),
    "cuFuncSetAttribute": (c_void_p, c_int, c_int),
    "cuMemAlloc_v2": (POINTER(c_uint64), c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_OUT, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuPointerGetAttribute": (c_void_p, c_int, c_uint64),
    "cuMemsetD8Async": (c_uint64, c_ubyte, c_size_t, c_void_p),
    "cuMemcpyHtoDAsync_v2": (c_uint64, c_void_p, c_size_t, c_void_p),
    "cuMemcpyDtoHAsync_v2": (c_void_p, c_uint64, c_size_t, c_void_p),
    "cuMemcpyDtoH_v2": (c_void_p, c_uint64, c_size_t),
    "cuMemcpyDtoDAsync_v2": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuStreamCreate": (_OUT, c_uint),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamSynchronize": (c_void_p,),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, _OUT),
    "cuGraphInstantiateWithFlags": (_OUT, c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphDestroy": (c_void_p,),
    "cuGraphExecDestroy": (c_void_p,),
    "cuLaunchKernel": (c_void_p, *(c_uint,) * 7, c_void_p, _OUT, _OUT),
    "cuEventCreate": (_OUT, c_uint),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventSynchronize": (c_void_p,),
    "cuEventElapsedTime": (POINTER(c_float), c_void_p, c_void_p),
    "cuEventDestroy_v2": (c_void_p,),
}


@cache
def library() -> ctypes.CDLL:
    """The driver's library, initialised; UsageError says what this machine lacks."""
    for name in LIBRARIES:
        try:
            found = ctypes.CDLL(name)
            break
        except OSError:
            continue
    else:
        raise UsageError(
            f"no CUDA device: the NVIDIA driver ({LIBRARIES[0]}) is not installed on this machine"
        )
    for name, arguments in SIGNATURES.items():
        try:
            getattr(found, name).argtypes = arguments
        except AttributeError:
            raise UsageError(
                f"the NVIDIA driver is too old: it has no {name}; CUDA 12 or later is needed"
            ) from None
    status = found.cuInit(0)
    if status:
        raise UsageError(f"no CUDA device: the driver cannot start ({_name(found, status)})")
    return found


def call(name: str, *arguments: Any) -> None:
    """``name(*arguments)``; FeedError where memory runs out, UsageError for any other failure."""
    found = library()
    status = getattr(found, name)(*arguments)
    if status == OUT_OF_MEMORY:
        raise FeedError("the GPU has no memory left for this run; use smaller batches")
    if status:
        raise UsageError(f"CUDA: {name} failed ({_name(found, status)})")


def _name(found: ctypes.CDLL, status: int) -> str:
    text = c_char_p()
    found.cuGetErrorName(status, byref(text))
    return text.value.decode() if text.value else f"error {status}"


def new(name: str, *arguments: Any) -> c_void_p:
    """The handle that ``name(&handle, *arguments)`` gives."""
    handle = c_void_p()
    call(name, byref(handle), *arguments)
    return handle


class Device:
    """A GPU; ``name`` is ``cuda`` or ``cuda:N``. What follows acts on it where it is :meth:`current`."""

    def __init__(self, name: str) -> None:
        kind, _, number = name.partition(":")
        if kind != "cuda" or not (number or "0").isdigit():
            raise UsageError(f"device '{name}' is not cuda or cuda:N")
        self.number, count, handle = int(number or 0), c_int(), c_int()
        call("cuDeviceGetCount", byref(count))
        if self.number >= count.value:
            raise UsageError(f"device '{name}' does not exist: this machine has {count.value} CUDA device(s)")
        call("cuDeviceGet", byref(handle), self.number)
        self._handle = handle.value
        self._context, self._library = new("cuDevicePrimaryCtxRetain", self._handle), library()
        self.multiprocessors, major, minor, self.shared_bytes = (
            self._attribute(a) for a in (MULTIPROCESSORS, MAJOR, MINOR, SHARED_BYTES)
        )
        self.architecture = 10 * major + minor
        text = ctypes.create_string_buffer(256)
        call("cuDeviceGetName", text, len(text), self._handle)
        self.name = text.value.decode(errors="replace")

    def _attribute(self, number: int) -> int:
        value = c_int()
        call("cuDeviceGetAttribute", byref(value), number, self._handle)
        return value.value

    @contextmanager
    def current(self) -> Iterator[None]:
        """The device is current in this thread, and what was so before is again afterwards."""
        call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            new("cuCtxPopCurrent_v2")

    def free_later(self, owner: object, function: str, handle: Any) -> None:
        """Call ``function(handle)`` when ``owner`` is gone, in whatever thread that happens."""
        weakref.finalize(owner, self._free, function, handle)

    def _free(self, function: str, handle: Any) -> None:
        self._library.cuCtxPushCurrent_v2(self._context)
        getattr(self._library, function)(handle)
        self._library.cuCtxPopCurrent_v2(byref(c_void_p()))


class Memory:
    """``nbytes`` (at least one) of a device's memory, freed with the object.

    The driver waits for all work of the device before it frees, whichever stream that is in.
    """

    def __init__(self, device: Device, nbytes: int) -> None:
        pointer = c_uint64()
        call("cuMemAlloc_v2", byref(pointer), max(nbytes, 1))
        self.address, self.nbytes = pointer.value, nbytes
        device.free_later(self, "cuMemFree_v2", self.address)


class Pinned:
    """``nbytes`` of the host's memory that the device copies to without waiting for the host."""

    def __init__(self, device: Device, nbytes: int) -> None:
        pointer = new("cuMemHostAlloc", nbytes, 0)
        self.address = pointer.value or 0
        self.bytes = memoryview((c_ubyte * nbytes).from_address(self.address))
        device.free_later(self, "cuMemFreeHost", pointer)


class Event:
    """A point of a stream, namely where it is when this is made: streams and the host can wait for it."""

    def __init__(self, device: Device, stream: c_void_p) -> None:
        self._handle = new("cuEventCreate", NO_TIMING)
        device.free_later(self, "cuEventDestroy_v2", self._handle)
        call("cuEventRecord", self._handle, stream)

    def before(self, stream: c_void_p) -> None:
        """What ``stream`` is given from now on runs after this."""
        call("cuStreamWaitEvent", stream, self._handle, 0)

    def wait(self) -> None:
        """Until the device has come so far."""
        call("cuEventSynchronize", self._handle)
