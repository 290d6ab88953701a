"""Reading the graph out of an artifact, without loading its kernels."""

from __future__ import annotations

import os
from pathlib import Path

from intc.artifact import schema, tensors
from intc.artifact.container import Container
from intc.artifact.schema import Manifest
from intc.ir.graph import Graph
from intc.ir.text import parse_graph
from intc.ops import OPS


def read_graph(path: str | os.PathLike[str]) -> tuple[Manifest, Graph]:
    """The manifest and the integer graph of an artifact; sizes, digests, types and intervals are checked."""
    container = Container(Path(path))
    manifest = schema.read_manifest(container)
    container.check(manifest.members, schema.MANIFEST)
    weights = tensors.decode(container.member(schema.WEIGHTS), f"{path}: '{schema.WEIGHTS}'")
    text = bytes(container.member(schema.GRAPH)).decode()
    return manifest, parse_graph(text, weights, OPS.values())
