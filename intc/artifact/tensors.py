"""The ``weights.safetensors`` member, read and written in numpy alone: the runtime needs no library for it.

The writer orders tensors by falling element size behind an aligned header, so that every tensor is aligned.
Matrices of int8 whose values fit 4 bits are stored two values per byte, as ``U8``; the metadata entry
``int4`` maps their names to their shapes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from intc.errors import ArtifactCorrupt

Array = NDArray[Any]
MAX_HEADER: Final = 2**24
MAX_RANK: Final = 32
ALIGN: Final = 64
METADATA: Final = "__metadata__"
INT4: Final = "int4"
INT4_FROM: Final = 256  # elements; smaller ones are not worth it
DTYPES: Final = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "F32": "float32",
    "F64": "float64",
}
_CODES: Final = {name: code for code, name in DTYPES.items()}


def pack_nibbles(array: Array) -> Array:
    """Values in [-8, 7] two per byte in order, the first in the low half; an odd last byte is filled up."""
    flat = np.ascontiguousarray(array).reshape(-1).astype(np.uint8) & 15
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    return np.asarray(flat[0::2] | (flat[1::2] << 4), np.uint8)


def unpack_nibbles(packed: Array, count: int) -> Array:
    """The first ``count`` values of :func:`pack_nibbles` as int8."""
    out = np.empty(2 * packed.size, np.int8)
    signed = packed.view(np.int8)
    out[0::2], out[1::2] = (signed << 4) >> 4, signed >> 4
    return out[:count]


def is_int4(array: Array) -> bool:
    """Whether ``array`` is stored in 4 bits."""
    return (
        array.dtype == np.int8
        and array.ndim == 2
        and array.size >= INT4_FROM
        and int(array.min()) >= -8
        and int(array.max()) <= 7
    )


def encode(tensors: Mapping[str, Array]) -> bytes:
    """The safetensors bytes of ``tensors``."""
    shapes = {name: list(array.shape) for name, array in tensors.items() if is_int4(array)}
    stored = {name: pack_nibbles(array) if name in shapes else array for name, array in tensors.items()}
    order = sorted(stored, key=lambda n: (-stored[n].dtype.itemsize, n))
    header: dict[str, object] = {METADATA: {INT4: json.dumps(shapes)}} if shapes else {}
    at = 0
    for name in order:
        array = stored[name]
        header[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    data = (np.ascontiguousarray(stored[n]).tobytes() for n in order)
    return b"".join((len(text).to_bytes(8, "little"), text, *data))


def decode(data: memoryview, where: str) -> dict[str, Array]:
    """Read-only views of the tensors in ``data``; ArtifactCorrupt names ``where`` and the odd tensor."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise ArtifactCorrupt(f"{where}: its header claims {length} bytes")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
        entries = [(name, *_entry(spec)) for name, spec in header.items() if name != METADATA]
        shapes = _int4_shapes(header)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ArtifactCorrupt(f"{where}: its header is damaged") from None
    out: dict[str, Array] = {}
    end = 0
    for name, dtype, shape, start, stop in sorted(entries, key=lambda e: (e[3], e[4])):
        if start != end or stop - start != math.prod(shape) * np.dtype(dtype).itemsize:
            raise ArtifactCorrupt(f"{where}: tensor '{name}' does not have the size of its shape")
        if 8 + length + stop > len(data):
            raise ArtifactCorrupt(f"{where}: tensor '{name}' ends outside the member")
        out[name] = np.frombuffer(data[8 + length + start : 8 + length + stop], dtype).reshape(shape)
        end = stop
    if 8 + length + end != len(data):
        raise ArtifactCorrupt(f"{where}: data follows the last tensor")
    for name, shape in shapes.items():
        count = math.prod(shape)
        if name not in out or out[name].dtype != np.uint8 or out[name].shape != (-(-count // 2),):
            raise ArtifactCorrupt(f"{where}: tensor '{name}' does not hold 4-bit values of its shape")
        out[name] = unpack_nibbles(out[name], count).reshape(shape)
    return out


def _int4_shapes(header: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    shapes = {n: tuple(s) for n, s in json.loads(header.get(METADATA, {}).get(INT4, "{}")).items()}
    if any(len(s) != 2 or any(type(n) is not int or not 0 <= n < 2**40 for n in s) for s in shapes.values()):
        raise ValueError
    return shapes


def _entry(spec: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    shape, (start, stop) = tuple(spec["shape"]), spec["data_offsets"]
    numbers = (*shape, start, stop)
    if len(shape) > MAX_RANK or any(type(n) is not int or not 0 <= n < 2**40 for n in numbers):
        raise ValueError
    return DTYPES[spec["dtype"]], shape, start, stop
