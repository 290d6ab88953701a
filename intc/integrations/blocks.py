"""Blocks: the pieces of Parquet files that a job reads, computes and writes as a whole.

A block is some rows of one row group; which rows is a function of the files and of the block size alone,
never of who computes it. Its results are one file with a name of its own, which appears complete or not at
all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from intc.errors import UsageError
from intc.files import replacing
from intc.integrations.decoders import Array
from intc.integrations.extras import require

ROWS: Final = 8192
REJECTED: Final = "_rejected"  # readers of data sets skip names that begin with an underscore
ROW: Final = "row"
TAIL: Final = 8  # bytes at the end of a Parquet file: the footer's length, and the magic


@dataclass(frozen=True)
class Block:
    """Rows ``start`` to ``start + rows`` of row group ``group``; the first is row ``first`` of all input."""

    number: int
    path: Path
    group: int
    start: int
    rows: int
    first: int

    @property
    def file(self) -> str:
        return f"part-{self.number:06}.parquet"


def input_files(path: Path) -> list[Path]:
    """``path``, or the Parquet files in the folder ``path`` in the order of their names."""
    if path.is_dir():
        files = sorted(p for p in path.glob("*.parquet") if not p.name.startswith(("_", ".")))
        if not files:
            raise UsageError(f"{path}: holds no file *.parquet")
        return files
    if not path.is_file():
        raise UsageError(f"{path}: no such file or folder")
    return [path]


def cut(files: Sequence[Path], columns: Sequence[str], rows: int = ROWS) -> list[Block]:
    """The blocks of ``files``, at most ``rows`` rows each. UsageError where a file lacks a column."""
    blocks: list[Block] = []
    first = 0
    for path in files:
        found = _opened(path)
        names = found.schema_arrow.names
        for column in columns:
            if column not in names:
                held = ", ".join(names)
                raise UsageError(f"{path}: no column '{column}'; it holds {held} (choose by --column)")
        for group in range(found.metadata.num_row_groups):
            count = found.metadata.row_group(group).num_rows
            for start in range(0, count, rows):
                size = min(rows, count - start)
                blocks.append(Block(len(blocks), path, group, start, size, first + start))
            first += count
    if not blocks:
        raise UsageError(f"{files[0]}: no rows")
    return blocks


def read(block: Block, columns: Sequence[str]) -> Any:
    """The block's rows as a table. UsageError where they cannot be read."""
    try:
        table = _opened(block.path).read_row_group(block.group, columns=list(columns))
    except Exception as error:  # ArrowInvalid, OSError: whatever a damaged page leads to
        cause = " ".join(str(error).split())
        raise UsageError(f"{block.path}: row group {block.group} cannot be read ({cause})") from None
    return table.slice(block.start, block.rows)


def arrays(table: Any) -> dict[str, Array]:
    """Columns as numpy arrays, None where there is no value."""
    return {n: table.column(n).to_numpy(zero_copy_only=False) for n in table.column_names}


def identity(path: Path) -> str:
    """A digest of the file's name, size and Parquet footer."""
    with open(path, "rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - TAIL, 0))
        length = int.from_bytes(file.read(4), "little")
        file.seek(max(size - TAIL - length, 0))
        footer = file.read()
    return hashlib.sha256(f"{path.name} {size} ".encode() + footer).hexdigest()


def column(array: Array) -> Any:
    """An array as an Arrow column: rows of one size as lists of fixed size."""
    pa = require("pyarrow", "ray")
    if array.dtype == object:
        return pa.array([np.asarray(row).ravel() for row in array])
    if array.ndim < 2:
        return pa.array(array)
    flat = np.ascontiguousarray(array).reshape(len(array), -1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.ravel()), flat.shape[1])


def write(path: Path, columns: Mapping[str, Any], notes: Mapping[str, Mapping[str, Any]]) -> None:
    """A Parquet file of these columns; ``notes`` become their metadata. UsageError where there is no room."""
    pa, parquet = require("pyarrow", "ray"), require("pyarrow.parquet", "ray")
    fields = [
        pa.field(n, c.type, metadata={k: json.dumps(v) for k, v in notes.get(n, {}).items()} or None)
        for n, c in columns.items()
    ]
    table = pa.table(list(columns.values()), schema=pa.schema(fields))
    with replacing(path) as file:
        parquet.write_table(table, file, compression="zstd")


def count(path: Path) -> int:
    """The number of rows of a Parquet file."""
    rows: int = _opened(path).metadata.num_rows
    return rows


def _opened(path: Path) -> Any:
    parquet = require("pyarrow.parquet", "ray")
    try:
        return parquet.ParquetFile(path)
    except Exception as error:  # ArrowInvalid, OSError
        raise UsageError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None
