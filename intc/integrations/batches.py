"""``BatchModel``: an artifact as a function from batches of rows to batches of results, for any engine.

A batch is ``{column: array}``, rows along axis 0, of any length. Results do not depend on how rows are put
into batches: every kernel computes each row by itself, exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from intc.artifact.signature import Key
from intc.errors import FeedError, UsageError
from intc.files import replacing
from intc.integrations.decoders import Array, Columns, Decode, Inputs
from intc.loading import load
from intc.runtime.constants import private_folder

BATCH: Final = 32
CAUSE: Final = 300  # characters kept of what a row was rejected for


class Outcome(NamedTuple):
    """``outputs`` have a row for each of ``kept``, the numbers of the good rows; ``rejected`` the others."""

    outputs: dict[str, Array]
    kept: NDArray[np.int64]
    rejected: list[tuple[int, str]]


class BatchModel:
    """Loads ``artifact``, a path or the bytes of one, and maps batches of columns to its outputs.

    ``decode`` turns columns into the model's inputs, row by row: a tokeniser, an image decoder (default:
    columns that are named like the inputs; see decoders.py). Where it has a method ``prepare``, that sees all
    rows first and says which of them run together (:class:`intc.integrations.decoders.Prepared`). At most
    ``batch`` rows are run at once, by ``threads`` threads. With ``raw`` the outputs are the integers. Weights
    are shared by all processes of one user on a machine (``share``: :func:`intc.runtime.load`).
    Raises what :func:`intc.load` raises, and UsageError for a model that cannot run on rows.
    """

    def __init__(
        self,
        artifact: str | Path | bytes | memoryview,
        decode: Decode | None = None,
        *,
        raw: bool = False,
        threads: int = 1,
        batch: int = BATCH,
        share: str | Path | bool = True,
        sha256: str | None = None,
        trusted_keys: Sequence[Key] | None = None,
    ) -> None:
        path = Path(artifact) if isinstance(artifact, str | Path) else stored(artifact, share)
        self.session = load(path, threads, sha256, trusted_keys=trusted_keys, share=share)
        self.names = [p.name for p in self.session.get_outputs()]
        self.raw, self.batch = raw, _rows_at_once(path, self.session.manifest, batch)
        self.decode = decode or Inputs(self.session.manifest)

    def __call__(self, batch: Columns) -> dict[str, Array]:
        """The outputs, a row for each row; FeedError naming the first row that is bad."""
        outcome = self.outcome(batch)
        if outcome.rejected:
            row, cause = outcome.rejected[0]
            raise FeedError(f"row {row} of the batch: {cause}")
        return outcome.outputs

    def outcome(self, batch: Columns) -> Outcome:
        """The outputs of all good rows of ``batch``, in their order, and why the others are not."""
        columns, groups = self._groups(batch)
        parts: list[tuple[Array, list[Array]]] = []
        rejected: list[tuple[int, str]] = []
        for group in groups:
            for rows, result in self._run(columns, group):
                if isinstance(result, str):
                    rejected.append((int(rows[0]), result))
                else:
                    parts.append((rows, result))
        kept = np.concatenate([rows for rows, _ in parts] or [np.zeros(0, np.int64)]).astype(np.int64)
        back = np.argsort(kept)
        outputs = {
            name: _stacked([result[i] for _, result in parts])[back] if parts else np.zeros(0)
            for i, name in enumerate(self.names)
        }
        return Outcome(outputs, kept[back], sorted(rejected))

    def _groups(self, batch: Columns) -> tuple[Columns, list[Array]]:
        """The columns as the decoder takes them, and the numbers of the rows that run together."""
        count = len(next(iter(batch.values()), ()))
        prepare = getattr(self.decode, "prepare", None)
        if prepare is None or not count:
            return batch, [np.arange(count)[i : i + self.batch] for i in range(0, count, self.batch)]
        columns, sizes, pads = prepare(batch)
        order = np.argsort(sizes, kind="stable")
        runs = [order] if pads else np.split(order, np.flatnonzero(np.diff(sizes[order])) + 1)
        return columns, [run[i : i + self.batch] for run in runs for i in range(0, len(run), self.batch)]

    def _run(self, batch: Columns, rows: Array) -> Iterator[tuple[Array, list[Array] | str]]:
        """Results of ``rows``; where they fail together they are halved, down to the row that is bad."""
        try:
            yield rows, self._together({name: column[rows] for name, column in batch.items()})
        except _BadRows as bad:
            if len(rows) == 1:
                yield rows, str(bad)
                return
            for half in np.array_split(rows, 2):
                yield from self._run(batch, half)

    def _together(self, columns: Columns) -> list[Array]:
        try:
            feeds = self.decode(columns)
        except MemoryError:
            raise
        except Exception as error:  # the user's own code, on data that may be anything
            raise _BadRows(error) from error
        try:
            return self.session.run(None, feeds, raw=self.raw)
        except FeedError as error:
            raise _BadRows(error) from error


class _BadRows(Exception):
    def __init__(self, error: Exception) -> None:
        kind = "" if isinstance(error, FeedError) else f"{type(error).__name__}: "
        super().__init__(" ".join(f"{kind}{error}".split())[:CAUSE])


def stored(artifact: bytes | memoryview, share: str | Path | bool = True) -> Path:
    """A file with these bytes in the folder of shared weights."""
    digest = hashlib.sha256(artifact).hexdigest()
    path = private_folder(None if isinstance(share, bool) else Path(share)) / f"{digest}.intc"
    if not path.exists():
        with replacing(path) as file:
            file.write(artifact)
    return path


def _rows_at_once(path: Path, manifest: Any, batch: int) -> int:
    """``batch``, or 1 for a model of one row; UsageError for other models without a free first size."""
    if manifest.states:
        raise UsageError(f"{path}: a decoder with a state is run step by step, not on rows")
    first = {p.shape[0] if p.shape else 0 for p in (*manifest.inputs, *manifest.outputs)}
    if first == {1}:
        return 1
    if len(first) != 1 or not isinstance(next(iter(first)), str):
        raise UsageError(f"{path}: inputs and outputs need one free batch size in front to run on rows")
    if batch < 1:
        raise UsageError(f"batch={batch} is not a positive number of rows")
    return batch


def _stacked(parts: list[Array]) -> Array:
    """One array; where the sizes behind the first differ, an array of arrays."""
    if len({p.shape[1:] for p in parts}) == 1:
        return np.concatenate(parts)
    out = np.empty(sum(map(len, parts)), object)
    out[:] = [row for part in parts for row in part]
    return out
