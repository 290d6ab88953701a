"""The instructions of a GPU's code, by NVIDIA's own disassembler."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

GPU_FLOAT_INSTRUCTION: Final = re.compile(
    r"[FDH](ADD|MUL|FMA|MNMX|SET|SETP|SEL|CHK|SWZADD|RND|MMA)[0-9]?|[QH]GMMA|MUFU|I2F|F2I|F2F|I2FP|F2FP|FRND"
)
MOVED_CONSTANT: Final = re.compile(r"HFMA2(\.MMA)? R\d+, -RZ, RZ, [^R]*$")


def gpu_float_instructions(code: bytes | memoryview, tool: str | None = None) -> list[str] | None:
    """The distinct floating-point instructions in a fat binary or cubin; None without ``cuobjdump``.

    What only moves a constant is left out: the assembler writes ``HFMA2 R, -RZ, RZ, c, c`` for one.
    """
    tool = tool or shutil.which("cuobjdump")
    if tool is None:
        return None
    with tempfile.TemporaryDirectory(prefix="intc-") as folder:
        file = Path(folder) / "kernels"
        file.write_bytes(code)
        listing = subprocess.run([tool, "-sass", str(file)], capture_output=True, text=True, check=False)
    if listing.returncode:
        return None
    lines = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([^;]+);", listing.stdout, re.MULTILINE)
    if not lines:
        return None
    names = {line.split()[0].split(".")[0] for line in lines if not MOVED_CONSTANT.match(line)}
    return sorted(name for name in names if GPU_FLOAT_INSTRUCTION.fullmatch(name))
