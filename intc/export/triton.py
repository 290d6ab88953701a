"""A model repository for Triton Inference Server, whose Python backend runs an artifact."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from intc.artifact.reader import open_artifact
from intc.artifact.schema import Manifest, Port
from intc.errors import UsageError

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def write_repository(
    artifact: Path, folder: Path, *, batch: int = 32, delay: int = 2000, queued: int = 256, instances: int = 1
) -> Path:
    """Write model ``folder.name`` of the repository ``folder.parent``; returns its ``config.pbtxt``.

    Up to ``batch`` rows wait for each other ``delay`` microseconds at most; ``queued`` requests may wait,
    more are refused. UsageError where ``folder`` exists or the model cannot be served.
    """
    manifest = open_artifact(artifact).manifest
    config = model_config(folder.name, manifest, batch, delay, queued, instances)
    if folder.exists():
        raise UsageError(f"{folder}: exists; remove it or name another folder")
    source = find_spec("intc.integrations.triton_model")
    assert source is not None and source.origin is not None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as place:
            made = Path(place) / "model"
            (made / "1").mkdir(parents=True)
            shutil.copyfile(artifact, made / "1" / "model.intc")
            shutil.copyfile(source.origin, made / "1" / "model.py")
            (made / "config.pbtxt").write_text(config)
            os.rename(made, folder)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder / "config.pbtxt"


def model_config(name: str, manifest: Manifest, batch: int, delay: int, queued: int, instances: int) -> str:
    """Triton's ModelConfig of the model, as text."""
    if not NAME.fullmatch(name):
        raise UsageError(f"'{name}' cannot be a model's name; use letters, digits, '_', '-' and '.'")
    if manifest.states:
        raise UsageError("a decoder with a state cannot be served as independent requests")
    if manifest.gpu:
        raise UsageError(f"compiled for target '{manifest.target}'; the repository is written for CPUs")
    first = {p.shape[0] if p.shape else 0 for p in (*manifest.inputs, *manifest.outputs)}
    batched = len(first) == 1 and isinstance(next(iter(first)), str)
    lines = [
        f"name: {json.dumps(name)}",
        'backend: "python"',
        f"max_batch_size: {batch if batched else 0}",
        *(_tensor("input", port, batched) for port in manifest.inputs),
        *(_tensor("output", port, batched) for port in manifest.outputs),
        f"instance_group [ {{ kind: KIND_CPU count: {instances} }} ]",
    ]
    if batched:
        lines.append(
            f"dynamic_batching {{ max_queue_delay_microseconds: {delay} "
            f"default_queue_policy {{ max_queue_size: {queued} }} }}"
        )
    return "\n".join(lines) + "\n"


def _tensor(kind: str, port: Port, batched: bool) -> str:
    sizes = [n if isinstance(n, int) else -1 for n in port.shape[int(batched) :]]
    dims, reshape = (sizes, "") if sizes else ([1], " reshape { shape: [ ] }")
    type_ = "TYPE_FP32" if port.scale is not None else f"TYPE_{port.dtype.upper()}"
    return f"{kind} [ {{ name: {json.dumps(port.name)} data_type: {type_} dims: {dims}{reshape} }} ]"
