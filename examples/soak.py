"""Many threads run many sessions with changing shapes: equal bits, flat memory, no lasting damage.

    python examples/soak.py --minutes 10 --threads 6

Two models (the digits transformer, and a decoder with states), each in a session of one and one of two
threads. Every result is compared with the exact reference. On the way feeds are refused, runs are cut off by
exceptions raised in their threads, and sessions are opened anew. Exit status 1 if a bit differs, a session
stops working, or the last third of the time takes 1 % more memory than the first. No torch needed.
"""

from __future__ import annotations

import argparse
import ctypes
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import intc
from intc.errors import FeedError
from intc.runtime import Session

HERE = Path(__file__).parent
PLAIN, DECODER = "digits/digits_vit", "decoder/llama_characters"
BATCHES, STEPS, POSITIONS = (1, 2, 3, 5, 8, 13), (1, 2, 7), 24
GROWTH = 0.01
WARM_UP = 0.1  # of the time
Feeds = dict[str, NDArray[Any]]


class Cut(Exception):
    """Raised in a worker from outside, as a timeout would be."""


@dataclass
class Case:
    """A model's sessions, its feeds by size, and their exact results."""

    path: Path
    sessions: list[Session]
    feeds: list[Feeds]
    exact: list[list[NDArray[Any]]]
    decoder: bool = False


@dataclass
class Soak:
    """What all workers share."""

    cases: list[Case]
    until: float
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def work(self, seed: int) -> None:
        """Run until time is up; whatever cuts a run off, the next one must be right."""
        rng = random.Random(seed)
        while time.monotonic() < self.until:
            try:
                case = rng.choice(self.cases)
                self.one(case, rng)
                self.counts["runs"] += 1
            except Cut:
                self.counts["runs cut off"] += 1
            except Exception as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                return

    def one(self, case: Case, rng: random.Random) -> None:
        session = rng.choice(case.sessions)
        if rng.random() < 0.002:
            session = intc.load(case.path, threads=session.threads)
            self.counts["sessions opened"] += 1
        if rng.random() < 0.05:
            self.refused(session, rng)
        pick = rng.randrange(len(case.feeds))
        run = self.decode if case.decoder else self.whole
        for ours, exact in zip(run(session, case.feeds[pick], rng), case.exact[pick], strict=True):
            if not np.array_equal(ours, exact):
                self.wrong.append(f"{case.path.name}: other bits at size {pick}, threads {session.threads}")

    def whole(self, session: Session, feeds: Feeds, rng: random.Random) -> list[NDArray[Any]]:
        return session.run(None, feeds)

    def decode(self, session: Session, feeds: Feeds, rng: random.Random) -> list[NDArray[Any]]:
        """The positions of ``feeds`` in steps of random lengths, some of them taken back and run again."""
        (name, ids), at = next(iter(feeds.items())), 0
        state, parts = session.create_state(len(ids)), []
        while at < POSITIONS:
            step = min(rng.choice(STEPS), POSITIONS - at)
            (logits,) = session.run(None, {name: ids[:, at : at + step]}, state=state)
            if rng.random() < 0.1:
                state.truncate(at)
                continue
            parts.append(logits)
            at += step
        return [np.concatenate(parts, axis=1)]

    def refused(self, session: Session, rng: random.Random) -> None:
        try:
            session.run(None, {p.name: np.full((1, 1, 1), np.nan, np.float32) for p in session.get_inputs()})
        except FeedError:
            self.counts["feeds refused"] += 1


def prepare(folder: Path) -> list[Case]:
    """The models compiled, and the exact results of every feed that will be run."""
    cases, rng = [], np.random.default_rng(0)
    for name in (PLAIN, DECODER):
        module = intc.compile(
            HERE / f"{name}.onnx", calibration="random", rounding="nearest", calibrator="minmax"
        )
        path = folder / f"{Path(name).name}.intc"
        module.save(path)
        sessions = [intc.load(path, threads=n) for n in (1, 2)]
        decoder = name == DECODER
        whole = _feeds(sessions[0], BATCHES[-1], decoder, rng)
        exact = module.graph.evaluate(_with_empty_past(sessions[0], whole))[: 1 if decoder else None]
        feeds = [{n: a[:batch] for n, a in whole.items()} for batch in BATCHES]
        cases.append(Case(path, sessions, feeds, [[e[:b] for e in exact] for b in BATCHES], decoder))
    return cases


def _feeds(session: Session, batch: int, decoder: bool, rng: np.random.Generator) -> Feeds:
    if decoder:
        port = session.manifest.inputs[0]
        return {port.name: rng.integers(port.lo, port.hi, (batch, POSITIONS), endpoint=True)}
    return {
        p.name: rng.standard_normal([batch if isinstance(n, str) else n for n in p.shape]).astype(np.float32)
        for p in session.get_inputs()
    }


def _with_empty_past(session: Session, feeds: Feeds) -> Feeds:
    past = session.create_state(len(next(iter(feeds.values())))).arrays() if session.manifest.states else {}
    return {**feeds, **past}


def resident() -> int:
    """Bytes of memory that the process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def soak(cases: list[Case], minutes: float, threads: int) -> int:
    """Exit status 0 where all went well."""
    start = time.monotonic()
    shared = Soak(cases, start + 60 * minutes)
    workers = [threading.Thread(target=shared.work, args=(seed,)) for seed in range(threads)]
    for worker in workers:
        worker.start()
    memory: list[tuple[float, int]] = []
    rng = random.Random(99)
    while any(worker.is_alive() for worker in workers):
        time.sleep(min(1.0, minutes))
        memory.append((time.monotonic() - start, resident()))
        alive = [worker for worker in workers if worker.is_alive() and worker.ident]
        if alive and time.monotonic() < shared.until - 1:  # later ones could hit a worker that has ended
            target = ctypes.c_ulong(rng.choice(alive).ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(target, ctypes.py_object(Cut))
    return report(shared, memory, minutes)


def report(shared: Soak, memory: list[tuple[float, int]], minutes: float) -> int:
    """Print what happened; the exit status."""
    settled = [size for at, size in memory if at > WARM_UP * 60 * minutes] or [memory[-1][1]]
    third = max(len(settled) // 3, 1)
    first, last = max(settled[:third]), max(settled[-third:])
    counts = ", ".join(f"{n:,} {what}" for what, n in sorted(shared.counts.items()))
    print(f"{minutes:g} min: {counts}; {len(shared.wrong)} faults")
    for cause in shared.wrong[:10]:
        print(cause)
    print(
        f"memory: {memory[0][1] / 2**20:.1f} MB at first, then at most {first / 2**20:.1f} MB in the first"
        f" third and {last / 2**20:.1f} MB in the last: {last / first - 1:+.2%}"
    )
    return int(bool(shared.wrong) or last > (1 + GROWTH) * first or not shared.counts["runs"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--threads", type=int, default=6)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="intc-soak-") as folder:
        return soak(prepare(Path(folder)), args.minutes, args.threads)


if __name__ == "__main__":
    sys.exit(main())
