"""Signatures: who vouches for an artifact. Ed25519 (RFC 8032) over the manifest, which holds all digests.

The member ``signature.ed25519`` holds the signer's public key (32 bytes) and the signature (64 bytes) of
:data:`CONTEXT` and the manifest. Keys are PEM files as openssl writes them. Needs the package
``cryptography`` (the extra ``signing``), only where a signature is made or asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from intc.artifact import schema
from intc.artifact.container import Container
from intc.errors import ArtifactUntrusted, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

SIGNATURE: Final = "signature.ed25519"
CONTEXT: Final = b"intc artifact manifest\n"  # nothing else that a key may sign begins so
PUBLIC: Final = 32  # bytes of a public key
MAX_KEY: Final = 2**16  # bytes of a key file

Key: TypeAlias = str | os.PathLike[str] | bytes


def check(container: Container, trusted: Sequence[Key]) -> None:
    """ArtifactUntrusted unless one of the ``trusted`` keys (PEM files, or 32 bytes) signed the manifest."""
    keys = [public_key(key) for key in ([trusted] if isinstance(trusted, str | bytes) else trusted)]
    if not keys:
        raise UsageError("trusted_keys is empty, so no artifact can be trusted")
    where = container.path
    if SIGNATURE not in container.entries:
        raise ArtifactUntrusted(
            f"{where}: it is not signed; sign it (intc sign) or load it without a trusted key"
        )
    data = bytes(container.member(SIGNATURE))
    if data[:PUBLIC] not in keys:
        raise ArtifactUntrusted(
            f"{where}: signed by the key {data[:PUBLIC].hex()}, which is not a trusted one"
        )
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        signer = Ed25519PublicKey.from_public_bytes(data[:PUBLIC])
        signer.verify(data[PUBLIC:], CONTEXT + container.member(schema.MANIFEST))
    except (InvalidSignature, ValueError):
        raise ArtifactUntrusted(f"{where}: altered since it was signed") from None


def signer_of(container: Container) -> str | None:
    """The public key, in hexadecimal, that ``container`` claims to be signed by."""
    if SIGNATURE not in container.entries:
        return None
    return bytes(container.member(SIGNATURE)[:PUBLIC]).hex()


def sign(path: Path, key: Path, output: Path | None = None) -> str:
    """Sign the artifact at ``path`` with the private ``key``, a PEM file; the public key in hexadecimal.

    The file, or ``output``, is replaced in one step. ArtifactCorrupt for an artifact that is not intact.
    """
    from intc.artifact.writer import write_members

    private = _private_key(key)
    container = Container(path)
    container.check(schema.read_manifest(container).members, (schema.MANIFEST, SIGNATURE))
    ordered = sorted(container.entries.values(), key=lambda e: e.header)
    members = {e.name: container.member(e.name) for e in ordered if e.name != SIGNATURE}
    public = private.public_key().public_bytes_raw()
    made = private.sign(CONTEXT + members[schema.MANIFEST])
    write_members(output or path, {**members, SIGNATURE: public + made})
    return public.hex()


def public_key(key: Key) -> bytes:
    """The 32 bytes of an Ed25519 public key; UsageError where ``key`` is none."""
    if isinstance(key, bytes):
        if len(key) != PUBLIC:
            raise UsageError(f"a raw public key has {PUBLIC} bytes, not {len(key)}")
        return key
    serialization, kinds = _library()
    data = _read(Path(key))
    try:
        found = serialization.load_pem_public_key(data)
    except Exception:  # the library's errors have no common class
        raise UsageError(f"{key}: not a public key in PEM form") from None
    if not isinstance(found, kinds.Ed25519PublicKey):
        raise UsageError(f"{key}: not an Ed25519 key")
    return bytes(found.public_bytes_raw())


def _private_key(path: Path) -> Ed25519PrivateKey:
    serialization, kinds = _library()
    data = _read(path)
    try:
        found = serialization.load_pem_private_key(data, password=None)
    except TypeError:
        raise UsageError(f"{path}: the key is encrypted; decrypt it for signing") from None
    except Exception:  # the library's errors have no common class
        raise UsageError(f"{path}: not a private key in PEM form") from None
    if not isinstance(found, kinds.Ed25519PrivateKey):
        raise UsageError(f"{path}: not an Ed25519 key; make one with openssl genpkey -algorithm ed25519")
    return found  # type: ignore[no-any-return]


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise UsageError(
            "signatures need the package cryptography: pip install 'intc-compiler[signing]'"
        ) from None
    return serialization, ed25519


def _read(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_KEY)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
