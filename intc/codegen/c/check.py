"""``NAME_check.c``: a test of a network on the processor that it runs on.

Inputs come from a small generator, so that no data is stored; the outputs are reduced to one number, which
the reference gave for the same inputs when the sources were made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from intc.codegen.c.header import Port
from intc.codegen.c.printer import literal
from intc.ir.graph import Graph
from intc.ir.op import Array

SEED, BASIS, PRIME = 2463534242, 2166136261, 16777619  # xorshift32 and FNV-1a
WORD: Final = 2**32


def generated(named: Sequence[Port]) -> list[Array]:
    """The integers of every input, as the C code generates them."""
    state, out = SEED, []
    for port in named:
        values = []
        for _ in range(port.size):
            state ^= state << 13 & WORD - 1
            state ^= state >> 17
            state ^= state << 5 & WORD - 1
            values.append(port.lo + (state * span(port) >> 32))
        out.append(np.array(values, port.dtype).reshape(port.shape))
    return out


def span(port: Port) -> int:
    """How many integers from the lowest one on are tried."""
    return min(port.hi - port.lo + 1, WORD)


def digest(arrays: Sequence[Array]) -> int:
    """All integers of ``arrays`` as one number of 32 bits."""
    total = BASIS
    for array in arrays:
        for value in array.reshape(-1).tolist():
            for word in (int(value) % WORD, (int(value) >> 32) % WORD):
                total = (total ^ word) * PRIME % WORD
    return total


def check_text(name: str, named: Sequence[Port], graph: Graph) -> str:
    """The text of the file after its first lines; ``graph`` gives the reference."""
    inputs, outputs = ([p for p in named if p.output == o] for o in (False, True))
    feeds = dict(zip(graph.inputs, generated(inputs), strict=True))
    results = graph.run(feeds)
    fill = [
        f"    for (int32_t i = 0; i < {p.size}; ++i) {{\n"
        f"        {p.name}[i] = ({p.ctype})({literal(p.lo)} + generated({span(p)}U, &state));\n    }}"
        for p in inputs
    ]
    fold = [
        f"    for (int32_t i = 0; i < {p.size}; ++i) {{\n        total = folded(total, {p.name}[i]);\n    }}"
        for p in outputs
    ]
    return TEXT.format(
        name=name,
        seed=SEED,
        basis=BASIS,
        prime=PRIME,
        arrays="\n".join(f"    static {p.ctype} {p.name}[{p.size}];" for p in named),
        fill="\n".join(fill),
        arguments=", ".join(p.name for p in named),
        fold="\n".join(fold),
        expected=digest([results[n] for n in graph.outputs]),
    )


TEXT: Final = """/* The next integer from 0 to count - 1 of a fixed sequence (xorshift32). */
static int64_t generated(uint64_t count, uint32_t *state)
{{
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return (int64_t)(*state * count >> 32);
}}

static uint32_t folded(uint32_t total, int64_t value)
{{
    total = (total ^ (uint32_t)value) * {prime}U;
    return (total ^ (uint32_t)((uint64_t)value >> 32)) * {prime}U;
}}

int {name}_check(void)
{{
{arrays}
    uint32_t state = {seed}U;
    uint32_t total = {basis}U;
{fill}
    if ({name}_run({arguments}) != 0) {{
        return -1;
    }}
{fold}
    return total == {expected}U ? 0 : -1;
}}
"""
