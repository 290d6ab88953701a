"""The constants blob: an artifact's tensors in the order and form in which the kernels read them; in memory
of its own, or mapped from a file that all processes of one user share.
"""

from __future__ import annotations

import math
import mmap
import os
import stat
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from intc.artifact.schema import WEIGHTS, Packed
from intc.artifact.tensors import INT4, pack_nibbles
from intc.errors import ArtifactCorrupt, UsageError
from intc.runtime.feeds import Array
from intc.runtime.native import ALIGN, aligned
from intc.runtime.workspace import round_up

MAX_BLOB: Final = 2**32  # bytes: no file holds more


class Blob:
    """Entries that fit their tensors; ``sizes`` are their bytes. ArtifactCorrupt names one that does not."""

    def __init__(self, path: Path, entries: Sequence[Packed], weights: Mapping[str, Array]) -> None:
        self.entries = [(entry, _tensor(path, entry, weights)) for entry in entries]
        self.sizes = [_nbytes(path, entry, array) for entry, array in self.entries]
        if sum(self.sizes) > MAX_BLOB:
            raise ArtifactCorrupt(f"{path}: its constants would take {sum(self.sizes)} bytes of memory")

    def pack(self) -> Array:
        """Every entry at a multiple of :data:`intc.runtime.native.ALIGN`."""
        blob = aligned(max(sum(map(round_up, self.sizes)), ALIGN))
        at = 0
        for (entry, array), size in zip(self.entries, self.sizes, strict=True):
            _pack(entry, array, blob[at : at + size])
            at += round_up(size)
        return blob

    def shared(self, file: Path) -> Array:
        """:meth:`pack` as a read-only map of ``file``, which is written where it is missing or cut off."""
        blob = _mapped(file, max(sum(map(round_up, self.sizes)), ALIGN))
        if blob is not None:
            return blob
        from intc.files import replacing

        packed = self.pack()
        with replacing(file) as place:
            place.write(packed.data)
        blob = _mapped(file, packed.nbytes)
        return packed if blob is None else blob  # removed again at once: our own copy serves


def private_folder(folder: Path | None = None) -> Path:
    """``folder``, or ``intc-UID`` among the temporary files, made where it is missing.

    UsageError unless it is this user's and nobody else may write there: kernels trust what it holds.
    """
    folder = folder or Path(tempfile.gettempdir()) / f"intc-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror})") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise UsageError(
            f"{folder}: not a folder in which only this user can write; name another to share weights"
        )
    return folder


def _mapped(file: Path, nbytes: int) -> Array | None:
    try:
        with open(file, "rb") as opened:
            if os.fstat(opened.fileno()).st_size == nbytes:
                return np.frombuffer(mmap.mmap(opened.fileno(), nbytes, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        pass
    return None


def _tensor(path: Path, entry: Packed, weights: Mapping[str, Array]) -> Array:
    if entry.tensor not in weights:
        raise ArtifactCorrupt(f"{path}: tensor '{entry.tensor}' is missing from '{WEIGHTS}'")
    return weights[entry.tensor]


def _nbytes(path: Path, entry: Packed, array: Array) -> int:
    where = f"{path}: tensor '{entry.tensor}'"
    padded = [n + p for n, p in zip(array.shape, entry.pad or (0,) * array.ndim, strict=False)]
    count: int = math.prod(padded)
    if len(entry.pad) not in (0, array.ndim) or (entry.reshape and math.prod(entry.reshape) != count):
        raise ArtifactCorrupt(f"{where} does not have the shape that its packing is for")
    if entry.pad and not entry.reshape:
        raise ArtifactCorrupt(f"{where} is padded but not packed")
    if entry.dtype == INT4:
        if array.dtype != np.int8 or count % 2:
            raise ArtifactCorrupt(f"{where} cannot be packed in 4 bits")
        return count // 2
    dtype = np.dtype(entry.dtype or array.dtype)
    if array.dtype.kind not in "iub" or not np.can_cast(array.dtype, dtype):
        raise ArtifactCorrupt(f"{where} is {array.dtype}, which cannot be packed as {dtype}")
    return count * int(dtype.itemsize)


def _pack(entry: Packed, array: Array, place: Array) -> None:
    if not entry.reshape:
        place.view(entry.dtype or array.dtype)[:] = array.reshape(-1)
        return
    if any(entry.pad):
        array = np.pad(array, [(0, p) for p in entry.pad])
    ordered: Any = array.reshape(entry.reshape).transpose(entry.perm)
    if entry.dtype == INT4:
        place[:] = pack_nibbles(ordered)
        return
    dtype = np.dtype(entry.dtype or array.dtype)
    packed = place.view(dtype).reshape(ordered.shape)
    for i in range(ordered.shape[-1]):  # numpy is slow where the innermost axis is short, as it is here
        packed[..., i] = ordered[..., i]
