"""intc: an integer-only inference compiler for transformers.

``intc.compile`` turns an ONNX model into a :class:`~intc.module.Module`; ``intc.load`` opens an artifact.
Names are resolved on first use, so that loading and running an artifact imports nothing of the compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from intc.api import compile
    from intc.loading import load
    from intc.module import Module, open_module
    from intc.passes.integer.families import Family, register_family
    from intc.passes.plan import Choice, Plan
    from intc.planning.planner import Search
    from intc.runtime import Session

__version__ = "0.1.0"
__all__ = [
    "Choice",
    "Family",
    "Module",
    "Plan",
    "Search",
    "Session",
    "__version__",
    "compile",
    "load",
    "open_module",
    "register_family",
]

_HOMES = {
    "compile": "intc.api",
    "Module": "intc.module",
    "open_module": "intc.module",
    "Choice": "intc.passes.plan",
    "Family": "intc.passes.integer.families",
    "register_family": "intc.passes.integer.families",
    "Plan": "intc.passes.plan",
    "Search": "intc.planning.planner",
    "load": "intc.loading",
    "Session": "intc.runtime",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'intc' has no attribute '{name}'")
    from intc.runtime.native import without_torch

    with without_torch():
        value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
