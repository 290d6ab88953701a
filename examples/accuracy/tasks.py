"""The models that are compared, their data and how their outputs are scored."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import outliers
import texts
from engines import Array, Feeds

HERE = Path(__file__).parent
EXAMPLES = HERE.parent
HELD_OUT = 128  # the error of 16 texts differs by 5 dB from that of 16 others
Score = Callable[[Array, Array], dict[str, float | None]]


@dataclass(frozen=True)
class Task:
    """``score(found, reference)`` compares first outputs on all of ``inputs``; reference is fp32's."""

    model: Path
    calibration: Feeds
    inputs: Feeds
    score: Score


def minilm(cache: Path) -> Task:
    """Real weights: sentence embeddings of 256 docstrings against fp32's."""
    _path("minilm")
    from corpus import pool, split, tokenise
    from demo import accuracy

    model = cache / "minilm.onnx"
    if not model.exists():
        from export import export

        export(model)
    parts = split()
    calibration, inputs = (tokenise([e.text for e in part]) for part in (parts.calibration, parts.evaluation))

    def score(found: Array, reference: Array) -> dict[str, float | None]:
        mask = inputs["attention_mask"]
        return {**accuracy(pool(reference, mask), pool(found, mask))}

    return Task(model, calibration, inputs, score)


def digits(cache: Path) -> Task:
    _path("digits")
    from data import load_split

    split = load_split()
    model = EXAMPLES / "digits" / "digits_vit.onnx"
    return Task(model, {"input": split.x_train[:128]}, {"input": split.x_test}, _accuracy(split.y_test))


def classifier(seed: int) -> Callable[[Path], Task]:
    """Which of eight packages three lines come from: all held-out snippets. Seeds from 1 on are trained."""

    def task(cache: Path) -> Task:
        model = cache / f"classifier-{seed}.onnx" if seed else HERE / "classifier.onnx"
        if not model.exists():
            from train_classifier import export, train

            export(train(texts.snippets(test=False), seed=seed), model)
        data, test = texts.snippets(test=False), texts.snippets(test=True)
        pick = texts.spread(len(data.labels), 128)
        calibration = {name: array[pick] for name, array in data.feeds.items()}
        return Task(model, calibration, test.feeds, _accuracy(test.labels))

    return task


def characters(cache: Path) -> Task:
    """The next character of 512 held-out windows of 128."""
    train, test = texts.windows(test=False), texts.windows(test=True)
    test = test[texts.spread(len(test), 512)]
    calibration = {"input_ids": train[texts.spread(len(train), 128)][:, :-1]}

    def score(found: Array, reference: Array) -> dict[str, float | None]:
        return {"perplexity": texts.perplexity(found, test[:, 1:])}

    return Task(HERE / "characters.onnx", calibration, {"input_ids": test[:, :-1]}, score)


def random_weights(name: str, injected: bool) -> Callable[[Path], Task]:
    """Architecture ``name`` of examples/models.py: SQNR of the logits, with or without outlier channels."""

    def task(cache: Path) -> Task:
        sys.path.insert(0, str(EXAMPLES))
        from models import export, sample_feeds

        model = cache / f"{name}.onnx"
        if not model.exists():
            export(name, model)
        if injected:
            proto = onnx.load(model)
            if not outliers.inject(proto):
                raise ValueError(f"{name}: no norm takes outliers")
            model = cache / f"{name}-outliers.onnx"
            onnx.save(proto, model)
        calibration, inputs = (
            sample_feeds(name, count, sequence=128, seed=seed) for seed, count in ((1, 32), (2, HELD_OUT))
        )
        return Task(model, calibration, inputs, _sqnr)

    return task


TASKS: dict[str, Callable[[Path], Task]] = {
    "digits": digits,
    "classifier": classifier(0),
    "characters": characters,
    "minilm": minilm,
    "deit-tiny": random_weights("deit-tiny", False),
    "deit-tiny-outliers": random_weights("deit-tiny", True),
    "deit-small": random_weights("deit-small", False),
    "deit-small-outliers": random_weights("deit-small", True),
    "bert-base": random_weights("bert-base", False),
    "bert-base-outliers": random_weights("bert-base", True),
    **{f"classifier-{seed}": classifier(seed) for seed in range(1, 8)},
}
DEFAULT = tuple(name for name in TASKS if not name.startswith(("deit-tiny", "classifier-")))


def _path(example: str) -> None:
    sys.path.insert(0, str(EXAMPLES / example))


def _accuracy(labels: Array) -> Score:
    def score(found: Array, reference: Array) -> dict[str, float | None]:
        classes = found.argmax(-1)
        same = classes == reference.argmax(-1)
        return {"accuracy": float((classes == labels).mean()), "same class as fp32": float(same.mean())}

    return score


def _sqnr(found: Array, reference: Array) -> dict[str, float | None]:
    """10 log10 of signal over noise; None where nothing differs."""
    noise = float(((found.astype(np.float64) - reference) ** 2).sum())
    signal = float((reference.astype(np.float64) ** 2).sum())
    return {"SQNR of logits, dB": float(10 * np.log10(signal / noise)) if noise else None}
