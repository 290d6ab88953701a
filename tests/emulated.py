"""Runs GPU artifacts without a GPU: kernels compiled for the host, and a driver library that calls them."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from intc.codegen.cuda import compiler
from intc.codegen.cuda.source import assemble, part
from intc.codegen.lower import lower
from intc.ir.graph import Graph
from intc.module import Module
from intc.runtime.cuda import driver as cuda_driver
from tests.native import random_feed

HERE = Path(__file__).parent / "cuda_emulator"
FOLDER = tempfile.TemporaryDirectory(prefix="intc-emulator-")  # libraries of this process; removed with it


def build(source: str) -> Path:
    """The shared library of a C++ source, compiled once. Without g++ the test is skipped."""
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed")
    digest = hashlib.sha256(source.encode()).hexdigest()[:24]
    library = Path(FOLDER.name) / f"{digest}.so"
    if not library.is_file():
        file, output = library.with_suffix(".cpp"), library.with_suffix(".part")
        file.write_text(source, encoding="utf-8")
        flags = ("-std=c++17", "-O2", "-fwrapv", "-fno-strict-aliasing", "-fPIC", "-shared", "-w")
        command = ["g++", *flags, "-o", output, file, "-ldl"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        output.replace(library)
    return library


@cache
def driver() -> Path:
    return build((HERE / "driver.cpp").read_text())


def host_source(kernels: Mapping[str, str], architectures: Sequence[int] = (90,)) -> str:
    """The kernels as host code, with what an architecture without tensor cores does where that is the only
    one.
    """
    plain = f"#define __CUDA_ARCH__ {10 * architectures[0]}\n" + part("device.cuh")
    groups = f"#define WARPGROUP_MMA {int(max(architectures) >= 90)}\n"
    device = plain if max(architectures) < 75 else groups + (HERE / "device.h").read_text()
    return assemble(kernels, (HERE / "cuda.h").read_text() + device)


def compile_emulated(kernels: Mapping[str, str], architectures: Sequence[int]) -> bytes:
    """What stands for a fat binary."""
    source = host_source(kernels, architectures)
    return build(source + "\n".join(f"EMULATED({name})" for name in kernels)).read_bytes()


@contextlib.contextmanager
def emulation(order: str = "forward", processors: int = 4) -> Iterator[None]:
    """GPU targets compile for, and devices are, the emulator."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiler, "compile_kernels", compile_emulated)
        patch.setattr(compiler, "require", lambda: None)
        patch.setattr(cuda_driver, "LIBRARIES", (str(driver()),))
        patch.setenv("EMULATOR_ORDER", order)
        patch.setenv("EMULATOR_PROCESSORS", str(processors))
        cuda_driver.library.cache_clear()
        yield
        cuda_driver.library.cache_clear()


def check_graph(graph: Graph, sizes: Mapping[str, int], seed: int = 1, target: str = "cuda") -> None:
    """Compile ``graph`` for a GPU and compare what the emulator gives with ``graph.run`` on random feeds."""
    rng = np.random.default_rng(seed)
    feeds = {name: random_feed(graph.type(name), sizes, rng) for name in graph.inputs}
    expected = graph.run(feeds)
    module = Module(graph, graph, lower(graph, target), tuple(graph.outputs))
    vars(module)[
        "certificate"
    ] = {}  # operators alone, on operands that no graph gives them, are not provable
    session = module.session()
    for _ in range(2):  # the second time on what the first left in memory
        for name, got in zip(graph.outputs, session.run(None, feeds, raw=True), strict=True):
            want = expected[name]
            assert got.dtype == want.dtype, f"{name}: {got.dtype} instead of {want.dtype}"
            assert np.array_equal(got, want), f"{name}: {np.sum(got != want)} of {got.size} differ"
