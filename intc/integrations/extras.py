"""Packages that only some commands need."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from intc.errors import UsageError


def require(module: str, extra: str) -> Any:
    """The package ``module``; UsageError naming the extra that installs it."""
    try:
        return import_module(module)
    except ImportError:
        package = module.partition(".")[0]
        raise UsageError(f"this needs {package}; run: pip install 'intc-compiler[{extra}]'") from None


def installed(module: str) -> bool:
    """Whether ``module`` could be imported."""
    return find_spec(module) is not None
