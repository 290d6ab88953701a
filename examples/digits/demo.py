"""Compile the trained digits ViT to integers, check every output bit and set it beside the float model.

    python examples/digits/demo.py             # exit status 1 if a kernel differs from the exact reference

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
CALIBRATION_COUNT = 256
REPEATS = 200


def accuracy(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Share of the rows of `logits` [N, classes] whose largest entry is the label."""
    return float((logits.argmax(1) == labels).mean())


def median_ms(call: Callable[[], object]) -> float:
    """Median milliseconds of one call over `REPEATS` calls, after a tenth as many to warm up."""
    for _ in range(REPEATS // 10):
        call()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "digits_vit.onnx")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "digits_vit.intc")
    parser.add_argument("--target", default="native")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    split = load_split()

    start = time.perf_counter()
    calibration = {"input": split.x_train[:CALIBRATION_COUNT]}
    module = intc.compile(str(options.model), calibration=calibration, target=options.target)
    seconds = time.perf_counter() - start
    module.save(str(options.output))

    session = intc.load(str(options.output), threads=options.threads)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = options.threads
    reference = onnxruntime.InferenceSession(str(options.model), settings, providers=["CPUExecutionProvider"])
    feeds, one = {"input": split.x_test}, {"input": split.x_test[:1]}
    (floating,) = reference.run(None, feeds)
    (compiled,) = session.run(None, feeds)
    (exact,) = module.graph.evaluate(feeds)
    equal = np.array_equal(compiled, exact)
    agreement = float((compiled.argmax(1) == floating.argmax(1)).mean())

    table = Table(title=f"digits ViT, {len(split.x_test)} test images, compiled in {seconds:.1f} s")
    table.add_column("measure")
    table.add_column("fp32, ONNX Runtime", justify="right")
    table.add_column("integers, intc", justify="right")
    table.add_row("accuracy", *(f"{accuracy(x, split.y_test):.2%}" for x in (floating, compiled)))
    table.add_row("same class as fp32", "", f"{agreement:.2%}")
    table.add_row("file size", *(f"{p.stat().st_size / 1e3:.0f} kB" for p in (options.model, options.output)))
    latencies = [median_ms(lambda run=run: run(None, one)) for run in (reference.run, session.run)]
    table.add_row(f"latency, batch 1, {options.threads} thread(s)", *(f"{ms:.3f} ms" for ms in latencies))
    table.add_row("kernels == exact reference", "", "yes, every bit" if equal else "NO")
    Console().print(table)
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
