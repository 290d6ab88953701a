"""``certificate.json``: what is proven of a compiled graph and its machine code, each part recomputable.

Everything in it follows from the artifact's own graph and kernels, so that ``intc verify`` derives it again
and compares.
"""

from __future__ import annotations

import json
from typing import Any, Final

from intc.artifact import schema
from intc.artifact.container import Container
from intc.codegen.cuda.machine_code import GpuCode
from intc.codegen.machine_code import MachineCode
from intc.ir.graph import Graph
from intc.ir.verify import float_operators, float_values
from intc.report.probe import probe_digest, probe_sizes
from intc.report.proof import proofs

SCHEMA: Final = 1


def certificate(graph: Graph, code: MachineCode | GpuCode | None) -> dict[str, Any]:
    """No float value, operator or instruction; the interval of every value, the proof of every computation;
    the digest of the outputs on the graph's probe.

    ``code`` is None for kernels that no disassembler here understands, and for a GPU's where NVIDIA's is not
    installed; ``machine_code`` is then null.
    """
    return {
        "schema": SCHEMA,
        "float_values": float_values(graph),
        "float_operators": float_operators(graph),
        "machine_code": code.summary() if code else None,
        "nodes": len(graph.nodes),
        "intervals": {
            name: [value.type.dtype, value.type.lo, value.type.hi] for name, value in graph.values.items()
        },
        "proofs": proofs(graph),
        "outputs": {"sizes": probe_sizes(graph), "sha256": probe_digest(graph)},
    }


def stored_certificate(container: Container) -> Any:
    """The certificate as the artifact holds it; None where it is no JSON."""
    try:
        return json.loads(bytes(container.member(schema.CERTIFICATE)))
    except (ValueError, RecursionError):
        return None


def disagreements(stored: Any, derived: dict[str, Any], gpu: bool = False) -> list[str]:
    """The parts of a stored certificate that are not what its artifact implies.

    The machine code of a ``gpu`` is compared where it was read both times.
    """
    if not isinstance(stored, dict):
        return ["all of it"]
    unread = gpu and None in (stored.get("machine_code"), derived["machine_code"])
    keys = {*stored, *derived} - ({"machine_code"} if unread else set())
    return sorted(key for key in keys if stored.get(key) != derived.get(key))
