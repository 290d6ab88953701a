"""Docstrings for the reference: Sphinx roles become code, ``:class:`~intc.module.Module``` is ``Module``."""

from __future__ import annotations

import re
from typing import Any, Final

import griffe

ROLE: Final = re.compile(r":(?:class|func|meth|mod|data):`~?(?:[\w.]*\.)?(\w+)`")


class Roles(griffe.Extension):
    """Rewrites every docstring once it is read."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = ROLE.sub(r"``\1``", obj.docstring.value)
