"""What each part of the quantiser is worth on MiniLM-L6: one row per setting, distance from fp32 embeddings.

python examples/minilm/ablation.py --model minilm.onnx
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from corpus import split, tokenise
from demo import HERE, accuracy, encode, float_encoder
from rich.console import Console
from rich.table import Table

import intc

SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"rounding": "nearest"},
    {"calibrator": "minmax"},
    {"calibrator": "percentile"},
    {"calibrator": "entropy"},
    {"calibrator": "minmax", "rounding": "nearest"},
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "minilm.onnx")
    options = parser.parse_args()
    parts = split()
    calibration = tokenise([entry.text for entry in parts.calibration])
    texts = [entry.text for entry in parts.evaluation]
    reference = encode(float_encoder(options.model, 1), texts)
    table = Table("setting", "mean cosine", "smallest", "Spearman", "same neighbour", "compile")
    for setting in SETTINGS:
        start = time.perf_counter()
        module = intc.compile(str(options.model), calibration=calibration, **setting)
        seconds = time.perf_counter() - start
        session = module.session()
        found = encode(lambda feeds, session=session: session.run(None, feeds)[0], texts)  # type: ignore[misc]
        name = ", ".join(f"{key}={value}" for key, value in setting.items()) or "default"
        table.add_row(name, *(f"{v:.5f}" for v in accuracy(reference, found).values()), f"{seconds:.0f} s")
    Console().print(table)


if __name__ == "__main__":
    main()
