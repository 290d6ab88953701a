"""Signed artifacts: one key signs, others are refused, and nothing signed can be altered unnoticed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa

import intc
from intc.artifact import schema
from intc.artifact.container import Container
from intc.artifact.signature import SIGNATURE, public_key, sign
from intc.artifact.writer import write_members
from intc.errors import ArtifactCorrupt, ArtifactUntrusted, UsageError
from intc.report.inspect import info
from intc.report.verify import verify_artifact
from tests.small import small_feeds, small_graph

PKCS8, PLAIN = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
PEM, PUBLIC = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo


def key_pair(folder: Path, name: str) -> tuple[Path, Path]:
    """A private and a public key file."""
    made = ed25519.Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.pem", folder / f"{name}.public.pem"
    private.write_bytes(made.private_bytes(PEM, PKCS8, PLAIN))
    public.write_bytes(made.public_key().public_bytes(PEM, PUBLIC))
    return private, public


@pytest.fixture
def mine(tmp_path: Path) -> tuple[Path, Path]:
    return key_pair(tmp_path, "mine")


@pytest.fixture
def signed(artifact: Path, mine: tuple[Path, Path], tmp_path: Path) -> Path:
    sign(artifact, mine[0], tmp_path / "signed.intc")
    return tmp_path / "signed.intc"


def test_a_signed_artifact_runs_with_its_key_and_without(
    signed: Path, mine: tuple[Path, Path], tmp_path: Path
) -> None:
    _, other = key_pair(tmp_path, "other")
    given = small_feeds(3)
    for keys in (None, [mine[1]], [str(mine[1])], [public_key(mine[1])], [other, mine[1]]):
        session = intc.load(signed, trusted_keys=keys)
        for ours, exact in zip(session.run(None, given), small_graph().evaluate(given), strict=True):
            np.testing.assert_array_equal(ours, exact)
    assert verify_artifact(signed, small_feeds(3), trusted_keys=[mine[1]]).passed
    assert info(signed)["signed_by"] == public_key(mine[1]).hex()


def test_signing_keeps_the_digest_and_signing_again_replaces(
    artifact: Path, signed: Path, mine: tuple[Path, Path], tmp_path: Path
) -> None:
    assert intc.load(signed).digest == intc.load(artifact).digest
    once = signed.read_bytes()
    sign(signed, mine[0])
    assert signed.read_bytes() == once  # Ed25519 is deterministic
    private, public = key_pair(tmp_path, "other")
    sign(signed, private)
    intc.load(signed, trusted_keys=[public])
    with pytest.raises(ArtifactUntrusted, match="not a trusted one"):
        intc.load(signed, trusted_keys=[mine[1]])


def test_who_is_not_trusted(artifact: Path, signed: Path, mine: tuple[Path, Path], tmp_path: Path) -> None:
    _, other = key_pair(tmp_path, "other")
    for recompile in (False, True):
        with pytest.raises(ArtifactUntrusted, match="it is not signed"):
            intc.load(artifact, trusted_keys=[mine[1]], recompile=recompile)
        with pytest.raises(ArtifactUntrusted, match=f"signed by the key {public_key(mine[1]).hex()}"):
            intc.load(signed, trusted_keys=[other], recompile=recompile)
    with pytest.raises(UsageError, match="trusted_keys is empty"):
        intc.load(signed, trusted_keys=[])


def resealed(path: Path, name: str, change: bytes, out: Path) -> Path:
    read = Container(path)
    members = {n: bytes(read.member(n)) for n in read.entries}
    members[name] = change + members[name][len(change) :]
    write_members(out, members)
    return out


def test_what_was_altered(signed: Path, mine: tuple[Path, Path], tmp_path: Path) -> None:
    out, keys = tmp_path / "bad.intc", [mine[1]]
    manifest = bytes(Container(signed).member(schema.MANIFEST))
    for name, change, error, pattern in (
        (
            schema.MANIFEST,
            manifest.replace(b'"small.onnx"', b'"other.onnx"'),
            ArtifactUntrusted,
            "altered since",
        ),
        (schema.GRAPH, b"intc graph 2", ArtifactCorrupt, "is altered"),
        (SIGNATURE, public_key(mine[1]) + bytes(64), ArtifactUntrusted, "altered since"),
        (SIGNATURE, bytes(96), ArtifactUntrusted, "not a trusted one"),
    ):
        with pytest.raises(error, match=pattern):
            intc.load(resealed(signed, name, change, out), trusted_keys=keys)
    write_members(
        out, {n: bytes(d) for n, d in _members(signed).items() if n != SIGNATURE} | {SIGNATURE: b"short"}
    )
    with pytest.raises(ArtifactUntrusted):
        intc.load(out, trusted_keys=keys)


def _members(path: Path) -> dict[str, memoryview]:
    read = Container(path)
    return {n: read.member(n) for n in read.entries}


def test_keys_of_other_kinds(artifact: Path, mine: tuple[Path, Path], tmp_path: Path) -> None:
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    (tmp_path / "rsa.pem").write_bytes(private.private_bytes(PEM, PKCS8, PLAIN))
    (tmp_path / "rsa.public.pem").write_bytes(private.public_key().public_bytes(PEM, PUBLIC))
    locked = ed25519.Ed25519PrivateKey.generate()
    encryption = serialization.BestAvailableEncryption(b"secret")
    (tmp_path / "locked.pem").write_bytes(locked.private_bytes(PEM, PKCS8, encryption))
    (tmp_path / "text.pem").write_text("hello")
    out = tmp_path / "never.intc"
    for name, pattern in (
        ("rsa.pem", "not an Ed25519 key"),
        ("locked.pem", "the key is encrypted"),
        ("text.pem", "not a private key"),
        ("mine.public.pem", "not a private key"),
        ("none.pem", "no such file"),
        (".", "cannot be read"),
    ):
        with pytest.raises(UsageError, match=pattern):
            sign(artifact, tmp_path / name, out)
    for name, pattern in (("rsa.public.pem", "not an Ed25519 key"), ("mine.pem", "not a public key")):
        with pytest.raises(UsageError, match=pattern):
            intc.load(artifact, trusted_keys=[tmp_path / name])
    with pytest.raises(UsageError, match="32 bytes, not 3"):
        intc.load(artifact, trusted_keys=[b"abc"])
    assert not out.exists()


def test_a_damaged_artifact_is_not_signed(artifact: Path, mine: tuple[Path, Path], tmp_path: Path) -> None:
    bad = resealed(artifact, schema.GRAPH, b"intc graph 2", tmp_path / "bad.intc")
    before = bad.read_bytes()
    with pytest.raises(ArtifactCorrupt, match="is altered"):
        sign(bad, mine[0])
    assert bad.read_bytes() == before


def test_recompiling_runs_no_code_of_the_file(artifact: Path, tmp_path: Path) -> None:
    """Kernels that would end the process are replaced by kernels of the graph."""
    read = Container(artifact)
    manifest = schema.read_manifest(read)
    bad = tmp_path / "bad.intc"
    members = {n: bytes(d) for n, d in _members(artifact).items()}
    from intc.artifact import tensors
    from intc.artifact.writer import write_artifact

    weights = tensors.decode(read.member(schema.WEIGHTS), "")
    write_artifact(bad, manifest, members[schema.GRAPH].decode(), weights, b"\x7fELF, hostile", {})
    with pytest.raises(ArtifactCorrupt, match="cannot be loaded"):
        intc.load(bad)
    given = small_feeds(4)
    session = intc.load(bad, threads=2, recompile=True)
    for ours, exact in zip(session.run(None, given), small_graph().evaluate(given), strict=True):
        np.testing.assert_array_equal(ours, exact)


def cli(*args: object, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "intc", *map(str, args)], capture_output=True, text=True, check=False
    )
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes its keys with openssl, as the help says")
def test_the_commands_with_keys_of_openssl(artifact: Path, tmp_path: Path) -> None:
    key, public, signed = tmp_path / "key.pem", tmp_path / "public.pem", tmp_path / "signed.intc"
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", public], check=True)
    assert "signed by the key" in cli("sign", artifact, "--key", key, "-o", signed)
    assert public_key(public).hex() in cli("info", signed)
    np.savez(tmp_path / "x.npz", **small_feeds(3))
    files = ["--inputs", tmp_path / "x.npz", "--outputs", tmp_path / "y.npz"]
    cli("run", signed, *files, "--trusted-key", public)
    expected = dict(np.load(tmp_path / "y.npz"))
    cli("run", artifact, *files, "--recompile")
    for name, array in np.load(tmp_path / "y.npz").items():
        np.testing.assert_array_equal(array, expected[name])
    assert "PASSED" in cli("verify", signed, "--data", tmp_path / "x.npz", "--trusted-key", public)
    for command in (["run", artifact, *files], ["verify", artifact, "--data", tmp_path / "x.npz"]):
        said = cli(*command, "--trusted-key", public, status=2)
        assert re.fullmatch(r"intc: error: \S+: it is not signed; .*\n", said)
