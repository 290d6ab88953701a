"""What a converter refuses, read from its own source: the reasons of the errors that it can raise."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from types import ModuleType
from typing import Any, Final

from intc.frontend.call import Converter

PACKAGE: Final = "intc.frontend."
MALFORMED: Final = ("reshape_to",)  # what these refuse is no model at all
KNOWN: Final = "{} depends on input values"  # as Call.known words it


def refusals(converter: Converter) -> list[str]:
    """The reasons that ``converter`` and the functions it calls give, in order; ``..`` stands for a value."""
    module = inspect.getmodule(converter)
    name = converter.__qualname__.split(".")[0]
    return list(dict.fromkeys(_reasons(module, name, set()))) if module is not None else []


def _reasons(module: ModuleType, name: str, seen: set[tuple[str, str]]) -> Iterator[str]:
    function = _functions(module).get(name)
    if function is None or (module.__name__, name) in seen:
        return
    seen.add((module.__name__, name))
    for node in ast.walk(function):
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        if isinstance(called, ast.Attribute) and called.attr in ("refuse", "known") and len(node.args) > 1:
            reason = _text(node.args[1])
            yield KNOWN.format(reason) if called.attr == "known" else reason
        elif isinstance(called, ast.Name) and called.id == "GraphError":
            yield _text(node.args[0])
        else:
            inner = _called(module, called)
            home = inspect.getmodule(inner) if inspect.isfunction(inner) else None
            if home is not None and home.__name__.startswith(PACKAGE) and inner.__name__ not in MALFORMED:
                yield from _reasons(home, inner.__qualname__.split(".")[0], seen)


def _called(module: ModuleType, called: ast.expr) -> Any:
    """What ``name``, or ``other.TABLE["Name"]`` with a module ``other``, is in ``module``; else None."""
    match called:
        case ast.Name(id=name):
            return getattr(module, name, None)
        case ast.Subscript(
            value=ast.Attribute(value=ast.Name(id=other), attr=table), slice=ast.Constant(value=key)
        ):
            return getattr(getattr(module, other, None), table, {}).get(key)
    return None


@cache
def _functions(module: ModuleType) -> dict[str, ast.FunctionDef]:
    """The functions at the top level of a module."""
    tree = ast.parse(inspect.getsource(module))
    return {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}


def _text(node: ast.expr) -> str:
    """A string literal, values in it as two dots; a name as itself."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(p.value) if isinstance(p, ast.Constant) else ".." for p in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    return str(node.value) if isinstance(node, ast.Constant) else ".."
