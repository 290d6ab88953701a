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
SYMBOL: Final = re.compile(r"[^\W\d]\w*")

Size: TypeAlias = int | str


def size_value(size: Size, env: Mapping[str, int]) -> int:
    """The value of ``size`` with the symbols bound by ``env``.

    >>> size_value("4*batch*seq - 2", {"batch": 2, "seq": 3})
    22
    """
    if isinstance(size, int):
        return size
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
    """A number, or a polynomial over ``symbols``."""
    if not isinstance(value, str):
        return read_count(value)
    text = value.replace(" ", "")
    terms = TERM.findall(text)
    names = {f for _, term in terms for f in term.split("*") if not f.isdecimal()}
    if "".join(a + b for a, b in terms) != text or not names <= set(symbols) or len(text) > 10_000:
        raise ValueError(f"{value!r} is not a size over the symbols {symbols}")
    return value
