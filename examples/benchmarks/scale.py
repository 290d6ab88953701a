"""Rows per second of a Ray job, and time per request of an endpoint: MiniLM on the library's docstrings.

    python examples/benchmarks/scale.py --folder examples/embed_docs/build

Takes the files that examples/embed_docs/demo.py makes. The peer is onnxruntime with its dynamic int8, in the
same Ray job. Both run by turns, and ratios are of neighbours in time; absolute figures are of this machine as
it was.
"""

from __future__ import annotations

import argparse
import http.client
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from intc.artifact.reader import open_artifact
from intc.integrations.batches import BATCH, BatchModel
from intc.integrations.decoders import Tokens
from intc.integrations.ray import RayModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "minilm"))
PORT = 18519
CALL = 256  # rows of one call of a worker


class Timed:
    """Adds to a worker's call when it began and ended; the results themselves are counted only."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        start = time.time()
        rows = len(next(iter(super().__call__(batch).values())))  # type: ignore[misc]
        return {"rows": np.array([rows]), "start": np.array([start]), "end": np.array([time.time()])}


class Ours(Timed, RayModel):
    """The artifact."""


class Onnxruntime(Timed, BatchModel):
    """The same rows in the same batches by onnxruntime, one thread."""

    def __init__(self, path: str, decode: Tokens) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.session: Any = type(
            "Session", (), {"run": lambda _, names, feeds, raw: session.run(names, feeds)}
        )()
        self.names, self.raw, self.batch, self.decode = ["embedding"], False, BATCH, decode


def rows_per_second(worker: type, model: Path, texts: list[str], decode: Tokens, workers: int) -> float:
    """Of one job, from the first call's start to the last one's end."""
    blocks = -(-len(texts) // CALL)
    results = ray.data.from_items([{"text": t} for t in texts], override_num_blocks=blocks).map_batches(
        worker,
        batch_size=CALL,
        fn_constructor_args=(str(model), decode),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    calls = results.to_pandas()
    return float(calls["rows"].sum() / (calls["end"].max() - calls["start"].min()))


def quantised(onnx: Path) -> Path:
    """The peer's model, made once."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = onnx.with_suffix(".int8.onnx")
    if not path.exists():
        quantize_dynamic(onnx, path, weight_type=QuantType.QInt8, per_channel=True)
    return path


def request_of(feeds: dict[str, Any]) -> bytes:
    """One sentence as a request of the Open Inference Protocol."""
    inputs = [
        {"name": n, "shape": list(a.shape), "datatype": "INT64", "data": a.ravel().tolist()}
        for n, a in feeds.items()
    ]
    return json.dumps({"inputs": inputs}).encode()


def endpoint_times(bodies: list[bytes], clients: int, seconds: float) -> tuple[float, float, float]:
    """Median and 99th percentile of the time per request in ms, and requests per second."""

    def client(first: int) -> list[float]:
        connection, times, at = http.client.HTTPConnection("127.0.0.1", PORT), [], first
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            connection.request("POST", "/v2/models/minilm/infer", bodies[at % len(bodies)])
            response = connection.getresponse()
            response.read()
            if response.status != 200:
                raise SystemExit(f"the endpoint answered {response.status}")
            times.append(time.perf_counter() - start)
            at += clients
        return times

    with ThreadPoolExecutor(clients) as pool:
        times = [t for part in pool.map(client, range(clients)) for t in part]
    return 1e3 * statistics.median(times), 1e3 * float(np.percentile(times, 99)), len(times) / seconds


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=HERE.parent / "embed_docs" / "build")
    parser.add_argument("--rounds", type=int, default=3, help="of every job, by turns")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of load on the endpoint, a number of clients"
    )
    options = parser.parse_args()
    onnx, artifact, table = (options.folder / n for n in ("minilm.onnx", "minilm.intc", "docs.parquet"))
    if not all(p.exists() for p in (onnx, artifact, table)):
        print(f"{options.folder}: run examples/embed_docs/demo.py first", file=sys.stderr)
        return 2
    from corpus import model_folder, tokenise
    from pyarrow import parquet

    texts = [t for t in parquet.read_table(table)["text"].to_pylist() if t]
    decode = Tokens(model_folder(), open_artifact(artifact).manifest, "text", 96)
    peer = quantised(onnx)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        print("| workers | intc, rows/s | onnxruntime int8, rows/s | intc is faster by, each round |")
        print("| --- | --- | --- | --- |")
        for workers in (1, 2):
            rounds = [
                [
                    rows_per_second(w, m, texts, decode, workers)
                    for w, m in ((Ours, artifact), (Onnxruntime, peer))
                ]
                for _ in range(options.rounds)
            ]
            ours, theirs = (statistics.median(column) for column in zip(*rounds, strict=True))
            ratios = ", ".join(f"{a / b:.2f}x" for a, b in rounds)
            print(f"| {workers} | {ours:.0f} | {theirs:.0f} | {ratios} |", flush=True)

        from ray import serve

        from intc.integrations.serve import endpoint

        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(endpoint(artifact, ongoing=128))
        feeds = tokenise(texts[:200])
        lengths = feeds["attention_mask"].sum(1)
        bodies = [request_of({n: a[i : i + 1, : lengths[i]] for n, a in feeds.items()}) for i in range(200)]
        print("\n| clients | ms a request, median | 99 % | requests/s |\n| --- | --- | --- | --- |")
        for clients in (1, 8, 64):
            endpoint_times(bodies, clients, 1.0)
            median, slow, rate = endpoint_times(bodies, clients, options.seconds)
            print(f"| {clients} | {median:.1f} | {slow:.1f} | {rate:.0f} |", flush=True)
        serve.shutdown()
    finally:
        ray.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
