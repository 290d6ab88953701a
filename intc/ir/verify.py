"""The rules that every graph obeys between passes and after parsing."""

from __future__ import annotations

import math

from intc.errors import GraphError, IntcError
from intc.ir.dims import format_shape
from intc.ir.graph import Graph, Node
from intc.ir.types import format_type, type_of_array


def verify(graph: Graph) -> None:
    """GraphError naming the first value or node that breaks a rule.

    The rules: every value is defined once, before its first use, by an input, a constant or a node; nothing
    else is in ``values``; node types equal what the operator infers; constants have the shape and element
    type of their value and lie in its interval; per-channel scales have one entry per index of the last
    axis; outputs are defined.
    """
    defined: set[str] = set()
    for name in (*graph.inputs, *graph.constants):
        _define(graph, name, defined)
    for name in graph.constants:
        _check_constant(graph, name)
    for node in graph.nodes:
        _check_node(graph, node, defined)
        _define(graph, node.output, defined)
    for name in graph.outputs:
        if name not in defined:
            raise GraphError(f"output '{name}' is not defined")
    for name in graph.values:
        if name not in defined:
            raise GraphError(f"value '{name}' is declared but nothing defines it")
        _check_scale(graph, name)


def _define(graph: Graph, name: str, defined: set[str]) -> None:
    if name in defined:
        raise GraphError(f"value '{name}' is defined twice")
    if name not in graph.values:
        raise GraphError(f"value '{name}' has no declaration")
    if graph.values[name].name != name:
        raise GraphError(f"value '{name}' is declared under the name '{graph.values[name].name}'")
    defined.add(name)


def _check_constant(graph: Graph, name: str) -> None:
    want, got = graph.type(name), type_of_array(graph.constants[name])
    if (want.shape, want.dtype) != (got.shape, got.dtype):
        raise GraphError(f"constant '{name}' holds {format_type(got)}, declared {format_type(want)}")
    if not want.is_float and graph.constants[name].size:
        (lo, hi), (low, high) = want.interval, got.interval
        if low < lo or high > hi:
            raise GraphError(f"constant '{name}' holds values in [{low}, {high}], declared [{lo}, {hi}]")


def _check_node(graph: Graph, node: Node, defined: set[str]) -> None:
    where = f"node '{node.output}' ({node.op.name})"
    for name in node.inputs:
        if name not in defined:
            raise GraphError(f"{where} uses '{name}' before its definition")
    if len(node.inputs) not in node.op.arity:
        allowed = " or ".join(map(str, node.op.arity))
        raise GraphError(f"{where} takes {allowed} inputs, not {len(node.inputs)}")
    try:
        inferred = node.op.infer(*(graph.type(x) for x in node.inputs))
    except IntcError as error:
        raise GraphError(f"{where}: {error}") from None
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise GraphError(f"{where}: attributes or inputs do not fit ({type(error).__name__})") from error
    if node.output in graph.values and inferred != graph.type(node.output):
        declared = format_type(graph.type(node.output))
        raise GraphError(f"{where} is declared {declared}, but its operator gives {format_type(inferred)}")


def _check_scale(graph: Graph, name: str) -> None:
    value = graph.values[name]
    if isinstance(value.scale, tuple):
        shape = value.type.shape
        if not shape or shape[-1] != len(value.scale):
            raise GraphError(f"value '{name}' {format_shape(shape)} has {len(value.scale)} scales")
    scales = value.scale if isinstance(value.scale, tuple) else (value.scale,)
    if not all(scale is None or math.isfinite(scale) for scale in scales):
        raise GraphError(f"value '{name}' has a scale that is not a finite number")
    if value.lowest is not None and (value.scale is None or not math.isfinite(value.lowest)):
        raise GraphError(f"value '{name}' has no scale beside its lowest number, or that is not finite")


def float_values(graph: Graph) -> list[str]:
    """The values of float type; empty for an integer graph."""
    return [name for name, value in graph.values.items() if value.type.is_float]


def float_operators(graph: Graph) -> list[str]:
    """Outputs of the nodes with a float value or a float attribute; empty for an integer graph."""
    out = []
    for node in graph.nodes:
        touched = any(graph.type(n).is_float for n in (*node.inputs, node.output))
        if touched or any(isinstance(v, float) for v in vars(node.op).values()):
            out.append(node.output)
    return out
