"""Columns of rows as the inputs of a model: numbers as they are, text by the library ``tokenizers``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from intc.artifact.schema import Manifest, Port
from intc.errors import UsageError
from intc.integrations.extras import require

Array: TypeAlias = NDArray[Any]
Columns: TypeAlias = Mapping[str, Array]
Decode: TypeAlias = Callable[[Columns], Mapping[str, Array]]

INPUTS: Final = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
PADS: Final = ("[PAD]", "<pad>")
LENGTH: Final = 512  # tokens, where neither model nor tokeniser says how many


class Prepared(NamedTuple):
    """Rows ready to be decoded, and the ``sizes`` of each: rows of one size run together, rows of like size
    too where the decoder ``pads``.
    """

    columns: Columns
    sizes: Array
    pads: bool


class Inputs:
    """Inputs that are columns themselves: numbers, or lists of them, flat or in the shape of the input.

    ``given`` holds ``INPUT=COLUMN`` where the names differ (``COLUMN`` alone for a model of one input).
    UsageError for a name that is no input.
    """

    def __init__(self, manifest: Manifest, given: Sequence[str] = ()) -> None:
        self.shapes = {p.name: p.shape for p in manifest.inputs}
        self.columns = {name: name for name in self.shapes}
        for text in given:
            name, _, column = text.rpartition("=")
            if not name and len(self.shapes) == 1:
                (name,) = self.shapes
            name = name or column
            if name not in self.shapes:
                raise UsageError(
                    f"'{name}' is no input; the model takes {', '.join(self.shapes)}: INPUT=COLUMN"
                )
            self.columns[name] = column
        self.key = " ".join(f"{name}={column}" for name, column in self.columns.items())

    def __call__(self, columns: Columns) -> dict[str, Array]:
        """The feeds; ValueError where rows of one batch do not have one shape."""
        return {name: _as_input(columns[c], self.shapes[name]) for name, c in self.columns.items()}

    def prepare(self, columns: Columns) -> Prepared:
        """Rows whose lists have equal lengths belong together."""
        lists = [columns[c] for c in self.columns.values() if columns[c].dtype == object]
        lengths = np.array([[np.size(row) for row in column] for column in lists], np.int64)
        count = len(next(iter(columns.values())))
        sizes = np.unique(lengths, axis=1, return_inverse=True)[1] if lists else np.zeros(count, np.int64)
        return Prepared(columns, sizes, pads=False)


def _as_input(column: Array, shape: Sequence[int | str]) -> Array:
    array = np.array([np.asarray(row) for row in column]) if column.dtype == object else column
    if array.dtype == object:
        raise ValueError("a row holds nothing, or no numbers")
    sizes = [n for n in shape[1:] if isinstance(n, int)]
    if array.ndim == 2 and len(sizes) == len(shape) - 1:
        return array.reshape(len(array), *sizes)
    return array


class Tokens:
    """Text of ``column`` as token ids, masks and types, padded to the longest of the batch.

    ``folder`` holds ``tokenizer.json``. Longer texts are cut at ``length`` tokens (default: what the
    tokeniser itself says, at most what the model takes). A model that takes no mask would read the padding
    as text: its rows must have one length. UsageError for a model with other inputs.
    """

    def __init__(self, folder: Path, manifest: Manifest, column: str, length: int | None = None) -> None:
        tokenizers = require("tokenizers", "ray")
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise UsageError(f"{file}: no such file; --tokenizer names the folder that holds tokenizer.json")
        try:
            self.tokenizer: Any = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises plain Exception
            raise UsageError(f"{file}: not a tokeniser ({' '.join(str(error).split())})") from None
        unknown = [p.name for p in manifest.inputs if p.name not in INPUTS]
        if unknown:
            raise UsageError(f"input '{unknown[0]}' is none that a tokeniser gives ({', '.join(INPUTS)})")
        self.column, self.names = column, [p.name for p in manifest.inputs]
        self.fixed, most = _sizes(manifest.inputs, manifest)
        self.pads = self.fixed is not None or "attention_mask" in self.names
        own = (self.tokenizer.truncation or {}).get("max_length", LENGTH)
        self.length = self.fixed or min(length or own, most or LENGTH)
        if length and length > self.length:
            raise UsageError(f"length {length} is more than the {self.length} tokens that the model takes")
        self.tokenizer.enable_truncation(self.length)
        self.key = hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()
        padding = self.tokenizer.padding or {}
        pad = padding.get("pad_id", next(filter(None, map(self.tokenizer.token_to_id, PADS)), 0))
        self.fill = {"ids": pad, "attention_mask": 0, "type_ids": padding.get("pad_type_id", 0)}
        self.left = padding.get("direction") == "left"
        self.tokenizer.no_padding()

    def __call__(self, columns: Columns) -> dict[str, Array]:
        """int64 [rows, tokens]; ValueError for a row that is not text."""
        rows = self.prepare(columns).columns[self.column]
        for row in rows:
            if row is None or not hasattr(row, "ids"):
                raise ValueError(f"column '{self.column}' holds {_kind(row)}, not text")
        lengths = {len(row) for row in rows}
        if not self.pads and len(lengths) > 1:
            raise ValueError(
                f"the model takes no mask, and rows have {min(lengths)} to {max(lengths)} tokens"
            )
        return {n: self._padded(rows, INPUTS[n], self.fixed or max(lengths)) for n in self.names}

    def prepare(self, columns: Columns) -> Prepared:
        """Every text as what the tokeniser makes of it, all at once; other rows stay as they are."""
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread a worker
        rows = np.empty(len(columns[self.column]), object)
        rows[:] = columns[self.column]
        texts = [i for i, row in enumerate(rows) if isinstance(row, str)]
        for i, encoding in zip(texts, self.tokenizer.encode_batch([rows[i] for i in texts]), strict=True):
            rows[i] = encoding
        sizes = np.array([len(row) if hasattr(row, "ids") else 0 for row in rows], np.int64)
        return Prepared({self.column: rows}, sizes, self.pads)

    def _padded(self, rows: Array, name: str, length: int) -> Array:
        array = np.full((len(rows), length), self.fill[name], np.int64)
        for out, row in zip(array, rows, strict=True):
            out[length - len(row) if self.left else 0 :][: len(row)] = getattr(row, name)
        return array


def _kind(value: object) -> str:
    return "nothing" if value is None else type(value).__name__


def _sizes(ports: Sequence[Port], manifest: Manifest) -> tuple[int | None, int | None]:
    """The number of tokens that the model is fixed to, and the largest that it takes."""
    size = ports[0].shape[1] if len(ports[0].shape) == 2 else None
    if size is None:
        raise UsageError(f"input '{ports[0].name}' is not [batch, tokens]")
    if isinstance(size, int):
        return size, size
    return None, dict(manifest.limits).get(size)
