"""Writing an artifact: members in, one file out, with the manifest's sizes and digests filled in."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from intc.artifact import container, schema, tensors
from intc.artifact.schema import Manifest
from intc.artifact.tensors import Array


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
    container.write(Path(path), {schema.MANIFEST: full, **members})
