"""The memory plan: every intermediate value in one arena of symbolic slots.

A slot's size is a polynomial in bytes; slots follow one another, each rounded up to :data:`ALIGN`. Two values
share a slot when they are never alive together and one of their sizes is provably not larger than the other
for all symbols >= 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from intc.ir.dims import Dim, Monomial, evaluate, factor, product, quotient, symbols, terms_of
from intc.ir.ranges import bounds

ALIGN: Final = 64
_TYPICAL: Final = 64  # stands for every symbol where sizes are ranked for tightness only


@dataclass(frozen=True)
class Step:
    """One stage of the program: values read and values written, by name."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass
class Plan:
    """``slots`` are sizes in bytes; ``slot_of`` gives each planned value's slot."""

    slots: list[Dim] = field(default_factory=list)
    slot_of: dict[str, int] = field(default_factory=dict)


def never_larger(a: Dim, b: Dim) -> bool:
    """True where ``a <= b`` is proven for every symbol >= 1: ``b - a`` in (symbol - 1) has no negative
    coefficient.

    What is subtracted counts ``floor(p/k)`` as ``p/k``; what is added, by its least value.
    """
    difference = b - a
    while worst := next(
        (m for m, c in terms_of(difference).items() if c < 0 and any(map(quotient, m))), None
    ):
        inner = next((name, found) for name in worst if (found := quotient(name)))
        difference = _unrounded(difference, worst, *inner)
    shifted: Dim = 0
    for mono, coef in terms_of(difference).items():
        term: Dim = coef
        for name in mono:
            term = term * (factor(name) + bounds(factor(name))[0])
        shifted = shifted + term
    return all(coef >= 0 for coef in terms_of(shifted).values())


def _unrounded(total: Dim, mono: Monomial, name: str, inner: tuple[Dim, int]) -> Dim:
    """``k`` times ``total`` with ``p`` for ``k * floor(p/k)``, the factor ``name``, in the term ``mono``."""
    dividend, divisor = inner
    rest = list(mono)
    rest.remove(name)
    coef = terms_of(total)[mono]
    others = product(map(factor, rest)) * coef
    return (total - others * factor(name)) * divisor + others * dividend


def plan(steps: Sequence[Step], sizes: Mapping[str, Dim], keep: Iterable[str] = ()) -> Plan:
    """Slots for the values in ``sizes`` (bytes); a value is alive from its first write to its last read.

    Values in ``keep`` stay alive to the end. A step's writes never share a slot with its reads.
    """
    last: dict[str, int] = {}
    for i, step in enumerate(steps):
        last.update(dict.fromkeys((*step.reads, *step.writes), i))
    last.update(dict.fromkeys(keep, len(steps)))
    result = Plan()
    free: set[int] = set()
    for i, step in enumerate(steps):
        for name in step.writes:
            if name in sizes and name not in result.slot_of:
                result.slot_of[name] = _take(result.slots, free, sizes[name])
        dead = {n for n in (*step.reads, *step.writes) if last[n] == i and n in result.slot_of}
        free.update(result.slot_of[n] for n in dead)
    return result


def pack(steps: Sequence[Step], sizes: Mapping[str, int], align: int) -> tuple[dict[str, int], int]:
    """The offset of every value in ``sizes`` (bytes), and the end of the last one.

    For fixed sizes, where no slots are needed: the largest value first, each at the lowest multiple of
    ``align`` where it overlaps no value that is alive at the same time.
    """
    alive: dict[str, tuple[int, int]] = {}
    for i, step in enumerate(steps):
        for name in (*step.reads, *step.writes):
            alive[name] = alive.get(name, (i, i))[0], i
    offsets: dict[str, int] = {}
    for name in sorted((n for n in sizes if n in alive), key=lambda n: (-sizes[n], alive[n])):
        first, last = alive[name]
        others = [n for n in offsets if alive[n][0] <= last and alive[n][1] >= first]
        offset = 0
        for other in sorted(others, key=lambda n: offsets[n]):
            if offset + sizes[name] <= offsets[other]:
                break
            offset = max(offset, round_up(offsets[other] + sizes[other], align))
        offsets[name] = offset
    return offsets, max((offsets[n] + sizes[n] for n in offsets), default=0)


def _take(slots: list[Dim], free: set[int], need: Dim) -> int:
    """The free slot that fits ``need`` most tightly, else the largest one that can grow to it, else a new
    one.
    """
    fitting = [s for s in free if never_larger(need, slots[s])]
    growing = [s for s in free if never_larger(slots[s], need)]
    if fitting:
        best = min(fitting, key=lambda s: (_typical(slots[s]), s))
    elif growing:
        best = max(growing, key=lambda s: (_typical(slots[s]), -s))
        slots[best] = need
    else:
        slots.append(need)
        return len(slots) - 1
    free.discard(best)
    return best


def _typical(dim: Dim) -> int:
    return evaluate(dim, dict.fromkeys(symbols([dim]), _TYPICAL))


def round_up(size: int, align: int = ALIGN) -> int:
    """``size`` rounded up to a multiple of ``align``."""
    return -(-size // align) * align


def arena_bytes(slots: Sequence[Dim], scratch: Sequence[Dim], tasks: int, env: Mapping[str, int]) -> int:
    """The arena's size: every slot, then for each task the largest of the ``scratch`` sizes, all rounded
    up.
    """
    per_task = max((round_up(evaluate(s, env)) for s in scratch), default=0)
    return sum(round_up(evaluate(s, env)) for s in slots) + tasks * per_task
