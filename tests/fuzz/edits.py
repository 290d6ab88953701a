"""Random edits of bytes, JSON values and lines of text. The same ``Random`` gives the same edits."""

from __future__ import annotations

import copy
import re
import struct
from collections.abc import Sequence
from random import Random
from typing import Any

INTEGERS = (0, 1, -1, 2, 3, 7, 64, 127, 128, 255, 256, 1000, 65535, 65536, 2**31 - 1, 2**31, -(2**31), 2**32)
HUGE = (2**40, 2**53, 2**62, 2**63 - 1, 2**63, -(2**63), 2**64, 2**100, 10**400, -(10**30))
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e-320, 1e-45, 1e38, 1e308, float("inf"), float("-inf"), float("nan"))
TEXTS = (
    "",
    " ",
    "x",
    "\n",
    "a\nb",
    "\0",
    "é",
    "../../etc/passwd",
    "/etc/passwd",
    "A" * 5000,
    "%s%n",
    "\x1b[31m",
)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
WORD = re.compile(r"[\w./:~-]+|\W")


def number(rng: Random) -> int:
    """Mostly small or at the end of an element type, sometimes huge."""
    return rng.choice(HUGE if rng.random() < 0.25 else INTEGERS)


def edit_bytes(rng: Random, data: bytes) -> bytes:
    """``data`` with a few bytes flipped, cut, inserted, repeated, moved or overwritten by a number."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(out) + 1)
        size = min(rng.choice((1, 1, 2, 4, 8, 64, 1024)), max(len(out) - at, 0))
        match rng.randrange(7):
            case 0 | 1 if size:
                out[at] ^= 1 << rng.randrange(8)
            case 2:
                del out[at : at + size]
            case 3:
                out[at:at] = rng.randbytes(rng.choice((1, 2, 4, 8, 64)))
            case 4:
                out[at:at] = out[at : at + size]
            case 5 if size >= 4:
                out[at : at + 4] = struct.pack("<I", number(rng) % 2**32)
            case _:
                del out[at if rng.random() < 0.3 else len(out) - size :]
    return bytes(out)


def edit_json(rng: Random, value: Any) -> Any:
    """``value`` with one part, at any depth, replaced, removed, repeated or exchanged, in place."""
    places: list[tuple[Any, Any]] = []
    _places(value, places)
    if not places:
        return odd(rng)
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0 | 1:
            holder[key] = odd(rng)
        case 2:
            del holder[key]
        case 3 if isinstance(holder, list):
            holder.insert(key, holder[key])
        case 4 if isinstance(holder, list) and len(holder) < 1000:
            holder.extend(holder * rng.choice((1, 2, 50)))
        case 5:
            other, where = rng.choice(places)
            holder[key] = copy.deepcopy(other[where])
        case _:
            holder[key] = near(rng, holder[key])
    return value


def _places(value: Any, out: list[tuple[Any, Any]]) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            out.append((value, key))
            _places(part, out)
    elif isinstance(value, list):
        for i, part in enumerate(value):
            out.append((value, i))
            if i < 200:
                _places(part, out)


def odd(rng: Random) -> Any:
    """A value of any JSON type."""
    deep: Any = 0
    if rng.random() < 0.05:
        for _ in range(rng.choice((3, 90, 400))):
            deep = [deep]
    return rng.choice((None, True, False, [], {}, deep, number(rng), rng.choice(FLOATS), rng.choice(TEXTS)))


def near(rng: Random, value: Any) -> Any:
    """A value of the same type that is not far from ``value``."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, value * 2, value // 2, number(rng)))
    if isinstance(value, float):
        return rng.choice((-value, value * 2, value * 1e30, value * 1e-30, rng.choice(FLOATS)))
    if isinstance(value, str):
        extra = rng.choice((" - 5", "*batch", " + 1", "*2", "*99999999", "²", "*" + "9" * 30, "\n"))
        return rng.choice((value + extra, value[:-1], value * 2, value.upper(), rng.choice(TEXTS)))
    return value


def edit_lines(rng: Random, text: str, words: Sequence[str]) -> str:
    """``text`` with some lines removed, repeated, moved, or with one of their words or numbers replaced."""
    lines = text.split("\n")
    for _ in range(rng.choice((1, 1, 2, 5))):
        i, j = rng.randrange(len(lines)), rng.randrange(len(lines))
        match rng.randrange(10):
            case 0:
                del lines[i : i + rng.choice((1, 1, 3))]
                lines = lines or [""]
            case 1:
                lines.insert(j, lines[i])
            case 2:
                lines[i], lines[j] = lines[j], lines[i]
            case 3:
                lines[i] = edit_bytes(rng, lines[i].encode()).decode(errors="replace")
            case 4 | 5 | 6:
                lines[i] = _replaced(rng, lines[i], NUMBER, [str(number(rng)), str(rng.choice(FLOATS))])
            case 7:
                lines[i] = _replaced(rng, lines[i], WORD, [rng.choice(words), rng.choice(TEXTS)])
            case _:
                other = [m.group() for m in WORD.finditer(lines[j])] or [""]
                lines[i] = _replaced(rng, lines[i], WORD, [rng.choice(other)])
    return "\n".join(lines)


def _replaced(rng: Random, line: str, pattern: re.Pattern[str], options: list[str]) -> str:
    found = list(pattern.finditer(line))
    if not found:
        return line
    match = rng.choice(found)
    return line[: match.start()] + rng.choice(options) + line[match.end() :]
