"""The free sizes of a graph: fixed, for targets that cannot take a size at run time, or chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from intc.errors import UsageError, beyond_limit
from intc.ir.dims import SYMBOL_MAX, Dim, Poly, evaluate, substitute, symbols
from intc.ir.graph import Builder, Graph, Node, Value, rebuild
from intc.ir.op import Op


def admissible(graph: Graph, sizes: Mapping[str, int]) -> dict[str, int]:
    """``sizes``, or the nearest that the limits of ``graph`` admit: smaller ones 1, larger ones the least."""
    found, limits = dict(sizes), graph.limits()

    def violated(limited: Dim) -> bool:
        return evaluate(limited, found) > limits[limited]

    for limited in limits:
        if violated(limited) and evaluate(limited, dict.fromkeys(found, SYMBOL_MAX)) > limits[limited]:
            found = dict.fromkeys(found, 1)
    for limited in limits:
        names, low, high = symbols([limited]), 0, 1
        while violated(limited) and high < SYMBOL_MAX:
            low, high = high, 2 * high
            found |= {name: max(found[name], high) for name in names}
        while high - low > 1 and low:
            middle = (low + high) // 2
            before, high = found, middle
            found = found | {name: middle for name in names if found[name] > middle}
            if violated(limited):
                found, low, high = before, middle, max(before[name] for name in names)
    return found


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
            raise UsageError(beyond_limit(limited, evaluate(limited, sizes), largest))

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
