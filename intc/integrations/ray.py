"""Ray Data: an artifact in the actors of ``Dataset.map_batches``, and jobs over a cluster.

Scheduling, retries and restarts of dead workers are Ray's. See docs/scale.md.
"""

from __future__ import annotations

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import ray
import ray.data

from intc.errors import IntcError, UsageError
from intc.integrations.batches import BatchModel
from intc.integrations.blocks import Block
from intc.integrations.calibration import Part, PartEngine, Seen
from intc.integrations.job import Done, Engine, Job, Worker

SECONDS: Final = 10.0  # until an address counts as dead


def put(artifact: str | Path) -> Any:
    """The bytes of ``artifact`` in Ray's object store, from which actors of any node load it."""
    try:
        return ray.put(np.fromfile(artifact, np.uint8))
    except OSError as error:
        raise UsageError(f"{artifact}: cannot be read ({error.strerror})") from None


class RayModel(BatchModel):
    """:class:`BatchModel` whose ``artifact`` may also be what :func:`put` gave.

    ``dataset.map_batches(RayModel, fn_constructor_args=(put("model.intc"), decode), num_cpus=1,
    compute=ray.data.ActorPoolStrategy(size=8))``
    """

    def __init__(self, artifact: Any, decode: Any = None, **settings: Any) -> None:
        super().__init__(
            _bytes(artifact) if isinstance(artifact, ray.ObjectRef) else artifact, decode, **settings
        )


class _Actor:
    """Calls what ``make`` returns on ``items``; refusals of ours are results, as Ray loses their type."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]], items: Sequence[Any]) -> None:
        self.work: Callable[[], Callable[[Any], Any]] = cache(make)
        self.items = items

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"result": np.array([self._one(i) for i in batch["id"]], object)}

    def _one(self, number: int) -> bytes:
        try:
            return pickle.dumps(self.work()(self.items[number]))
        except IntcError as error:
            return pickle.dumps(UsageError(str(error)))


def engine(workers: int | None = None, address: str | None = None) -> Engine:
    """The blocks of a job by up to ``workers`` actors (default: one a CPU) of the cluster at ``address``.

    Without an address, that of an initialised Ray or of RAY_ADDRESS, else a Ray of this machine alone.
    Workers need the job's files under the same paths.
    """
    return partial(_run, workers=workers, address=address)


def _run(job: Job, pending: Sequence[Block], *, workers: int | None, address: str | None) -> Iterator[Done]:
    if pending:
        with _connected(address):
            yield from _map(partial(_worker, job, put(job.artifact)), pending, workers, job.threads)


def _worker(job: Job, artifact: Any) -> Worker:
    return Worker(job, _bytes(artifact))


def part_engine(workers: int | None = None, address: str | None = None) -> PartEngine:
    """Statistics of blocks, for :class:`ParquetFeeds`; workers and address as for :func:`engine`."""
    return partial(_parts, workers=workers, address=address)


def _parts(part: Part, every: Sequence[Block], *, workers: int | None, address: str | None) -> Iterator[Seen]:
    with _connected(address):
        yield from _map(partial(_itself, part), every, workers, 1)


def _itself(part: Part) -> Part:
    return part


def _map(
    make: Callable[[], Callable[[Any], Any]], items: Sequence[Any], workers: int | None, threads: int
) -> Iterator[Any]:
    """``make()(item)`` of all ``items`` in order, by up to ``workers`` actors.

    One block an item: Ray then reads and maps in one task, where a reader of its own would wait for a core
    that the actors hold.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    most = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(items))
    results = ray.data.range(len(items), override_num_blocks=len(items)).map_batches(
        _Actor,
        batch_size=None,
        fn_constructor_args=(make, items),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=threads,
    )
    for batch in results.iter_batches(batch_size=None):
        for result in map(pickle.loads, batch["result"]):
            if isinstance(result, IntcError):
                raise result
            yield result


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Within a Ray: the one that runs, or one of our own. Its errors become ours."""
    own = not ray.is_initialized()
    if own:
        _start(address)
    try:
        yield
    except ray.exceptions.RayError as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"Ray: {lines[-1].strip()}") from error
    finally:
        if own:
            ray.shutdown()


def _start(address: str | None) -> None:
    """Quietly: the program shows progress and errors itself."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    _check_listening(address or os.environ.get("RAY_ADDRESS", ""))
    try:
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="error",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"no Ray at {address or 'this machine'} ({' '.join(str(error).split())})") from None


def _check_listening(address: str) -> None:
    """UsageError where nothing listens at ``HOST:PORT``: Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
    except (OSError, OverflowError) as error:
        cause = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"no Ray at {address} ({cause}); `ray start --head` prints the address") from None


def _bytes(reference: Any) -> memoryview:
    return memoryview(ray.get(reference))
