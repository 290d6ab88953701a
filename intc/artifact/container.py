"""The container: a zip file in one canonical layout, written (writer.py) and read by the same rules.

Members are stored (never compressed), in the order given, each member's data at a multiple of :data:`ALIGN`
so that it can be mapped. Headers hold nothing variable: no dates, no comments, no extra fields but zero
padding. The reader takes names and sizes from the directory within fixed limits, and refuses a file whose
bytes outside the members' data differ from the canonical ones; so every byte is fixed by this layout or
covered by a digest.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import stat
import struct
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from intc.errors import ArtifactCorrupt, UsageError

ALIGN: Final = 64
MAX_MEMBERS: Final = 64
MAX_NAME: Final = 200
MAX_FILE: Final = 2**32 - 2**20
NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*")
DATE: Final = 0x21  # 1 January 1980, midnight: the earliest that the format can say
LOCAL: Final = struct.Struct("<4sHHHHHIIIHH")
CENTRAL: Final = struct.Struct("<4sHHHHHHIIIHHHHHII")
END: Final = struct.Struct("<4sHHHHIIH")
PADDING_ID: Final = 0xD935  # the extra field that zip aligners use


@dataclass(frozen=True)
class Entry:
    """One member: where its header starts, where its data starts, how long the data is, and its CRC-32."""

    name: str
    header: int
    start: int
    size: int
    crc: int


def place(members: list[tuple[str, int, int]]) -> tuple[list[Entry], int]:
    """The canonical places of members given as (name, size, crc); and the offset of the directory."""
    entries, at = [], 0
    for name, size, crc in members:
        bare = at + LOCAL.size + len(name)
        start = -(-(bare + 4) // ALIGN) * ALIGN  # the padding field has a header of four bytes
        entries.append(Entry(name, at, start, size, crc))
        at = start + size
    return entries, at


def local_header(entry: Entry) -> bytes:
    """The bytes before the data of ``entry``, padding included."""
    name = entry.name.encode("ascii")
    extra = entry.start - entry.header - LOCAL.size - len(name)
    fixed = LOCAL.pack(b"PK\3\4", 20, 0, 0, 0, DATE, entry.crc, entry.size, entry.size, len(name), extra)
    return fixed + name + struct.pack("<HH", PADDING_ID, extra - 4) + bytes(extra - 4)


def directory(entries: list[Entry], offset: int) -> bytes:
    """The central directory and its end record, for a directory that starts at ``offset``."""
    out = b"".join(
        CENTRAL.pack(
            b"PK\1\2", 20, 20, 0, 0, 0, DATE, e.crc, e.size, e.size, len(e.name), 0, 0, 0, 0, 0, e.header
        )
        + e.name.encode("ascii")
        for e in entries
    )
    return out + END.pack(b"PK\5\6", 0, 0, len(entries), len(entries), len(out), offset, 0)


class Container:
    """A container opened for reading: ``entries`` by name over a read-only map of the file.

    Opening checks structure only: ArtifactCorrupt for anything that is not a list of stored, uniquely and
    plainly named members inside the file. :meth:`check` compares sizes, digests and the layout.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = _map(path)
        self.entries = {entry.name: entry for entry in self._read_directory()}

    def member(self, name: str) -> memoryview:
        """The data of member ``name``, as mapped."""
        if name not in self.entries:
            raise self.corrupt(f"member '{name}' is missing")
        entry = self.entries[name]
        return memoryview(self.data)[entry.start : entry.start + entry.size]

    def checked_crc(self, name: str) -> bytes:
        """A copy of the data of member ``name``, which must agree with its CRC-32."""
        data = bytes(self.member(name))
        if zlib.crc32(data) != self.entries[name].crc:
            raise self.corrupt(f"member '{name}' is altered (its CRC-32 differs)")
        return data

    def check(self, expected: Mapping[str, tuple[int, str]], apart: Collection[str]) -> None:
        """Every member but those ``apart`` is as ``expected``, (size, SHA-256); the layout is canonical."""
        present = set(self.entries).difference(apart)
        if present != set(expected):
            odd = sorted(present ^ set(expected))[0]
            raise self.corrupt(f"member '{odd}' is {'not in the manifest' if odd in present else 'missing'}")
        for name, (size, digest) in expected.items():
            if self.entries[name].size != size:
                raise self.corrupt(
                    f"member '{name}' has {self.entries[name].size} bytes, the manifest says {size}"
                )
            if hashlib.sha256(self.member(name)).hexdigest() != digest:
                raise self.corrupt(f"member '{name}' is altered (its SHA-256 differs from the manifest's)")
        self._check_layout()

    def corrupt(self, cause: str) -> ArtifactCorrupt:
        return ArtifactCorrupt(f"{self.path}: {cause}; copy the file again or recompile it")

    def _check_layout(self) -> None:
        ordered = sorted(self.entries.values(), key=lambda e: e.header)
        entries, end = place([(e.name, e.size, e.crc) for e in ordered])
        canonical = entries == ordered and bytes(self.data[end:]) == directory(entries, end)
        if not canonical or any(self.data[e.header : e.start] != local_header(e) for e in entries):
            raise self.corrupt("headers or padding between the members are altered")

    def _read_directory(self) -> list[Entry]:
        size = len(self.data)
        if size < END.size or self.data[:4] != b"PK\3\4":
            raise self.corrupt("not an intc artifact")
        magic, disk, start_disk, here, total, length, offset, comment = END.unpack(
            self.data[size - END.size :]
        )
        if magic != b"PK\5\6" or comment:
            raise self.corrupt("truncated, or data follows its end")
        if disk or start_disk or here != total or total > MAX_MEMBERS:
            raise self.corrupt(f"its directory claims {total} members (at most {MAX_MEMBERS} are allowed)")
        if offset + length + END.size != size:
            raise self.corrupt("its directory does not lie where its end record says")
        entries, at = [], offset
        for _ in range(total):
            entry, at = self._read_entry(at, offset, size - END.size)
            entries.append(entry)
        if at != offset + length:
            raise self.corrupt("its directory is longer than its members")
        self._check_entries(entries)
        return entries

    def _read_entry(self, at: int, limit: int, end: int) -> tuple[Entry, int]:
        """The directory entry at ``at`` and the next one's place; all its data must lie below ``limit``."""
        if at + CENTRAL.size > end:
            raise self.corrupt("its directory is truncated")
        fields = CENTRAL.unpack(self.data[at : at + CENTRAL.size])
        magic, flags, method, crc, packed, size = (fields[i] for i in (0, 3, 4, 7, 8, 9))
        name_length, extra_length, comment_length, header = (fields[i] for i in (10, 11, 12, 16))
        after = at + CENTRAL.size + name_length + extra_length + comment_length
        if magic != b"PK\1\2" or after > end:
            raise self.corrupt("its directory is damaged")
        name = self._name(self.data[at + CENTRAL.size : at + CENTRAL.size + name_length])
        if method or flags & ~0x800:
            raise self.corrupt(f"member '{name}' is compressed or encrypted")
        if packed != size:
            raise self.corrupt(f"member '{name}' claims {size} bytes but stores {packed}")
        if header + LOCAL.size > limit:
            raise self.corrupt(f"member '{name}' starts outside the file")
        local = LOCAL.unpack(self.data[header : header + LOCAL.size])
        name_at, start = header + LOCAL.size, header + LOCAL.size + local[9] + local[10]
        if local[0] != b"PK\3\4" or self.data[name_at : name_at + local[9]] != name.encode():
            raise self.corrupt(f"member '{name}' has no header of its own")
        if local[3] or local[6:9] != (crc, size, size):
            raise self.corrupt(f"member '{name}' has other sizes in its header than in the directory")
        if start + size > limit:
            raise self.corrupt(f"member '{name}' claims {size} bytes, more than the file holds")
        return Entry(name, header, start, size, crc), after

    def _name(self, raw: bytes) -> str:
        name = raw.decode("ascii", "replace")
        if len(name) > MAX_NAME or not NAME.fullmatch(name):
            raise self.corrupt(f"member name {name[:60]!r} is not a plain relative path")
        return name

    def _check_entries(self, entries: list[Entry]) -> None:
        seen: set[str] = set()
        end = 0
        for entry in entries:
            if entry.name in seen:
                raise self.corrupt(f"member '{entry.name}' occurs twice")
            seen.add(entry.name)
        for entry in sorted(entries, key=lambda e: e.header):
            if entry.header < end:
                raise self.corrupt(f"member '{entry.name}' overlaps another one")
            end = entry.start + entry.size


def _at_once(path: str, flags: int) -> int:
    """Opened without waiting for what a pipe may bring."""
    return os.open(path, flags | os.O_NONBLOCK)


def _map(path: Path) -> mmap.mmap:
    try:
        with open(path, "rb", opener=_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"{path}: not a regular file")
            size = os.fstat(file.fileno()).st_size
            if not 0 < size <= MAX_FILE:
                raise ArtifactCorrupt(f"{path}: {size} bytes cannot be an intc artifact")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
