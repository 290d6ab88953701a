"""A graph with its free sizes fixed, for targets that cannot take a size at run time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from intc.errors import UsageError
from intc.ir.dims import Poly, evaluate, substitute, symbols
from intc.ir.graph import Builder, Graph, Node, Value, rebuild
from intc.ir.op import Op


def bound(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    """``graph`` with the symbols in ``sizes`` replaced by numbers; its meaning for these sizes is the same.

    UsageError for a name that is no free size, or a size below 1 or beyond what the graph can take.
    """
    free = graph.symbols()
    for name, size in sizes.items():
        if name not in free:
            raise UsageError(f"'{name}' is no free size; the model has {', '.join(free) or 'none'}")
        if size < 1:
            raise UsageError(f"{name}={size}: a size is at least 1")
    if not sizes:
        return graph
    for limited, largest in graph.limits().items():
        if set(symbols([limited])) <= set(sizes) and evaluate(limited, sizes) > largest:
            raise UsageError(f"{limited} is {evaluate(limited, sizes)}; the model takes at most {largest}")

    def fixed(item: Any) -> Any:
        if isinstance(item, tuple):
            return tuple(fixed(part) for part in item)
        return substitute(item, sizes) if isinstance(item, Poly) else item

    def visit(builder: Builder, node: Node, inputs: tuple[str, ...]) -> str:
        changed: dict[str, Any] = {f.name: fixed(getattr(node.op, f.name)) for f in fields(node.op)}
        op: Op = replace(node.op, **changed)
        scale = graph.values[node.output].scale
        return builder.emit(op, *inputs, name=node.output, source=node.source, scale=scale)

    def typed(value: Value) -> Value:
        return replace(value, type=value.type.with_shape(fixed(value.type.shape)))

    values = {n: typed(v) if n in graph.inputs else v for n, v in graph.values.items()}
    return rebuild(replace(graph, values=values), visit)
