"""Compile the trained digits transformer to integers, check every output bit, compare with the float model.

    python examples/digits/demo.py    # exit status 1 if a kernel differs from the exact reference

Needs scikit-learn for the images, no torch.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from data import load_split
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import intc

HERE = Path(__file__).parent
CALIBRATION_COUNT = 128
Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]


def float_model(path: Path) -> Run:
    """The ONNX model in onnxruntime, fp32, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda x: session.run(None, {"input": x})[0]


def integer_model(path: Path) -> Run:
    """The artifact, one thread."""
    session = intc.load(str(path), threads=1)
    return lambda x: session.run(None, {"input": x})[0]


def interleaved_medians(runs: list[Run], x: NDArray[np.float32], *, rounds: int, repeat: int) -> list[float]:
    """Median seconds of one call of each of `runs`; rounds alternate so that drift hits all alike."""
    samples: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run(x)
    for _ in range(rounds):
        for run, times in zip(runs, samples, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                run(x)
            times.append((time.perf_counter() - start) / repeat)
    return [statistics.median(times) for times in samples]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "digits_vit.onnx")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "digits_vit.intc")
    parser.add_argument("--target", default="native")
    parser.add_argument("--rounds", type=int, default=30, help="timing rounds")
    options = parser.parse_args()

    split = load_split()
    calibration = {"input": split.x_train[:CALIBRATION_COUNT]}
    module = intc.compile(str(options.model), calibration=calibration, target=options.target)
    module.save(str(options.output))
    runs = [float_model(options.model), integer_model(options.output)]
    logits = [run(split.x_test) for run in runs]
    equal = np.array_equal(logits[1], module.graph.evaluate({"input": split.x_test})[0])
    classes = [values.argmax(1) for values in logits]
    sizes = [path.stat().st_size / 1e3 for path in (options.model, options.output)]

    table = Table(title=f"digits ViT, {len(split.y_test)} held-out images, one thread each")
    for heading in ("measure", "onnxruntime fp32", "intc integer", "fp32 / integer"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    table.add_row("accuracy", *(f"{(found == split.y_test).mean():.2%}" for found in classes), "")
    table.add_row("same class as fp32", "", f"{(classes[0] == classes[1]).mean():.2%}", "")
    table.add_row("file size", *(f"{size:.0f} kB" for size in sizes), f"{sizes[0] / sizes[1]:.2f}")
    for batch, repeat in ((1, 20), (32, 2)):
        medians = interleaved_medians(runs, split.x_test[:batch], rounds=options.rounds, repeat=repeat)
        cells = (f"{seconds * 1e6:.0f} us" for seconds in medians)
        table.add_row(f"median time, batch {batch}", *cells, f"{medians[0] / medians[1]:.2f}")
    table.add_row("kernels == exact reference", "", "yes, every bit" if equal else "NO", "")
    Console().print(table)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
