"""Texts of the standard library's own sources, split by the hash of each text.

A text that a training run saw is held out on no installation, whatever its Python version, because the hash
of the text alone decides. No corpus is stored: `sysconfig` says where the sources are.
"""

from __future__ import annotations

import re
import sysconfig
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

PACKAGES = ("asyncio", "email", "http", "importlib", "logging", "multiprocessing", "unittest", "xml")
MODULES = (
    "argparse", "ast", "bdb", "calendar", "codecs", "collections/__init__", "configparser", "contextlib",
    "csv", "datetime", "difflib", "dis", "doctest", "enum", "fractions", "ftplib", "functools", "gettext",
    "gzip", "heapq", "inspect", "ipaddress", "json/decoder", "json/encoder", "locale", "mailbox", "mimetypes",
    "ntpath", "optparse", "os", "pathlib", "pdb", "pickle", "platform", "plistlib", "posixpath", "pprint",
    "random", "sched", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver", "ssl",
    "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap", "threading", "timeit",
    "tokenize", "traceback", "types", "typing", "uuid", "warnings", "wave", "weakref", "zipfile",
)  # fmt: skip

PAD, CLS, BUCKETS, TOKENS = 0, 1, 1024, 48
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
CONTEXT = 128
_PIECE = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[0-9]+|[^\sA-Za-z0-9_]")


class Snippets(NamedTuple):
    """Token rows: `ids`, `mask` int64 [N, TOKENS]; `labels` int64 [N] index `PACKAGES`."""

    ids: NDArray[np.int64]
    mask: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def feeds(self) -> dict[str, NDArray[np.int64]]:
        return {"input_ids": self.ids, "attention_mask": self.mask}


def held_out(text: str) -> bool:
    """One text in eight, by its own CRC-32."""
    return zlib.crc32(text.encode()) % 8 == 0


def tokenise(text: str) -> list[int]:
    """The class token and at most TOKENS - 1 word pieces and signs: CRC-32 buckets of their lower case."""
    pieces = _PIECE.findall(text)[: TOKENS - 1]
    return [CLS, *(2 + zlib.crc32(piece.lower().encode()) % (BUCKETS - 2) for piece in pieces)]


def snippets(test: bool) -> Snippets:
    """Three-line pieces of the packages' sources with the package as label, in source order.

    A text that occurs in two packages is left out, and one that occurs twice is kept once.
    """
    owners: dict[str, set[int]] = {}
    for label, package in enumerate(PACKAGES):
        for text in _pieces(package):
            owners.setdefault(text, set()).add(label)
    chosen = [(text, *labels) for text, labels in owners.items() if len(labels) == 1]
    chosen = [(text, label) for text, label in chosen if held_out(text) == test]
    ids = np.full((len(chosen), TOKENS), PAD, np.int64)
    for row, (text, _) in zip(ids, chosen, strict=True):
        tokens = tokenise(text)
        row[: len(tokens)] = tokens
    return Snippets(ids, (ids != PAD).astype(np.int64), np.array([label for _, label in chosen], np.int64))


def windows(test: bool, stride: int = CONTEXT) -> NDArray[np.int64]:
    """Character windows int64 [N, CONTEXT + 1] at `stride` of the train or held-out stream.

    The stream is the paragraphs (blocks between blank lines) of one side, in source order; what is not in
    `CHARACTERS` is left out. Row[:-1] is a model input, row[1:] what it should predict.
    """
    blocks: dict[str, None] = {}
    for module in MODULES:
        for block in re.split(r"\n\s*\n", _read(_root() / f"{module}.py")):
            if len(block) >= 40 and held_out(block) == test:
                blocks[block] = None
    code = {character: index for index, character in enumerate(CHARACTERS)}
    stream = np.array([code[c] for c in "\n\n".join(blocks) if c in code], np.int64)
    starts = np.arange(0, len(stream) - CONTEXT, stride)
    return stream[starts[:, None] + np.arange(CONTEXT + 1)]


def perplexity(logits: NDArray[np.float32], targets: NDArray[np.int64]) -> float:
    """exp of the mean cross-entropy of `logits` [N, S, V] at `targets` [N, S]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    picked = np.take_along_axis(wide, targets[..., None], -1)[..., 0]
    return float(np.exp((np.log(np.exp(wide).sum(-1)) - picked).mean()))


def spread(count: int, wanted: int) -> NDArray[np.int64]:
    """`wanted` indices spread evenly over range(count), all of them where there are fewer."""
    return np.linspace(0, count - 1, min(wanted, count)).astype(np.int64)


def _root() -> Path:
    return Path(sysconfig.get_paths()["stdlib"])


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _pieces(package: str) -> Iterator[str]:
    for path in sorted((_root() / package).rglob("*.py")):
        if "test" in path.parts:  # some installations leave these out
            continue
        lines = [line.strip() for line in _read(path).splitlines()]
        lines = [line for line in lines if len(line) >= 8]
        for start in range(0, len(lines) - 2, 3):
            yield "\n".join(lines[start : start + 3])
