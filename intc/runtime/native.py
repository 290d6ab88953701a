"""The native side: CPU features, the kernel library, aligned memory."""

from __future__ import annotations

import ctypes
import importlib.util
import math
import os
import platform
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from intc.errors import ArtifactCorrupt, UsageError, WrongTarget

ALIGN: Final = 64  # generated code assumes it of every address
LIBRARIES: Final = ("libtvm_runtime.so", "libtvm_runtime.dylib", "tvm_runtime.dll")


def aligned(nbytes: int) -> NDArray[np.uint8]:
    """``nbytes`` (at least one) uninitialised bytes at a multiple of :data:`ALIGN`."""
    raw = np.empty(nbytes + ALIGN, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGN
    return raw[start : start + nbytes]


def aligned_like(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """An uninitialised array of this shape and element type at a multiple of :data:`ALIGN`."""
    return aligned(math.prod(shape) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)


@cache
def cpu_features() -> frozenset[str]:
    """This machine's CPU flags by their Linux names; empty where the system does not list them."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def check_cpu(path: Path, target: str, features: Iterable[str]) -> None:
    """WrongTarget naming what this machine lacks of ``features``."""
    lacking = sorted(set(features) - cpu_features())
    if lacking:
        raise WrongTarget(
            f"{path}: compiled for target '{target}', but this {platform.machine()} CPU lacks "
            f"{', '.join(lacking)}; recompile with --target native on this machine"
        )


@contextmanager
def without_torch() -> Iterator[None]:
    """Imports of torch fail inside, unless the program has loaded it already.

    ``tvm_ffi`` and ``tvm`` import torch wherever it is installed: that takes seconds and is of no use here.
    """
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules["torch"]


@cache
def ffi() -> Any:
    """The ``tvm_ffi`` module, with TVM's runtime library loaded for all libraries that follow."""
    os.environ.setdefault("TVM_BIND_THREADS", "0")  # concurrent callers must not share one core
    os.environ.setdefault("TVM_THREAD_POOL_SPIN_COUNT", "2000")  # idle workers sleep within milliseconds
    with without_torch():
        import tvm_ffi
    ctypes.CDLL(str(_runtime_library()), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def _runtime_library() -> Path:
    spec = importlib.util.find_spec("tvm")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for name in LIBRARIES:
            candidate = Path(folder) / "lib" / name
            if candidate.is_file():
                return candidate
    raise UsageError("TVM's runtime library is not installed; install the package apache-tvm")


def load_kernels(path: Path, code: memoryview, entry: str) -> Callable[..., Any]:
    """The function ``entry`` of the shared library ``code``; the loader's copy of it is removed at once.

    The library is mapped for as long as the function lives.
    """
    library = ffi()
    with tempfile.TemporaryDirectory(prefix="intc-") as folder:
        file = Path(folder) / "kernels.so"
        try:
            file.write_bytes(code)
        except OSError as error:
            raise UsageError(f"{path}: no room for its kernels in '{folder}' ({error.strerror})") from None
        try:
            module = library.load_module(str(file), keep_module_alive=False)
            function: Callable[..., Any] = module.get_function(entry)
        except (RuntimeError, AttributeError) as error:  # not a file to load; no such function
            cause = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise ArtifactCorrupt(f"{path}: the kernel library cannot be loaded ({cause[0]})") from None
    return function


def call(function: Callable[..., Any], args: tuple[Any, ...], threads: int, memory: object = None) -> None:
    """``function(*args)`` in a thread whose pool has ``threads`` workers, itself included.

    ``memory`` is what the addresses among ``args`` point to. It lives until the function returns, even where
    the thread that waits for it is interrupted.

    TVM gives every calling thread a pool of its own and keeps it to the end of the process. The main thread
    calls directly; all other threads share a fixed crew of callers, so that short-lived threads leave
    nothing behind. A forked process has a copy of that pool but none of its workers: there the crew, which is
    a new one, makes every call.
    """
    if threads == 1:
        function(*args)
    elif threading.current_thread() is threading.main_thread() and not _lost:
        _call_with_pool(function, args, threads)
    else:
        _crew().submit(_call_with_pool, function, args, threads, memory).result()


_local = threading.local()
_lost: list[int] = []  # processes whose pools this one had when it was forked


def _call_with_pool(
    function: Callable[..., Any], args: tuple[Any, ...], threads: int, memory: object = None
) -> None:
    if getattr(_local, "threads", 1) != threads:
        os.environ["TVM_NUM_THREADS"] = str(max(threads, os.cpu_count() or 1))
        ffi().get_global_func("runtime.config_threadpool")(1, threads)
        _local.threads = threads
    function(*args)


@cache
def _crew() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="intc")


def _forked() -> None:
    _lost.append(os.getppid())
    _crew.cache_clear()


os.register_at_fork(after_in_child=_forked)
