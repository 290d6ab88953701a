"""What one core can do at most: the target's dot instruction on registers alone, in GMAC/s."""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tvm.ir import Call, GlobalVar
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import ISAS, Isa
from intc.codegen.cpu.peak import CHAINS, peak, peak_macs
from intc.codegen.targets import resolve
from intc.runtime.native import aligned_like, load_kernels

ITERATIONS: Final = 200_000
TRIALS: Final = 7


@dataclass(frozen=True)
class Peak:
    """A run of the dot instruction on registers alone; ``macs`` multiply-accumulates a call."""

    call: Callable[[], None]
    macs: int


def peak_of(target: str) -> Peak | None:
    """The run for ``target``; None where it has no dot instruction, or is a GPU."""
    resolved = resolve(target)
    if resolved.gpu:
        return None
    isa = ISAS[resolved.level]
    if isa.dot == "generic":
        return None
    function = _compile(isa, resolved.tvm())
    data = aligned_like((CHAINS * isa.lanes,), "int32")
    data[:] = 1
    return Peak(lambda: function(ctypes.c_void_p(data.ctypes.data), ITERATIONS), peak_macs(isa) * ITERATIONS)


def peak_gmacs(target: str) -> float | None:
    """The best of a few trials, in GMAC/s; None for a target without a dot instruction."""
    peak = peak_of(target)
    if peak is None:
        return None
    seconds = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        peak.call()
        seconds.append(time.perf_counter() - start)
    return peak.macs / min(seconds) / 1e9


def _compile(isa: Isa, target: Any) -> Any:
    import tvm

    kernel = GlobalVar("peak")
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("main")
            data, count = T.arg("data", T.handle("int32")), T.arg("count", T.int32())
            T.evaluate(Call(kernel, [data, count]))
    main = builder.get().with_attr("global_symbol", "main")
    executable = tvm.compile(tvm.IRModule({kernel: peak(isa), GlobalVar("main"): main}), target=target)
    with tempfile.TemporaryDirectory(prefix="intc-") as folder:
        path = Path(folder) / "peak.so"
        executable.export_library(str(path))
        return load_kernels(path, memoryview(path.read_bytes()), "main")
