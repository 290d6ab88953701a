"""The standard library's docstrings as int8 embeddings in Parquet, and semantic search over them.

python examples/embed_docs/demo.py "read a file line by line"     # makes what is missing first (needs torch)

MiniLM with its pooling is compiled to integers; `intc map` embeds every docstring; faiss finds neighbours.
Needs the extras [examples] and [ray], and faiss-cpu.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "minilm"))
from corpus import entries, model_folder, split, tokenise  # noqa: E402
from export import export  # noqa: E402

import intc  # noqa: E402
from intc.cli import main as intc_main  # noqa: E402

QUERIES = (
    "download a file from a web server",
    "run another program and read what it prints",
    "pick a random element from a list",
)
NEIGHBOURS = 10


def prepare(onnx: Path, artifact: Path, rows: Path) -> None:
    """The three files that are made once."""
    if not onnx.exists():
        export(onnx, pooled=True)
    if not artifact.exists():
        calibration = tokenise([entry.text for entry in split().calibration])
        intc.compile(onnx, calibration).save(artifact)
    if not rows.exists():
        import pyarrow
        from pyarrow import parquet

        found = entries()
        columns = {"name": [e.name for e in found], "text": [e.text for e in found]}
        parquet.write_table(pyarrow.table(columns), rows)


def embedded(folder: Path) -> tuple[list[str], list[str], NDArray[np.int8]]:
    """Names, texts and int8 embeddings [rows, 384] of all rows: the high bytes of the int16, rounded."""
    from pyarrow import parquet

    table = parquet.read_table(folder)
    integers = table["embedding"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return table["name"].to_pylist(), table["text"].to_pylist(), high_bytes(integers)


def high_bytes(integers: NDArray[np.int16]) -> NDArray[np.int8]:
    """int16 in steps of 256 as int8, halves upwards; no floating point."""
    return np.asarray(np.minimum((integers.astype(np.int32) + 128) >> 8, 127), np.int8)


def neighbours(library: NDArray[np.float32], queries: NDArray[np.float32]) -> NDArray[np.int64]:
    """The NEIGHBOURS rows of `library` with the largest cosine to each query, in fp32, exactly."""
    import faiss

    index = faiss.IndexFlatIP(library.shape[1])
    index.add(library)
    return np.asarray(index.search(queries, NEIGHBOURS)[1])


class Int8Index:
    """faiss over int8 codes, one byte a component: 384 bytes a row, where fp32 takes 1536."""

    def __init__(self, library: NDArray[np.int8]) -> None:
        import faiss

        kind = faiss.ScalarQuantizer.QT_8bit_direct_signed
        self.index = faiss.IndexScalarQuantizer(library.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
        self.index.add(library.astype(np.float32))

    def search(self, queries: NDArray[np.int8]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Inner products and rows of the NEIGHBOURS best."""
        return self.index.search(queries.astype(np.float32), NEIGHBOURS)  # type: ignore[no-any-return]


def float_embeddings(onnx: Path, texts: list[str]) -> NDArray[np.float32]:
    """The fp32 model's, by onnxruntime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(onnx), options)
    feeds = tokenise(texts)
    parts = []
    for start in range(0, len(texts), 32):
        length = int(feeds["attention_mask"][start : start + 32].sum(1).max())
        parts.append(session.run(None, {n: a[start : start + 32, :length] for n, a in feeds.items()})[0])
    return np.concatenate(parts)


def recall(expected: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """The share of the expected neighbours that were found."""
    pairs = zip(expected, found, strict=True)
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in pairs]))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("query", nargs="*", default=QUERIES)
    parser.add_argument("--folder", type=Path, default=HERE / "build", help="where the files are kept")
    parser.add_argument("--engine", default="auto", choices=("auto", "ray", "local"))
    options = parser.parse_args()
    options.folder.mkdir(exist_ok=True)
    onnx, artifact, rows = (options.folder / n for n in ("minilm.onnx", "minilm.intc", "docs.parquet"))
    prepare(onnx, artifact, rows)
    out = options.folder / "embeddings.parquet"
    command = ["map", artifact, "--input", rows, "--output", out, "--tokenizer", model_folder(), "--raw"]
    command += ["--keep", "name", "--keep", "text", "--block-rows", 512, "--length", 96]
    if status := intc_main([*map(str, command), "--engine", options.engine]):
        return status
    names, texts, library = embedded(out)

    session = intc.load(artifact)
    index = Int8Index(library)
    console = Console()
    for query in options.query:
        (integers,) = session.run(None, tokenise([query]), raw=True)
        (scores,), (best,) = index.search(high_bytes(integers))
        table = Table(title=f"“{query}”", title_justify="left")
        for column in ("score", "object", "docstring"):
            table.add_column(column)
        scale = (256 * session.get_outputs()[0].scale) ** 2  # type: ignore[operator]
        for score, row in list(zip(scores, best, strict=True))[:3]:
            table.add_row(f"{score * scale:.3f}", names[row], texts[row])
        console.print(table)

    reference = float_embeddings(onnx, texts)
    sample = np.random.default_rng(0).choice(len(texts), 300, replace=False)
    exact = neighbours(reference, reference[sample])
    _, found = index.search(library[sample])
    console.print(
        f"recall of the {NEIGHBOURS} nearest, int8 against fp32, for 300 of {len(texts):,} docstrings: "
        f"{recall(exact, found):.3f}; bytes a row: {library.shape[1]} against {4 * library.shape[1]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
