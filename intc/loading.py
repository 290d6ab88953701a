"""``intc.load``: the runtime's, and a way that runs no code of the file: its graph compiled again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from intc import runtime
from intc.artifact.signature import Key
from intc.runtime import Session


def load(
    path: str | Path,
    threads: int = 1,
    sha256: str | None = None,
    *,
    trusted_keys: Sequence[Key] | None = None,
    recompile: bool = False,
    device: str | None = None,
    share: str | Path | bool = False,
) -> Session:
    """The artifact at ``path`` as a session that uses ``threads`` threads in every run.

    Kernels are native code with all rights of the process. With ``sha256`` the file's manifest, and through
    it every member, must have this digest (``Session.digest``, ``intc info``); with ``trusted_keys``, PEM
    files of Ed25519 public keys or their 32 bytes, it must be signed by one of them (``intc sign``). With
    ``recompile`` only the graph and the weights are taken, and compiled for this machine: no code of the file
    is run, whoever made it. An artifact for a GPU runs on ``device``, ``"cuda:0"`` unless another is named;
    ``recompile`` compiles for the GPU that ``device`` names, for the CPU where it names none.
    With ``share``, a folder or True, the processes of this user hold the weights once
    (:func:`intc.runtime.load`).
    Raises ArtifactCorrupt, ArtifactVersion, ArtifactUntrusted, WrongTarget or UsageError.
    """
    if not recompile:
        return runtime.load(path, threads, sha256, trusted_keys=trusted_keys, device=device, share=share)
    from intc.codegen.targets import cuda_target
    from intc.module import open_module
    from intc.runtime.cuda.driver import Device

    target = "native" if device in (None, "cpu") else cuda_target(Device(device).architecture)
    module = open_module(path, target, sha256=sha256, trusted_keys=trusted_keys)
    return module.session(threads, device=device, share=share)
