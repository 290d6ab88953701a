"""The runtime on a GPU, against an emulated driver: sessions, graphs of several sizes, states, errors."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intc
from intc.artifact import schema
from intc.codegen.lower import lower
from intc.codegen.targets import CUDA_ARCHITECTURES, native, resolve
from intc.errors import ArtifactCorrupt, FeedError, UsageError, WrongTarget
from intc.ir.dims import symbol
from intc.ir.graph import Builder
from intc.ir.types import TensorType
from intc.module import Module, open_module
from intc.ops.fused import Attention, Linear
from intc.report import profile
from intc.report.bench import Options, bench
from intc.report.macs import count_macs
from intc.report.reading import read_graph
from intc.report.tables import bench_text
from intc.report.verify import verify_artifact
from intc.runtime.cuda import driver as cuda_driver
from intc.runtime.cuda.entry import KEPT_GRAPHS
from tests.emulated import driver, emulation
from tests.small import small_feeds, small_graph, small_module

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits" / "digits_vit.onnx"


@pytest.fixture(autouse=True)
def emulated() -> Iterator[None]:
    with emulation():
        yield


def module(target: str = "cuda") -> Module:
    graph = small_graph()
    return Module(graph, graph, lower(graph, target), tuple(graph.outputs))


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    module().save(tmp_path / "small.intc")
    return tmp_path / "small.intc"


def test_the_digits_transformer_equals_the_reference(tmp_path: Path) -> None:
    """Compiled, saved, opened, run and verified as for any other target."""
    images = np.random.default_rng(3).uniform(0, 1, (24, *intc_input_shape())).astype(np.float32)
    compiled = intc.compile(DIGITS, {"input": images}, "cuda")
    compiled.save(tmp_path / "digits.intc")
    session = intc.load(tmp_path / "digits.intc", device="cuda:0")
    for batch in (1, 5):
        (logits,) = session.run(None, {"input": images[:batch]})
        assert np.array_equal(logits, compiled.graph.evaluate({"input": images[:batch]})[0])
    kernels = {choice.kernel for launch in session.manifest.program.launches for choice in launch.choices}
    assert {name.rpartition("_")[0] for name in kernels} >= {"linear", "attention", "layer_norm"}
    result = verify_artifact(tmp_path / "digits.intc", {"input": images[:5]}, device="cuda")
    assert result.passed
    assert {run["device"] for run in result.runs} == {"cuda"}


def intc_input_shape() -> tuple[int, ...]:
    from intc.frontend import import_onnx

    graph = import_onnx(DIGITS)
    return tuple(int(d) for d in graph.type(graph.inputs[0]).shape[1:])  # type: ignore[call-overload]


def test_more_sizes_than_graphs_are_kept(artifact: Path) -> None:
    session = intc.load(artifact)
    batches = (*range(1, KEPT_GRAPHS + 4), 1, 2, KEPT_GRAPHS + 3)
    for batch in sum(((b, b, b) for b in batches), ()):
        feeds = small_feeds(batch, batch)
        for got, exact in zip(session.run(None, feeds), small_graph().evaluate(feeds), strict=True):
            assert np.array_equal(got, exact)
    assert len(session.gpu._graphs) == KEPT_GRAPHS


def test_a_session_that_is_gone_holds_no_memory(artifact: Path) -> None:
    """At once, not when cycles are collected: a device has less memory than a host."""
    session = intc.load(artifact)
    for _ in range(2):
        (result, _) = session.run(None, small_feeds(2), on_device=True)
    gpu: Any = session.gpu
    held = [weakref.ref(memory) for memory in (gpu.loaded.constants, gpu._graphs[(2,)]._memory)]
    del gpu
    gc.collect()
    gc.disable()
    try:
        del session
        assert [memory() for memory in held] == [None, None]
    finally:
        gc.enable()
    assert np.array_equal(result.numpy(), small_graph().evaluate(small_feeds(2))[0])


def test_concurrent_runs_equal_single_ones(artifact: Path) -> None:
    session = intc.load(artifact)
    feeds = [small_feeds(1 + i % 3, i) for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda f: session.run(None, f), feeds))
    for given, outputs in zip(feeds, results, strict=True):
        assert all(map(np.array_equal, outputs, small_graph().evaluate(given)))


def test_an_artifact_is_recompiled_for_a_gpu(tmp_path: Path) -> None:
    small_module().save(tmp_path / "cpu.intc")
    session = open_module(tmp_path / "cpu.intc", "cuda").session()
    feeds = small_feeds(4)
    assert all(
        map(np.array_equal, session.run(None, feeds), intc.load(tmp_path / "cpu.intc").run(None, feeds))
    )


def test_loading_recompiles_for_the_device(artifact: Path, tmp_path: Path) -> None:
    """Whatever the file was compiled for, its graph runs where ``device`` says, in code for that device."""
    feeds, shared = small_feeds(4), tmp_path / "shared"
    for device, target in (("cuda:0", "cuda:sm_90"), (None, native().name)):
        session = intc.load(artifact, recompile=True, device=device, share=shared)
        assert session.manifest.target == target
        assert all(map(np.array_equal, session.run(None, feeds), small_graph().evaluate(feeds)))
    assert len(list(shared.iterdir())) == 2
    with pytest.raises(UsageError, match=r"device 'cuda:3' does not exist"):
        intc.load(artifact, recompile=True, device="cuda:3")


def test_bench_times_the_device(artifact: Path) -> None:
    result = bench(artifact, Options(seconds=0.1, device="cuda:0"))
    assert result["device_ms"]["median"] >= result["device_ms"]["best"] > 0


def test_bench_times_every_kernel(artifact: Path) -> None:
    result = bench(artifact, Options(batch=3, seconds=0.1, profile=True))
    manifest, graph = read_graph(artifact)
    stages = result["profile"]
    kernels = [{c.kernel for c in launch.choices} for launch in manifest.program.launches]
    assert len(stages) == len(kernels) and all(s["kernel"] in k for s, k in zip(stages, kernels, strict=True))
    assert {s["node"] for s in stages} >= {"fc/MatMul"} and min(s["seconds"] for s in stages) > 0
    assert sum(s["macs"] for s in stages) == count_macs(graph, {"batch": 3})
    assert "fc/MatMul" in bench_text(result)
    renamed = replace(manifest.program.launches[0].choices[0], kernel="of_before")
    session = intc.load(artifact)
    launches = (replace(manifest.program.launches[0], choices=(renamed,)), *manifest.program.launches[1:])
    changed = replace(manifest, program=replace(manifest.program, launches=launches))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(profile, "read_graph", lambda path: (changed, graph))
        with pytest.raises(UsageError, match="compiled by another version of intc; recompile it"):
            profile.gpu_profile(artifact, session, {"batch": 3})


def test_the_device_must_exist(artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"device 'cuda:3' does not exist: this machine has 1 CUDA device"):
        intc.load(artifact, device="cuda:3")
    with pytest.raises(UsageError, match=r"device 'gpu' is not cuda or cuda:N"):
        intc.load(artifact, device="gpu")
    with pytest.raises(UsageError, match=r"compiled for target 'cuda', not for a CPU"):
        intc.load(artifact, device="cpu")
    monkeypatch.setenv("EMULATOR_NO_DEVICE", "1")
    cuda_driver.library.cache_clear()
    with pytest.raises(UsageError, match=r"no CUDA device: the driver cannot start \(CUDA_ERROR_NO_DEVICE\)"):
        intc.load(artifact)
    monkeypatch.setattr(cuda_driver, "LIBRARIES", ("libcuda-missing.so",))
    cuda_driver.library.cache_clear()
    with pytest.raises(UsageError, match=r"the NVIDIA driver .* is not installed on this machine"):
        intc.load(artifact)


def test_artifacts_for_a_cpu_run_on_no_device(tmp_path: Path) -> None:
    small_module().save(tmp_path / "cpu.intc")
    with pytest.raises(UsageError, match=r"cannot run on device 'cuda:0'; recompile it with --target cuda"):
        intc.load(tmp_path / "cpu.intc", device="cuda:0")


def test_a_device_that_is_too_old_is_refused(tmp_path: Path) -> None:
    module("cuda:sm_100").save(tmp_path / "new.intc")
    with pytest.raises(WrongTarget, match=r"compiled for sm_100 and later, but emulator is sm_90"):
        intc.load(tmp_path / "new.intc")


def test_tiles_are_chosen_by_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """The large one where it fits and fills the device, else the small one; none is an error."""
    b = Builder("product")
    x = b.input("x", TensorType((130, 64), "int8"))
    w, bias = b.constant("w", np.ones((64, 128), np.int8)), b.constant("bias", np.zeros(128, np.int32))
    m, e = b.constant("m", np.full(128, 2**30, np.int32)), b.constant("e", np.full(128, 36, np.int32))
    b.output(b.emit(Linear(-127, 127, "int8"), x, w, bias, m, e, name="y"))
    graph = b.finish()
    small = Module(graph, graph, lower(graph, "cuda"), tuple(graph.outputs))
    feeds = {"x": np.random.default_rng(0).integers(-128, 128, (130, 64)).astype(np.int8)}
    (expected,) = graph.evaluate(feeds)
    for processors, shared, tiles in (("1", "101376", 2), ("1", "65536", 6), ("99", "101376", 6)):
        monkeypatch.setenv("EMULATOR_PROCESSORS", processors)
        monkeypatch.setenv("EMULATOR_SHARED", shared)
        session = small.session()
        assert np.array_equal(session.run(None, feeds, raw=True)[0], expected)
        entry: Any = session.gpu
        (work,) = entry.graph(()).work
        assert work.grid[0] * work.grid[1] == tiles
    monkeypatch.setenv("EMULATOR_SHARED", "1024")
    with pytest.raises(WrongTarget, match="bytes of shared memory, but emulator gives a block at most 1024"):
        small.session().run(None, feeds)


def test_attention_is_chosen_by_length_and_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of a block and blocks of a head: 64 rows in one, or, where there are few, 16 of four warps."""
    b = Builder("attention")
    qkv = b.input("qkv", TensorType((2, symbol("rows"), 192), "int8", -127, 127))
    m, e = b.constant("m", np.full(1, 2**30, np.int32)), b.constant("e", np.full(1, 38, np.int32))
    op = Attention(2, 2, 32, 0, 64, 128, 20077, 5, -127, 127)
    b.output(b.emit(op, qkv, qkv, qkv, m, e, name="y"))
    graph = b.finish()
    made = Module(graph, graph, lower(graph, "cuda"), ("y",))
    many = {(1, 100): (128, 2), (1, 200): (256, 4), (1, 257): (128, 5)}
    few = {(99, 100): (128, 7), (99, 257): (128, 5)}
    for (processors, rows), chosen in (many | few).items():
        monkeypatch.setenv("EMULATOR_PROCESSORS", str(processors))
        entry: Any = made.session().gpu
        (work,) = entry.graph((rows,)).work
        assert (work.choice.threads, work.grid[1]) == chosen


def test_more_rows_than_a_launch_has_blocks() -> None:
    b = Builder("product")
    x = b.input("x", TensorType((symbol("batch"), 16), "int8"))
    w, bias = b.constant("w", np.ones((16, 64), np.int8)), b.constant("bias", np.zeros(64, np.int32))
    m, e = b.constant("m", np.full(64, 2**30, np.int32)), b.constant("e", np.full(64, 36, np.int32))
    b.output(b.emit(Linear(-127, 127, "int8"), x, w, bias, m, e, name="y"))
    graph = b.finish()
    entry: Any = Module(graph, graph, lower(graph, "cuda"), ("y",)).session().gpu
    with pytest.raises(FeedError, match="use smaller batches"):
        entry.graph((10_000_000,))


def test_code_that_the_driver_refuses(tmp_path: Path) -> None:
    broken = module()
    broken.lowered = replace(broken.lowered, library=b"no code at all")
    broken.save(tmp_path / "broken.intc")
    with pytest.raises(ArtifactCorrupt, match=r"emulator cannot load the kernels"):
        intc.load(tmp_path / "broken.intc")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": [["slot", 99, 0]]}, "argument 'slot' 99"),
        ({"args": [["input", "batch", 0]]}, "argument 'input' 'batch'"),
        ({"args": [["elsewhere", 0, 0]]}, "argument 'elsewhere' 0"),
        ({"choices": []}, "a launch without a kernel"),
    ],
)
def test_launches_are_checked(artifact: Path, change: dict[str, object], message: str) -> None:
    import json

    manifest = intc.load(artifact).manifest
    body = json.loads(schema.encode(manifest))
    body["program"]["launches"][0].update(change)
    with pytest.raises(ArtifactCorrupt, match=message):
        schema.decode(json.dumps(body).encode(), artifact)


def test_names_of_targets() -> None:
    assert resolve("cuda").architectures == (75, 80, 90)
    assert [resolve(f"cuda:sm_{n}").features for n in CUDA_ARCHITECTURES] == [
        (f"sm_{n}",) for n in CUDA_ARCHITECTURES
    ]
    for name in ("cuda:sm_81", "cuda:90", "cuda:"):
        with pytest.raises(
            UsageError, match=rf"target '{name}' is not known; use one of cuda:sm_61, .*, cuda"
        ):
            resolve(name)


def test_running_needs_no_compiler(artifact: Path) -> None:
    """Neither TVM nor its small libraries are imported where an artifact is run on a GPU."""
    code = (
        "import sys\n"
        "for name in ('tvm', 'tvm_ffi', 'onnx', 'onnxruntime', 'torch'): sys.modules[name] = None\n"
        "from intc.runtime.cuda import driver as cuda_driver\n"
        f"cuda_driver.LIBRARIES = ({str(driver())!r},)\n"
        "import numpy as np, intc\n"
        f"session = intc.load({str(artifact)!r})\n"
        "x = np.zeros((2, 24), np.float32)\n"
        "print(session.run(None, {'x': x, 'ids': np.zeros(2, np.int64)})[0].shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ},
        check=False,
    )
    assert done.stdout == "(2, 10)\n", done.stderr
