"""From CUDA source to a fat binary, on a machine with or without a GPU: nvcc, or NVRTC where that is missing.

``INTC_NVCC`` names the compiler; otherwise it is looked for in ``PATH``, ``CUDA_HOME`` and
``/usr/local/cuda``.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.util
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from intc.codegen.cuda.machine_code import ptx_floats
from intc.codegen.cuda.source import assemble
from intc.errors import CodegenError, UsageError

FLAGS = ("-std=c++17", "-O3")


def nvcc() -> str | None:
    """The path of nvcc, or None."""
    places = [os.environ.get("INTC_NVCC"), shutil.which("nvcc")]
    places += [f"{home}/bin/nvcc" for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    return next((p for p in places if p and Path(p).is_file()), None)


def compile_kernels(kernels: Mapping[str, str], architectures: Sequence[int]) -> bytes:
    """Machine code for every one of ``architectures`` (80 for sm_80), and PTX for the newest.

    UsageError where there is no compiler, or it does not know an architecture; CodegenError where it refuses
    the source, or its PTX for one of them computes with floating point.
    """
    source, compiler = assemble(kernels), nvcc()
    if compiler is None:
        return _nvrtc(source, architectures[-1])
    codes = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in map(_with_features, architectures)]
    codes.append(f"-gencode=arch=compute_{architectures[-1]},code=compute_{architectures[-1]}")
    made = run_nvcc(compiler, source, [*codes, "-fatbin", "--threads=0", "--keep"])
    _refuse_floats(made.ptx)
    return made.code


def _refuse_floats(texts: Iterable[str]) -> None:
    for text in texts:
        if found := ptx_floats(text):
            raise CodegenError(f"floating point in the PTX of the kernels: {found[0]}")


def _with_features(architecture: int) -> str:
    """The name under which the compiler knows all instructions, on sm_90 those of groups of warps."""
    return "90a" if architecture == 90 else str(architecture)


def require() -> None:
    """UsageError where :func:`compile_kernels` would find no compiler."""
    if nvcc() is None:
        _load_nvrtc()


class Compiled(NamedTuple):
    """What nvcc makes of a source, what it says, and with ``--keep`` the PTX of every architecture."""

    code: bytes
    log: str
    ptx: tuple[str, ...]


def run_nvcc(compiler: str, source: str, options: Sequence[str], suffix: str = "cu") -> Compiled:
    """nvcc on ``source``, CUDA or PTX by its ``suffix``."""
    with tempfile.TemporaryDirectory(prefix="intc-") as folder:
        file, output = Path(folder) / f"kernels.{suffix}", Path(folder) / "kernels.out"
        file.write_text(source, encoding="utf-8")
        command = [compiler, *FLAGS, *options, "-o", str(output), str(file)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
        if done.returncode or not output.is_file():
            raise _refused(compiler, done.stderr + done.stdout)
        ptx = tuple(file.read_text(encoding="utf-8") for file in sorted(Path(folder).glob("*.ptx")))
        return Compiled(output.read_bytes(), done.stderr + done.stdout, ptx)


def _refused(compiler: str, log: str) -> Exception:
    lines = [line for line in log.splitlines() if re.search(r"error|fatal|unsupported", line, re.IGNORECASE)]
    cause = (lines or log.splitlines() or ["no message"])[0]
    if "nsupported gpu architecture" in cause or "invalid value for --gpu-architecture" in cause:
        return UsageError(f"{compiler}: {cause}; name an architecture that this CUDA release compiles for")
    return CodegenError(f"{compiler} refused the kernels: {cause}")


def _nvrtc(source: str, architecture: int) -> bytes:
    """Machine code for one architecture by NVRTC."""
    library, program = _load_nvrtc(), ctypes.c_void_p()

    def made(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value or 1)
        getattr(library, f"nvrtcGet{what}")(program, content)
        return content.raw

    library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None)
    options = [b"--std=c++17", f"--gpu-architecture=sm_{_with_features(architecture)}".encode()]
    status = library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
    if status:
        raise _refused("NVRTC", made("ProgramLog").rstrip(b"\0").decode(errors="replace"))
    ptx, code = made("PTX").decode(), made("CUBIN")
    library.nvrtcDestroyProgram(ctypes.byref(program))
    _refuse_floats([ptx])
    return code


def _load_nvrtc() -> ctypes.CDLL:
    names = [ctypes.util.find_library("nvrtc"), "libnvrtc.so.13", "libnvrtc.so.12"]
    for package in ("nvidia.cu13", "nvidia.cuda_nvrtc"):
        try:
            spec = importlib.util.find_spec(package)
        except ImportError:
            spec = None
        for folder in (spec.submodule_search_locations or []) if spec else []:
            names += map(str, sorted(Path(folder).glob("lib/libnvrtc.so.*")))
    for name in names:
        try:
            if name:
                return ctypes.CDLL(name)
        except OSError:
            continue
    raise UsageError(
        "target 'cuda' needs nvcc (in PATH, CUDA_HOME or INTC_NVCC) or NVRTC; install CUDA's compiler or"
        " pip install nvidia-cuda-nvrtc"
    )
