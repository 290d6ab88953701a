"""Reading the graph out of an artifact, without loading its kernels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from intc.artifact import schema, tensors
from intc.artifact.reader import open_artifact
from intc.artifact.schema import Manifest
from intc.artifact.signature import Key
from intc.errors import ArtifactCorrupt, GraphError
from intc.ir.graph import Graph
from intc.ir.text import parse_graph
from intc.ops import OPS


def read_graph(
    path: str | os.PathLike[str], sha256: str | None = None, trusted_keys: Sequence[Key] | None = None
) -> tuple[Manifest, Graph]:
    """The manifest and the integer graph of an artifact; sizes, digests, types and intervals are checked.

    ArtifactCorrupt as in :func:`intc.load`, and where the graph is not one or has other inputs or outputs
    than the manifest.
    """
    opened = open_artifact(Path(path), sha256, trusted_keys)
    container, manifest = opened.container, opened.manifest
    weights = tensors.decode(container.member(schema.WEIGHTS), f"{path}: '{schema.WEIGHTS}'")
    try:
        graph = parse_graph(bytes(container.member(schema.GRAPH)).decode(), weights, OPS.values())
    except (UnicodeDecodeError, GraphError) as error:
        raise ArtifactCorrupt(f"{path}: '{schema.GRAPH}' is damaged ({error})") from None
    same = [p.name for p in manifest.inputs] == graph.inputs and len(manifest.states) == len(graph.states)
    for names, ports in ((graph.inputs, manifest.inputs), (graph.outputs, manifest.outputs)):
        types = [graph.type(name) for name in names]
        same = same and [(tuple(map(str, t.shape)), t.dtype, t.lo, t.hi) for t in types] == [
            (tuple(map(str, p.shape)), p.dtype, p.lo, p.hi) for p in ports
        ]
    if not same:
        raise ArtifactCorrupt(f"{path}: '{schema.GRAPH}' has other inputs or outputs than the manifest")
    return manifest, graph
