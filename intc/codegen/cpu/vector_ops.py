"""Elementwise operators on vectors of a whole register: what :mod:`intc.codegen.cpu.elementwise` says of one
element.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from intc.codegen.cpu.epilogue import Prepared, plan_requantize
from intc.codegen.cpu.epilogue import Requantize as Form
from intc.codegen.cpu.isa import Isa
from intc.codegen.cpu.vector import Vec
from intc.codegen.program import Program
from intc.ir.graph import Node
from intc.ops.fused import activation
from intc.ops.poly import PolyGelu
from intc.ops.requantize import Clip, Requantize
from intc.ops.shift import ShiftGelu

VecFormula = Callable[..., Vec]
Rule = Callable[[Program, Node, Isa], VecFormula | None]


def form(program: Program, node: Node) -> Form | None:
    """The cheapest form of a requantisation that its factors allow; None for other operators, and where the
    factors are not known or that form has others.
    """
    op, constants = node.op, program.graph.constants
    if not isinstance(op, Requantize) or not constants.keys() >= set(node.inputs[1:]):
        return None
    m, e = np.broadcast_arrays(*(constants[x].reshape(-1) for x in node.inputs[1:]))
    found, planned, _ = plan_requantize(m, e, op.lo, op.hi, *program.type(node.inputs[0]).interval)
    return found if found.narrow or np.array_equal(planned, m) else None


def requantize(program: Program, node: Node, isa: Isa) -> VecFormula | None:
    op, found = node.op, form(program, node)
    assert isinstance(op, Requantize)
    if found is None:
        return None

    def formula(x: Vec, m: Vec, e: Vec) -> Vec:
        if found.narrow:
            return Prepared(found, (m >> (e - 15)).cast("int16"), e, isa)(x, op.dtype)
        return Prepared(found, m, e + found.pre if found.pre else e, isa)(x, op.dtype)

    return formula


def clip(program: Program, node: Node, isa: Isa) -> VecFormula:
    op = node.op
    assert isinstance(op, Clip)
    return lambda x: x.cast("int32").saturated(op.lo, op.hi, op.dtype)


def gelu(program: Program, node: Node, isa: Isa) -> VecFormula:
    op = node.op
    assert isinstance(op, PolyGelu | ShiftGelu)
    kind, lanes = (op.kind, "int16") if isinstance(op, PolyGelu) else ("shift", "int32")
    function = activation(kind, op.frac)

    def formula(x: Vec, centre: Vec | None = None) -> Vec:
        y: Vec = function(isa.algebra, x.cast(lanes))
        return y if centre is None else y - centre.cast(lanes)

    return formula


def arithmetic(program: Program, node: Node, isa: Isa) -> VecFormula:
    """In the output's element type, which holds the exact interval."""
    dtype, algebra = program.type(node.output).dtype, isa.algebra
    compute: Callable[[Any, Any], Vec] = {
        "add": operator.add,
        "sub": operator.sub,
        "mul": operator.mul,
        "max": algebra.maximum,
        "min": algebra.minimum,
    }[node.op.name]
    return lambda a, b: compute(a.cast(dtype), b.cast(dtype))


RULES: Final[Mapping[str, Rule]] = {
    "requantize": requantize,
    "clip": clip,
    "poly_gelu": gelu,
    "shift_gelu": gelu,
    **dict.fromkeys(("add", "sub", "mul", "max", "min"), arithmetic),
}
TYPES: Final = ("int8", "uint8", "int16", "int32")


def vector_formula(program: Program, node: Node, isa: Isa) -> VecFormula | None:
    """The formula of ``node`` on vectors; None where it needs 64 bits, or is not among the rules."""
    rule = RULES.get(node.op.name)
    types = [program.type(x).dtype for x in (*node.inputs, node.output)]
    return rule(program, node, isa) if rule and all(t in TYPES for t in types) else None
