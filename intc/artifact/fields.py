"""Fields of the manifest: sizes, and the strict readers of single JSON values, which raise TypeError or
ValueError.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final, TypeAlias

MAX_NAME: Final = 200  # characters
SCALES: Final = (2.0**-126, 2.0**126)  # a scale and its reciprocal are normal numbers in float32
TERM: Final = re.compile(r"([+-]?)(\w+(?:\*\w+)*)")
QUOTIENT: Final = re.compile(r"floor\(([^()]+|\([^()]*\))/(\d+)\)")  # the innermost ones of a size
MULTIPLE: Final = re.compile(r"(?:([1-9]\d*)\*)?([^\W\d]\w*)")
SYMBOL: Final = re.compile(r"[^\W\d]\w*")

Size: TypeAlias = int | str


def size_value(size: Size, env: Mapping[str, int]) -> int:
    """The value of ``size`` with the symbols bound by ``env``.

    >>> size_value("4*batch*seq - 2", {"batch": 2, "seq": 3})
    22
    >>> size_value("batch*floor((floor(seq/2) + 5)/3)", {"batch": 2, "seq": 3})
    4
    """
    if isinstance(size, int):
        return size
    while "floor(" in size:
        size = QUOTIENT.sub(lambda q: str(size_value(_unbracketed(q[1]), env) // int(q[2])), size)
    total = 0
    for coefficient, names in _terms(size):
        for name in names:
            coefficient *= env[name]
        total += coefficient
    return total


@lru_cache(1024)
def _terms(size: str) -> tuple[tuple[int, tuple[str, ...]], ...]:
    """The polynomial as (coefficient, symbols) pairs."""
    out = []
    for sign, term in TERM.findall(size.replace(" ", "")):
        factors = term.split("*")
        numbers = [int(f) for f in factors if f.isdecimal()]
        names = tuple(f for f in factors if not f.isdecimal())
        out.append((math.prod(numbers, start=-1 if sign == "-" else 1), names))
    return tuple(out)


def multiple(size: str) -> tuple[int, str] | None:
    """``(k, symbol)`` of a size ``k*symbol``, from which the symbol can be told; None for another."""
    found = MULTIPLE.fullmatch(size)
    return (int(found[1] or 1), found[2]) if found else None


def _unbracketed(text: str) -> str:
    return text.removeprefix("(").removesuffix(")")


def read_text(value: Any) -> str:
    """A string."""
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def read_symbol(value: Any) -> str:
    """The name of a size."""
    if not SYMBOL.fullmatch(read_text(value)) or len(value) > MAX_NAME:
        raise ValueError(f"{value!r} is not the name of a size")
    return str(value)


def read_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    """``names``, none of which occurs twice."""
    if len(set(names)) != len(names):
        raise ValueError(f"names that occur twice: {names}")
    return names


def read_integer(value: Any) -> int:
    """An integer; a boolean is none."""
    if type(value) is not int:
        raise TypeError(f"{value!r} is not an integer")
    return value


def read_count(value: Any) -> int:
    """A number of bytes or elements."""
    if not 0 <= read_integer(value) < 2**40:
        raise ValueError(f"{value!r} is not a size")
    return int(value)


def read_real(value: Any) -> float:
    """A scale."""
    if type(value) not in (int, float) or not SCALES[0] <= value <= SCALES[1]:
        raise ValueError(f"{value!r} is not a scale")
    return float(value)


def read_digest(value: Any) -> str:
    """A SHA-256 in hexadecimal."""
    if not re.fullmatch(r"[0-9a-f]{64}", read_text(value)):
        raise ValueError(f"{value!r} is not a SHA-256")
    return str(value)


def read_size(value: Any, symbols: tuple[str, ...]) -> Size:
    """A number, or a polynomial over ``symbols`` and quotients of such polynomials."""
    if not isinstance(value, str):
        return read_count(value)
    text = value.replace(" ", "")
    fits = len(text) <= 10_000
    while fits and (inner := QUOTIENT.search(text)):
        fits = _is_polynomial(_unbracketed(inner[1]), symbols) and int(inner[2]) > 0
        text = f"{text[: inner.start()]}1{text[inner.end() :]}"
    if not fits or not _is_polynomial(text, symbols):
        raise ValueError(f"{value!r} is not a size over the symbols {symbols}")
    return value


def _is_polynomial(text: str, symbols: tuple[str, ...]) -> bool:
    terms = TERM.findall(text)
    names = {f for _, term in terms for f in term.split("*") if not f.isdecimal()}
    return "".join(a + b for a, b in terms) == text and names <= set(symbols)
