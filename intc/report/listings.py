"""The source of every kernel of a graph, and which kernel computes which value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from intc.codegen.c.printer import Helpers, print_kernel
from intc.codegen.disassembly import disassembly
from intc.codegen.lower import staged
from intc.codegen.targets import Target
from intc.ir.graph import Graph


@dataclass(frozen=True)
class Listings:
    """``sources``: by kernel, its texts by their language, from the one it was written in to the machine's.

    ``kernels``: by value, the kernels that write it, or compute it on the way to what they write, in order;
    ``holders``: by value without a kernel, the value whose bytes it shares.
    """

    sources: dict[str, dict[str, str]] = field(default_factory=dict)
    kernels: dict[str, list[str]] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)


def listings(graph: Graph, target: Target, library: bytes | None = None) -> Listings:
    """The kernels of ``graph`` for ``target``, generated anew, with the machine code in ``library``.

    ``library`` is None where there is none, or none for a processor that is understood here.
    """
    program, _ = staged(graph, target)
    found = Listings(holders=dict(program.aliases))
    assembly: Mapping[str, str] = disassembly(library) if library and not target.gpu else {}
    helpers = Helpers()
    for name, kernel in program.kernels.items():
        if target.gpu:
            found.sources[name] = {"CUDA": str(kernel)}
            continue
        found.sources[name] = {"TIR": kernel.script()}
        if not target.native:
            found.sources[name]["C"] = print_kernel(name, kernel, helpers).text
        elif name in assembly:
            found.sources[name]["assembly"] = assembly[name]
    for stage in program.stages:
        for value in stage.writes:
            if value in graph.values:
                found.kernels.setdefault(value, []).append(stage.kernel)
    users = graph.users()
    for value in (within := program.within):
        reader = users[value][0].output
        while reader in within:
            reader = users[reader][0].output
        found.kernels[value] = found.kernels[found.holders.get(reader, reader)]
    return found
