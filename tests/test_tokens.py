"""A column of text as ids, masks and types, by a tokeniser of a few words."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from intc.artifact.schema import Port
from intc.errors import UsageError
from intc.integrations.decoders import Inputs, Tokens

tokenizers = pytest.importorskip("tokenizers", reason="text needs the extra [ray]: pip install -e '.[ray]'")
WORDS = {"[PAD]": 0, "[UNK]": 1, "one": 2, "two": 3, "three": 4}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(WORDS, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def manifest(*names: str, size: int | str = "sequence", most: int = 40) -> Any:
    ports = tuple(Port(n, ("batch", size), "int64", None, 0, 100) for n in names)
    return SimpleNamespace(inputs=ports, limits=(("sequence", most),))


def column(*texts: object) -> dict[str, np.ndarray]:
    return {"text": np.array(texts, object)}


def test_texts_are_padded_to_the_longest(folder: Path) -> None:
    tokens = Tokens(folder, manifest("input_ids", "attention_mask"), "text")
    feeds = tokens(column("two", "one three four"))
    assert feeds["input_ids"].tolist() == [[3, 0, 0], [2, 4, 1]]
    assert feeds["attention_mask"].sum(axis=1).tolist() == [1, 3]
    assert tokens(column("one " * 100))["input_ids"].shape == (1, 40)
    prepared = tokens.prepare(column("two one", None, ""))
    assert prepared.sizes.tolist() == [2, 0, 0] and prepared.pads
    some = {"text": prepared.columns["text"][:1]}
    assert tokens(some)["input_ids"].tolist() == tokens(column("two one"))["input_ids"].tolist() == [[3, 2]]
    with pytest.raises(ValueError, match="column 'text' holds nothing, not text"):
        tokens(column("one", None))


def test_padding_is_the_tokenisers_own(folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding(direction="left", pad_id=1, pad_type_id=2, pad_token="[UNK]")
    tokenizer.save(str(folder / "tokenizer.json"))
    names = ("input_ids", "attention_mask", "token_type_ids")
    feeds = Tokens(folder, manifest(*names), "text")(column("two", "one three four"))
    assert [feeds[n].tolist()[0] for n in names] == [[1, 1, 3], [0, 0, 1], [2, 2, 0]]


def test_without_a_mask_rows_of_one_length_run_together(folder: Path) -> None:
    tokens = Tokens(folder, manifest("input_ids"), "text")
    assert not tokens.prepare(column("one", "two one")).pads
    with pytest.raises(ValueError, match="takes no mask, and rows have 1 to 2 tokens"):
        tokens(column("one", "two one"))


def test_lists_of_equal_lengths_run_together() -> None:
    rows = np.empty(4, object)
    rows[:] = [[1, 2], [3], [4, 5], None]
    prepared = Inputs(manifest("ids", "kind")).prepare({"ids": rows, "kind": np.arange(4)})
    sizes = prepared.sizes.tolist()
    assert sizes[0] == sizes[2] != sizes[1] and not prepared.pads
    assert Inputs(manifest("kind")).prepare({"kind": np.arange(4)}).sizes.tolist() == [0, 0, 0, 0]


def test_lengths(folder: Path) -> None:
    assert Tokens(folder, manifest("input_ids"), "text", 3)(column("one " * 9))["input_ids"].shape == (1, 3)
    fixed = Tokens(folder, manifest("input_ids", size=12), "text")
    assert fixed(column("one"))["input_ids"].shape == (1, 12)
    assert fixed.key != Tokens(folder, manifest("input_ids"), "text").key
    with pytest.raises(UsageError, match="length 41 is more than the 40 tokens"):
        Tokens(folder, manifest("input_ids"), "text", 41)


def test_what_is_no_tokeniser_or_no_encoder(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="input 'pixels' is none that a tokeniser gives"):
        Tokens(folder, manifest("pixels"), "text")
    with pytest.raises(UsageError, match=r"tokenizer\.json: no such file"):
        Tokens(tmp_path / "nowhere", manifest("input_ids"), "text")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UsageError, match=r"tokenizer\.json: not a tokeniser"):
        Tokens(tmp_path, manifest("input_ids"), "text")
