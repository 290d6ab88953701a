"""Dot products of rows that share an operand: plain loops, and dot instructions where the compiler has them.

Sums of integers are exact in any order, so all forms give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MOST: Final = 4  # rows that share the loads of the other operand

HEADERS: Final = """#if defined(__aarch64__) && defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#elif defined(__ARM_FEATURE_MVE)
#include <arm_mve.h>
#endif

/* Lengths are constants where this is in place; one copy is smaller. */
#if defined(__GNUC__) && defined(__OPTIMIZE__) && !defined(__OPTIMIZE_SIZE__)
#define DOTS static inline __attribute__((__always_inline__))
#else
#define DOTS static
#endif"""
"""What the functions need: vector types of integers, each header only where its instructions exist."""


@dataclass(frozen=True)
class Kind:
    """Element types of the rows and of what they share, and the instructions for them.

    ``neon`` is a 16-byte dot product and the compiler's macro that promises it. ``helium`` loads a vector of
    ``lanes`` rows' elements and of the shared ones, to be multiplied and added by ``vmladava``.
    """

    x: str
    w: str
    neon: tuple[str, str, str] = ("", "", "")
    lanes: int = 8
    helium: tuple[str, str] = ("", "")

    @property
    def suffix(self) -> str:
        return f"{self.x}_{self.w}"

    def name(self, rows: int) -> str:
        return f"dots{rows}_{self.suffix}"


_S16: Final = {"i8": "vldrbq_z_s16({}, p)", "i16": "vldrhq_z_s16({}, p)"}
_U16: Final = "vreinterpretq_s16_u16(vldrbq_z_u16({}, p))"
_BYTES: Final = "vldrbq_z_s8({}, p)"
KINDS: Final = (
    Kind("i8", "i8", ("vdotq_s32", "vld1q_s8", "__ARM_FEATURE_DOTPROD"), 16, (_BYTES, _BYTES)),
    Kind("u8", "i8", ("vusdotq_s32", "vld1q_u8", "__ARM_FEATURE_MATMUL_INT8"), 8, (_U16, _S16["i8"])),
    *(Kind(x, w, helium=(_S16[x], _S16[w])) for x, w in (("i16", "i8"), ("i8", "i16"), ("i16", "i16"))),
)
ELEMENTS: Final = {"i8": "int8_t", "u8": "uint8_t", "i16": "i16"}


def dots_name(rows: int, x: str, w: str) -> str:
    """The function for ``rows`` (1 to :data:`MOST`) rows of ``x`` and a shared operand of ``w``, by dtype.

    >>> dots_name(4, "uint8", "int8")
    'dots4_u8_i8'
    """
    short = {"int8": "i8", "uint8": "u8", "int16": "i16"}
    return f"dots{rows}_{short[x]}_{short[w]}"


def _text(kind: Kind, rows: int) -> str:
    numbers = range(rows)
    lines = [
        f"/* sums[r] += the products of x[r * step + i] and w[i], i < count, for {rows} r */",
        f"DOTS void {kind.name(rows)}(",
        f"    i32 *restrict sums, const {ELEMENTS[kind.x]} *restrict x, int32_t step,",
        f"    const {ELEMENTS[kind.w]} *restrict w, int32_t count)",
        "{",
        *(f"    const {ELEMENTS[kind.x]} *const x{r} = {_row(r - 1)} + step;" for r in numbers[1:]),
        *(f"    int32_t s{r} = sums[{r}];" for r in numbers),
        "    int32_t i = 0;",
        *_vectors(kind, rows),
        "    for (; i < count; ++i) {",
        *(f"        s{r} += (int32_t){_row(r)}[i] * w[i];" for r in numbers),
        "    }",
        *(f"    sums[{r}] = s{r};" for r in numbers),
        *(["    (void)step;"] if rows == 1 else []),
        "}",
    ]
    return "\n".join(lines)


def _row(r: int) -> str:
    return f"x{r}" if r else "x"


def _vectors(kind: Kind, rows: int) -> Sequence[str]:
    """The loops over whole vectors; what they leave is for the plain loop."""
    numbers, (dot, load, macro) = range(rows), kind.neon
    neon = [
        *(f"    int32x4_t v{r} = vsetq_lane_s32(s{r}, vdupq_n_s32(0), 0);" for r in numbers),
        "    for (; i + 16 <= count; i += 16) {",
        "        const int8x16_t b = vld1q_s8(w + i);",
        *(f"        v{r} = {dot}(v{r}, {load}({_row(r)} + i), b);" for r in numbers),
        "    }",
        *(f"    s{r} = vaddvq_s32(v{r});" for r in numbers),
    ]
    size, (x, w) = 128 // kind.lanes, kind.helium
    helium = [
        f"    for (; i < count; i += {kind.lanes}) {{",
        f"        const mve_pred16_t p = vctp{size}q((uint32_t)(count - i));",
        f"        const int{size}x{kind.lanes}_t b = {w.format('w + i')};",
        *(f"        s{r} = vmladavaq_p_s{size}(s{r}, {x.format(f'{_row(r)} + i')}, b, p);" for r in numbers),
        "    }",
    ]
    if not dot:
        return ["#if defined(__ARM_FEATURE_MVE)", *helium, "#endif"]
    head = f"#if defined(__aarch64__) && defined({macro})"
    return [head, *neon, "#elif defined(__ARM_FEATURE_MVE)", *helium, "#endif"]


DOTS: Final = {kind.name(rows): _text(kind, rows) for kind in KINDS for rows in range(1, MOST + 1)}
"""The functions as C by name."""
