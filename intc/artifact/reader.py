"""Opening an artifact: the one order in which everything is checked before any of it is used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from intc.artifact import schema, signature
from intc.artifact.container import Container
from intc.artifact.schema import Manifest
from intc.artifact.signature import Key
from intc.errors import ArtifactCorrupt


@dataclass(frozen=True)
class Opened:
    """A checked artifact; ``digest`` is the SHA-256 of its manifest."""

    container: Container
    manifest: Manifest
    digest: str


def open_artifact(path: Path, sha256: str | None = None, trusted_keys: Sequence[Key] | None = None) -> Opened:
    """The artifact at ``path``, whose manifest has the digest ``sha256`` and is signed by one of
    ``trusted_keys``, where these are given.

    Raises ArtifactCorrupt, ArtifactVersion, ArtifactUntrusted or UsageError.
    """
    container = Container(path)
    digest = hashlib.sha256(container.member(schema.MANIFEST)).hexdigest()
    if sha256 is not None and sha256.lower() != digest:
        raise ArtifactCorrupt(f"{path}: its digest is {digest}, not the {sha256} that was asked for")
    if trusted_keys is not None:
        signature.check(container, trusted_keys)
    manifest = schema.read_manifest(container)
    container.check(manifest.members, (schema.MANIFEST, signature.SIGNATURE))
    return Opened(container, manifest, digest)
