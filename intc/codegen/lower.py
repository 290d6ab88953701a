"""From an integer graph to a shared library, a constants blob and the sizes of an arena."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intc.artifact import schema
from intc.codegen.cuda import compiler as cuda_compiler
from intc.codegen.cuda.launches import place_launches
from intc.codegen.main import build_main, constant_offsets, output_key
from intc.codegen.memory import Plan, Step, arena_bytes, plan
from intc.codegen.program import Constant, Program, ScratchArg, nbytes
from intc.codegen.rules import lower_copy, lower_node
from intc.codegen.targets import Target, resolve
from intc.errors import CodegenError
from intc.ir.dims import Dim
from intc.ir.graph import Graph
from intc.ir.op import Array


@dataclass(frozen=True)
class Lowered:
    """What the runtime needs, beside the graph's typed inputs and outputs.

    The library's ``main`` takes addresses of ``constants``, arena, each input, each output, then int32: each
    of ``symbols`` and the number of tasks. All addresses are 64-byte aligned. The arena needs
    :meth:`arena_bytes`. ``stages`` are (kernel, ONNX node, value written) in order.
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
    stages: tuple[tuple[str, str, str], ...]
    launches: tuple[schema.Launch, ...] = ()

    @property
    def features(self) -> tuple[str, ...]:
        """CPU flags (Linux names) that the library uses."""
        return self.target.features

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
    """Compile ``graph`` (integers only, fused or not); CodegenError names the node that has no kernel.

    With ``ticks``, ``main`` takes one more address, of ``len(stages) + 1`` int64 cycle counts.
    """
    resolved = resolve(target) if isinstance(target, str) else target
    program = Program(graph, resolved)
    for name, value in graph.values.items():
        if value.type.is_float:
            raise CodegenError(f"value '{name}' is {value.type.dtype}; only integer graphs can be lowered")
    for node in graph.nodes:
        lower_node(program, node)
    roots = place_outputs(program)
    memory = plan_memory(program, roots)
    scratch = {
        a.size * (program.work[s.kernel] if resolved.gpu else 1)
        for s in program.stages
        for a in s.args
        if isinstance(a, ScratchArg)
    }
    if resolved.gpu:
        library, launches = build_gpu(program, memory, roots)
    else:
        library, launches = build_library(program, memory, roots, ticks), ()
    return Lowered(
        resolved,
        library,
        tuple(program.constants),
        tuple(constant_offsets(program)),
        tuple(graph.inputs),
        tuple(graph.outputs),
        tuple(graph.symbols()),
        tuple(memory.slots),
        tuple(sorted(scratch, key=str)),
        tuple((s.kernel, s.source, s.writes[0]) for s in program.stages),
        launches,
    )


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
    graph = program.graph
    sizes = {
        root: nbytes(program.type(root))
        for root in dict.fromkeys(roots.values())
        if root in graph.values and root not in graph.inputs and root not in graph.constants
    }

    def held(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(roots.get(n, n) for n in names)

    return plan([Step(held(s.reads), held(s.writes)) for s in program.stages], sizes)


def build_gpu(
    program: Program, memory: Plan, roots: Mapping[str, str]
) -> tuple[bytes, tuple[schema.Launch, ...]]:
    """The code of the kernels, and how they are launched."""
    code = cuda_compiler.compile_kernels(program.kernels, program.target.architectures)
    return code, place_launches(program, memory, roots)


def build_library(program: Program, memory: Plan, roots: Mapping[str, str], ticks: bool = False) -> bytes:
    """The bytes of the shared library."""
    import tvm

    from intc.codegen.tir_pipeline import build

    names = {name: tvm.ir.GlobalVar(name) for name in program.kernels}
    functions = {names[name]: function for name, function in program.kernels.items()}
    main = build_main(program, memory, roots, names, ticks).with_attr("global_symbol", "main")
    functions[tvm.ir.GlobalVar("main")] = main
    executable = build(functions, program.target.tvm())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernels.so"
        executable.export_library(str(path))
        return path.read_bytes()
