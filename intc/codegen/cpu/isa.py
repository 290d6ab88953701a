"""The instruction sets that a CPU kernel can be generated for, reduced to what a register tile needs.

One dot step of a tile multiplies, for each of ``lanes`` columns, ``group`` consecutive values of a row of A
with as many of a column of B, and adds the sum to an int32 lane: ``vpdpbusd`` (4 x u8*s8) or ``vpmaddwd``
(2 x s16*s16). Both fill exactly 32 bits per lane, so every instruction set shares one operand layout, counted
in 32-bit words. ``vpmaddubsw`` saturates at 16 bits; it is used for sums that are proven to fit there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import tvm.tirx as tir
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.vector import TIR, X86, TirAlgebra
from intc.errors import CodegenError

Dot = Literal["vpdpbusd.512", "vpmaddwd.512", "vpmaddwd.256", "vpmaddwd.128", "vpmaddubsw", "generic"]
_INTRINSIC: Final[dict[str, str]] = {
    "vpdpbusd.512": "llvm.x86.avx512.vpdpbusd.512",
    "vpmaddwd.512": "llvm.x86.avx512.pmaddw.d.512",
    "vpmaddwd.256": "llvm.x86.avx2.pmadd.wd",
    "vpmaddwd.128": "llvm.x86.sse2.pmadd.wd",
}
_PAIRS_OF_BYTES: Final = {
    4: "llvm.x86.ssse3.pmadd.ub.sw.128",
    8: "llvm.x86.avx2.pmadd.ub.sw",
    16: "llvm.x86.avx512.pmaddubs.w.512",
}
_PAIRS: Final = {4: "vpmaddwd.128", 8: "vpmaddwd.256", 16: "vpmaddwd.512"}


@dataclass(frozen=True)
class Isa:
    """``rows x (vectors * lanes)`` is the register tile; ``a_dtype``, ``b_dtype`` are packed elements.

    ``epilogue`` is the vector width (int32 lanes) of element-wise code, a divisor of the tile's columns.
    ``even_odd`` selects 64-bit products on even and odd lanes (x86 ``pmuldq``) instead of plain widening.
    """

    name: str
    dot: Dot
    lanes: int
    group: int
    a_dtype: str
    b_dtype: str
    rows: int
    vectors: int
    epilogue: int
    even_odd: bool = True

    @property
    def columns(self) -> int:
        """Columns of a register tile: N is padded to a multiple of this."""
        return self.lanes * self.vectors

    @property
    def unsigned_a(self) -> bool:
        """Whether A must be unsigned, so that int8 activations carry an offset of 128."""
        return self.a_dtype == "uint8"

    @property
    def algebra(self) -> TirAlgebra:
        """What scalar formulas are made of on this instruction set."""
        return TIR if self.dot == "generic" else X86

    @property
    def b_bytes(self) -> int:
        """Bytes of one element of packed B."""
        return 1 if self.b_dtype == "int8" else 2

    def words(self, k: int) -> int:
        """32-bit words of one packed row of ``k`` elements: ``k`` padded to two dot steps."""
        return -(-k // (2 * self.group)) * 2

    def wide(self) -> Isa:
        """The form that takes int16 rows: itself, or 16-bit pairs where the dot product is of bytes."""
        if self.group == 2:
            return self
        name, dot = f"{self.name}-wide", "generic" if self.dot == "generic" else "vpmaddwd.512"
        return replace(self, name=name, dot=dot, group=2, a_dtype="int16", b_dtype="int16")  # type: ignore[arg-type]

    def narrow(self) -> Isa:
        """The form that adds products of bytes in 16 bits, two sums a lane: half the multiplications of
        16-bit pairs. Only for sums that are proven to fit (:func:`intc.codegen.cpu.sixteen.run_words`).
        """
        name = f"{self.name}-narrow"
        return replace(self, name=name, dot="vpmaddubsw", group=4, a_dtype="uint8", b_dtype="int8")

    def generic(self) -> Isa:
        """The same tile, layout and code with the dot instruction spelled out: runs on any machine."""
        return replace(self, name=f"{self.name}-generic", dot="generic")

    def emit_dot(self, acc: Any, a_word: Any, b: Any) -> Any:
        """``acc + dot`` as int32 x lanes: one int32 word of packed A, ``lanes * group`` elements of B."""
        n, lanes = self.lanes * self.group, self.lanes
        if self.dot == "generic":
            a_group = T.reinterpret(f"{self.a_dtype}x{self.group}", a_word)
            words, bits = T.Bind(T.reinterpret(f"int32x{lanes}", b)), 32 // self.group
            for g in range(self.group):
                up, down = 32 - bits * (g + 1), 32 - bits
                a = T.cast(tir.Shuffle([a_group], [tir.IntImm("int32", g)]), "int32")
                left = T.shift_left(words, tir.Broadcast(tir.IntImm("int32", up), lanes))
                b_g = T.shift_right(left, tir.Broadcast(tir.IntImm("int32", down), lanes))
                acc = acc + tir.Broadcast(a, lanes) * b_g
            return acc
        a = T.reinterpret(f"{self.a_dtype}x{n}", tir.Broadcast(a_word, lanes))
        return self.emit_dot_vector(acc, a, b)

    def emit_pairs(self, sums: Any, a_word: Any, b: Any) -> Any:
        """``sums`` (int16 x 2 lanes) and the products of bytes, neighbours together, of a narrow form."""
        kind = f"int16x{2 * self.lanes}"
        a = T.reinterpret(f"uint8x{4 * self.lanes}", tir.Broadcast(a_word, self.lanes))
        return sums + T.call_llvm_pure_intrin(kind, _PAIRS_OF_BYTES[self.lanes], a, b)

    def widen_pairs(self, acc: Any, sums: Any) -> Any:
        """``acc`` (int32 x lanes) and both int16 sums of each lane."""
        ones = tir.Broadcast(tir.IntImm("int16", 1), 2 * self.lanes)
        intrinsic = _INTRINSIC[_PAIRS[self.lanes]]
        return acc + T.call_llvm_pure_intrin(f"int32x{self.lanes}", intrinsic, sums, ones)

    def emit_dot_vector(self, acc: Any, a: Any, b: Any) -> Any:
        """``acc + dot`` for full vectors ``a`` and ``b`` of lanes*group elements; needs a hardware dot."""
        if self.dot == "generic":
            raise CodegenError(f"instruction set '{self.name}' has no dot instruction; use emit_dot")
        kind = f"int32x{self.lanes}"
        if self.dot == "vpdpbusd.512":
            return T.call_llvm_pure_intrin(kind, _INTRINSIC[self.dot], acc, a, b)
        return acc + T.call_llvm_pure_intrin(kind, _INTRINSIC[self.dot], a, b)


def dot_pairs(acc: Any, a: Any, b: Any, lanes: int) -> Any:
    """``acc`` (None: nothing) and the products of int16 vectors, neighbours together: int32 x ``lanes``."""
    product = T.call_llvm_pure_intrin(f"int32x{lanes}", _INTRINSIC[_PAIRS[lanes]], a, b)
    return product if acc is None else acc + product


AVX512_VNNI: Final = Isa("avx512-vnni", "vpdpbusd.512", 16, 4, "uint8", "int8", 6, 4, 32)
AVX512: Final = Isa("avx512", "vpmaddwd.512", 16, 2, "int16", "int16", 6, 4, 32)
AVX2: Final = Isa("avx2", "vpmaddwd.256", 8, 2, "int16", "int16", 6, 2, 16)
SSE4: Final = Isa("sse4", "vpmaddwd.128", 4, 2, "int16", "int16", 4, 2, 8)
PORTABLE: Final = Isa("portable", "generic", 4, 2, "int16", "int16", 4, 2, 8, even_odd=False)
SCALAR: Final = Isa("scalar", "generic", 1, 4, "uint8", "int8", 4, 1, 1, even_odd=False)
ISAS: Final[dict[str, Isa]] = {isa.name: isa for isa in (AVX512_VNNI, AVX512, AVX2, SSE4, PORTABLE, SCALAR)}
