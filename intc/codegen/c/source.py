"""A compiled network as C source: ``NAME.h``, ``NAME.c``, ``NAME_weights.c`` and ``NAME_check.c``.

Every kernel is a static function; one public function calls them in order on offsets into one arena. Sizes
are fixed, so the arena is planned to the byte and nothing is allocated. The files carry one build number, so
that those of different compilations do not compile together.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from intc.codegen.c.check import check_text
from intc.codegen.c.dots import DOTS, HEADERS
from intc.codegen.c.header import Port, comment, header, outside, ports
from intc.codegen.c.printer import CTYPES, Helpers, Parameter, ctype, literal, print_kernel
from intc.codegen.lower import lifetimes, staged
from intc.codegen.main import output_key
from intc.codegen.memory import Step, pack
from intc.codegen.program import Arg, Constant, ConstArg, IntArg, Program, ScratchArg, ValueArg, nbytes
from intc.codegen.targets import C, Target
from intc.errors import CodegenError
from intc.ir.dims import evaluate, format_shape, symbols
from intc.ir.graph import Graph

ALIGN: Final = 8
BYTES_MAX: Final = 2**31 - 1
NUMBERS_A_LINE: Final = {1: 17, 2: 13, 4: 8, 8: 4}  # by element size, in lines below 110 columns


def require_fixed(graph: Graph) -> None:
    """CodegenError where a size is only known at run time."""
    free = graph.symbols()
    if free:
        first = next(name for name in graph.inputs if symbols(graph.type(name).shape))
        raise CodegenError(
            f"target 'c' needs fixed sizes, but {', '.join(free)} of input '{first}' "
            f"{format_shape(graph.type(first).shape)} is free; fix it, as in --size {free[0]}=1 or "
            f"sizes={{'{free[0]}': 1}}"
        )


def lower_source(graph: Graph, output_names: Sequence[str]) -> Source:
    """``graph`` as C; CodegenError names a free size, or a node or value that the target cannot take."""
    require_fixed(graph)
    for size, largest in graph.limits().items():
        if evaluate(size, {}) > largest:
            raise CodegenError(f"a size of {size} is too large; the model takes at most {largest}")
    for name, value in graph.values.items():
        if evaluate(nbytes(value.type), {}) > BYTES_MAX:
            raise CodegenError(f"value '{name}' takes more than {BYTES_MAX} bytes")
    program, roots = staged(graph, C)
    return Source(program, roots, tuple(output_names))


@dataclass(frozen=True)
class Source:
    """A network ready to be printed; ``roots`` names the holder of every value's data.

    ``output_names`` are the public names of the outputs.
    """

    program: Program
    roots: Mapping[str, str]
    output_names: tuple[str, ...]

    @property
    def target(self) -> Target:
        return self.program.target

    @cached_property
    def _memory(self) -> tuple[dict[str, int], int]:
        """Where every value and every stage's scratch lies in the arena, and the arena's size."""
        steps, symbolic = lifetimes(self.program, self.roots)
        sizes = {name: evaluate(size, {}) for name, size in symbolic.items()}
        for i, stage in enumerate(self.program.stages):
            if scratch := [evaluate(a.size, {}) for a in stage.args if isinstance(a, ScratchArg)]:
                sizes[_scratch(i)] = max(scratch)
                steps[i] = Step(steps[i].reads, (*steps[i].writes, _scratch(i)))
        return pack(steps, sizes, ALIGN)

    @cached_property
    def ports(self) -> list[Port]:
        """Inputs and outputs as the parameters that they become."""
        return ports(self.program.graph, self.output_names, self.program.kernels)

    @property
    def arena_bytes(self) -> int:
        """The working memory of a run."""
        return self._memory[1]

    @property
    def weight_bytes(self) -> int:
        """The bytes of all constants."""
        return sum(c.array.nbytes for c in self.program.constants)

    def files(self, name: str, origin: str) -> dict[str, str]:
        """The text of every file by its name; ``name`` is a C identifier, ``origin`` says what was
        compiled.
        """
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise CodegenError(f"'{name}' is no C identifier")
        if self.arena_bytes > BYTES_MAX:
            raise CodegenError(f"the working memory of {self.arena_bytes} bytes is more than {BYTES_MAX}")
        parts = {
            "": ("the network", self._code(name)),
            "_weights": ("its constants", self._weights(name)),
            "_check": ("a test of it", check_text(name, self.ports, self.program.graph)),
        }

        def head(build: str) -> str:
            return header(name, origin, self.ports, build, self.arena_bytes, self.weight_bytes)

        everything = "".join([head(""), *(text for _, text in parts.values())])
        build = "0x" + hashlib.sha256(everything.encode()).hexdigest()[:8]
        sources = {
            f"{name}{suffix}.c": f"/* {name}: {what}, {comment(origin)} */\n{_guard(name, build)}{text}"
            for suffix, (what, text) in parts.items()
        }
        return {f"{name}.h": head(build), **sources}

    # ---------------------------------------------------------------- code

    def _code(self, name: str) -> str:
        helpers = Helpers()
        kernels = {k: print_kernel(k, f, helpers) for k, f in self.program.kernels.items()}
        signatures = {k: f.parameters for k, f in kernels.items()}
        declared = [f"extern const {kind} {name}_c{i}[{count}];" for i, kind, count in self._constants()]
        return "\n\n".join(
            [
                PRELUDE.replace("NAME", name),
                *([HEADERS] if DOTS.keys() & helpers.texts.keys() else []),
                *(["\n".join(declared)] if declared else []),
                *helpers.texts.values(),
                *(f.text for f in kernels.values()),
                *dict.fromkeys(
                    OUTSIDE.format(name=outside(p.dtype), t=p.ctype) for _, p in _checked(self.ports)
                ),
                self._run(name, signatures),
            ]
        )

    def _constants(self) -> Iterable[tuple[int, str, int]]:
        for i, constant in enumerate(self.program.constants):
            kind = ctype(constant.array.dtype.name)
            yield i, kind, max(constant.array.size, 1)

    def _run(self, name: str, signatures: Mapping[str, tuple[Parameter, ...]]) -> str:
        calls, named = [], self.ports
        for i, stage in enumerate(self.program.stages):
            label = stage.source or stage.writes[0]
            if "\0" not in label:
                calls.append(f"    /* {comment(label)} */")
            parameters = signatures[stage.kernel]
            args = [self._argument(name, i, a, p) for a, p in zip(stage.args, parameters, strict=True)]
            calls.append(wrapped(f"    {stage.kernel}(", args, ");"))
        checks = [
            f"    if ({outside(p.dtype)}({p.name}, {p.size}, {literal(p.lo)}, {literal(p.hi)})) {{\n"
            f"        return {i};\n    }}"
            for i, p in _checked(named)
        ]
        body = "\n".join([*checks, *calls])
        unused = [n for n in ("bytes", *(p.name for p in named)) if not re.search(rf"\b{n}\b", body)]
        return RUN.format(
            name=name,
            upper=name.upper(),
            declared=", ".join(p.declare() for p in named),
            passed="".join(f", {p.name}" for p in named),
            body="\n".join([*(f"    (void){n};" for n in unused), body]),
            align=ALIGN,
        )

    def _argument(self, name: str, stage: int, arg: Arg, to: Parameter) -> str:
        graph = self.program.graph
        if isinstance(arg, IntArg):
            return literal(arg.value)
        cast = f"({'' if to.written else 'const '}{CTYPES[to.dtype]} *)"
        if isinstance(arg, ConstArg):
            return f"{cast}{name}_c{arg.entry}"
        if isinstance(arg, ScratchArg):
            return f"{cast}(bytes + {self._memory[0][_scratch(stage)]})"
        assert isinstance(arg, ValueArg), arg
        root = self.roots.get(arg.name, arg.name)
        if root in self._memory[0]:
            return f"{cast}(bytes + {self._memory[0][root] + arg.offset})"
        if root in graph.constants:
            base = f"{name}_c{self.program.graph_constant(root).entry}"
        else:
            keys = [*graph.inputs, *(output_key(i) for i in range(len(graph.outputs)))]
            base = self.ports[keys.index(root)].name
        if not arg.offset:
            return f"{cast}{base}"
        return f"{cast}((const uint8_t *){base} + {arg.offset})"

    # ---------------------------------------------------------------- weights

    def _weights(self, name: str) -> str:
        parts = [WEIGHTS_PRELUDE.replace("NAME", name.upper())]
        for (i, kind, count), constant in zip(self._constants(), self.program.constants, strict=True):
            about = f"/* {comment(constant.name)} */\n" if constant.name else ""
            parts.append(
                f"{about}extern const {kind} {name}_c{i}[{count}];\n"
                f"const {kind} {name}_c{i}[{count}] {name.upper()}_CONST = {{\n{numbers(constant)}\n}};"
            )
        return "\n\n".join(parts) + "\n"


PRELUDE: Final = """/* What this code assumes of the compiler; gcc, clang and armclang define both so. */
typedef char NAME_assumes_arithmetic_right_shift[
    (-1 >> 1) == -1 && ((int64_t)-1 >> 1) == -1 ? 1 : -1];
typedef char NAME_assumes_wrapping_conversion[
    (int32_t)0xffffffffU == -1 && (int64_t)0xffffffffffffffffU == -1 && (int8_t)255 == -1 ? 1 : -1];

/* The arena holds values of several types one after another, which type-based alias analysis must know. */
#if defined(__GNUC__)
#define MAY_ALIAS __attribute__((__may_alias__))
#else
#define MAY_ALIAS /* compile with type-based alias analysis turned off */
#endif
typedef int16_t i16 MAY_ALIAS;
typedef int32_t i32 MAY_ALIAS;
typedef int64_t i64 MAY_ALIAS;"""

OUTSIDE: Final = """static int {name}(const {t} *x, int32_t size, {t} lo, {t} hi)
{{
    for (int32_t i = 0; i < size; ++i) {{
        if (x[i] < lo || x[i] > hi) {{
            return 1;
        }}
    }}
    return 0;
}}"""

RUN: Final = """int {name}_run_in(void *arena, {declared})
{{
    uint8_t *const bytes = (uint8_t *)arena;
    if ((uintptr_t)arena % {align} != 0) {{
        return -1;
    }}
{body}
    return 0;
}}

int {name}_run({declared})
{{
    static union {{
        int64_t aligned;
        uint8_t bytes[{upper}_ARENA_BYTES];
    }} arena;
    return {name}_run_in(&arena{passed});
}}
"""

WEIGHTS_PRELUDE: Final = """/* An attribute for all constants, such as __attribute__((section(".flash"))). */
#ifndef NAME_CONST
#define NAME_CONST
#endif"""


def _guard(name: str, build: str) -> str:
    return (
        f'#include "{name}.h"\n\n#if {name.upper()}_BUILD != {build}\n'
        f'#error "the files of {name} come from different compilations"\n#endif\n\n'
    )


def _scratch(stage: int) -> str:
    """The name under which the scratch memory of a stage is planned."""
    return f"\0scratch{stage}"


def _checked(named: Sequence[Port]) -> list[tuple[int, Port]]:
    """The inputs whose interval is not all of their type, by their numbers from 1 on."""
    inputs = enumerate((p for p in named if not p.output), start=1)
    return [(i, port) for i, port in inputs if port.narrow]


def wrapped(head: str, parts: Sequence[str], tail: str, width: int = 110) -> str:
    """``head``, ``parts`` with commas, ``tail``, in lines of at most ``width`` where parts allow it."""
    lines, line = [], head
    for i, part in enumerate(parts):
        piece = part + ("," if i < len(parts) - 1 else tail)
        if len(line) + 1 + len(piece) > width and line.strip():
            lines.append(line)
            line = "        " + piece
        else:
            line += ("" if line == head or not line.strip() else " ") + piece
    return "\n".join([*lines, line])


def numbers(constant: Constant) -> str:
    """The elements of a constant as lines of C."""
    values, each = constant.array.reshape(-1).tolist() or [0], NUMBERS_A_LINE[constant.array.itemsize]
    items = list(map(literal if constant.array.itemsize > 2 else str, values))
    return "\n".join(f"    {', '.join(items[i : i + each])}," for i in range(0, len(items), each))
