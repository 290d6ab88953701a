"""TIR kernels without vectors as C99 functions; the prelude of the source asserts what is assumed of C."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from intc.codegen.c.dots import DOTS
from intc.codegen.kernel import Expr, PrimFunc
from intc.codegen.printer import Printer
from intc.errors import CodegenError

CTYPES: Final = {
    "bool": "int",
    "int8": "int8_t",
    "uint8": "uint8_t",
    "int16": "i16",
    "int32": "i32",
    "int64": "i64",
}
"""Element types; the wider ones are the prelude's names, which may alias."""
UNSIGNED: Final = {"uint32": "uint32_t", "uint64": "uint64_t"}  # of shifts alone
VALUES: Final = {**CTYPES, "int16": "int16_t", "int32": "int32_t", "int64": "int64_t"}
HELPERS: Final = {
    "min": "static inline {t} min_{s}({t} a, {t} b)\n{{\n    return a < b ? a : b;\n}}",
    "max": "static inline {t} max_{s}({t} a, {t} b)\n{{\n    return a > b ? a : b;\n}}",
    "clz": """static inline int32_t clz_{s}({t} value)
{{
    uint64_t x = (uint64_t)value;
    int32_t n = 0;
    int32_t step;
    if (x == 0) {{
        return 64;
    }}
    for (step = 32; step > 0; step /= 2) {{
        if (x >> (64 - step) == 0) {{
            n += step;
            x <<= step;
        }}
    }}
    return n;
}}""",
}


def ctype(dtype: str) -> str:
    """The C type of a value."""
    if dtype not in VALUES:
        raise CodegenError(f"element type {dtype} has no place in integer C code")
    return VALUES[dtype]


def literal(value: int) -> str:
    """``value`` as a C constant expression."""
    if value in (-(2**31), -(2**63)):
        return f"({value + 1} - 1)"
    return str(value)


@dataclass
class Helpers:
    """The small functions that printed code calls, by text."""

    texts: dict[str, str] = field(default_factory=dict)

    def use(self, name: str, dtype: str) -> str:
        """The name of helper ``name`` for ``dtype``."""
        suffix = dtype.replace("uint", "u").replace("int", "i")
        full = f"{name}_{suffix}"
        self.texts.setdefault(full, HELPERS[name].format(t=ctype(dtype), s=suffix))
        return full


@dataclass(frozen=True)
class Parameter:
    """``dtype`` is the element type where it is a ``pointer``."""

    name: str
    dtype: str
    pointer: bool
    written: bool = False

    def declare(self) -> str:
        if not self.pointer:
            return f"{VALUES[self.dtype]} {self.name}"
        return f"{'' if self.written else 'const '}{CTYPES[self.dtype]} *restrict {self.name}"


@dataclass(frozen=True)
class Function:
    """A printed kernel."""

    parameters: tuple[Parameter, ...]
    text: str


def print_kernel(name: str, kernel: PrimFunc, helpers: Helpers) -> Function:
    """``kernel`` as the static function ``name``; helpers that it calls are added to ``helpers``."""
    return _Printer(kernel, helpers).function(name)


class _Printer(Printer):
    language = "C"

    def __init__(self, kernel: PrimFunc, helpers: Helpers) -> None:
        super().__init__()
        self.kernel, self.helpers = kernel, helpers

    def function(self, name: str) -> Function:
        for p in self.kernel.params:
            self.names[p] = self._fresh(p.name)
        self._stmt(self.kernel.body)
        parameters = tuple(self._parameter(p) for p in self.kernel.params)
        declared = ", ".join(p.declare() for p in parameters)
        head = f"static void {name}({declared})"
        if len(head) > 110:
            head = f"static void {name}(\n    " + ",\n    ".join(p.declare() for p in parameters) + ")"
        lines, read = self._live()
        unread = [f"    (void){self.names[p]};" for p in reversed(self.kernel.params) if p not in read]
        return Function(parameters, "\n".join([head, "{", *unread, *lines, "}"]))

    def _parameter(self, p: Any) -> Parameter:
        element = getattr(p.ty, "element_type", None)
        name = self.names[p]
        if element is None:
            return Parameter(name, str(p.ty.dtype), False)
        ctype(str(element.dtype))
        return Parameter(name, str(element.dtype), True, p in self.stored)

    def value_type(self, dtype: str) -> str:
        return UNSIGNED.get(dtype) or ctype(dtype)

    def pointer(self, dtype: str, written: bool) -> str:
        return f"{'' if written else 'const '}{CTYPES[dtype]} *"

    def literal(self, value: int, dtype: str) -> str:
        return literal(value)

    def extreme(self, kind: str, dtype: str) -> str:
        return self.helpers.use(kind.lower(), dtype)

    def leading_zeros(self) -> str:
        return self.helpers.use("clz", "int64")

    def before_loop(self, loop: Any) -> None:
        if int(loop.kind) != 0:
            raise CodegenError("the C target takes serial loops only")

    def _Evaluate(self, stmt: Any) -> None:
        name, *args = stmt.value.args
        function = str(name.value)
        if function not in DOTS:
            raise CodegenError(f"the C target cannot print a call of {function}")
        self.helpers.texts.setdefault(function, DOTS[function])
        self._line(f"{function}({', '.join(map(self._argument, args))});")

    def _argument(self, expr: Expr) -> str:
        """An operand of a call: a number, or the address of an element."""
        if type(expr).__name__ != "Call":
            return self._expr(expr)[0]
        (element,) = expr.args
        return f"&{self._place(element.source, element.indices)}"
