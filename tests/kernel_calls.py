"""Builds single kernels behind a ``main`` and calls them on numpy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import tvm
from numpy.typing import NDArray
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.isa import ISAS, Isa
from intc.codegen.targets import TARGETS, host_features, native
from intc.codegen.tir_pipeline import KERNELS

Call = Callable[..., None]
CANARY = 64


def host_isas() -> list[Isa]:
    """Every instruction set this machine runs, and for the others their tile with a spelled-out dot."""
    levels = {t.level for t in TARGETS if host_features().issuperset(t.features)}
    tiled = {name: isa for name, isa in ISAS.items() if isa.lanes > 1}
    return [isa if isa.dot == "generic" or name in levels else isa.generic() for name, isa in tiled.items()]


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """A 64-byte aligned copy that ends exactly at its allocation's canary."""
    raw = np.full(array.nbytes + 64 + CANARY, 0xA5, np.uint8)
    start = -raw.ctypes.data % 64
    view = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def intact(array: NDArray[Any]) -> bool:
    """Whether the canary behind an :func:`aligned` array still stands."""
    raw = array
    while isinstance(raw.base, np.ndarray):
        raw = raw.base
    start = array.ctypes.data - raw.ctypes.data + array.nbytes
    return bool(np.all(raw[start:] == 0xA5))


def compile_kernel(
    kernel: Any, names: tuple[str, ...], dtypes: dict[str, str], target: Any = None, parallel: int = 0
) -> Any:
    """The compiled module whose ``main`` calls ``kernel``; names without a dtype are int32 numbers.

    With ``parallel`` threads, ``main`` splits the tasks [begin, end) over a ``T.parallel`` loop, and
    ``scratch`` holds ``parallel`` areas of the number of bytes given by one more, last argument.
    """
    variable = tvm.ir.GlobalVar(
        str(kernel.attrs["global_symbol"]) if "global_symbol" in kernel.attrs else "kernel"
    )
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("main")
            values = {n: T.arg(n, T.handle(dtypes[n]) if n in dtypes else T.int32()) for n in names}
            if not parallel:
                T.evaluate(T._call_global(variable, *values.values()))
            else:
                size = T.arg("area", T.int32())
                span = T.Bind(values["end"] - values["begin"])
                with T.parallel(parallel) as thread:
                    inner = dict(values)
                    inner["scratch"] = T.handle_add_byte_offset(values["scratch"], thread * size)
                    inner["begin"] = values["begin"] + T.truncdiv(span * thread, parallel)
                    inner["end"] = values["begin"] + T.truncdiv(span * (thread + 1), parallel)
                    T.evaluate(T._call_global(variable, *inner.values()))
    main = builder.get().with_attr("global_symbol", "main")
    module = tvm.IRModule({variable: kernel, tvm.ir.GlobalVar("main"): main})
    return tvm.compile(module, target=(target or native()).tvm(), tir_pipeline=KERNELS)


def call(module: Any, *arguments: Any) -> None:
    """Run ``main``: arrays (or ``(array, byte offset)``) become addresses."""
    plain: list[Any] = []
    for a in arguments:
        array, offset = a if isinstance(a, tuple) else (a, 0)
        plain.append(ctypes.c_void_p(array.ctypes.data + offset) if isinstance(array, np.ndarray) else array)
    module["main"](*plain)


def assembly(module: Any) -> str:
    """The machine code as text."""
    return str(module.mod.inspect_source("asm"))


def inner_loop(text: str, instruction: str) -> list[str]:
    """The instructions of the basic block with the most of ``instruction``."""
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if line.startswith(".LBB"):
            blocks.append([])
        elif line.startswith("\t") and not line.startswith("\t."):
            blocks[-1].append(line.strip())
            if line.strip().startswith("j"):
                blocks.append([])
    return max(blocks, key=lambda block: sum(instruction in line for line in block))
