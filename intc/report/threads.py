"""The threads of this process: how many compute, and when those of a pool have gone to sleep (Linux)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

STEP: Final = 0.02  # seconds; a pool's threads are asleep when they do next to nothing for so long
LONGEST_WAIT: Final = 2.0  # seconds
WORKING: Final = 0.1  # a thread counts as working from this share of the busiest thread's processor time


def working_threads(run: Callable[[], object], seconds: float = 0.3) -> int | None:
    """How many threads of this process compute while `run` repeats; None where the system does not tell."""
    run()
    before = thread_times()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        run()
    spent = [now - before.get(thread, 0) for thread, now in thread_times().items()]
    return sum(t >= WORKING * max(spent) for t in spent) if spent and max(spent) > 0 else None


def settle() -> None:
    """Wait until no other thread of this process computes.

    Idle workers of a thread pool spin before they sleep, some for a good part of a second, on a core that the
    next engine would want.
    """
    end = time.perf_counter() + LONGEST_WAIT
    own, before = str(threading.get_native_id()), thread_times()
    while time.perf_counter() < end:
        time.sleep(STEP)
        now = thread_times()
        spent = sum(t - before.get(thread, 0) for thread, t in now.items() if thread != own)
        if spent < WORKING * STEP * 1e9:
            return
        before = now


def thread_times() -> dict[str, int]:
    """Nanoseconds on a processor of every thread of this process (Linux)."""
    times = {}
    for path in Path("/proc/self/task").glob("*/schedstat"):
        try:
            times[path.parent.name] = int(path.read_text().split()[0])
        except (OSError, ValueError, IndexError):  # the thread has ended
            continue
    return times
