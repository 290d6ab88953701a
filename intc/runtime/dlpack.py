"""DLPack and ``__cuda_array_interface__``: the arrays of other libraries by address, and ours for them.

The structures are those of DLPack's ``dlpack.h`` (version 1, the ``dltensor`` capsule that every consumer
takes), through ctypes, so that neither torch nor a binding needs to be installed.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from intc.errors import FeedError, first_line

CPU, CUDA, PINNED, MANAGED = 1, 2, 3, 13  # DLDeviceType
DEVICE_NAMES: Final = {CPU: "cpu", CUDA: "cuda", PINNED: "cuda_host", MANAGED: "cuda_managed"}
CODES: Final = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}  # DLDataTypeCode
NAME: Final = b"dltensor"


class DLDevice(ctypes.Structure):
    """Where a tensor lies."""

    _fields_ = (("type", c_int32), ("id", c_int32))


class DLDataType(ctypes.Structure):
    """The type of its elements."""

    _fields_ = (("code", c_uint8), ("bits", c_uint8), ("lanes", c_uint16))


class DLTensor(ctypes.Structure):
    """The tensor."""

    _fields_ = (
        ("data", c_void_p),
        ("device", DLDevice),
        ("ndim", c_int32),
        ("dtype", DLDataType),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    )


class DLManagedTensor(ctypes.Structure):
    """The tensor, and how its consumer gives it back."""

    _fields_ = (("tensor", DLTensor), ("context", c_void_p), ("deleter", c_void_p))


def _python(name: str, result: Any, *arguments: Any) -> Any:
    """A function of CPython, which is called with the interpreter's lock held."""
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_get_pointer = _python("PyCapsule_GetPointer", c_void_p, ctypes.py_object, c_char_p)
_new_capsule = _python("PyCapsule_New", ctypes.py_object, c_void_p, c_char_p, c_void_p)
_is_valid = _python("PyCapsule_IsValid", c_int, c_void_p, c_char_p)  # of a capsule that dies: its address
_dying_pointer = _python("PyCapsule_GetPointer", c_void_p, c_void_p, c_char_p)


@dataclass(frozen=True)
class Given:
    """An array of another library, contiguous: ``dtype`` is numpy's name or ``bfloat16``.

    ``holder`` keeps its memory; what is enqueued on the stream that it was read for comes after all that
    fills it.
    """

    address: int
    shape: tuple[int, ...]
    dtype: str
    holder: object


def place_of(name: str, feed: Any) -> tuple[int, int]:
    """DLPack's type and number of the device where ``feed`` lies; the CPU for what does not say so.

    The number is -1 where only ``__cuda_array_interface__`` tells. FeedError for input ``name`` where DLPack
    does not know the device.
    """
    if hasattr(feed, "__dlpack_device__"):
        try:
            kind, number = feed.__dlpack_device__()
        except Exception as error:  # of the other library
            raise _refusal(name, error) from None
        return int(kind), int(number)
    return (CUDA, -1) if hasattr(feed, "__cuda_array_interface__") else (CPU, 0)


def _refusal(name: str, error: Exception) -> FeedError:
    return FeedError(f"input '{name}' cannot be taken through DLPack: {first_line(error)}")


def place_name(place: tuple[int, int]) -> str:
    """``cuda:1``."""
    kind, number = place
    return f"{DEVICE_NAMES.get(kind, f'DLPack device type {kind}')}:{number}"


def read_dlpack(name: str, feed: Any, stream: int) -> Given:
    """``feed``, for use on ``stream``; FeedError where it cannot be exported or is not contiguous."""
    try:
        capsule = feed.__dlpack__(stream=stream)
        at = _get_pointer(capsule, NAME)
    except Exception as error:  # of the other library
        raise _refusal(name, error) from None
    tensor = DLManagedTensor.from_address(at).tensor
    shape = tuple(tensor.shape[i] for i in range(tensor.ndim))
    if tensor.strides:
        _check_strides(name, shape, tuple(tensor.strides[i] for i in range(tensor.ndim)))
    code, bits, lanes = tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes
    kind = CODES.get(code, f"DLPack type {code} of ")
    dtype = "bool" if kind == "bool" else f"{kind}{bits}" + (f"x{lanes}" if lanes != 1 else "")
    return Given((tensor.data or 0) + tensor.byte_offset, shape, dtype, capsule)


def read_interface(name: str, feed: Any) -> tuple[Given, int | None]:
    """``feed``, and the stream that must have come so far before it is read; FeedError as above."""
    body = feed.__cuda_array_interface__
    shape, dtype = tuple(map(int, body["shape"])), np.dtype(body["typestr"])
    if body.get("strides"):
        _check_strides(name, shape, tuple(stride // dtype.itemsize for stride in body["strides"]))
    stream = body.get("stream")
    return Given(int(body["data"][0]), shape, dtype.name, feed), None if stream is None else int(stream)


def _check_strides(name: str, shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected and 0 not in shape:
            raise FeedError(f"input '{name}' is not contiguous in memory; pass a contiguous copy of it")
        expected *= size


_exported: dict[int, tuple[object, ...]] = {}


def _delete(at: int) -> None:
    """Called by a tensor's consumer, once."""
    _exported.pop(at, None)


def _drop(capsule: int) -> None:
    """Called for a capsule that dies; one that was consumed has another name by then."""
    if _is_valid(capsule, NAME):
        _exported.pop(_dying_pointer(capsule, NAME), None)


_delete_from_c = ctypes.CFUNCTYPE(None, c_void_p)(_delete)
_drop_from_c = ctypes.PYFUNCTYPE(None, c_void_p)(_drop)


def capsule_of(address: int, shape: tuple[int, ...], dtype: np.dtype[Any], device: int, owner: object) -> Any:
    """A capsule of memory on CUDA device number ``device``, which ``owner`` keeps until the consumer ends."""
    kind = {"b": "bool", "i": "int", "u": "uint", "f": "float"}[dtype.kind]
    code = next(number for number, name in CODES.items() if name == kind)
    sizes = (c_int64 * max(len(shape), 1))(*shape)
    tensor = DLTensor(
        address, DLDevice(CUDA, device), len(shape), DLDataType(code, 8 * dtype.itemsize, 1), sizes, None, 0
    )
    managed = DLManagedTensor(tensor, None, ctypes.cast(_delete_from_c, c_void_p))
    at = ctypes.addressof(managed)
    _exported[at] = (managed, sizes, owner)
    return _new_capsule(at, NAME, ctypes.cast(_drop_from_c, c_void_p))
