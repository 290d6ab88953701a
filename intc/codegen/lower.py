"""From an integer graph to a shared library, a constants blob and the sizes of an arena."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from intc.artifact.fields import Size
from intc.artifact.schema import Interface, PortType
from intc.artifact.schema import Launch as StoredLaunch
from intc.codegen.cpu import framed, patches, reduction
from intc.codegen.cuda import boundary
from intc.codegen.cuda import compiler as cuda_compiler
from intc.codegen.cuda import elementwise as cuda_elementwise
from intc.codegen.cuda import layer_norm as cuda_layer_norm
from intc.codegen.cuda.launches import place_launches
from intc.codegen.cuda.machine_code import GpuCode, gpu_code
from intc.codegen.machine_code import MachineCode, machine_code
from intc.codegen.main import build_main, constant_offsets, output_key
from intc.codegen.memory import Plan, Step, arena_bytes, plan
from intc.codegen.program import Constant, Program, ScratchArg, nbytes
from intc.codegen.rules import lower_copy, lower_node
from intc.codegen.targets import Target, resolve
from intc.errors import CodegenError
from intc.ir.dims import Dim
from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.ir.types import TensorType


@dataclass(frozen=True)
class Lowered:
    """What the runtime needs, beside the graph's typed inputs and outputs.

    The library's function ``entry`` takes addresses of ``constants``, arena, each input, each output, then
    int32: each of ``symbols`` and the number of tasks. All addresses are 64-byte aligned. The arena needs
    :meth:`arena_bytes`. ``stages`` are (kernel, ONNX node, values written) in order.
    """

    target: Target
    library: bytes
    constants: tuple[Constant, ...]
    offsets: tuple[int, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    symbols: tuple[str, ...]
    slots: tuple[Dim, ...]
    scratch: tuple[Dim, ...]
    stages: tuple[tuple[str, str, tuple[str, ...]], ...]
    entry: str
    launches: tuple[StoredLaunch, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """CPU flags (Linux names) that the library uses."""
        return self.target.features

    @cached_property
    def code(self) -> MachineCode | GpuCode | None:
        """The library, disassembled; None for a GPU's where its disassembler is not installed."""
        return gpu_code(self.library) if self.target.gpu else machine_code(self.library)

    def blob(self) -> Array:
        """The constants blob, uint8."""
        out = np.zeros(self.offsets[-1], np.uint8)
        for offset, constant in zip(self.offsets, self.constants, strict=False):
            raw = constant.array.reshape(-1).view(np.uint8)
            out[offset : offset + raw.size] = raw
        return out

    def arena_bytes(self, sizes: Mapping[str, int], tasks: int) -> int:
        """Bytes of arena for these symbol values; see :func:`intc.codegen.memory.arena_bytes`."""
        return arena_bytes(self.slots, self.scratch, tasks, sizes)


def lower(graph: Graph, target: str | Target = "native", *, ticks: bool = False) -> Lowered:
    """Compile ``graph`` (integers only, fused or not); CodegenError names the node that has no kernel, or the
    kernel in whose machine code something is floating point.

    With ``ticks``, the entry point takes one more address, of ``len(stages) + 1`` int64 cycle counts.
    """
    resolved = resolve(target) if isinstance(target, str) else target
    if not resolved.native:
        raise CodegenError(f"target '{resolved.name}' is source code, not a library")
    program, roots = staged(graph, resolved)
    memory = plan_memory(program, roots)
    needed = {
        a.size * (program.work[s.kernel] if resolved.gpu else 1)
        for s in program.stages
        for a in s.args
        if isinstance(a, ScratchArg)
    }
    scratch = tuple(sorted(needed, key=str))
    entry = interface(program, memory.slots, scratch).entry
    if resolved.gpu:
        library, launches = build_gpu(program, memory, roots)
    else:
        library, launches = build_library(program, memory, roots, entry, ticks), ()
    lowered = Lowered(
        resolved,
        library,
        tuple(program.constants),
        tuple(constant_offsets(program)),
        tuple(graph.inputs),
        tuple(graph.outputs),
        tuple(graph.symbols()),
        tuple(memory.slots),
        scratch,
        tuple((s.kernel, s.source, s.writes) for s in program.stages),
        entry,
        launches,
    )
    if lowered.code and lowered.code.floats:
        raise CodegenError(f"floating point in the kernels for {resolved.name}: {lowered.code.floats[0]}")
    return lowered


def staged(graph: Graph, target: Target) -> tuple[Program, dict[str, str]]:
    """The program of ``graph``, and the holder of every value (see :func:`place_outputs`)."""
    program = outlined(graph, target)
    elsewhere = program.inlined.union(pad.output for pad in program.framed.values())
    elsewhere |= {node.output for nodes in program.beside.values() for node in nodes}
    for name, value in graph.values.items():
        if value.type.is_float:
            raise CodegenError(f"value '{name}' is {value.type.dtype}; only integer graphs can be lowered")
    for node in graph.nodes:
        if node.output not in elsewhere:
            lower_node(program, node)
    return program, place_outputs(program)


def outlined(graph: Graph, target: Target) -> Program:
    """The program of ``graph`` without its stages: which values they will not store."""
    program = Program(graph, target)
    if target.gpu:
        program.inlined = cuda_elementwise.inlined(graph)
        program.inlined |= cuda_layer_norm.before(program)
        program.beside = cuda_layer_norm.after(program)
    else:
        program.inlined = reduction.inlined(program) | patches.inlined(program)
        program.framed = framed.framed(program)
    return program


def interface(program: Program, slots: Sequence[Dim], scratch: Sequence[Dim]) -> Interface:
    """What the kernels of ``program`` rely on, as :meth:`intc.artifact.schema.Manifest.interface` says it."""
    graph = program.graph
    return Interface(
        tuple(port_type(graph.type(name)) for name in graph.inputs),
        tuple(port_type(graph.type(name)) for name in graph.outputs),
        tuple(graph.symbols()),
        tuple((str(size), largest) for size, largest in graph.limits().items()),
        tuple((graph.inputs.index(name), index) for name, index in graph.states.items()),
        tuple(program.target.features),
        as_sizes(slots),
        as_sizes(scratch),
        tuple(constant.array.nbytes for constant in program.constants),
    )


def port_type(type_: TensorType) -> PortType:
    """``type_`` as an artifact states it."""
    return as_sizes(type_.shape), type_.dtype, *type_.interval


def as_sizes(dims: Sequence[Dim]) -> tuple[Size, ...]:
    """``dims`` as an artifact states them."""
    return tuple(d if isinstance(d, int) else str(d) for d in dims)


def place_outputs(program: Program) -> dict[str, str]:
    """The holder of every aliased or output value; outputs that cannot be computed in place get a copying
    stage.
    """
    graph = program.graph
    roots: dict[str, str] = {}
    for name in graph.values:
        root = name
        while root in program.aliases:
            root = program.aliases[root]
        roots[name] = root
    written = {name for stage in program.stages for name in stage.writes}
    for alias in program.aliases:
        if roots[alias] in graph.constants:
            program.graph_constant(roots[alias])
    claimed: dict[str, str] = {}
    for i, name in enumerate(graph.outputs):
        root = roots[name]
        if root in written and root not in claimed:
            claimed[root] = output_key(i)
        else:
            lower_copy(program, name, output_key(i))
    return {name: claimed.get(root, root) for name, root in roots.items()}


def plan_memory(program: Program, roots: Mapping[str, str]) -> Plan:
    """Slots for every value that is neither input, constant nor output."""
    return plan(*lifetimes(program, roots))


def lifetimes(program: Program, roots: Mapping[str, str]) -> tuple[list[Step], dict[str, Dim]]:
    """What every stage reads and writes, by holder, and the bytes of the holders that need a place."""
    graph = program.graph
    sizes = {
        root: nbytes(program.type(root))
        for root in dict.fromkeys(roots.values())
        if root in graph.values and root not in graph.inputs and root not in graph.constants
    }

    def held(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(roots.get(n, n) for n in names)

    return [Step(held(s.reads), held(s.writes)) for s in program.stages], sizes


def build_gpu(
    program: Program, memory: Plan, roots: Mapping[str, str]
) -> tuple[bytes, tuple[StoredLaunch, ...]]:
    """The code of the kernels, and how they are launched."""
    kernels = {**program.kernels, **boundary.KERNELS}
    code = cuda_compiler.compile_kernels(kernels, program.target.architectures)
    return code, place_launches(program, memory, roots)


def build_library(
    program: Program, memory: Plan, roots: Mapping[str, str], entry: str, ticks: bool = False
) -> bytes:
    """The bytes of the shared library."""
    import tvm

    from intc.codegen.tir_pipeline import build

    names = {name: tvm.ir.GlobalVar(name) for name in program.kernels}
    functions = {names[name]: function for name, function in program.kernels.items()}
    functions |= build_main(program, memory, roots, names, entry, ticks)
    executable = build(functions, program.target.tvm())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        executable.export_library(str(path))
        return path.read_bytes()
