"""Rows per second of a Ray job, where a worker's time goes, and time per request of an endpoint: MiniLM.

    python examples/benchmarks/scale.py --folder examples/embed_docs/build

Takes the files that examples/embed_docs/demo.py makes, and prints the tables of docs/scale.md. The peer is
onnxruntime with its dynamic int8, in the same Ray job, on the same groups of rows. Both run by turns, and
ratios are of neighbours in time: of rows per second, and of rows per second of CPU time, which other programs
on the machine hardly change.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import ray
import ray.data

from intc.artifact.reader import open_artifact
from intc.integrations import blocks, job
from intc.integrations.batches import BATCH, BatchModel
from intc.integrations.decoders import Prepared, Tokens
from intc.integrations.ray import RayModel

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "minilm"))
PORT = 18519
CALL = 1024  # rows of one call of a worker
PASSES = 2  # over the corpus, in a job
MACHINE = 32  # cores, in the table of costs


class Timed:
    """Adds to a worker's call when it began and ended, and its CPU time; the results are counted only."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        start, cpu = time.time(), time.process_time()
        rows = len(next(iter(super().__call__(batch).values())))  # type: ignore[misc]
        times = {"start": start, "end": time.time(), "cpu": time.process_time() - cpu}
        return {"rows": np.array([rows]), **{name: np.array([value]) for name, value in times.items()}}


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


class Rates(NamedTuple):
    """Of one job: rows per second, rows per second of CPU time, and the share of time that workers wait."""

    wall: float
    cpu: float
    waiting: float


def rates(worker: type, model: Path, texts: list[str], decode: Tokens, workers: int) -> Rates:
    """From the first call's start to the last one's end."""
    count = -(-len(texts) // CALL)
    results = ray.data.from_items([{"text": t} for t in texts], override_num_blocks=count).map_batches(
        worker,
        batch_size=CALL,
        fn_constructor_args=(str(model), decode),
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
    )
    calls = results.to_pandas()
    rows, span = calls["rows"].sum(), calls["end"].max() - calls["start"].min()
    busy = (calls["end"] - calls["start"]).sum()
    return Rates(float(rows / span), float(rows / calls["cpu"].sum()), float(1 - busy / (span * workers)))


class Clock:
    """CPU seconds of this thread inside the calls that it wraps, by name."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **options: Any) -> Any:
            start = time.thread_time()
            try:
                return call(*args, **options)
            finally:
                self.seconds[name] += time.thread_time() - start

        return timed


class TimedTokens:
    """A tokeniser whose two steps are timed apart."""

    def __init__(self, decode: Tokens, clock: Clock) -> None:
        self.prepare: Callable[..., Prepared] = clock.wrap("tokenise", decode.prepare)
        self.pad = clock.wrap("pad the rows of a batch", decode)

    def __call__(self, columns: Any) -> Any:
        return self.pad(columns)


def shares(artifact: Path, table: Path, decode: Tokens) -> dict[str, float]:
    """CPU seconds by step of a worker of `intc map`, over the whole table."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        task = job.Job(artifact, (table,), Path(folder), ("text",), TimedTokens(decode, clock), raw=True)
        worker = job.Worker(task)
        worker.model.session.run = clock.wrap("the model", worker.model.session.run)  # type: ignore[method-assign]
        worker.read, worker.write = (  # type: ignore[method-assign]
            clock.wrap("read Parquet", worker.read),
            clock.wrap("write Parquet", worker.write),
        )
        whole = clock.wrap("all", worker)
        for block in blocks.cut((table,), ("text",)):
            whole(block)
    total = clock.seconds.pop("all")
    return dict(clock.seconds) | {"everything else": total - sum(clock.seconds.values())}


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


class Served(NamedTuple):
    """Milliseconds a request (median, 99th percentile), requests per second, CPU ms a request by process."""

    median: float
    slow: float
    rate: float
    cpu: dict[str, float]


def processes() -> dict[str, float]:
    """CPU seconds so far of Serve's proxy, of the replica, and of this program, which is the clients."""
    found = {"clients": sum(psutil.Process().cpu_times()[:2])}
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline())
        for name, part in (("proxy", "ProxyActor"), ("replica", "ServeReplica")):
            if part in title:
                found[name] = sum(process.cpu_times()[:2])
    return found


def endpoint_times(bodies: list[bytes], clients: int, seconds: float) -> Served:
    """Of ``clients`` that each send one request after the other."""

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

    before = processes()
    with ThreadPoolExecutor(clients) as pool:
        times = [t for part in pool.map(client, range(clients)) for t in part]
    cpu = {name: 1e3 * (value - before[name]) / len(times) for name, value in processes().items()}
    slow = 1e3 * float(np.percentile(times, 99))
    return Served(1e3 * statistics.median(times), slow, len(times) / seconds, cpu)


def row(*cells: object) -> None:
    print("|", *(f"{cell} |" for cell in cells), flush=True)


def heading(*cells: str) -> None:
    print()
    row(*cells)
    row(*["---"] * len(cells))


def jobs(artifact: Path, peer: Path, texts: list[str], decode: Tokens, rounds: int) -> tuple[float, float]:
    """The table of jobs; rows per second of CPU time of a worker, and by how much intc is faster by that."""
    heading(
        "workers",
        "rows/s (median): intc",
        "onnxruntime int8",
        "intc is faster by, each round",
        "rows a second of CPU time: intc",
        "onnxruntime int8",
        "intc is faster by",
        "workers wait",
    )
    found = []
    for workers in (1, 2):
        every = [
            [rates(w, m, texts, decode, workers) for w, m in ((Ours, artifact), (Onnxruntime, peer))]
            for _ in range(rounds)
        ]
        sides = list(zip(*every, strict=True))
        cpu = [statistics.median(r.cpu for r in side) for side in sides]
        row(
            workers,
            *(f"{statistics.median(r.wall for r in side):.0f}" for side in sides),
            ", ".join(f"{a.wall / b.wall:.2f}x" for a, b in every),
            *(f"{rate:.0f}" for rate in cpu),
            ", ".join(f"{a.cpu / b.cpu:.2f}x" for a, b in every),
            f"{statistics.median(r.waiting for r in sides[0]):.1%}",
        )
        found.append((cpu[0], cpu[0] / cpu[1]))
    return found[0]


def costs(rate: float, ratio: float, price: float) -> None:
    """10^9 sentences at ``rate`` rows per second of a core."""
    heading("10^9 sentences", "computed from", "result")
    seconds = 1e9 / rate
    hours = seconds / 3600
    row("work", f"10^9 / {rate:.0f} rows a core-second", f"{hours:.0f} core-hours")
    row(
        f"machines of {MACHINE} cores, to be done in a day",
        f"{hours:.0f} / 24 / {MACHINE}",
        f"{hours / 24 / MACHINE:.2f}",
    )
    row(
        f"cost at {price} a core-hour (put in your own price)",
        f"{hours:.0f} x {price}",
        f"{hours * price:.0f}; with onnxruntime's int8, {ratio:.2f} times that, {hours * price * ratio:.0f}",
    )
    bytes_a_row = 384 * 2
    row("results", "384 int16 a row", f"{bytes_a_row} GB before compression")
    row(
        "writing, by one such machine",
        f"{MACHINE} x {rate:.0f} x {bytes_a_row} bytes",
        f"{MACHINE * rate * bytes_a_row / 1e6:.0f} MB/s",
    )
    row(
        f"blocks of {blocks.ROWS} rows",
        f"10^9 / {blocks.ROWS}",
        f"{1e9 / blocks.ROWS:,.0f} files; a worker asks Ray for one in {blocks.ROWS / rate:.0f} s",
    )


def endpoint_table(artifact: Path, texts: list[str], seconds: float) -> None:
    from corpus import tokenise
    from ray import serve

    from intc.integrations.serve import endpoint

    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(endpoint(artifact, ongoing=128))
    feeds = tokenise(texts[:200])
    lengths = feeds["attention_mask"].sum(1)
    bodies = [request_of({n: a[i : i + 1, : lengths[i]] for n, a in feeds.items()}) for i in range(200)]
    heading(
        "clients",
        "ms a request, median",
        "99 %",
        "requests/s",
        "CPU ms a request: replica",
        "proxy",
        "clients",
    )
    for clients in (1, 8, 64):
        endpoint_times(bodies, clients, 1.0)
        found = endpoint_times(bodies, clients, seconds)
        cpu = (f"{found.cpu[name]:.1f}" for name in ("replica", "proxy", "clients"))
        row(clients, f"{found.median:.1f}", f"{found.slow:.1f}", f"{found.rate:.0f}", *cpu)
    serve.shutdown()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=HERE.parent / "embed_docs" / "build")
    parser.add_argument("--rounds", type=int, default=3, help="of every job, by turns")
    parser.add_argument("--price", type=float, default=0.04, help="of a core-hour")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="of load on the endpoint, a number of clients"
    )
    options = parser.parse_args()
    onnx, artifact, table = (options.folder / n for n in ("minilm.onnx", "minilm.intc", "docs.parquet"))
    if not all(p.exists() for p in (onnx, artifact, table)):
        print(f"{options.folder}: run examples/embed_docs/demo.py first", file=sys.stderr)
        return 2
    from corpus import model_folder
    from pyarrow import parquet

    texts = [t for t in parquet.read_table(table)["text"].to_pylist() if t]
    decode = Tokens(model_folder(), open_artifact(artifact).manifest, "text", 96)
    peer = quantised(onnx)

    found = shares(artifact, table, decode)
    heading("step of a worker of `intc map`", "microseconds of CPU time a row", "share")
    for name, value in sorted(found.items(), key=lambda item: -item[1]):
        row(name, f"{1e6 * value / len(texts):.0f}", f"{value / sum(found.values()):.1%}")

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        rate, ratio = jobs(artifact, peer, texts * PASSES, decode, options.rounds)
        endpoint_table(artifact, texts, options.seconds)
    finally:
        ray.shutdown()
    costs(rate, ratio, options.price)
    return 0


if __name__ == "__main__":
    sys.exit(main())
