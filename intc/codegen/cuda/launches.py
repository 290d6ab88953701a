"""The stages of a program as the artifact lists them: kernels, grids and arguments by place."""

from __future__ import annotations

from collections.abc import Mapping

from intc.artifact import schema
from intc.artifact.fields import Size
from intc.codegen.main import constant_offsets, output_key
from intc.codegen.memory import Plan
from intc.codegen.program import (
    Arg,
    ConstArg,
    IntArg,
    Launch,
    Program,
    ScratchArg,
    SizeArg,
    ValueArg,
    ZerosArg,
)
from intc.ir.dims import Dim


def place_launches(program: Program, plan: Plan, roots: Mapping[str, str]) -> tuple[schema.Launch, ...]:
    """Every stage; ``roots`` maps a value to the planned value, input or output that holds its data."""
    offsets = constant_offsets(program)
    places = {name: ("slot", slot) for name, slot in plan.slot_of.items()}
    places |= {name: ("input", i) for i, name in enumerate(program.graph.inputs)}
    places |= {output_key(i): ("output", i) for i in range(len(program.graph.outputs))}

    def place(arg: Arg) -> tuple[str, Size, int]:
        match arg:
            case ValueArg(name, offset):
                root = roots.get(name, name)
                if root in program.graph.constants:
                    return place(program.graph_constant(root))
                return (*places[root], offset)
            case ConstArg(entry):
                return ("constants", 0, offsets[entry])
            case IntArg(value, dtype):
                return (dtype, value, 0)
            case SizeArg(dim, dtype):
                return (dtype, _size(dim), 0)
            case ScratchArg():
                return ("scratch", 0, 0)
            case ZerosArg():
                return ("zeros", 0, 0)
        raise AssertionError(f"{arg} is no argument of a GPU kernel")

    return tuple(
        schema.Launch(tuple(map(_choice, stage.launches)), tuple(map(place, stage.args)))
        for stage in program.stages
    )


def _choice(launch: Launch) -> schema.Choice:
    grid = tuple((_size(size), each) for size, each in launch.grid)
    limits = tuple((_size(size), largest) for size, largest in launch.limits)
    numbers = (launch.threads, launch.shared, launch.splits, launch.zeros, launch.work, launch.architecture)
    return schema.Choice(launch.kernel, grid, *numbers, limits)


def _size(dim: Dim) -> Size:
    return dim if isinstance(dim, int) else str(dim)
