"""Explicit TIR as CUDA C: the kernels that every target shares, one thread for each task.

TIR's scalars become the fixed-width types of ``device.cuh``; a division by anything but a constant becomes a
call of ``quotient`` or ``rest``, since the hardware's own goes through floating point. A vectorised loop that
copies is as few memory accesses as possible.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import tvm.tirx as tir

from intc.codegen.kernel import Expr, PrimFunc
from intc.codegen.printer import Printer
from intc.errors import CodegenError

THREADS: Final = 128  # a block
TYPES: Final = {
    "bool": "bool",
    "int8": "i8",
    "uint8": "u8",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
}
UNSIGNED: Final = {"uint32": "u32", "uint64": "u64"}  # of shifts alone


def literal(value: int, dtype: str) -> str:
    """A C constant of one of our integer types."""
    if dtype == "int64":
        return f"{value}ll" if value > -(2**63) else f"({value + 1}ll - 1)"
    if dtype == "bool":
        return "true" if value else "false"
    return f"{value}" if value > -(2**31) else f"({value + 1} - 1)"


def print_kernel(name: str, function: PrimFunc, scratch: Collection[str], threads: int) -> str:
    """The ``__global__`` function ``name``. ``task`` is the number of the thread; behind the parameters of
    ``function`` come the bytes from one thread's part of each buffer in ``scratch`` to the next's.
    """
    return _Printer().function(name, function, scratch, threads)


class _Printer(Printer):
    language = "CUDA"
    indent = "  "
    alignment = "alignas(16) "

    def function(self, name: str, kernel: PrimFunc, scratch: Collection[str], threads: int) -> str:
        *own, task, _ = kernel.params
        self.names[task] = self._fresh("task")
        params, head = [], ["const i32 task = blockIdx.x * blockDim.x + threadIdx.x;"]
        for i, var in enumerate(own):  # a size may have the name of a function, or C's own
            place = self.names[var] = self._fresh(f"{var.name}_{i}")
            params.append(f"{self._parameter_type(var)} {place}")
            if var.name in scratch:
                head.append(f"{place} = (decltype({place}))((u8*){place} + task * {var.name}_step);")
        params += [f"i64 {buffer}_step" for buffer in scratch]
        self._stmt(kernel.body)
        first = f'extern "C" __global__ void __launch_bounds__({threads}) {name}({", ".join(params)}) {{'
        return "\n".join([first, *(self.indent + line for line in head), *self._live()[0], "}"])

    def _parameter_type(self, var: Any) -> str:
        element = getattr(var.ty, "element_type", None)
        if element is None:
            return self.value_type(str(var.ty.dtype))
        return f"{self.value_type(str(element.dtype))}* __restrict__"

    def value_type(self, dtype: str) -> str:
        found = TYPES.get(dtype) or UNSIGNED.get(dtype)
        if found is None:
            raise CodegenError(f"element type {dtype} has no place in integer CUDA code")
        return found

    def pointer(self, dtype: str, written: bool) -> str:
        return f"{TYPES[dtype]}*"

    def literal(self, value: int, dtype: str) -> str:
        return literal(value, dtype)

    def extreme(self, kind: str, dtype: str) -> str:
        return f"{'least' if kind == 'Min' else 'most'}<{TYPES[dtype]}>"

    def leading_zeros(self) -> str:
        return "__clzll"

    def division(self, kind: str, divisor: Expr) -> str | None:
        if isinstance(divisor, tir.IntImm):
            return None
        return "quotient" if kind == "Div" else "rest"

    def before_loop(self, loop: Any) -> None:
        if loop.kind in (tir.ForKind.UNROLLED, tir.ForKind.VECTORIZED):
            self._line("#pragma unroll")

    def _For(self, stmt: Any) -> None:
        body = stmt.body
        copies = stmt.kind == tir.ForKind.VECTORIZED and type(body.value).__name__ == "TensorLoad"
        if not copies:
            super()._For(stmt)
            return
        self.inlined[stmt.loop_var] = stmt.min
        self.stored.add(self.views.get(body.buffer, body.buffer))
        places = self._place(body.buffer, body.indices), self._place(body.value.source, body.value.indices)
        self._line(f"move_together<{int(stmt.extent)}>(&{places[0]}, &{places[1]});")
