"""The one public function of a compiled network: it places every value and calls the kernels in order.

``entry(constants, arena, inputs.., outputs.., symbols.., tasks)``: raw 64-byte aligned addresses, then int32
sizes. With ``tasks == 1`` everything runs in the calling thread; otherwise one parallel region covers the
network, each stage is split into ``tasks`` shares and a barrier follows each stage. The result does not
depend on ``tasks``. With ``ticks`` (for profiles) one more pointer takes int64 cycle counts: entry i + 1 is
the time at which task 0 finished stage i.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tvm.ir import Call, GlobalVar
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intc.codegen.kernel import Expr, PrimFunc, dim_expr
from intc.codegen.memory import ALIGN, Plan, round_up
from intc.codegen.program import (
    Arg,
    ConstArg,
    IntArg,
    Program,
    ScratchArg,
    ShareArg,
    SizeArg,
    Stage,
    TaskArg,
    TasksArg,
    ValueArg,
    ZerosArg,
)
from intc.ir.dims import Dim


def constant_offsets(program: Program) -> list[int]:
    """The byte offset of every entry of the constants blob; the end of the blob is the last element."""
    offsets = [0]
    for constant in program.constants:
        offsets.append(offsets[-1] + round_up(constant.array.nbytes))
    return offsets


def output_key(index: int) -> str:
    """The name under which ``roots`` refers to the memory of output ``index``."""
    return f"\0output{index}"


@dataclass
class _Places:
    """Where everything lies, as expressions over the parameters of ``main``."""

    roots: Mapping[str, str]
    symbols: Mapping[str, Expr]
    pointers: Mapping[str, Expr]
    constants: Expr
    constant_offsets: list[int]
    arena: Expr
    scratch_base: Expr

    ticks: Any = None

    def call(self, kernel: GlobalVar, stage: Stage, task: Expr, tasks: Expr) -> None:
        """Emit the call of ``stage``'s kernel for one task."""
        T.evaluate(Call(kernel, [self._arg(a, task, tasks) for a in stage.args]))

    def tick(self, number: int) -> None:
        """Record the cycle count as entry ``number``, where asked for."""
        if self.ticks is not None:
            T.buffer_store(self.ticks, T.call_llvm_intrin("int64", "llvm.readcyclecounter"), [number])

    def _arg(self, arg: Arg, task: Expr, tasks: Expr) -> Expr:
        match arg:
            case ValueArg(name, offset):
                pointer = self.pointers[self.roots.get(name, name)]
                return T.handle_add_byte_offset(pointer, T.int64(offset)) if offset else pointer
            case ConstArg(entry):
                return T.handle_add_byte_offset(self.constants, T.int64(self.constant_offsets[entry]))
            case IntArg(value, dtype):
                return T.IntImm(dtype, value)
            case SizeArg(dim, dtype):
                return dim_expr(dim, self.symbols, dtype)
            case ScratchArg(size):
                own = _rounded(size, self.symbols) * T.cast(task, "int64")
                return T.handle_add_byte_offset(self.arena, self.scratch_base + own)
            case ShareArg(count, sizes, end):
                total = count([dim_expr(size, self.symbols) for size in sizes])
                return T.truncdiv(total * ((task + 1) if end else task), tasks)
            case TaskArg():
                return T.cast(task, "int32")
            case TasksArg():
                return T.cast(tasks, "int32")
            case ZerosArg():
                raise AssertionError("only GPU kernels take zeros")


def build_main(
    program: Program,
    plan: Plan,
    roots: Mapping[str, str],
    kernels: Mapping[str, GlobalVar],
    ticks: bool = False,
) -> PrimFunc:
    """``main`` for ``program``; ``roots`` maps a value to the planned value, input or output that holds its
    data.
    """
    graph = program.graph
    with IRBuilder() as builder:
        with T.prim_func():
            T.func_name("main")
            constants, arena = T.arg("constants", T.handle("int8")), T.arg("arena", T.handle("int8"))
            pointers = {name: T.arg(f"input{i}", T.handle("int8")) for i, name in enumerate(graph.inputs)}
            pointers |= {
                output_key(i): T.arg(f"output{i}", T.handle("int8")) for i in range(len(graph.outputs))
            }
            symbols = {s: T.arg(f"size_{s}", T.int32()) for s in graph.symbols()}
            tasks = T.arg("tasks", T.int32())
            counts = T.arg("ticks", T.handle("int64")) if ticks else None
            offset: Expr = T.int64(0)
            slots = []
            for size in plan.slots:
                slots.append(T.bind(T.handle_add_byte_offset(arena, offset)))
                offset = T.bind(offset + _rounded(size, symbols))
            pointers |= {name: slots[slot] for name, slot in plan.slot_of.items()}
            offsets = constant_offsets(program)
            for name in sorted({roots[alias] for alias in program.aliases} & set(graph.constants)):
                entry = program.graph_constant(name).entry
                pointers[name] = T.bind(T.handle_add_byte_offset(constants, T.int64(offsets[entry])))
            places = _Places(roots, symbols, pointers, constants, offsets, arena, offset)
            if counts is not None:
                places.ticks = T.decl_buffer((len(program.stages) + 1,), "int64", data=counts, layout=None)
            places.tick(0)
            with T.If(tasks == 1):
                with T.Then():
                    for i, stage in enumerate(program.stages):
                        places.call(kernels[stage.kernel], stage, 0, 1)
                        places.tick(i + 1)
                with T.Else(), T.attr(0, "pragma_parallel_launch_point", 1):
                    for i, stage in enumerate(program.stages):
                        with T.attr(0, "pragma_parallel_barrier_when_finish", 1), T.parallel(tasks) as task:
                            places.call(kernels[stage.kernel], stage, task, tasks)
                            if ticks:
                                with T.If(task == 0), T.Then():
                                    places.tick(i + 1)
    return builder.get()


def _rounded(size: Dim, symbols: Mapping[str, Expr]) -> Expr:
    """``size`` bytes rounded up to the arena's alignment, as int64."""
    if isinstance(size, int):
        return T.int64(round_up(size))
    return T.truncdiv(dim_expr(size, symbols, "int64") + (ALIGN - 1), T.int64(ALIGN)) * ALIGN
