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
#elif defined(__ARM_FEATURE_SIMD32) && defined(__ARM_FEATURE_UNALIGNED) && !defined(__ARM_BIG_ENDIAN) \\
    && defined(__GNUC__)
#define PAIRS /* two products of 16-bit integers an instruction */
#include <arm_acle.h>
#endif

/* Lengths are constants where this is in place; one copy is smaller. */
#if defined(__GNUC__) && defined(__OPTIMIZE__) && !defined(__OPTIMIZE_SIZE__)
#define DOTS static inline __attribute__((__always_inline__))
#else
#define DOTS static
#endif

#if defined(PAIRS)
struct word { int32_t bits; } __attribute__((__packed__, __may_alias__));
#define WORD(at) (((const struct word *)(const void *)(at))->bits)
#define PAIR static inline __attribute__((__always_inline__, __unused__)) int32_t

/* bytes 1 and 3, as __sxtb16 and __uxtb16 take bytes 0 and 2 */
PAIR odd_i8(int32_t a) { __asm__("sxtb16 %0, %1, ror #8" : "=r"(a) : "r"(a)); return a; }
PAIR odd_u8(int32_t a) { __asm__("uxtb16 %0, %1, ror #8" : "=r"(a) : "r"(a)); return a; }

/* the lower halves of a and b, and the upper ones */
PAIR lower(int32_t a, int32_t b)
{
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(a) : "r"(a), "r"(b));
    return a;
}
PAIR upper(int32_t a, int32_t b)
{
    __asm__("pkhtb %0, %2, %1, asr #16" : "=r"(a) : "r"(a), "r"(b));
    return a;
}
#endif"""
"""What the functions need: vector types of integers, each header only where its instructions exist."""


@dataclass(frozen=True)
class Kind:
    """Element types of the rows and of what they share, and the instructions for them.

    ``neon`` is a 16-byte dot product and the compiler's macro that promises it. ``helium`` loads a vector of
    ``lanes`` rows' elements and of the shared ones, to be multiplied and added by ``vmladava``. The DSP
    extension needs no more than the types.
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
    rest = ["defined(__ARM_FEATURE_MVE)", *helium, "#elif defined(PAIRS)", *_pairs(kind, rows), "#endif"]
    if not dot:
        return [f"#if {rest[0]}", *rest[1:]]
    return [f"#if defined(__aarch64__) && defined({macro})", *neon, f"#elif {rest[0]}", *rest[1:]]


def _pairs(kind: Kind, rows: int) -> Sequence[str]:
    """The loop over four elements, whose products are added two at a time.

    Bytes are widened to the pairs (0, 2) and (1, 3), 16-bit elements lie in memory as (0, 1) and (2, 3);
    where the two meet, the shared operand is brought into the order of the rows.
    """

    def declared(name: str, row: str, dtype: str) -> str:
        if dtype == "i16":
            return f"        const int32_t {name}0 = WORD({row} + i), {name}1 = WORD({row} + i + 2);"
        even = {"i8": "__sxtb16", "u8": "__uxtb16"}[dtype]
        first, second = f"{even}({name})", f"odd_{dtype}({name})"
        return f"        const int32_t {name} = WORD({row} + i), {name}0 = {first}, {name}1 = {second};"

    mixed = (kind.x == "i16") is not (kind.w == "i16")
    lines = ["    for (; i < count - 3; i += 4) {", declared("b", "w", kind.w)]
    if mixed:
        lines += ["        const int32_t c0 = lower(b0, b1), c1 = upper(b0, b1);"]
    c = "c" if mixed else "b"
    for r in range(rows):
        sum_ = f"__smlad(a{r}1, {c}1, __smlad(a{r}0, {c}0, s{r}))"
        lines += [declared(f"a{r}", _row(r), kind.x), f"        s{r} = {sum_};"]
    return [*lines, "    }"]


DOTS: Final = {kind.name(rows): _text(kind, rows) for kind in KINDS for rows in range(1, MOST + 1)}
"""The functions as C by name."""
