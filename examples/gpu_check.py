"""Verify and time compiled models on a GPU, in two commands.

    python examples/gpu_check.py build FOLDER              # with the compiler, nvcc, torch; no GPU
    python examples/gpu_check.py run FOLDER -o gpu.json    # with the GPU: driver, numpy, scipy; torch

`build` makes one file of a few MB for each model: large weights are replaced by drawn ones before compiling
and left out of the file, and `run` draws them again; the outputs of the exact reference are in the file.
`run` compares every model with them at every batch size, bit for bit, times replays of its graph between
events of the device, and torch's own ways of running the float model, as far as `--minutes` reach;
`--profile` times every kernel as well. The JSON is rewritten after every step. Exit status 1 where a bit
differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

EXAMPLES = Path(__file__).resolve().parent
sys.path[:0] = [str(EXAMPLES.parent), str(EXAMPLES)]

import models  # noqa: E402

from intc.artifact import schema, tensors  # noqa: E402
from intc.artifact.container import Container  # noqa: E402
from intc.artifact.writer import write_members  # noqa: E402
from intc.errors import IntcError  # noqa: E402
from intc.ir.graph import Graph  # noqa: E402
from intc.report.bench import device_time  # noqa: E402
from intc.report.macs import count_macs  # noqa: E402
from intc.report.reading import read_graph  # noqa: E402
from intc.runtime import Session  # noqa: E402

Array = NDArray[Any]
MODELS = ("deit-tiny", "deit-small", "vit-base", "bert-base", "swin-tiny")
BATCHES = (1, 8, 64, 256)
SEQUENCE = 128
LARGE = 1 << 18  # bytes from which a constant is drawn
CHECKED = 2  # samples compared with the reference
DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
TORCH = ("fp16 graph", "fp32 eager", "fp16 max-autotune", "bf16 graph", "fp16 eager", "bf16 eager")


def drawn(shape: tuple[int, ...], dtype: str, lo: int, hi: int) -> Array:
    """Numbers in [lo, hi], most of them near the middle as in trained weights, both ends among them; the same
    on every machine.
    """
    count = int(np.prod(shape))
    mixed = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    dice = mixed.view(np.uint8).reshape(count, 8)[:, 2:6].sum(axis=1, dtype=np.int64)  # 0 .. 1020
    out = lo + dice * (hi - lo + 1) // 1021
    out[0], out[-1] = lo, hi
    return out.reshape(shape).astype(dtype)


def build(folder: Path, names: list[str], target: str) -> int:
    """One `NAME.npz` for each model."""
    import intc
    from intc.codegen.lower import lower

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            onnx, path = Path(scratch) / f"{name}.onnx", Path(scratch) / f"{name}.intc"
            models.export(name, onnx)
            feeds = models.sample_feeds(name, 8, sequence=SEQUENCE)
            module = intc.compile(onnx, feeds, rounding="nearest")
            light = with_drawn_constants(module.prepared)
            lowered = lower(light, target)
            replace(module, graph=light, prepared=light, lowered=lowered, passes=None).save(path)
            print(f"{name}: exact reference", flush=True)
            pack(path, folder / f"{name}.npz", exact_outputs(path, name))
            print(f"{folder / name}.npz: {(folder / f'{name}.npz').stat().st_size / 1e6:.1f} MB", flush=True)
    return 0


def with_drawn_constants(graph: Graph) -> Graph:
    """The graph with every large constant replaced by drawn integers of the same type and interval."""
    constants = {
        name: array
        if array.nbytes < LARGE
        else drawn(array.shape, array.dtype.name, *graph.type(name).interval)
        for name, array in graph.constants.items()
    }
    return replace(graph, constants=constants)


def exact_outputs(artifact: Path, name: str) -> list[Array]:
    """What the graph in the artifact means for the samples that `run` takes."""
    from intc.report.verify import reference

    _, graph = read_graph(artifact)
    outside: list[str] = []
    outputs = reference(graph, samples(name), outside)
    assert not outside, f"{outside} leave their intervals"
    return outputs


def samples(name: str, batch: int = CHECKED) -> dict[str, Array]:
    """The checked samples, repeated to `batch`."""
    feeds = models.sample_feeds(name, CHECKED, sequence=SEQUENCE, seed=1)
    return {key: repeated(array, batch) for key, array in feeds.items()}


def repeated(array: Array, batch: int) -> Array:
    return np.resize(array, (batch, *array.shape[1:]))


def pack(artifact: Path, to: Path, expected: list[Array]) -> None:
    """The members of an artifact, of its large tensors only how they are drawn; and the expected outputs."""
    container = Container(artifact)
    members = {name: np.frombuffer(container.member(name), np.uint8) for name in container.entries}
    weights = tensors.decode(memoryview(members.pop(schema.WEIGHTS)), str(artifact))
    large = {name: a for name, a in weights.items() if a.nbytes >= LARGE}
    recipes = {n: [a.shape, a.dtype.name, int(a.min()), int(a.max())] for n, a in large.items()}
    for name, recipe in recipes.items():
        assert np.array_equal(drawn(*recipe), weights[name]), f"{name} is not drawn"
    small = {name: array for name, array in weights.items() if name not in large}
    order = np.frombuffer(json.dumps([list(weights), list(container.entries), recipes]).encode(), np.uint8)
    kept = {f"member/{n}": a for n, a in members.items()} | {f"weight/{n}": a for n, a in small.items()}
    kept |= {f"expected/{i}": a for i, a in enumerate(expected)}
    np.savez_compressed(to, order=order, **kept)


def unpack(packed: Path, to: Path) -> list[Array]:
    """The artifact again, whose own digests say whether every byte is; and the expected outputs."""
    with np.load(packed) as data:
        names, members, recipes = json.loads(bytes(data["order"]))
        weights = {n: drawn(*recipes[n]) if n in recipes else data[f"weight/{n}"] for n in names}
        files = {
            n: tensors.encode(weights) if n == schema.WEIGHTS else bytes(data[f"member/{n}"]) for n in members
        }
        expected = [data[f"expected/{i}"] for i in range(sum(n.startswith("expected/") for n in data))]
    write_members(to, files)
    return expected


class Results:
    """The JSON, written again after every entry."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path, self.end = path, time.monotonic() + 60 * minutes
        self.body: dict[str, Any] = {"models": {}}

    def put(self, value: Any, *keys: str) -> None:
        place = self.body
        for key in keys[:-1]:
            place = place.setdefault(key, {})
        place[keys[-1]] = value
        print(" / ".join(keys), json.dumps(value), flush=True)
        self.path.write_text(json.dumps(self.body, indent=1) + "\n")

    def attempt(self, step: Callable[[], Any], *keys: str) -> None:
        """`step` where time is left; what it raises is the result."""
        if time.monotonic() > self.end:
            self.put("not run: out of time", *keys)
            return
        try:
            self.put(step(), *keys)
        except (IntcError, RuntimeError, ImportError) as error:
            self.put(f"failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}", *keys)


def run(options: argparse.Namespace) -> int:
    """Check and time every model of the folder."""
    results = Results(options.output, options.minutes)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            path = Path(scratch) / f"{name}.intc"
            expected = unpack(options.folder / f"{name}.npz", path)
            session, (_, graph) = Session(path, device=options.device), read_graph(path)
            gpu = session.gpu.device
            results.put({"name": gpu.name, "multiprocessors": gpu.multiprocessors}, "device")
            for batch in options.batches:
                step = partial(measured, session, graph, name, batch, expected, options.profile)
                results.attempt(step, "models", name, f"batch {batch}", "intc")
            del session
    for way in options.ways:
        for name in options.models:
            for batch in options.batches:
                step = partial(torch_time, name, batch, way)
                results.attempt(step, "models", name, f"batch {batch}", f"torch {way}")
    print("\n".join(table(results.body)))
    checks = [of.get("intc") for model in results.body["models"].values() for of in model.values()]
    return 0 if all(isinstance(c, dict) and not c["differences"] for c in checks) else 1


def table(body: dict[str, Any]) -> list[str]:
    """The results as Markdown: milliseconds, and how many times as long torch takes."""
    ways = dict.fromkeys(way for m in body["models"].values() for of in m.values() for way in of)
    ways.pop("intc", None)
    lines = ["| model | batch | intc | TOPS |" + "".join(f" {way} |" for way in ways)]
    lines.append("| --- " * (4 + len(ways)) + "|")
    for name, batches in body["models"].items():
        for batch, of in batches.items():
            ours = of["intc"]
            if not isinstance(ours, dict):
                lines.append(f"| {name} | {batch.removeprefix('batch ')} | {ours} |")
                continue
            cells = [f"{ours['median']:.3f} ms", f"{ours['tops']:.0f}"]
            for way in ways:
                ms = of[way]["median"] if isinstance(of.get(way), dict) else None
                cells.append(f"{ms:.3f} ms, {ms / ours['median']:.2f}x" if ms else "")
            wrong = f", {ours['differences']} WRONG" if ours["differences"] else ""
            lines.append(f"| {name} | {batch.removeprefix('batch ')}{wrong} | {' | '.join(cells)} |")
    return lines


def measured(
    session: Session, graph: Graph, name: str, batch: int, expected: list[Array], profile: bool
) -> dict[str, Any]:
    """How many output elements differ from the reference, launched one by one, captured, and from and to
    torch's tensors; and milliseconds on the device for the batch.
    """
    feeds, want = samples(name, batch), [repeated(e, batch) for e in expected]
    runs = [session.run(None, feeds, raw=True) for _ in range(2)]
    if torch := torch_on_device():
        runs.append(through_torch(torch, session, feeds))
    wrong = sum(int(np.count_nonzero(g != e)) for got in runs for g, e in zip(got, want, strict=True))
    symbols = list(session.prepare(feeds).layout.symbols)
    found: dict[str, Any] = {"differences": wrong, "runs": len(runs), **device_time(session, symbols)}
    sizes = dict(zip(session.manifest.symbols, symbols, strict=True))
    found["tops"] = 2e-9 * count_macs(graph, sizes) / found["median"]
    if profile:
        captured = session.gpu.graph(symbols)
        times = zip(captured.work, captured.profile(), strict=True)
        found["kernels"] = [[w.choice.kernel, list(w.grid), round(1e3 * ms, 2)] for w, ms in times]
    return found


def torch_on_device() -> Any:
    """The module, where it is installed and built for GPUs; else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def through_torch(torch: Any, session: Session, feeds: dict[str, Array]) -> list[Array]:
    """The integers of a run whose feeds and results are tensors on the device."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)).cuda() for name, array in feeds.items()}
    results = session.run(None, tensors, raw=True, on_device=True)
    return [torch.from_dlpack(result).cpu().numpy() for result in results]


@lru_cache(1)
def torch_model(name: str, way: str) -> Any:
    """The float model on the device: of fp32, fp16 or bf16, compiled by torch where `way` says so."""
    import torch

    kind, _, how = way.partition(" ")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model = models.build(name).to("cuda", getattr(torch, DTYPES[kind]))
    return torch.compile(model, mode=how, dynamic=False) if how == "max-autotune" else model


def torch_time(name: str, batch: int, way: str) -> dict[str, float]:
    """Milliseconds of the float model in torch: eager, in a CUDA graph, or compiled (which has its own)."""
    import torch

    model = torch_model(name, way)
    dtype = next(model.parameters()).dtype
    feeds = {k: torch.from_numpy(np.ascontiguousarray(v)).cuda() for k, v in samples(name, batch).items()}
    feeds = {k: v.to(dtype) if v.is_floating_point() else v for k, v in feeds.items()}
    with torch.inference_mode():
        call: Callable[[], Any] = lambda: model(**feeds)  # noqa: E731
        for _ in range(3):
            call()
        torch.cuda.synchronize()
        if way.endswith(" graph"):
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                call()
            call = graph.replay
        once = min(torch_rounds(torch, call, 3, 1))
        rounds = sorted(torch_rounds(torch, call, 15, max(1, int(30 / max(once, 1e-3)))))
    return {"median": rounds[len(rounds) // 2], "best": rounds[0]}


def torch_rounds(torch: Any, call: Callable[[], Any], rounds: int, repeats: int) -> Iterator[float]:
    for _ in range(rounds):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(repeats):
            call()
        last.record()
        last.synchronize()
        yield first.elapsed_time(last) / repeats


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("build", "run"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", type=_names, default=MODELS)
    parser.add_argument("--target", default="cuda")
    parser.add_argument("-o", "--output", type=Path, default=Path("gpu.json"))
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="no step of `run` starts later (default: 9)"
    )
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--batches", type=_numbers, default=BATCHES)
    parser.add_argument("--ways", type=_names, default=TORCH, help="ways of torch, separated by commas")
    parser.add_argument("--profile", action="store_true", help="time every kernel alone, too")
    options = parser.parse_args()
    if options.step == "build":
        return build(options.folder, options.models, options.target)
    return run(options)


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
