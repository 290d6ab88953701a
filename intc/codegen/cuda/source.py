"""The CUDA source of a program: what kernels use of the hardware, shared helpers, then the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent


@cache
def part(name: str) -> str:
    """The source file ``name`` beside this one."""
    return (HERE / name).read_text(encoding="utf-8")


def assemble(kernels: Mapping[str, str], device: str | None = None) -> str:
    """One translation unit; ``device`` may stand for ``device.cuh`` where there is no GPU."""
    names = ("common", "tile", "linear", "weights", "attention", "layer_norm", "boundary")
    common = [part(f"{name}.cuh") for name in names]
    return "\n".join([part("device.cuh") if device is None else device, *common, *kernels.values(), ""])
