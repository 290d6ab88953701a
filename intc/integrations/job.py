"""A job: every row of some Parquet files through an artifact, into a folder of Parquet files.

The folder holds one file for each block, and what the job is made from. A block that is there is finished; so
a job that was cut off goes on where it stopped, and a block that two workers compute is written twice with
the same bytes. Rows that are bad are listed in a side table instead.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from intc.artifact.reader import open_artifact
from intc.artifact.signature import Key
from intc.errors import UsageError
from intc.files import write_text
from intc.integrations import blocks
from intc.integrations.batches import BATCH, BatchModel, Outcome
from intc.integrations.blocks import REJECTED, ROW, Block, arrays, column
from intc.integrations.decoders import Decode
from intc.integrations.extras import require

RECORD: Final = "_job.json"
FORMAT: Final = 1


@dataclass(frozen=True)
class Job:
    """Rows of ``inputs`` through ``artifact`` into the folder ``output``.

    ``columns`` are read for ``decode`` (see :class:`BatchModel`), ``keep`` are copied. At most ``block_rows``
    rows make a block; ``batch``, ``threads``, ``raw`` and ``trusted_keys`` are those of :class:`BatchModel`.
    """

    artifact: Path
    inputs: tuple[Path, ...]
    output: Path
    columns: tuple[str, ...]
    decode: Decode | None = None
    keep: tuple[str, ...] = ()
    raw: bool = False
    batch: int = BATCH
    threads: int = 1
    block_rows: int = blocks.ROWS
    trusted_keys: tuple[Key, ...] | None = None

    def file(self, block: Block) -> Path:
        """Where the results of ``block`` are."""
        return self.output / block.file

    def rejects(self, block: Block) -> Path:
        """Where its bad rows are listed, if it has any."""
        return self.output / REJECTED / block.file


class Done(NamedTuple):
    """A finished block: its number, its good rows and its bad ones."""

    number: int
    rows: int
    rejected: int


Engine = Callable[[Job, Sequence[Block]], Iterable[Done]]


class Worker:
    """Computes blocks with one loaded model. ``artifact`` are its bytes (default: those at its path)."""

    def __init__(self, job: Job, artifact: memoryview | None = None) -> None:
        self.job = job
        self.model = BatchModel(
            job.artifact if artifact is None else artifact,
            job.decode,
            raw=job.raw,
            threads=job.threads,
            batch=job.batch,
            trusted_keys=job.trusted_keys,
        )

    def __call__(self, block: Block) -> Done:
        """Read, compute and write ``block``. UsageError where it cannot be read or written."""
        table = self.read(block)
        return self.write(block, table, self.model.outcome(arrays(table.select(list(self.job.columns)))))

    def read(self, block: Block) -> Any:
        """The columns that are decoded and those that are kept, as a table."""
        return blocks.read(block, list(dict.fromkeys((*self.job.columns, *self.job.keep))))

    def write(self, block: Block, table: Any, found: Outcome) -> Done:
        """The bad rows first: a block is finished once its results are there."""
        job, pa = self.job, require("pyarrow", "ray")
        if found.rejected:
            rows, causes = zip(*found.rejected, strict=True)
            numbers = pa.array(np.array(rows, np.int64) + block.first)
            job.rejects(block).parent.mkdir(exist_ok=True)
            blocks.write(job.rejects(block), {ROW: numbers, "cause": pa.array(causes)}, {})
        kept = table.select(list(job.keep)).take(pa.array(found.kept))
        results = {name: column(array) for name, array in found.outputs.items()}
        columns = {ROW: pa.array(found.kept + block.first), **dict(zip(job.keep, kept.columns, strict=True))}
        blocks.write(job.file(block), columns | results, self._notes())
        return Done(block.number, len(found.kept), len(found.rejected))

    def _notes(self) -> dict[str, dict[str, Any]]:
        """The scale of every output of integers."""
        ports = self.model.session.get_outputs()
        return {p.name: {"scale": p.scale} for p in ports if self.job.raw and p.scale is not None}


def local(job: Job, pending: Sequence[Block]) -> Iterator[Done]:
    """The blocks one after another, in this process."""
    if pending:
        yield from map(Worker(job), pending)


@dataclass(frozen=True)
class Summary:
    """What a job came to; ``resumed`` blocks were finished before, ``cause`` is of the first rejected row."""

    blocks: int
    resumed: int
    rows: int
    rejected: int
    cause: str | None


def run(job: Job, engine: Engine = local, progress: Callable[[int, int], None] | None = None) -> Summary:
    """Compute every block of ``job`` that is not there yet; ``progress`` is told rows done and rows in all.

    UsageError where the folder holds another job's results.
    """
    every = _prepared(job)
    pending = [b for b in every if not job.file(b).exists()]
    total = sum(b.rows for b in every)
    done = total - sum(b.rows for b in pending)
    if progress:
        progress(done, total)
    for finished in engine(job, pending):
        done += finished.rows + finished.rejected
        if progress:
            progress(done, total)
    missing = [b for b in pending if not job.file(b).exists()]
    if missing:
        raise UsageError(
            f"{job.file(missing[0])}: not there after the job; are all workers on one file system?"
        )
    for leftover in job.output.rglob(".part-*"):  # what a killed worker was writing
        leftover.unlink(missing_ok=True)
    bad = [job.rejects(b) for b in every if job.rejects(b).exists()]
    rejected = sum(map(blocks.count, bad))
    cause = _first_cause(bad[0]) if bad else None
    return Summary(len(every), len(every) - len(pending), total - rejected, rejected, cause)


def _prepared(job: Job) -> list[Block]:
    """All blocks, once the output folder is this job's."""
    opened = open_artifact(job.artifact, None, job.trusted_keys)
    if not job.columns:
        raise UsageError("a job needs at least one column to read")
    outputs = [p.name for p in opened.manifest.outputs]
    for name in (*job.keep, *outputs):
        if (ROW, *job.keep, *outputs).count(name) > 1:
            raise UsageError(f"the results would have two columns '{name}'; rename the one that is kept")
    every = blocks.cut(job.inputs, (*job.columns, *job.keep), job.block_rows)
    record = {
        "format": FORMAT,
        "artifact": opened.digest,
        "inputs": hashlib.sha256(" ".join(map(blocks.identity, job.inputs)).encode()).hexdigest(),
        "columns": list(job.columns),
        "keep": list(job.keep),
        "decode": _name(job.decode),
        "raw": job.raw,
        "block_rows": job.block_rows,
    }
    _claim(job.output, record)
    return every


def _claim(folder: Path, record: dict[str, Any]) -> None:
    file = folder / RECORD
    if file.exists():
        try:
            found = json.loads(file.read_text())
        except (ValueError, OSError):
            raise UsageError(f"{file}: not a job's record; name another output") from None
        other = sorted(k for k in record if not isinstance(found, dict) or found.get(k) != record[k])
        if other:
            raise UsageError(
                f"{folder}: holds results of another job (other {', '.join(other)}); remove it or name"
                " another output"
            )
        return
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder}: exists and is no job's output; remove it or name another output")
    write_text(file, json.dumps(record, indent=1) + "\n")


def _name(decode: Decode | None) -> str:
    """What stands for ``decode`` in the record: its ``key``, or where it is defined."""
    if decode is None:
        return ""
    named = decode if hasattr(decode, "__qualname__") else type(decode)
    return str(getattr(decode, "key", f"{named.__module__}.{named.__qualname__}"))


def _first_cause(path: Path) -> str:
    row = require("pyarrow.parquet", "ray").read_table(path).slice(0, 1).to_pylist()[0]
    return f"row {row[ROW]}: {row['cause']}"
