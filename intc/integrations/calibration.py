"""Calibration on rows of Parquet files, block by block, by one process or by the actors of a Ray cluster.

Every block gives statistics of its own, which are merged in the order of the blocks. Ranges and counts merge
exactly; second moments are floats, for which that order is why one worker and ten give the same bits (on
processors of one kind, with the same numpy).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from intc.calibration.histogram import Calibrator
from intc.calibration.observers import Observer, Statistics
from intc.calibration.readers import BATCH, open_feeds
from intc.errors import CalibrationError, IntcError
from intc.integrations import blocks
from intc.integrations.blocks import Block
from intc.integrations.decoders import Array, Decode
from intc.ir.graph import Graph

ROWS: Final = 128  # of a block: a multiple of the batch
Seen: TypeAlias = dict[str, Statistics]


@dataclass(frozen=True)
class ParquetFeeds:
    """Calibration data for :func:`intc.compile`: ``columns`` of all rows of ``files``, decoded by ``decode``.

    ``engine`` computes the statistics of blocks: :func:`local`, or that of ``intc.integrations.ray``.
    """

    files: tuple[Path, ...]
    columns: tuple[str, ...]
    decode: Decode
    engine: PartEngine | None = None

    def __iter__(self) -> Iterator[dict[str, Array]]:
        """Feeds of a few rows each. CalibrationError names the rows that cannot be decoded."""
        for block in self.blocks():
            yield from self.feeds(block)

    def blocks(self) -> list[Block]:
        """The blocks of the files."""
        return blocks.cut(self.files, self.columns, ROWS)

    def feeds(self, block: Block) -> Iterator[dict[str, Array]]:
        """The feeds of one block."""
        rows = blocks.arrays(blocks.read(block, self.columns))
        for start in range(0, block.rows, BATCH):
            part = {name: column[start : start + BATCH] for name, column in rows.items()}
            try:
                yield dict(self.decode(part))
            except (IntcError, MemoryError):
                raise
            except Exception as error:  # the user's own code, on data that may be anything
                first = block.first + start
                raise CalibrationError(
                    f"{block.path}: rows from {first} on: {type(error).__name__}: {error}"
                ) from error

    def statistics(
        self, graph: Graph, calibrator: Calibrator, products: bool, progress: Callable[[int], None]
    ) -> Seen:
        """Those of all rows; ``progress`` is told the batches that are done."""
        merged: Seen = {}
        done, empty = 0, Observer(graph, calibrator, products)
        task = Part(self, graph, calibrator, products)
        every = self.blocks()
        for block, seen in zip(every, (self.engine or local)(task, every), strict=True):
            for name, statistics in seen.items():
                merged.setdefault(name, empty.fresh(name)).merge(statistics)
            done += -(-block.rows // BATCH)
            progress(done)
        return merged


@dataclass(frozen=True)
class Part:
    """Computes the statistics of one block."""

    data: ParquetFeeds
    graph: Graph
    calibrator: Calibrator
    products: bool

    def __call__(self, block: Block) -> Seen:
        """From nothing, so that the result does not depend on other blocks."""
        observer = Observer(self.graph, self.calibrator, self.products)
        for batch in open_feeds(self.graph, self.data.feeds(block)):
            observer.observe(batch)
        return observer.finish()


PartEngine: TypeAlias = Callable[[Part, Sequence[Block]], Iterable[Seen]]


def local(part: Part, every: Sequence[Block]) -> Iterator[Seen]:
    """The blocks one after another, in this process."""
    return map(part, every)
