"""Columns of rows as the inputs of a model: numbers as they are, text by the library ``tokenizers``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from intc.artifact.schema import Manifest, Port
from intc.errors import UsageError
from intc.integrations.extras import require

Array: TypeAlias = NDArray[Any]
Columns: TypeAlias = Mapping[str, Array]
Decode: TypeAlias = Callable[[Columns], Mapping[str, Array]]

INPUTS: Final = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
LENGTH: Final = 512  # tokens, where neither model nor tokeniser says how many
STEP: Final = 8  # padded lengths are multiples of it


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
    tokeniser itself says, at most what the model takes). UsageError for a model with other inputs.
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
        fixed, most = _sizes(manifest.inputs, manifest)
        own = (self.tokenizer.truncation or {}).get("max_length", LENGTH)
        self.length = fixed or min(length or own, most or LENGTH)
        if length and length > self.length:
            raise UsageError(f"length {length} is more than the {self.length} tokens that the model takes")
        padding = self.tokenizer.padding or {}
        pad = padding.get(
            "pad_token", next((t for t in ("[PAD]", "<pad>") if self._id(t) is not None), "[PAD]")
        )
        self.tokenizer.enable_truncation(self.length)
        self.tokenizer.enable_padding(
            direction=padding.get("direction", "right"),
            pad_id=padding.get("pad_id", self._id(pad) or 0),
            pad_token=pad,
            length=fixed,
            pad_to_multiple_of=None if self.length % STEP else STEP,
        )
        self.key = hashlib.sha256(self.tokenizer.to_str().encode()).hexdigest()

    def __call__(self, columns: Columns) -> dict[str, Array]:
        """int64 [rows, tokens]; ValueError for a row that is not text."""
        texts = list(columns[self.column])
        for text in texts:
            if not isinstance(text, str):
                raise ValueError(f"column '{self.column}' holds {_kind(text)}, not text")
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one thread a worker
        rows = self.tokenizer.encode_batch(texts)
        return {n: np.array([getattr(row, INPUTS[n]) for row in rows], np.int64) for n in self.names}

    def sizes(self, columns: Columns) -> Array:
        """Characters of every row: rows of like length are padded least."""
        return np.array([len(t) if isinstance(t, str) else 0 for t in columns[self.column]])

    def _id(self, token: str) -> int | None:
        found: int | None = self.tokenizer.token_to_id(token)
        return found


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
