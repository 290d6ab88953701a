"""The machine code of each kernel as text, also of those that the compiler put inside the entry function."""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import Any

from elftools.dwarf.ranges import BaseAddressEntry
from elftools.elf.elffile import ELFFile

from intc.codegen.machine_code import EXECUTABLE, UNREADABLE, X86_64, instructions
from intc.errors import ArtifactCorrupt


def disassembly(library: bytes) -> dict[str, str]:
    """The instructions of every function of an x86-64 library, one a line, by the function's name.

    A function that was put inside others is the pieces of them that came from it, each headed by a line
    ``; inside NAME``. Empty for another processor's library; ArtifactCorrupt for bytes that are no ELF file.
    """
    try:
        elf = ELFFile(BytesIO(library))
        return _texts(elf) if elf["e_machine"] == X86_64 else {}
    except UNREADABLE as error:
        raise ArtifactCorrupt(f"the kernels are no readable ELF library ({error})") from None


def _texts(elf: Any) -> dict[str, str]:
    code = [(s["sh_addr"], s.data()) for s in elf.iter_sections() if s["sh_flags"] & EXECUTABLE]
    pieces: dict[str, list[str]] = {}
    for name, home, start, end in sorted(_ranges(elf), key=lambda piece: piece[2]):
        at, data = next((s for s in code if s[0] <= start < s[0] + len(s[1])), (start, b""))
        lines = (
            f"{address:8x}  {mnemonic} {operands}".rstrip()
            for address, mnemonic, operands in instructions(data[start - at : end - at], start)
        )
        head = [f"; inside {home}"] if home else []
        pieces.setdefault(name, []).extend([*head, *lines])
    return {name: "\n".join(lines) for name, lines in pieces.items()}


def _ranges(elf: Any) -> Iterator[tuple[str, str, int, int]]:
    """(function, the function that it was put inside or "", first address, one past the last)."""
    if not elf.has_dwarf_info():
        return
    dwarf = elf.get_dwarf_info()
    lists = dwarf.range_lists()
    for unit in dwarf.iter_CUs():
        base = unit.get_top_DIE().attributes.get("DW_AT_low_pc")
        home = ""
        for entry in unit.iter_DIEs():
            if entry.tag == "DW_TAG_subprogram" and "DW_AT_low_pc" in entry.attributes:
                home = _name(entry)
                yield home, "", *_ends(entry)
            elif entry.tag == "DW_TAG_inlined_subroutine":
                name = _name(entry.get_DIE_from_attribute("DW_AT_abstract_origin"))
                if "DW_AT_low_pc" in entry.attributes:
                    yield name, home, *_ends(entry)
                elif "DW_AT_ranges" in entry.attributes:
                    start = base.value if base else 0
                    for piece in lists.get_range_list_at_offset(entry.attributes["DW_AT_ranges"].value):
                        if isinstance(piece, BaseAddressEntry):
                            start = piece.base_address
                        else:
                            yield name, home, start + piece.begin_offset, start + piece.end_offset


def _name(entry: Any) -> str:
    return str(entry.attributes["DW_AT_name"].value.decode())


def _ends(entry: Any) -> tuple[int, int]:
    start = entry.attributes["DW_AT_low_pc"].value
    return start, start + entry.attributes["DW_AT_high_pc"].value
