"""What the processor executes: every instruction of a kernel library, disassembled and classified.

Nothing is trusted to be harmless by default. An instruction that touches a vector, mask, MMX or x87
register must be integer arithmetic (:data:`INTEGER`) or one of the moves that carry a floating-point type in
their name only (:data:`MOVES`); anything else counts as floating point. Bytes that do not decode, and calls
of other functions than :data:`CALLS`, count as well, since floats could hide behind both.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any, Final

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from intc.errors import ArtifactCorrupt

EXECUTABLE: Final = 4  # SHF_EXECINSTR
UNREADABLE: Final = (ELFError, ValueError, KeyError, AttributeError, IndexError, TypeError)  # damaged ELF
X86_64: Final = "EM_X86_64"
REGISTER: Final = re.compile(r"\b(?:[xyzt]mm\d+|mm[0-7]|st\(\d\)|k[0-7])")
STATE: Final = re.compile(r"f\w+|wait|v?(?:ld|st)mxcsr|emms")  # x87, and the control of SSE arithmetic

# Packed integer arithmetic, by what follows "p" or "vp". 3DNow!'s pf.. and pi2f.. are floats, vperm.ps moves.
INTEGER: Final = re.compile(
    r"v?p(?:abs|ack[su]s|add|alignr|andn?|avg|blend|broadcast|cmp|compress|conflict|dp[bw]|expand|extr|gather"
    r"|hadd|hminpos|hsub|insr|lzcnt|madd|maskmov|max|min|mov|mul|opcnt|or|ro[lr]|sadbw|scatter|shl|shr"
    r"|shuf|sign|sll|sra|srl|sub|ternlog|test|unpck|xor|erm(?:i2|t2)?[bwdq](?![a-z]))\w*"
)
# What carries a floating-point type but computes nothing: the value of no lane is changed by them.
MOVES: Final = {
    re.compile(
        r"v?(?:mov(?:[au]p[sd]|s[sd]|[hl]p[sd]|lhps|hlps|ddup|s[hl]dup|ntp[sd]|d|q|dq[au](?:8|16|32|64)?|ntdqa?)"
        r"|lddqu|maskmovp[sd]|(?:gather|scatter)[dq]p[sd])"
    ): "copies between registers and memory, bit by bit",
    re.compile(r"v?(?:and|andn|or|xor)p[sd]"): "logic on bits; the type only names the execution port",
    re.compile(r"vbroadcast(?:s[sd]|[fi]\d+(?:x\d)?)"): "repeats lanes",
    re.compile(
        r"v?(?:shufp[sd]|unpck[hl]p[sd]|blendv?p[sd]|insertps|extractps)"
        r"|v(?:shuf[fi]\d+x\d|perm(?:il|i2|t2)?p[sd]|perm2[fi]128|align[dq]|(?:insert|extract)[fi]\d+(?:x\d)?"
        r"|blendmp[sd]|(?:compress|expand)p[sd])"
    ): "selects and rearranges lanes",
    re.compile(r"v?movmskp[sd]|vtestp[sd]"): "reads sign bits",
    re.compile(r"vzero(?:upper|all)"): "clears registers",
    re.compile(r"k(?:mov|and|andn|or|xor|xnor|not|add|shift[lr]|unpck|test|ortest)\w+"): "mask registers",
}
# What a library may call: threads and error reports of TVM's runtime, copies and fills of memory, and the
# hooks of the C start files.
CALLS: Final = re.compile(
    r"TVMBackend\w+|TVMFFI\w+|mem(?:cpy|set|move)|__stack_chk_fail|__cxa_finalize|__gmon_start__"
    r"|_ITM_(?:de)?registerTMCloneTable"
)


@dataclass(frozen=True)
class MachineCode:
    """Every executable byte of a library: instructions by function, the float-typed moves among them, and
    what is, or may hide, floating point (``floats``, empty in a library that computes with integers only).
    """

    functions: dict[str, int]
    moves: dict[str, int]
    calls: tuple[str, ...]
    floats: tuple[str, ...]

    @property
    def instructions(self) -> int:
        """How many there are."""
        return sum(self.functions.values())

    def summary(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "instructions": self.instructions,
            "functions": dict(sorted(self.functions.items())),
            "float_typed_moves": dict(sorted(self.moves.items())),
            "calls": list(self.calls),
            "float_instructions": list(self.floats),
        }


def machine_code(library: bytes) -> MachineCode | None:
    """The code of an ELF library for x86-64; None for another processor's.

    ArtifactCorrupt for bytes that are no ELF file.
    """
    try:
        elf = ELFFile(BytesIO(library))
        if elf["e_machine"] != X86_64:
            return None
        return _classify(elf)
    except UNREADABLE as error:
        raise ArtifactCorrupt(f"the kernels are no readable ELF library ({error})") from None


def _classify(elf: Any) -> MachineCode:
    functions = Functions(elf)
    counts: Counter[str] = Counter()
    moves: Counter[str] = Counter()
    floats: list[str] = []
    for section in elf.iter_sections():
        if not section["sh_flags"] & EXECUTABLE:
            continue
        for address, mnemonic, operands in instructions(section.data(), section["sh_addr"]):
            name = functions.at(address) or section.name
            counts[name] += 1
            match kind(mnemonic, operands):
                case "move":
                    moves[mnemonic] += 1
                case "float":
                    floats.append(f"{name}: {mnemonic} {operands}".rstrip())
    calls = _imports(elf)
    floats += [f"call of {name}" for name in calls if not CALLS.fullmatch(name)]
    return MachineCode(dict(counts), dict(moves), calls, tuple(dict.fromkeys(floats)))


def kind(mnemonic: str, operands: str = "") -> str:
    """``"float"``, ``"move"`` (float-typed, or of vector registers), or ``""`` for integer instructions.

    >>> kind("vfmadd231ps", "zmm0, zmm1, zmm2"), kind("vmovups", "zmm0, [rax]"), kind("add", "eax, 1")
    ('float', 'move', '')
    """
    return _kind(mnemonic, bool(REGISTER.search(operands)), not operands)


@cache
def _kind(mnemonic: str, vector: bool, bare: bool) -> str:
    name = mnemonic.split()[-1]  # behind prefixes such as rep and lock
    if STATE.fullmatch(name) or name == UNDECODED:
        return "float"
    if any(pattern.fullmatch(name) for pattern in MOVES):
        return "move" if vector or bare else ""  # movsd also names a string copy
    return "float" if vector and not INTEGER.fullmatch(name) else ""


UNDECODED: Final = "undecodable"


def instructions(code: bytes, address: int) -> Iterator[tuple[int, str, str]]:
    """(address, mnemonic, operands); a byte that starts no instruction is :data:`UNDECODED`."""
    import capstone

    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    at = 0
    while at < len(code):
        for where, size, mnemonic, operands in engine.disasm_lite(code[at:], address + at):
            yield where, mnemonic, operands
            at = where + size - address
        if at < len(code):
            yield address + at, UNDECODED, f"byte {code[at]:#04x} at {address + at:#x}"
            at += 1


def _imports(elf: Any) -> tuple[str, ...]:
    """What the library takes from elsewhere."""
    table = elf.get_section_by_name(".dynsym")
    names = (s.name for s in table.iter_symbols() if s["st_shndx"] == "SHN_UNDEF") if table else ()
    return tuple(sorted(name for name in names if name))


def _name(entry: Any) -> str:
    """What a subprogram is called: where it was inlined elsewhere, its abstract origin has the name."""
    while "DW_AT_name" not in entry.attributes:
        entry = entry.get_DIE_from_attribute("DW_AT_abstract_origin")
    return str(entry.attributes["DW_AT_name"].value.decode())


class Functions:
    """Which function an address belongs to, from the symbols and the debugging information."""

    def __init__(self, elf: Any) -> None:
        self.ranges: list[tuple[int, int, str]] = []  # in order of address
        table = elf.get_section_by_name(".symtab")
        for symbol in table.iter_symbols() if table else ():
            if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_size"]:
                self._add(symbol["st_value"], symbol["st_size"], symbol.name)
        if elf.has_dwarf_info():
            units = elf.get_dwarf_info().iter_CUs()
            for entry in (entry for unit in units for entry in unit.iter_DIEs()):
                known = entry.attributes
                if entry.tag == "DW_TAG_subprogram" and {"DW_AT_low_pc", "DW_AT_high_pc"} <= set(known):
                    self._add(known["DW_AT_low_pc"].value, known["DW_AT_high_pc"].value, _name(entry))
        self.ranges.sort()

    def _add(self, start: int, size: int, name: str) -> None:
        self.ranges.append((start, start + size, name))

    def at(self, address: int) -> str:
        """The function's name; empty where none is known."""
        place = bisect_right(self.ranges, address, key=lambda r: r[0]) - 1
        return self.ranges[place][2] if place >= 0 and address < self.ranges[place][1] else ""
