"""TIR kernels as text of a language like C: what C99 and CUDA have in common.

Only what our kernels are made of is known: explicit loops, loads and stores of flat buffers, integer
expressions. Anything else, floats and vectors included, is refused, so that what is printed is integer only.

What C leaves open is pinned down: left shifts go through unsigned types, results of arithmetic on types
narrower than 32 bits are converted back to their type. Two assumptions remain: right shifts of negative
integers are arithmetic, and conversions to signed types wrap.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from intc.codegen.kernel import Expr
from intc.errors import CodegenError

ATOM, PRODUCT, SUM, OTHER = range(4)  # how tightly an expression binds
BINARY: Final = {"Mul": "*", "Div": "/", "Mod": "%", "Add": "+", "Sub": "-"}
COMPARE: Final = {"EQ": "==", "NE": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">="}
LOGIC: Final = {"And": "&&", "Or": "||"}
BITS: Final = {"BitwiseAnd": "&", "BitwiseOr": "|", "BitwiseXor": "^", "RShift": ">>"}


@dataclass(frozen=True)
class _Line:
    """A line of a function; ``defines`` is the variable that it is there for, if for nothing else."""

    text: str | Callable[[], str]
    defines: Any
    uses: frozenset[Any]


class Printer:
    """Statements as lines, expressions as text. A language names its types and functions."""

    language: str
    indent = "    "
    alignment = ""  # of arrays

    def __init__(self) -> None:
        self.names: dict[Any, str] = {}
        self.inlined: dict[Any, Any] = {}
        self.scalars: set[Any] = set()
        self.taken: set[str] = set()
        self.lines: list[_Line] = []
        self.used: set[Any] = set()  # variables in the line under construction
        self.views: dict[Any, Any] = {}
        self.stored: set[Any] = set()
        self.undefined: dict[Any, tuple[int, int]] = {}  # scalars without a value: their line and block
        self.block = self.blocks = 0
        self.depth = 1
        self.loops = 0
        self.count = 0

    # ---------------------------------------------------------------- the language

    def value_type(self, dtype: str) -> str:
        """The type of a variable; CodegenError for what is no integer."""
        raise NotImplementedError

    def pointer(self, dtype: str, written: bool) -> str:
        """The type of a pointer to elements."""
        raise NotImplementedError

    def literal(self, value: int, dtype: str) -> str:
        """A constant expression, in brackets unless it is one word or a minus and one word."""
        raise NotImplementedError

    def extreme(self, kind: str, dtype: str) -> str:
        """The function for ``Min`` or ``Max``."""
        raise NotImplementedError

    def leading_zeros(self) -> str:
        """The function of an int64, 64 for zero."""
        raise NotImplementedError

    def division(self, kind: str, divisor: Expr) -> str | None:
        """The function for ``Div`` or ``Mod`` where it is not an operator."""
        return None

    def before_loop(self, loop: Any) -> None:
        """Lines in front of a loop; CodegenError for a kind of loop that there is not."""

    # ---------------------------------------------------------------- functions

    def _live(self) -> tuple[list[str], set[Any]]:
        """The lines without the definitions that nothing reads, which have no effects; and what they read."""
        needed: set[Any] = set()
        kept = []
        for line in reversed(self.lines):
            if line.defines is None or line.defines in needed:
                needed |= line.uses
                kept.append(line.text() if callable(line.text) else line.text)
        return [text for text in reversed(kept) if text], {self.views.get(v, v) for v in needed}

    # ---------------------------------------------------------------- statements

    def _line(self, text: str | Callable[[], str], defines: Any = None) -> None:
        indent = self.indent * self.depth
        full = (lambda: indent + text()) if callable(text) else indent + text
        self.lines.append(_Line(full, defines, frozenset(self.used)))
        self.used = set()

    def _stmt(self, stmt: Any) -> None:
        kind = type(stmt).__name__
        handler: Callable[[Any], None] | None = getattr(self, f"_{kind}", None)
        if handler is None:
            raise CodegenError(f"{self.language} has no form of the TIR statement {kind}")
        handler(stmt)

    def _SeqStmt(self, stmt: Any) -> None:
        for part in stmt.seq:
            self._stmt(part)

    def _block(self, head: str, body: Any, tail: str = "}") -> None:
        outer = self.block
        self._line(head + " {")
        self.depth += 1
        self.blocks += 1
        self.block = self.blocks
        self._stmt(body)
        self.block = outer
        self.depth -= 1
        self._line(tail)

    def _For(self, stmt: Any) -> None:
        if type(stmt.extent).__name__ == "IntImm" and int(stmt.extent) == 1:
            self.inlined[stmt.loop_var] = stmt.min
            self._stmt(stmt.body)
            return
        name = self._fresh("ijklmnopqrst"[self.loops % 12])
        self.names[stmt.loop_var] = name
        first, _ = self._expr(stmt.min)
        end, binding = self._expr(stmt.extent)
        if first != "0":
            end = f"{first} + {end if binding < SUM else f'({end})'}"
        self.loops += 1
        self.before_loop(stmt)
        self._block(f"for ({self.value_type('int32')} {name} = {first}; {name} < {end}; ++{name})", stmt.body)
        self.loops -= 1
        self.taken.discard(name)

    def _IfThenElse(self, stmt: Any) -> None:
        condition, _ = self._expr(stmt.condition)
        if stmt.else_case is None:
            self._block(f"if ({condition})", stmt.then_case)
            return
        self._block(f"if ({condition})", stmt.then_case)
        self._block("else", stmt.else_case)

    def _Bind(self, stmt: Any) -> None:
        if type(stmt.value).__name__ in ("Var", "IntImm"):
            self.inlined[stmt.var] = stmt.value
            return
        text, _ = self._expr(stmt.value)
        name = self._fresh(f"t{self.count}")
        self.count += 1
        self.names[stmt.var] = name
        self._line(f"const {self.value_type(str(stmt.var.ty.dtype))} {name} = {text};", stmt.var)

    def _AllocBuffer(self, stmt: Any) -> None:
        buffer = stmt.buffer
        name = self._fresh(f"s{self.count}")
        self.count += 1
        self.names[buffer] = name
        (size,) = (int(n) for n in buffer.shape)
        if size == 1:
            self.scalars.add(buffer)
            self.undefined[buffer] = len(self.lines), self.block
        kind = self.value_type(str(buffer.dtype))
        text = f"{kind} {name};" if size == 1 else f"{self.alignment}{kind} {name}[{size}];"
        self._line(text, buffer)

    def _DeclBuffer(self, stmt: Any) -> None:
        own, dtype = str(stmt.data.ty.element_type.dtype), str(stmt.buffer.dtype)
        name = self.names[stmt.data]
        self.views[stmt.buffer] = stmt.data
        if own == dtype:
            self.names[stmt.buffer] = name
            return
        view = self._fresh(f"{name}_{dtype}")
        self.names[stmt.buffer] = view

        def declare() -> str:
            kind = self.pointer(dtype, stmt.data in self.stored)
            return f"{kind}{view} = ({kind}){name};"

        self._line(declare, stmt.buffer)

    def _BufferStore(self, stmt: Any) -> None:
        value, _ = self._expr(stmt.value)
        self.stored.add(self.views.get(stmt.buffer, stmt.buffer))
        line, block = self.undefined.pop(stmt.buffer, (0, -1))
        if block == self.block:  # the first store of a scalar, in its own block, declares it
            self.lines[line] = _Line("", stmt.buffer, frozenset())
            name = self.names[stmt.buffer]
            self._line(f"{self.value_type(str(stmt.buffer.dtype))} {name} = {value};", stmt.buffer)
            return
        self._line(f"{self._place(stmt.buffer, stmt.indices)} = {value};")

    # ---------------------------------------------------------------- expressions

    def _fresh(self, wish: str) -> str:
        name, number = wish, 1
        while name in self.taken:
            number += 1
            name = f"{wish}{number}"
        self.taken.add(name)
        return name

    def _place(self, buffer: Any, indices: Any) -> str:
        self.used.add(buffer)
        if buffer in self.scalars:
            return self.names[buffer]
        (index,) = indices
        return f"{self.names[buffer]}[{self._expr(index)[0]}]"

    def _within(self, expr: Expr, loosest: int) -> str:
        """``expr`` in brackets where it binds less tightly than ``loosest``."""
        text, binding = self._expr(expr)
        return text if binding <= loosest else f"({text})"

    def _expr(self, expr: Expr) -> tuple[str, int]:
        kind, dtype = type(expr).__name__, str(expr.ty.dtype)
        if kind == "IntImm":
            text = self.literal(int(expr), dtype)
            return text, SUM if text.startswith("-") else ATOM
        if kind == "Var":
            if expr in self.inlined:
                return self._expr(self.inlined[expr])
            self.used.add(expr)
            return self.names[expr], ATOM
        if kind == "TensorLoad":
            return self._place(expr.source, expr.indices), ATOM
        if kind == "Cast":
            return f"({self.value_type(dtype)}){self._within(expr.value, ATOM)}", ATOM
        if kind in BINARY:
            return self._binary(kind, expr, dtype)
        if kind in COMPARE:
            return f"{self._within(expr.a, SUM)} {COMPARE[kind]} {self._within(expr.b, SUM)}", OTHER
        if kind in LOGIC:
            return f"{self._within(expr.a, ATOM)} {LOGIC[kind]} {self._within(expr.b, ATOM)}", OTHER
        if kind in BITS:
            return f"{self._within(expr.a, ATOM)} {BITS[kind]} {self._within(expr.b, ATOM)}", OTHER
        if kind == "LShift":
            unsigned = self.value_type("uint64" if dtype == "int64" else "uint32")
            shifted = f"({unsigned}){self._within(expr.a, ATOM)} << {self._within(expr.b, ATOM)}"
            return f"({self.value_type(dtype)})({shifted})", ATOM
        if kind in ("Min", "Max"):
            return f"{self.extreme(kind, dtype)}({self._expr(expr.a)[0]}, {self._expr(expr.b)[0]})", ATOM
        if kind == "Select":
            return self._choice(expr.condition, expr.true_value, expr.false_value)
        if kind == "Not":
            return f"!{self._within(expr.a, ATOM)}", ATOM
        if kind == "Call":
            return self._call(expr.op.name.rpartition(".")[2], list(expr.args))
        raise CodegenError(f"{self.language} has no form of the TIR expression {kind}")

    def _binary(self, kind: str, expr: Expr, dtype: str) -> tuple[str, int]:
        level = SUM if kind in ("Add", "Sub") else PRODUCT
        if simple := self._trivial(kind, expr):
            return simple
        if kind in ("Div", "Mod") and (function := self.division(kind, expr.b)):
            return f"{function}({self._expr(expr.a)[0]}, {self._expr(expr.b)[0]})", ATOM
        right = self._within(expr.b, ATOM if kind in ("Sub", "Div", "Mod") else level - 1)
        text = f"{self._within(expr.a, level)} {BINARY[kind]} {right}"
        return (text, level) if dtype in ("int32", "int64") else (f"({self.value_type(dtype)})({text})", ATOM)

    def _trivial(self, kind: str, expr: Expr) -> tuple[str, int] | None:
        """``0 + x``, ``1 * x`` and ``0 * x``, which loops of one step leave behind."""
        for this, other in ((expr.a, expr.b), (expr.b, expr.a)):
            if (kind, self._known(this)) in (("Add", 0), ("Mul", 1)):
                return self._expr(other)
        return ("0", ATOM) if kind == "Mul" and self._known(expr) == 0 else None

    def _known(self, expr: Expr) -> int | None:
        """The value of ``expr`` where it is plainly a constant."""
        kind = type(expr).__name__
        if kind == "Mul":
            return 0 if 0 in (self._known(expr.a), self._known(expr.b)) else None
        if kind == "Var":
            return self._known(self.inlined[expr]) if expr in self.inlined else None
        return int(expr) if kind == "IntImm" else None

    def _choice(self, condition: Expr, a: Expr, b: Expr) -> tuple[str, int]:
        return f"{self._within(condition, ATOM)} ? {self._within(a, SUM)} : {self._within(b, SUM)}", OTHER

    def _call(self, name: str, args: list[Expr]) -> tuple[str, int]:
        if name == "if_then_else":
            return self._choice(*args)
        if name == "clz" and str(args[0].ty.dtype) == "int64":
            return f"{self.leading_zeros()}({self._expr(args[0])[0]})", ATOM
        raise CodegenError(f"{self.language} has no form of the TIR function {name}")
