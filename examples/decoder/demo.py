"""Compile a decoder to integers and generate text with an int8 state: perplexity, bits and speed beside fp32.

    python examples/decoder/demo.py                          # the committed character model
    python examples/decoder/demo.py --prompt "def main("
    python examples/decoder/demo.py --model gpt2.onnx        # any decoder of export.py: speed only

Exit status 1 if decoding step by step gives other bits than the whole text at once, or if perplexity is more
than 1 % above fp32's. No torch needed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import intc

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "accuracy"))
from stepping import (  # noqa: E402
    FLOATS,
    NARROW,
    OWN,
    Floats,
    Integers,
    Step,
    narrowed,
    random_ids,
    seconds_a_token,
)
from texts import CHARACTERS, perplexity, spread, windows  # noqa: E402

TRAINED = HERE / "llama_characters.onnx"
WINDOWS, STEP_BY_STEP = 256, 8  # of held-out text; of those, decoded one character at a time
CALIBRATION = 128


def generate(step: Step, prompt: str, count: int, temperature: float = 0.6) -> str:
    """`prompt` continued by `count` characters, drawn from the model's distribution with a fixed seed."""
    rng = np.random.default_rng(0)
    text = prompt
    ids = np.array([[CHARACTERS.index(c) for c in prompt]])
    for _ in range(count):
        logits = step(ids)[0, -1].astype(np.float64) / temperature
        weights = np.exp(logits - logits.max())
        ids = np.array([[rng.choice(len(weights), p=weights / weights.sum())]])
        text += CHARACTERS[ids[0, 0]]
    return text


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=TRAINED)
    parser.add_argument("--prompt", default="    def read(self, ")
    parser.add_argument("--characters", type=int, default=108, help="to generate (default 108)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--past", type=int, default=256, help="positions before the timed ones (default 256)")
    options = parser.parse_args()
    console = Console(highlight=False)
    trained = options.model == TRAINED
    floats = Floats(options.model, options.threads)
    with tempfile.TemporaryDirectory() as folder:
        artifact = Path(folder) / "decoder.intc"
        calibration = {"input_ids": _calibration(floats, trained)}
        rounding = "gptq" if trained else "nearest"
        intc.compile(options.model, calibration, rounding=rounding).save(artifact)
        integers = Integers(artifact, options.threads)
        good = _accuracy(console, floats, integers) if trained else True
        if trained:
            console.print(f"\n[bold]generated[/bold], from {options.prompt!r}:\n")
            console.print(generate(integers.start(), options.prompt, options.characters), markup=False)
        _speed(console, options, floats, integers, Path(folder))
    return 0 if good else 1


def _calibration(floats: Floats, trained: bool) -> NDArray[np.int64]:
    if trained:
        rows = windows(test=False)[:, :-1]
        return rows[spread(len(rows), CALIBRATION)]
    return random_ids(4, 64, vocabulary=1000, seed=0)


def _accuracy(console: Console, floats: Floats, integers: Integers) -> bool:
    rows = windows(test=True)
    rows = rows[spread(len(rows), WINDOWS)]
    ids, targets = rows[:, :-1], rows[:, 1:]
    whole = [engine.start(len(ids))(ids) for engine in (floats, integers)]
    ours = integers.start(STEP_BY_STEP)
    steps = [ours(ids[:STEP_BY_STEP, i : i + 1]) for i in range(ids.shape[1])]
    same = np.array_equal(np.concatenate(steps, axis=1), whole[1][:STEP_BY_STEP])
    found = [perplexity(logits, targets) for logits in whole]
    table = Table(title=f"perplexity of {targets.size} held-out characters")
    for heading in ("onnxruntime fp32", "intc integer", "difference", "step by step"):
        table.add_column(heading, justify="right")
    percent = found[1] / found[0] - 1
    table.add_row(
        f"{found[0]:.4f}", f"{found[1]:.4f}", f"{percent:+.2%}", "same bits" if same else "OTHER BITS"
    )
    console.print(table)
    return same and percent <= 0.01


def _speed(
    console: Console, options: argparse.Namespace, floats: Floats, integers: Integers, folder: Path
) -> None:
    narrow = Floats(narrowed(options.model, folder / "int8.onnx"), options.threads)
    engines = {OWN: integers, FLOATS: floats, NARROW: narrow}
    medians = seconds_a_token(engines, options.past, len(CHARACTERS))
    table = Table(title=f"decoding behind {options.past} positions, {options.threads} thread(s)")
    for heading in ("engine", "ms a token", "tokens a second", "intc is"):
        table.add_column(heading, justify="left" if heading == "engine" else "right")
    for name, value in medians.items():
        ratio = f"{value / medians[OWN]:.2f}x"
        table.add_row(name, f"{value * 1e3:.2f}", f"{1 / value:.0f}", "" if name == OWN else ratio)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
