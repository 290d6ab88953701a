"""The one public function of a compiled network: it places every value and calls the kernels in order.

``entry(constants, arena, inputs.., outputs.., symbols.., tasks)``: raw 64-byte aligned addresses, then int32
sizes. With ``tasks == 1`` everything runs in the calling thread; otherwise one parallel region covers the
network (or :data:`PART` stages of a long one), each stage is split into ``tasks`` shares and a barrier
follows each stage. The result does not depend on ``tasks``.
With ``ticks`` (for profiles) one more pointer takes int64 cycle counts: entry i + 1 is the time at which task
0 finished stage i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tvm.ir import Call, GlobalVar, PrimType
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

PART: Final = 128  # stages in one function: the time that LLVM takes for it grows faster than their number


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
    entry: str,
    ticks: bool = False,
) -> dict[GlobalVar, PrimFunc]:
    """The entry point ``entry`` for ``program`` and the functions that it calls beside ``kernels``; ``roots``
    maps a value to the planned value, input or output that holds its data.
    """
    build = _Build(program, plan, roots, kernels, ticks)
    count = len(program.stages)
    if count <= PART:
        return {GlobalVar(entry): build.function(range(count)).with_attr("global_symbol", entry)}
    parts = {
        GlobalVar(f"part_{i}"): build.function(range(i, min(i + PART, count)), private=True)
        for i in range(0, count, PART)
    }
    return parts | {GlobalVar(entry): build.calling(list(parts)).with_attr("global_symbol", entry)}


@dataclass(frozen=True)
class _Build:
    """The functions over the parameters of ``main``."""

    program: Program
    plan: Plan
    roots: Mapping[str, str]
    kernels: Mapping[str, GlobalVar]
    ticks: bool

    def _parameters(self) -> dict[str, Expr]:
        """The parameters by name, in order."""
        graph = self.program.graph
        found = {name: T.arg(name, T.handle("int8")) for name in ("constants", "arena")}
        found |= {f"input{i}": T.arg(f"input{i}", T.handle("int8")) for i in range(len(graph.inputs))}
        found |= {f"output{i}": T.arg(f"output{i}", T.handle("int8")) for i in range(len(graph.outputs))}
        found |= {f"size_{s}": T.arg(f"size_{s}", T.int32()) for s in graph.symbols()}
        found["tasks"] = T.arg("tasks", T.int32())
        return found | ({"ticks": T.arg("ticks", T.handle("int64"))} if self.ticks else {})

    def calling(self, parts: Sequence[GlobalVar]) -> PrimFunc:
        """All ``parts`` in order. LLVM would inline what is called once."""
        with IRBuilder() as builder:
            with T.prim_func():
                T.func_name("main")
                parameters = self._parameters()
                with T.If(parameters["tasks"] == 1):
                    for branch in (T.Then(), T.Else()):
                        with branch:
                            for part in parts:
                                failed = T.bind(Call(part, list(parameters.values()), ret_ty="int32"))
                                with T.If(failed != 0), T.Then():
                                    T.Return(failed)
        return builder.get()

    def function(self, stages: range, private: bool = False) -> PrimFunc:
        """The ``stages`` one after another."""
        with IRBuilder() as builder:
            with T.prim_func(is_private=private):
                if private:
                    T.func_ret(PrimType("int32"))
                else:
                    T.func_name("main")
                parameters = self._parameters()
                self._stages(self._places(parameters), stages, parameters["tasks"])
                if private:
                    T.Return(T.int32(0))
        return builder.get()

    def _places(self, parameters: Mapping[str, Expr]) -> _Places:
        program, graph = self.program, self.program.graph
        constants, arena = parameters["constants"], parameters["arena"]
        pointers = {name: parameters[f"input{i}"] for i, name in enumerate(graph.inputs)}
        pointers |= {output_key(i): parameters[f"output{i}"] for i in range(len(graph.outputs))}
        symbols = {s: parameters[f"size_{s}"] for s in graph.symbols()}
        offset: Expr = T.int64(0)
        slots = []
        for size in self.plan.slots:
            slots.append(T.bind(T.handle_add_byte_offset(arena, offset)))
            offset = T.bind(offset + _rounded(size, symbols))
        pointers |= {name: slots[slot] for name, slot in self.plan.slot_of.items()}
        offsets = constant_offsets(program)
        for name in sorted({self.roots[alias] for alias in program.aliases} & set(graph.constants)):
            entry = program.graph_constant(name).entry
            pointers[name] = T.bind(T.handle_add_byte_offset(constants, T.int64(offsets[entry])))
        places = _Places(self.roots, symbols, pointers, constants, offsets, arena, offset)
        if self.ticks:
            places.ticks = T.decl_buffer(
                (len(program.stages) + 1,), "int64", data=parameters["ticks"], layout=None
            )
        return places

    def _stages(self, places: _Places, stages: range, tasks: Expr) -> None:
        if stages.start == 0:
            places.tick(0)
        listed = [(i, self.program.stages[i]) for i in stages]
        with T.If(tasks == 1):
            with T.Then():
                for i, stage in listed:
                    places.call(self.kernels[stage.kernel], stage, 0, 1)
                    _fence()
                    places.tick(i + 1)
            with T.Else(), T.attr(0, "pragma_parallel_launch_point", 1):
                for i, stage in listed:
                    with T.attr(0, "pragma_parallel_barrier_when_finish", 1), T.parallel(tasks) as task:
                        places.call(self.kernels[stage.kernel], stage, task, tasks)
                        if self.ticks:
                            with T.If(task == 0), T.Then():
                                places.tick(i + 1)


def _fence() -> None:
    """Keep LLVM from moving loads and stores of one stage into another.

    TVM tells it that what two kernels reach through their parameters is never the same memory, which holds
    within a kernel. Where LLVM inlines small ones it would read what is not written yet.
    """
    T.evaluate(T.call_llvm_intrin("void", "llvm.x86.sse.sfence"))


def _rounded(size: Dim, symbols: Mapping[str, Expr]) -> Expr:
    """``size`` bytes rounded up to the arena's alignment, as int64."""
    if isinstance(size, int):
        return T.int64(round_up(size))
    return T.truncdiv(dim_expr(size, symbols, "int64") + (ALIGN - 1), T.int64(ALIGN)) * ALIGN
