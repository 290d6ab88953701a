"""Artifacts taken apart, put together with something changed, and refused."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import intc
from intc.artifact import schema
from intc.artifact.writer import write_members
from intc.errors import ArtifactError


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as file:
        return {name: file.read(name) for name in file.namelist()}


def rewritten(path: Path, out: Path, edit: Callable[[dict[str, bytes]], None]) -> Path:
    """A well-formed container with edited members."""
    parts = members(path)
    edit(parts)
    write_members(out, parts)
    return out


def edit_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, bytes]], None]:
    def edit(parts: dict[str, bytes]) -> None:
        body = json.loads(parts[schema.MANIFEST])
        change(body)
        parts[schema.MANIFEST] = json.dumps(body).encode()

    return edit


def refused(path: Path, error: type[ArtifactError], pattern: str) -> None:
    with pytest.raises(error) as caught:
        intc.load(path)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert message.startswith(str(path))
    assert "\n" not in message
