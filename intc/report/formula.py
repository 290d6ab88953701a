"""What a node computes, as text: the formula that ``evaluate`` itself runs, or the operator's description.

:class:`Words` is an algebra like those of :mod:`intc.ops.scalar`, whose values are pieces of text; numbers
are computed as they come up, so that what is left is the formula with a node's own constants in it.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, Final

from intc.ir.graph import Graph, Node
from intc.ir.op import FormulaOp
from intc.ops.scalar import EXACT

TIGHTNESS: Final = {"*": 3, "+": 2, "-": 2}  # of others, every operand that is no name stands in brackets
ATOM: Final = 9
LONG: Final = 56  # characters, beyond which a piece gets a line and a name of its own


def formula(graph: Graph, node: Node) -> str:
    """Lines of Python in which operand i is called ``x<i>`` and the result ``y``; operators that are no
    formula are described instead.
    """
    if not isinstance(node.op, FormulaOp):
        return description(type(node.op))
    words = Words()
    operands = [_operand(graph, name, f"x{i}") for i, name in enumerate(node.inputs)]
    return words.lines(node.op.formula(words, *operands))


def description(operator: type) -> str:
    """The operator's docstring as plain text."""
    text = inspect.getdoc(operator) or ""
    return text.split("\n\n>>>")[0].replace("``", "")


def _operand(graph: Graph, name: str, called: str) -> Any:
    """A constant of one element is that number."""
    array = graph.constants.get(name)
    if array is not None and array.size == 1:
        return int(array.reshape(-1)[0])
    shape = graph.type(name).shape
    return Piece(called, row=str(shape[-1]) if shape else "1")


@dataclass(eq=False)
class Piece:
    """A value as text: an operator of ``parts``, or (``kind`` "") the name ``text``; ``row`` is the length of
    the rows of an operand.
    """

    text: str = ""
    kind: str = ""
    parts: tuple[Any, ...] = ()
    row: str = ""

    def __add__(self, other: Any) -> Any:
        return self if _is(other, 0) else Piece(kind="+", parts=(self, other))

    def __radd__(self, other: Any) -> Any:
        return self if _is(other, 0) else Piece(kind="+", parts=(other, self))

    def __sub__(self, other: Any) -> Any:
        return self if _is(other, 0) else Piece(kind="-", parts=(self, other))

    def __rsub__(self, other: Any) -> Piece:
        return Piece(kind="-", parts=(other, self))

    def __mul__(self, other: Any) -> Any:
        return 0 if _is(other, 0) else self if _is(other, 1) else Piece(kind="*", parts=(self, other))

    def __rmul__(self, other: Any) -> Any:
        return 0 if _is(other, 0) else self if _is(other, 1) else Piece(kind="*", parts=(other, self))

    def __lshift__(self, other: Any) -> Any:
        return self if _is(other, 0) else Piece(kind="<<", parts=(self, other))

    def __rlshift__(self, other: Any) -> Piece:
        return Piece(kind="<<", parts=(other, self))

    def __rshift__(self, other: Any) -> Any:
        return self if _is(other, 0) else Piece(kind=">>", parts=(self, other))

    def __and__(self, other: Any) -> Piece:
        return Piece(kind="&", parts=(self, other))

    def __lt__(self, other: Any) -> Piece:
        return Piece(kind="<", parts=(self, other))

    def __gt__(self, other: Any) -> Piece:
        return Piece(kind=">", parts=(self, other))

    def __le__(self, other: Any) -> Piece:
        return Piece(kind="<=", parts=(self, other))

    def __ge__(self, other: Any) -> Piece:
        return Piece(kind=">=", parts=(self, other))


def _is(value: Any, number: int) -> bool:
    return isinstance(value, int) and value == number


def _call(name: str, *parts: Any) -> Any:
    return Piece(name, "call", parts)


class Words:
    """The algebra over :class:`Piece` and numbers."""

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, (bool, int)):
            return a if condition else b
        return _call("where", condition, a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        return min(a, b) if isinstance(a, int) and isinstance(b, int) else _call("min", a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        return max(a, b) if isinstance(a, int) and isinstance(b, int) else _call("max", a, b)

    def mulhrs(self, a: Any, b: Any) -> Any:
        return EXACT.mulhrs(a, b)

    def assume(self, value: Any, lo: int, hi: int) -> Any:
        return value

    def product(self, a: Any, b: Any, lo: int, hi: int) -> Any:
        return a * b

    def floor_div(self, a: Any, b: Any) -> Any:
        return a // b if isinstance(a, int) and isinstance(b, int) else _call("floor_div", a, b)

    def bit_length(self, x: Any) -> Any:
        return x.bit_length() if isinstance(x, int) else _call("bit_length", x)

    def isqrt(self, x: Any) -> Any:
        return _call("isqrt", x)

    def take(self, table: Any, index: Any) -> Any:
        return _call("take", table, index)

    def size(self, x: Any) -> Any:
        """The length of the rows: a number, or the name of a free size."""
        return 1 if isinstance(x, int) else int(x.row) if x.row.isdigit() else Piece(x.row)

    def row_sum(self, x: Any) -> Any:
        return _call("row_sum", x)

    def row_max(self, x: Any) -> Any:
        return _call("row_max", x)

    def distance(self, x: Any, keep: Any = None) -> Any:
        if keep is None:
            return self.row_max(x) - x
        return self.where(keep, self.row_max(self.where(keep, x, -(2**31))) - x, 0)

    def lines(self, result: Any) -> str:
        """The assignments that lead to ``y = result``; what is used twice, or is long, has a name."""
        uses: dict[int, int] = {}
        _count(result, uses)
        out: list[str] = []
        text, _ = self._text(result, uses, {}, out)
        if out and out[-1].startswith(f"{text} = "):  # the result itself was long
            text = out.pop().removeprefix(f"{text} = ")
        return "\n".join([*out, f"y = {text}"])

    def _text(
        self, value: Any, uses: dict[int, int], texts: dict[int, tuple[str, int]], out: list[str]
    ) -> tuple[str, int]:
        """The text of ``value`` and how tightly it binds; lines that it needs are appended to ``out``."""
        if not isinstance(value, Piece):
            return str(int(value)), ATOM if value >= 0 else 0
        if not value.kind:
            return value.text, ATOM
        if id(value) in texts:
            return texts[id(value)]
        parts = [self._text(part, uses, texts, out) for part in value.parts]
        if value.kind == "call":
            text, tightness = f"{value.text}({', '.join(part for part, _ in parts)})", ATOM
        else:
            kind, tightness = value.kind, TIGHTNESS.get(value.kind, 0)
            (a, left), (b, right) = parts
            if kind == "+" and b.startswith("-"):
                kind, b, right = "-", b[1:], ATOM
            a = f"({a})" if left < (tightness or ATOM) else a
            b = f"({b})" if right < ATOM and right <= (tightness or ATOM) else b
            text = f"{a} {kind} {b}"
        if uses[id(value)] > 1 or len(text) > LONG:
            out.append(f"t{len(out)} = {text}")
            text, tightness = f"t{len(out) - 1}", ATOM
        texts[id(value)] = text, tightness
        return text, tightness


def _count(value: Any, uses: dict[int, int]) -> None:
    """How often every piece of ``value`` is used."""
    if isinstance(value, Piece):
        uses[id(value)] = uses.get(id(value), 0) + 1
        if uses[id(value)] == 1:
            for part in value.parts:
                _count(part, uses)
