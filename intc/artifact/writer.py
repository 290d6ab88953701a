"""Writing an artifact: members in, one file out, with the manifest's sizes and digests filled in."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from intc.artifact import container, schema, tensors
from intc.artifact.schema import Manifest
from intc.artifact.tensors import Array
from intc.errors import UsageError
from intc.files import replacing


def write_artifact(
    path: str | os.PathLike[str],
    manifest: Manifest,
    graph: str,
    weights: Mapping[str, Array],
    kernels: bytes,
    certificate: Mapping[str, Any],
) -> None:
    """Write ``path`` in one step: the file is complete or does not change."""
    members = {
        schema.GRAPH: graph.encode(),
        schema.CERTIFICATE: (json.dumps(certificate, indent=1) + "\n").encode(),
        schema.WEIGHTS: tensors.encode(weights),
        manifest.kernels: kernels,
    }
    listed = {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in members.items()}
    full = schema.encode(replace(manifest, members=listed))
    write_members(Path(path), {schema.MANIFEST: full, **members})


def write_members(path: Path, members: Mapping[str, bytes | memoryview]) -> None:
    """Write container ``path``; UsageError for names and sizes of members that no container can have."""
    for name in members:
        if not container.NAME.fullmatch(name) or len(name) > container.MAX_NAME:
            raise UsageError(f"{path}: '{name}' cannot be a member's name")
    entries, end = container.place([(name, len(data), zlib.crc32(data)) for name, data in members.items()])
    if end > container.MAX_FILE or len(entries) > container.MAX_MEMBERS:
        raise UsageError(f"{path}: {end} bytes in {len(entries)} members are too much for one artifact")
    with replacing(path) as file:
        for entry in entries:
            file.write(container.local_header(entry))
            file.write(members[entry.name])
        file.write(container.directory(entries, end))
