"""Semantic search over standard-library docstrings with an integer-only MiniLM, and its distance from fp32.

python examples/minilm/demo.py             # exports minilm.onnx first if it is missing (needs torch)
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
from corpus import Entry, pool, split, tokenise
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import intc

HERE = Path(__file__).parent
BATCH = 16
QUERIES = (
    "download a file from a web server",
    "run another program and read what it prints",
    "pick a random element from a list",
)
Feeds = dict[str, NDArray[np.int64]]
Encoder = Callable[[Feeds], NDArray[np.float32]]


def encode(run: Encoder, texts: list[str]) -> NDArray[np.float32]:
    """Unit sentence embeddings [len(texts), 384], in batches of `BATCH`; pooled on the host."""
    feeds = tokenise(texts)
    pieces = []
    for start in range(0, len(texts), BATCH):
        piece = {name: values[start : start + BATCH] for name, values in feeds.items()}
        pieces.append(pool(run(piece), piece["attention_mask"]))
    return np.concatenate(pieces)


def float_encoder(path: Path, threads: int) -> Encoder:
    """The ONNX model in onnxruntime, fp32."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda feeds: session.run(None, feeds)[0]


def integer_encoder(path: Path, threads: int) -> Encoder:
    """The artifact."""
    session = intc.load(str(path), threads=threads)
    return lambda feeds: session.run(None, feeds)[0]


def accuracy(reference: NDArray[np.float32], found: NDArray[np.float32]) -> dict[str, float]:
    """How near the embeddings `found` [N, D] are to `reference` [N, D], both unit rows.

    `spearman` ranks the N(N-1)/2 pair similarities; `same nearest neighbour` is a share of the N rows.
    """
    cosines = (reference * found).sum(1)
    upper = np.triu_indices(len(reference), 1)
    similar = [rows @ rows.T for rows in (reference, found)]
    ranks = [table[upper].argsort().argsort().astype(np.float64) for table in similar]
    for table in similar:
        np.fill_diagonal(table, -2.0)
    return {
        "mean cosine": float(cosines.mean()),
        "smallest cosine": float(cosines.min()),
        "Spearman of pair similarities": float(np.corrcoef(ranks[0], ranks[1])[0, 1]),
        "same nearest neighbour": float((similar[0].argmax(1) == similar[1].argmax(1)).mean()),
    }


def show_search(console: Console, run: Encoder, library: list[Entry]) -> None:
    """Print the three best entries of `library` for each of `QUERIES`."""
    index = encode(run, [entry.text for entry in library])
    scores = encode(run, list(QUERIES)) @ index.T
    for query, row in zip(QUERIES, scores, strict=True):
        table = Table(title=f"“{query}”", title_justify="left")
        table.add_column("score", no_wrap=True)
        table.add_column("object", overflow="fold", min_width=24)
        table.add_column("docstring")
        for best in (-row).argsort()[:3]:
            table.add_row(f"{row[best]:.3f}", library[best].name, library[best].text)
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=HERE / "minilm.onnx")
    parser.add_argument("-o", "--output", type=Path, default=HERE / "minilm.intc")
    parser.add_argument("--target", default="native")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--library", type=int, default=400, help="docstrings to search")
    options = parser.parse_args()
    console = Console()
    if not options.model.exists():
        from export import export

        console.print(f"exporting {options.model}")
        export(options.model)

    parts = split()
    calibration = tokenise([entry.text for entry in parts.calibration])
    module = intc.compile(str(options.model), calibration=calibration, target=options.target)
    module.save(str(options.output))
    runs = [float_encoder(options.model, options.threads), integer_encoder(options.output, options.threads)]
    show_search(console, runs[1], parts.rest[: options.library])

    texts = [entry.text for entry in parts.evaluation]
    embeddings, seconds = [], []
    for run in runs:
        start = time.perf_counter()
        embeddings.append(encode(run, texts))
        seconds.append(time.perf_counter() - start)
    table = Table(title=f"integer against fp32 embeddings, {len(texts)} sentences not calibrated on")
    table.add_column("measure")
    table.add_column("value", justify="right")
    for name, value in accuracy(*embeddings).items():
        table.add_row(name, f"{value:.5f}")
    table.add_row("file size, fp32 / integer", " / ".join(
        f"{path.stat().st_size / 1e6:.1f} MB" for path in (options.model, options.output)))  # fmt: skip
    table.add_row("time for all, fp32 / integer", " / ".join(f"{value:.1f} s" for value in seconds))
    console.print(table)


if __name__ == "__main__":
    main()
