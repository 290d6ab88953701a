"""Runs cases one after another in a process of their own, which may crash, hang or run out of memory."""

from __future__ import annotations

import multiprocessing
import resource
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, Protocol

from intc.errors import IntcError

SECONDS = 5.0  # of processor time that one case may take
PATIENCE = 120.0  # seconds after which a process that does not answer is stopped
BYTES = 2**30  # of address space, beyond what the process takes before its first case
LONGEST = 100_000  # characters of a message


class Target(Protocol):
    """What is fuzzed."""

    def write(self, rng: Random, folder: Path) -> Path:
        """A mutated file in ``folder``."""

    def read(self, path: Path) -> None:
        """Read it in every way that a user may; only errors of intc may leave."""


@dataclass
class Result:
    """How many cases ended how; ``bad`` describes those that must not be."""

    outcomes: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    slowest: tuple[float, int] = (0.0, 0)  # seconds of processor time, number of the case
    memory: int = 0  # bytes, the largest resident set of a process

    @property
    def cases(self) -> int:
        return self.outcomes.total()


def random_of(seed: int, index: int) -> Random:
    """The random numbers of one case."""
    return Random(f"{seed} {index}")


def run(
    make: Callable[[], Target],
    seed: int,
    indices: Iterable[int],
    tell: Callable[[Result], None] | None = None,
    seconds: float = SECONDS,
) -> Result:
    """Every case of ``indices``; a process that dies or hangs is replaced, and the case recorded."""
    result, left = Result(), list(indices)
    context = multiprocessing.get_context("spawn")
    while left:
        ours, theirs = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(make, seed, left, theirs, seconds), daemon=True)
        worker.start()
        theirs.close()
        done, cause = _receive(ours, result, tell)
        if done < len(left):
            worker.join(0 if cause else SECONDS)
            worker.kill()
            worker.join()
            cause = cause or f"the process died of signal {-(worker.exitcode or 0)}"
            result.outcomes["BAD"] += 1
            result.bad.append(f"case {left[done]}: {cause}")
            done += 1
        worker.join()
        left = left[done:]
    return result


def _receive(pipe: Connection, result: Result, tell: Callable[[Result], None] | None) -> tuple[int, str]:
    """How many cases ended before the process did, and why it must be stopped, if it must."""
    done = 0
    while True:
        try:
            if not pipe.poll(PATIENCE):
                return done, f"no answer for {PATIENCE:.0f} s"
            index, outcome, cause, seconds, memory = pipe.recv()
        except EOFError:
            return done, ""
        done += 1
        result.outcomes[outcome] += 1
        result.slowest, result.memory = max(result.slowest, (seconds, index)), max(result.memory, memory)
        if cause:
            result.bad.append(cause)
        if tell and result.cases % 1000 == 0:
            tell(result)


def _work(
    make: Callable[[], Target], seed: int, indices: list[int], pipe: Connection, seconds: float
) -> None:
    signal.signal(signal.SIGPROF, _alarm)
    with tempfile.TemporaryDirectory(prefix="intc-fuzz-") as folder:
        target = make()
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + BYTES, used + BYTES))
        for index in indices:
            pipe.send((index, *_case(target, seed, index, Path(folder), seconds)))


def _case(target: Target, seed: int, index: int, folder: Path, limit: float) -> tuple[str, str, float, int]:
    """(outcome, what is wrong with it, seconds, bytes)."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    cause = ""
    signal.setitimer(signal.ITIMER_PROF, limit)
    try:
        target.read(target.write(random_of(seed, index), folder))
        outcome = "read"
    except IntcError as error:
        outcome, text = type(error).__name__, str(error)
        if not text.isprintable() or len(text) > LONGEST:
            cause = f"not a line: {text[:200]!r}"
    except BaseException as error:
        outcome = "BAD"
        where = traceback.extract_tb(error.__traceback__)[-1]
        place = next(
            (f for f in reversed(traceback.extract_tb(error.__traceback__)) if "/intc/" in f.filename), where
        )
        cause = f"{type(error).__name__}: {str(error)[:200]} at {Path(place.filename).name}:{place.lineno}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return ("BAD" if cause else outcome), cause and f"case {index}: {cause}", seconds, after.ru_maxrss * 1024


class Hang(BaseException):
    """A case took longer than it may."""


def _alarm(*_: Any) -> None:
    raise Hang("too long")
