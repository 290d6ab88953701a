"""Explicit TIR as CUDA C: the kernels that every target shares, one thread for each task.

TIR's scalars become the fixed-width types of ``device.cuh``; a division by anything but a constant becomes a
call of ``quotient`` or ``rest``, since the hardware's own goes through floating point. A vectorised loop that
copies is as few memory accesses as possible.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

import tvm.tirx as tir
from tvm.ir import Call

from intc.codegen.kernel import PrimFunc
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
INFIX: Final = {
    "Add": "+",
    "Sub": "-",
    "Mul": "*",
    "EQ": "==",
    "NE": "!=",
    "LT": "<",
    "LE": "<=",
    "GT": ">",
    "GE": ">=",
    "And": "&&",
    "Or": "||",
    "LShift": "<<",
    "RShift": ">>",
    "BitwiseAnd": "&",
    "BitwiseOr": "|",
    "BitwiseXor": "^",
}
CALLS: Final = {
    "shift_left": "({} << {})",
    "shift_right": "({} >> {})",
    "bitwise_and": "({} & {})",
    "bitwise_or": "({} | {})",
    "bitwise_xor": "({} ^ {})",
    "bitwise_not": "(~{})",
    "if_then_else": "({} ? {} : {})",
    "clz": "__clzll({})",
}


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
    printer = _Printer()
    params, head = [], ["const i32 task = blockIdx.x * blockDim.x + threadIdx.x;"]
    for i, var in enumerate(function.params[:-2]):  # a pointer and a scalar may have the same name
        name_of_var = printer.names[var] = f"{var.name}_{i}"
        params.append(f"{_parameter_type(var)} {name_of_var}")
        if var.name in scratch:
            head.append(
                f"{name_of_var} = (decltype({name_of_var}))((u8*){name_of_var} + task * {var.name}_step);"
            )
    params += [f"i64 {buffer}_step" for buffer in scratch]
    printer.names[function.params[-2]] = "task"
    printer.statement(function.body)
    lines = [f'extern "C" __global__ void __launch_bounds__({threads}) {name}({", ".join(params)}) {{']
    return "\n".join([*lines, *("  " + line for line in (*head, *printer.lines)), "}"])


def _parameter_type(var: Any) -> str:
    pointee = getattr(var.ty, "element_type", None)
    return f"{TYPES[str(pointee)]}* __restrict__" if pointee is not None else TYPES[str(var.ty)]


class _Printer:
    """Statements as lines, expressions as strings; every variable gets a name of its own."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.names: dict[Any, str] = {}
        self.buffers: dict[Any, str] = {}
        self.depth = 0

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def fresh(self, stem: str) -> str:
        return f"{stem}{len(self.names) + len(self.buffers)}"

    def block(self, head: str, body: Any) -> None:
        self.line(head + " {")
        self.depth += 1
        self.statement(body)
        self.depth -= 1
        self.line("}")

    def statement(self, node: Any) -> None:
        match type(node).__name__:
            case "SeqStmt":
                for part in node.seq:
                    self.statement(part)
            case "DeclBuffer":
                self.buffers[node.buffer] = self.names[node.data]
            case "AllocBuffer":
                name = self.buffers[node.buffer] = self.fresh("cell")
                self.line(f"alignas(16) {TYPES[str(node.buffer.dtype)]} {name}[{int(node.buffer.shape[0])}];")
            case "Bind":
                value = self.expression(node.value)
                name = self.names[node.var] = self.fresh("v")
                self.line(f"const {TYPES[str(node.value.ty)]} {name} = {value};")
            case "BufferStore":
                value = self.expression(node.value)
                self.line(f"{self.buffers[node.buffer]}[{self.expression(node.indices[0])}] = {value};")
            case "For" if (
                node.kind == tir.ForKind.VECTORIZED and type(node.body.value).__name__ == "TensorLoad"
            ):
                self.names[node.loop_var] = "0"
                to, source = node.body, node.body.value
                pair = [
                    f"&{self.buffers[buffer]}[{self.expression(at.indices[0])}]"
                    for buffer, at in ((to.buffer, to), (source.source, source))
                ]
                self.line(f"move_together<{int(node.extent)}>({', '.join(pair)});")
            case "For":
                if node.kind in (tir.ForKind.UNROLLED, tir.ForKind.VECTORIZED):
                    self.line("#pragma unroll")
                first, count = self.expression(node.min), self.expression(node.extent)
                name = self.names[node.loop_var] = self.fresh("k")
                limit = count if first == "0" else f"{first} + {count}"
                self.block(f"for (i32 {name} = {first}; {name} < {limit}; ++{name})", node.body)
            case "IfThenElse":
                self.block(f"if ({self.expression(node.condition)})", node.then_case)
                if node.else_case is not None:
                    self.block("else", node.else_case)
            case kind:
                raise CodegenError(f"no CUDA form of the TIR statement {kind}")

    def expression(self, node: Any) -> str:
        kind, dtype = type(node).__name__, str(node.ty)
        match kind:
            case "IntImm":
                return literal(int(node.value), dtype)
            case "Var":
                return self.names[node]
            case "TensorLoad":
                return f"{self.buffers[node.source]}[{self.expression(node.indices[0])}]"
            case "Cast":
                return f"({TYPES[dtype]}){self.expression(node.value)}"
            case "Select":
                parts = (node.condition, node.true_value, node.false_value)
                return "({} ? {} : {})".format(*map(self.expression, parts))
            case "Not":
                return f"(!{self.expression(node.a)})"
            case "Min" | "Max":
                a, b = self.expression(node.a), self.expression(node.b)
                return f"{'least' if kind == 'Min' else 'most'}<{TYPES[dtype]}>({a}, {b})"
            case "Div" | "Mod":
                a, b = self.expression(node.a), self.expression(node.b)
                if isinstance(node.b, tir.IntImm):
                    return f"({a} {'/' if kind == 'Div' else '%'} {b})"
                return f"{'quotient' if kind == 'Div' else 'rest'}({a}, {b})"
        if kind in INFIX:
            return f"({self.expression(node.a)} {INFIX[kind]} {self.expression(node.b)})"
        name = node.op.name.rpartition(".")[2] if isinstance(node, Call) else kind
        if name in CALLS:
            return CALLS[name].format(*map(self.expression, node.args))
        raise CodegenError(f"no CUDA form of the TIR expression {name}")
