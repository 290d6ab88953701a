"""The ``weights.safetensors`` member, read and written in numpy alone: the runtime needs no library for it.

The writer orders tensors by falling element size behind an aligned header, so that every tensor is aligned.
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
MAX_HEADER: Final = 64 * 2**20
MAX_RANK: Final = 8
ALIGN: Final = 64
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


def encode(tensors: Mapping[str, Array]) -> bytes:
    """The safetensors bytes of ``tensors``."""
    order = sorted(tensors, key=lambda n: (-tensors[n].dtype.itemsize, n))
    header: dict[str, object] = {}
    at = 0
    for name in order:
        array = tensors[name]
        header[name] = {
            "dtype": _CODES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + 8) % ALIGN)
    data = (np.ascontiguousarray(tensors[n]).tobytes() for n in order)
    return b"".join((len(text).to_bytes(8, "little"), text, *data))


def decode(data: memoryview, where: str) -> dict[str, Array]:
    """Read-only views of the tensors in ``data``; ArtifactCorrupt names ``where`` and the odd tensor."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > min(MAX_HEADER, len(data) - 8):
        raise ArtifactCorrupt(f"{where}: its header claims {length} bytes")
    try:
        header = json.loads(bytes(data[8 : 8 + length]))
        entries = [(name, *_entry(spec)) for name, spec in header.items() if name != "__metadata__"]
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
    return out


def _entry(spec: dict[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    shape, (start, stop) = tuple(spec["shape"]), spec["data_offsets"]
    numbers = (*shape, start, stop)
    if len(shape) > MAX_RANK or any(type(n) is not int or not 0 <= n < 2**40 for n in numbers):
        raise ValueError
    return DTYPES[spec["dtype"]], shape, start, stop
