"""What a GPU executes: every instruction of the kernels, by NVIDIA's own disassembler, classified.

As for processors (:mod:`intc.codegen.machine_code`) nothing is trusted to be harmless by default: an
instruction must be one of :data:`INTEGER` without a floating-point type among its modifiers, or a constant
that only moves through a floating-point unit. Before the assembler, :func:`ptx_floats` reads what the
compiler gives it.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# NVIDIA's tables of instructions (cuda-binary-utilities), those of Pascal to Blackwell that know no float
_ARITHMETIC: Final = """
BFE BFI BMSK BREV FLO IABS IADD IADD2 IADD3 IADD32I ICMP IDP IDP4A IGMMA IMAD IMAD32I IMMA IMNMX IMUL
IMUL32I ISAD ISCADD ISCADD32I ISET ISETP LEA LOP LOP3 LOP32I POPC SHF SHL SHR UIADD3 UIMAD UIMNMX UISETP
ULEA ULOP ULOP3 ULOP32I USHF USHL USHR UBMSK UBREV UFLO UPOPC USGXT UVIADD UVIMNMX VABSDIFF VABSDIFF4
VIADD VIADDMNMX VIMNMX VIMNMX3 XMAD SGXT I2I I2IP REDUX UREDUX
"""
_MOVES: Final = """
B2R CS2R CS2UR LEPC MOV MOV32I MOVM P2R PLOP3 PRMT PSET PSETP R2B R2P R2UR S2R S2UR SEL SHFL UCLEA ULEPC
UMOV UP2UR UPLOP3 UPRMT UPSETP UR2UP USEL VOTE VOTEU MATCH
"""
_MEMORY: Final = """
ATOM ATOMG ATOMS CCTL CCTLL CCTLT ERRBAR CGAERRBAR FENCE LD LDC LDCU LDG LDGDEPBAR LDGSTS LDL LDS LDSM
MEMBAR QSPC RED ST STG STL STS STSM ULDC SYNCS ARRIVES UBLKCP UBLKPF UBLKRED UTMACCTL UTMACMDFLUSH
UTMALDG UTMAPF UTMAREDG UTMASTG
"""
_CONTROL: Final = """
ACQBULK BAR BMOV BPT BRA BREAK BRK BRX BRXU BSSY BSYNC CALL CAL CONT DEPBAR ELECT ENDCOLLECTIVE EXIT
JCAL JMP JMX JMXU KILL NANOSLEEP NOP PBK PCNT PMTRIG PREEXIT PRET RET RPCMOV RTT SSY SYNC UCGABAR_ARV
UCGABAR_WAIT UJMP USETMAXREG WARPGROUP WARPGROUPSET WARPSYNC YIELD
"""
INTEGER: Final = frozenset(f"{_ARITHMETIC} {_MOVES} {_MEMORY} {_CONTROL}".split())
FLOAT_MODIFIER: Final = re.compile(r"\.(?:B?F\d+(?:x\d)?|TF32|E\dM\d|FTZ|R[NMPZ])(?=\.|$)")
MOVED_CONSTANT: Final = re.compile(r"HFMA2(?:\.MMA)? R\d+, -RZ, RZ, [^R]*$")
ARCHITECTURE: Final = re.compile(r"\s*code for (sm_\w+)")
FUNCTION: Final = re.compile(r"\s*Function : (\S+)")
INSTRUCTION: Final = re.compile(r"\s*/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([^;]+?)\s*;")

PTX_FLOAT: Final = re.compile(r"\.(?:b?f16|f16x2|bf16x2|f32|f64|tf32|e\dm\d)\b")
PTX_DIVISION: Final = re.compile(r"\b(?:div|rem)\.[us]\d+\s.*%\w+;")  # by a variable
MISSING: Final = (
    "cuobjdump is not installed (in PATH; or pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm)"
)


@dataclass(frozen=True)
class GpuCode:
    """Every instruction of the kernels: how many, by architecture and kernel; constants that move through a
    floating-point unit; what is, or may be, floating point (``floats``, empty in integer code).
    """

    functions: dict[str, dict[str, int]]
    moves: dict[str, int]
    floats: tuple[str, ...]

    @property
    def instructions(self) -> int:
        """How many there are, of all architectures."""
        return sum(sum(functions.values()) for functions in self.functions.values())

    def summary(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "instructions": self.instructions,
            "functions": {name: dict(sorted(f.items())) for name, f in sorted(self.functions.items())},
            "float_typed_moves": dict(sorted(self.moves.items())),
            "float_instructions": list(self.floats),
        }


def disassembler() -> str | None:
    """The path of ``cuobjdump``: from ``PATH``, or from NVIDIA's package on PyPI; None where it is
    missing.
    """
    spec = importlib.util.find_spec("nvidia")
    folders = [Path(f) for f in (spec.submodule_search_locations or [])] if spec else []
    packaged = [p for folder in folders for p in sorted(folder.glob("cu*/bin/cuobjdump"))]
    return shutil.which("cuobjdump") or next(map(str, reversed(packaged)), None)


def gpu_code(code: bytes) -> GpuCode | None:
    """The code in a fat binary or cubin; None without a disassembler, or where it finds no code of a GPU."""
    tool = disassembler()
    if tool is None:
        return None
    with tempfile.TemporaryDirectory(prefix="intc-") as folder:
        file = Path(folder) / "kernels"
        file.write_bytes(code)
        done = subprocess.run([tool, "-sass", str(file)], capture_output=True, text=True, check=False)
    return None if done.returncode else classify(done.stdout)


def classify(listing: str) -> GpuCode | None:
    """What ``cuobjdump -sass`` printed; None where it holds no instruction."""
    functions: dict[str, Counter[str]] = {}
    moves: Counter[str] = Counter()
    floats: list[str] = []
    architecture = function = "unknown"
    for line in listing.splitlines():
        if found := ARCHITECTURE.match(line):
            architecture = found[1]
        elif found := FUNCTION.match(line):
            function = found[1]
        elif found := INSTRUCTION.match(line):
            functions.setdefault(architecture, Counter())[function] += 1
            match kind(found[1]):
                case "move":
                    moves[found[1].split()[0]] += 1
                case "float":
                    floats.append(f"{architecture} {function}: {found[1]}")
    if not functions:
        return None
    return GpuCode({k: dict(v) for k, v in functions.items()}, dict(moves), tuple(dict.fromkeys(floats)))


def kind(instruction: str) -> str:
    """``"float"``, ``"move"`` (of a constant, through a floating-point unit), or ``""`` for integers.

    >>> kind("FFMA R0, R1, R2, R3"), kind("RED.E.ADD.F32.FTZ.RN [R2], R5"), kind("IMAD R0, R1, R2, RZ")
    ('float', 'float', '')
    >>> kind("HFMA2.MMA R7, -RZ, RZ, 0, 5.9604644775390625e-08")
    'move'
    """
    if MOVED_CONSTANT.match(instruction):
        return "move"
    mnemonic = instruction.split()[0]
    known = mnemonic.split(".")[0] in INTEGER and not FLOAT_MODIFIER.search(mnemonic)
    return "" if known else "float"


def ptx_floats(text: str) -> list[str]:
    """Instructions of PTX that name a floating-point type, or divide by a variable, of which the assembler
    makes floating point.
    """
    lines = (line.strip() for line in text.splitlines() if not line.lstrip().startswith(("//", ".reg")))
    return list(dict.fromkeys(line for line in lines if PTX_FLOAT.search(line) or PTX_DIVISION.search(line)))
