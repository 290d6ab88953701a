"""Compile the trained segmenter to integers from one calibration image, and compare its maps with fp32's.

    python examples/segmentation/demo.py    # exit status 1 if a kernel differs from the exact reference

Pixel agreement is the share of pixels that get the same class as from onnxruntime in fp32. No torch needed.
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
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from scenes import CLASSES, scenes

import intc

HERE = Path(__file__).parent
COLOURS = ("grey19", "dodger_blue2", "orange1", "green3", "magenta2")
Maps = NDArray[np.int64]


def right(found: Maps, labels: Maps) -> tuple[float, float]:
    """The share of pixels with the right class, and the mean over classes of intersection over union."""
    unions = [((found == k) | (labels == k)).sum() for k in range(len(CLASSES))]
    common = [((found == k) & (labels == k)).sum() for k in range(len(CLASSES))]
    return float((found == labels).mean()), float(np.mean(np.divide(common, unions)))


def picture(maps: list[Maps]) -> Text:
    """Class maps side by side, two rows of every third pixel in a line of half blocks."""
    text = Text()
    small = np.concatenate(
        [np.pad(m[2:62:3, ::3], ((0, 0), (0, 2)), constant_values=-1) for m in maps], axis=1
    )
    for top, bottom in zip(small[::2], small[1::2], strict=True):
        for a, b in zip(top, bottom, strict=True):
            text.append(" " if a < 0 else "▀", "" if a < 0 else f"{COLOURS[a]} on {COLOURS[b]}")
        text.append("\n")
    return text


def median_ms(run: Callable[[], object], rounds: int = 50) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=Path, default=HERE / "segmenter.onnx")
    parser.add_argument("--images", type=int, default=128, help="held-out scenes (default 128)")
    options = parser.parse_args()
    console = Console(highlight=False)
    images, labels = scenes(options.images, seed=2)
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    floats = onnxruntime.InferenceSession(str(options.model), settings, providers=["CPUExecutionProvider"])
    wanted = floats.run(None, {"image": images})[0]
    exact, maps = True, {}
    table = Table(title=f"segmenter, {len(images)} held-out scenes of 64x64 pixels")
    for heading in ("", "same class as fp32", "right class", "mean IoU"):
        table.add_column(heading, justify="left" if not heading else "right")
    table.add_row("onnxruntime fp32", "", *(f"{value:.2%}" for value in right(wanted, labels)))
    for count in (1, 64):
        calibration = {"image": scenes(count, seed=3)[0]}
        module = intc.compile(options.model, calibration)
        found = module.run(None, {"image": images})[0]
        exact &= np.array_equal(found[:16], module.graph.evaluate({"image": images[:16]})[0])
        maps[count] = found
        name = f"intc, calibrated on {count} image{'s' * (count > 1)}"
        shares = (float((found == wanted).mean()), *right(found, labels))
        table.add_row(name, *(f"{value:.2%}" for value in shares))
    console.print(table)
    if console.is_terminal:
        console.print("labels, fp32, integer:")
        console.print(picture([labels[3], wanted[3], maps[1][3]]))
    one = {"image": images[:1]}
    session = module.session()
    ours, theirs = median_ms(lambda: session.run(None, one)), median_ms(lambda: floats.run(None, one))
    console.print(
        f"one image, one thread: {ours:.2f} ms, onnxruntime fp32 {theirs:.2f} ms ({theirs / ours:.2f}x)"
    )
    console.print("kernels equal the exact reference" if exact else "[red]KERNELS DIFFER[/red]")
    return 0 if exact else 1


if __name__ == "__main__":
    sys.exit(main())
