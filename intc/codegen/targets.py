"""Targets: what a name such as ``x86-64-v3`` means to LLVM, to our kernels and to the loader's CPU check."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias

from intc.errors import UsageError

Level: TypeAlias = Literal["sse4", "avx2", "avx512", "avx512-vnni", "scalar", "cuda"]

_V2: Final = ("cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3")
_V3: Final = (*_V2, "abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe")
_V4: Final = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")


@dataclass(frozen=True)
class Target:
    """``level`` selects the kernels; ``features`` are the CPU flags (Linux names) that the code may use, or
    the lowest compute capability of the GPU. ``architectures`` are those that a GPU's code is compiled for.

    The level "scalar" is C source for one thread of any processor; the others are machine code.
    """

    name: str
    level: Level
    features: tuple[str, ...]
    mcpu: str = ""
    mattr: tuple[str, ...] = ()
    architectures: tuple[int, ...] = ()

    @property
    def gpu(self) -> bool:
        """Whether kernels run on a GPU."""
        return self.level == "cuda"

    @property
    def native(self) -> bool:
        """Whether kernels are machine code, which shares its work among threads."""
        return self.level != "scalar"

    def tvm(self) -> Any:
        """The TVM target; LLVM may use exactly what ``features`` lists."""
        from tvm.target import Target as TvmTarget

        attrs: dict[str, Any] = {"kind": "llvm", "mcpu": self.mcpu}
        if self.mattr:
            attrs["mattr"] = list(self.mattr)
        return TvmTarget(attrs)


TARGETS: Final = (
    Target("x86-64-v2", "sse4", _V2, "x86-64-v2"),
    Target("x86-64-v3", "avx2", _V3, "x86-64-v3"),
    Target("x86-64-v4", "avx512", _V4, "x86-64-v4"),
    Target("avx512-vnni", "avx512-vnni", (*_V4, "avx512_vnni"), "x86-64-v4", ("+avx512vnni",)),
)
C: Final = Target("c", "scalar", (), "")
NAMES: Final = ("native", *(t.name for t in TARGETS), C.name, "cuda")
# code for 8.0 runs on every 8.x; that for the newest is stored as PTX too, for what comes after it
CUDA_DEFAULT: Final = (75, 80, 90)
CUDA_ARCHITECTURES: Final = (61, 70, 75, 80, 86, 89, 90, 100, 120)


def resolve(name: str) -> Target:
    """The target called ``name``; ``native`` is the best one that this machine can run."""
    if name == "native":
        return native()
    for target in (*TARGETS, C):
        if target.name == name:
            return target
    if name.partition(":")[0] == "cuda":
        return _cuda(name)
    if name == "aarch64":
        raise UsageError(f"target '{name}' has no kernels in this version; use one of {', '.join(NAMES)}")
    raise UsageError(f"target '{name}' is not known; use one of {', '.join(NAMES)}")


def _cuda(name: str) -> Target:
    """``cuda`` or ``cuda:sm_80``."""
    known = {f"cuda:sm_{number}": (number,) for number in CUDA_ARCHITECTURES} | {"cuda": CUDA_DEFAULT}
    if name not in known:
        raise UsageError(f"target '{name}' is not known; use one of {', '.join(known)}")
    return Target(name, "cuda", (f"sm_{known[name][0]}",), architectures=known[name])


def cuda_target(architecture: int) -> str:
    """The name of the newest target whose code runs on a GPU of ``architecture``, such as 86 for sm_86.

    >>> cuda_target(90), cuda_target(87)
    ('cuda:sm_90', 'cuda:sm_86')
    """
    older = [number for number in CUDA_ARCHITECTURES if number <= architecture]
    if not older:
        raise UsageError(f"this GPU is sm_{architecture}; kernels need sm_{CUDA_ARCHITECTURES[0]} or later")
    return f"cuda:sm_{older[-1]}"


@cache
def native() -> Target:
    """The best target whose features this machine has; UsageError where there is none."""
    have = host_features()
    for target in reversed(TARGETS):
        if have.issuperset(target.features):
            return target
    raise UsageError(
        f"target 'native': this {platform.machine()} machine has no supported instruction set; "
        f"name one of {', '.join(NAMES[1:])} to compile for another machine"
    )


@cache
def host_features() -> frozenset[str]:
    """The CPU flags of this machine, by their Linux names; empty where they cannot be told."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return frozenset()
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    return _llvm_features()


def _llvm_features() -> frozenset[str]:
    """The flags that LLVM's model of this CPU has, for systems without /proc/cpuinfo."""
    from tvm.target import codegen

    name = codegen.llvm_get_system_cpu()
    target = {"kind": "llvm", "mcpu": name}
    from tvm.target import Target as TvmTarget

    llvm_names = {"cx16": "cx16", "lahf_lm": "sahf", "sse4_1": "sse4.1", "sse4_2": "sse4.2", "abm": "lzcnt"}
    llvm_names |= {"bmi1": "bmi", "avx512_vnni": "avx512vnni"}
    has = codegen.llvm_cpu_has_features
    with TvmTarget(target):
        return frozenset(f for f in TARGETS[-1].features if has(llvm_names.get(f, f)))
