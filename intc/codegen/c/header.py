"""The header of a compiled network: its inputs and outputs, their types and scales, and its functions."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from intc.codegen.c.printer import literal
from intc.ir.dims import evaluate
from intc.ir.graph import Graph, Scale
from intc.ir.types import LIMITS
from intc.ops.dyadic import dyadic

KEYWORDS: Final = """
auto break case char const continue default do double else enum extern float for goto if inline int long
register restrict return short signed sizeof static struct switch typedef union unsigned void volatile while
asm typeof bool true false class new delete this template operator public private protected virtual friend
namespace using try catch throw
"""
OWN: Final = ("arena", "bytes", "i16", "i32", "i64", "state", "total", "generated", "folded")  # around them


@dataclass(frozen=True)
class Port:
    """An input or output: ``name`` is its parameter, ``onnx`` the name in the model."""

    name: str
    onnx: str
    output: bool
    dtype: str
    shape: tuple[int, ...]
    lo: int
    hi: int
    scale: Scale
    lowest: float | None = None

    @property
    def size(self) -> int:
        """How many elements it has."""
        return math.prod(self.shape)

    @property
    def ctype(self) -> str:
        return "uint8_t" if self.dtype == "bool" else f"{self.dtype}_t"

    @property
    def narrow(self) -> bool:
        """Whether its element type holds integers that it must not take."""
        return self.dtype == "bool" or (self.lo, self.hi) != LIMITS[self.dtype]

    def declare(self) -> str:
        return f"{'' if self.output else 'const '}{self.ctype} *{self.name}"


def ports(graph: Graph, output_names: Sequence[str], functions: Iterable[str]) -> list[Port]:
    """Inputs, then outputs, each with a name of its own that is a C identifier and none of ``functions``."""
    taken = {*KEYWORDS.split(), *OWN, *functions, *(outside(d) for d in LIMITS)}
    out = []
    public = [(x, x, False) for x in graph.inputs]
    public += [(x, name, True) for x, name in zip(graph.outputs, output_names, strict=True)]
    for value_name, onnx, is_output in public:
        value = graph.values[value_name]
        lo, hi = value.type.interval
        shape = tuple(evaluate(d, {}) for d in value.type.shape)
        name = _free(identifier(onnx), taken)
        out.append(Port(name, onnx, is_output, value.type.dtype, shape, lo, hi, value.scale, value.lowest))
    return out


def outside(dtype: str) -> str:
    """The name of the function that looks for integers outside of an interval."""
    return f"outside_{dtype}"


def identifier(text: str) -> str:
    """``text`` with everything that a C identifier cannot hold replaced."""
    plain = re.sub(r"[^A-Za-z0-9_]+", "_", text).strip("_")
    return plain if plain and not plain[0].isdigit() else f"n_{plain}"


def _free(wish: str, taken: set[str]) -> str:
    """A name that differs from those in ``taken`` by more than its case, since macros are upper case."""
    name, number = wish, 1
    while name.lower() in taken:
        number += 1
        name = f"{wish}_{number}"
    taken.add(name.lower())
    return name


def comment(text: str) -> str:
    """``text`` fit to stand in a C comment."""
    plain = "".join(c if " " <= c <= "~" and c != "?" else "_" for c in text)
    return plain.replace("*/", "* /").replace("/*", "/ *")


def header(
    name: str, origin: str, named: Sequence[Port], build: str, arena_bytes: int, weight_bytes: int
) -> str:
    """The text of ``NAME.h``."""
    upper = name.upper()
    declared = ", ".join(p.declare() for p in named)
    return TEXT.format(
        name=name,
        upper=upper,
        origin=comment(origin),
        build=build,
        arena=max(arena_bytes, 1),
        weights=weight_bytes,
        ports="\n\n".join(_describe(upper, p) for p in named),
        declared=declared,
    )


def _describe(upper: str, port: Port) -> str:
    shape = "".join(f"[{d}]" for d in port.shape) or "[1]"
    name = port.name if port.name == port.onnx else f"{port.name} ({comment(port.onnx)})"
    lines = [f"/* {'output' if port.output else 'input'} {name}: {port.ctype} {shape}, integers from "]
    stem = f"#define {upper}_{port.name.upper()}"
    lines[0] += f"{port.lo} to {port.hi}"
    macros = [
        f"{stem}_SIZE {port.size}",
        f"{stem}_MIN {_macro(port.lo)}",
        f"{stem}_MAX {_macro(port.hi)}",
    ]
    if isinstance(port.scale, float):
        m, e = dyadic(Fraction(port.scale))
        lines.append(f"   real value = integer * {port.scale!r}, which is SCALE_M / 2^SCALE_E")
        macros += [f"{stem}_SCALE_M {m}", f"{stem}_SCALE_E {e}"]
    elif port.scale is not None:
        pairs = [dyadic(Fraction(s)) for s in port.scale]
        lines.append("   real value = integer * SCALE_M[c] / 2^SCALE_E[c], c the index of the last axis")
        for part, values in zip("ME", zip(*pairs, strict=True), strict=True):
            macros.append(f"{stem}_SCALE_{part} {{{', '.join(map(str, values))}}}")
    if port.lowest is not None:
        lines.append(f"   the least integer stands for {port.lowest!r}, which a mask sets")
    return "\n".join(lines) + " */\n" + "\n".join(macros)


def _macro(value: int) -> str:
    text = literal(value)
    return f"({text})" if text.startswith("-") else text


TEXT: Final = """/* {name}: {origin}
 *
 * Integers only, for one thread: no allocation, no library, no floating point. Everything that is computed
 * equals the reference of the compiler bit for bit.
 */
#ifndef {upper}_H
#define {upper}_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define {upper}_BUILD {build} /* the same in all files of one compilation */
#define {upper}_ARENA_BYTES {arena} /* working memory of a run */
#define {upper}_WEIGHT_BYTES {weights} /* constants */

{ports}

/* One inference. Returns 0, or i (from 1 on) and writes nothing where input i holds an integer outside of its
 * range. Inputs and outputs must not overlap. Not reentrant: the arena is static.
 */
int {name}_run({declared});

/* The same in {upper}_ARENA_BYTES bytes at the 8-byte aligned address arena (else it returns -1), of which
 * nothing is expected and nothing is kept.
 */
int {name}_run_in(void *arena, {declared});

/* A test, in {name}_check.c: runs the network on made-up inputs and returns 0 where every bit of the
 * outputs is that of the compiler's reference. Uses {name}_run.
 */
int {name}_check(void);

#ifdef __cplusplus
}}
#endif

#endif
"""
