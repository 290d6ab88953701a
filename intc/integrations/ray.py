"""Ray Data: an artifact in the actors of ``Dataset.map_batches``, and jobs over a cluster.

Scheduling, retries and restarts of dead workers are Ray's. See docs/scale.md.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from intc.errors import IntcError, UsageError
from intc.integrations.batches import BatchModel
from intc.integrations.blocks import Block
from intc.integrations.calibration import Part, PartEngine, Seen
from intc.integrations.job import Done, Engine, Job, Worker


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


class _BlockActor:
    def __init__(self, job: Job, artifact: Any, pending: Sequence[Block]) -> None:
        self.work = Worker(job, _bytes(artifact))
        self.pending = pending

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        done = [self.work(self.pending[i]) for i in batch["id"]]
        return {
            name: np.array(column) for name, column in zip(Done._fields, zip(*done, strict=True), strict=True)
        }


def engine(workers: int | None = None, address: str | None = None) -> Engine:
    """The blocks of a job by up to ``workers`` actors (default: one a CPU) of the cluster at ``address``.

    Without an address, that of an initialised Ray or of RAY_ADDRESS, else a Ray of this machine alone.
    Workers need the job's files under the same paths.
    """
    return partial(_run, workers=workers, address=address)


def _run(job: Job, pending: Sequence[Block], *, workers: int | None, address: str | None) -> Iterator[Done]:
    if not pending:
        return
    with _connected(address):
        arguments = (job, put(job.artifact), pending)
        for batch in _map(_BlockActor, arguments, len(pending), workers, job.threads):
            for row in zip(*(batch[name] for name in Done._fields), strict=True):
                yield Done(*map(int, row))


class _PartActor:
    def __init__(self, part: Part, every: Sequence[Block]) -> None:
        self.part, self.every = part, every

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"seen": np.array([pickle.dumps(self.part(self.every[i])) for i in batch["id"]], object)}


def part_engine(workers: int | None = None, address: str | None = None) -> PartEngine:
    """Statistics of blocks, for :class:`ParquetFeeds`; workers and address as for :func:`engine`."""
    return partial(_parts, workers=workers, address=address)


def _parts(part: Part, every: Sequence[Block], *, workers: int | None, address: str | None) -> Iterator[Seen]:
    with _connected(address):
        for batch in _map(_PartActor, (part, every), len(every), workers, 1):
            yield from map(pickle.loads, batch["seen"])


def _map(
    actor: type, arguments: tuple[Any, ...], count: int, workers: int | None, threads: int
) -> Iterator[dict[str, Any]]:
    """The results of ``count`` calls, in order."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    most = min(workers or int(ray.cluster_resources().get("CPU", 1)), count)
    results = ray.data.range(count, override_num_blocks=count).map_batches(
        actor,
        batch_size=None,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
        num_cpus=threads,
    )
    yield from results.iter_batches(batch_size=None)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Within a Ray: the one that runs, or one of our own. Its errors become ours."""
    own = not ray.is_initialized()
    if own:
        _start(address)
    try:
        yield
    except ray.exceptions.RayError as error:
        raise _own(error) from error
    finally:
        if own:
            ray.shutdown()


def _start(address: str | None) -> None:
    """Quietly: the program shows progress and errors itself."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        ray.init(
            address=address,
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level="error",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UsageError(f"no Ray at {address or 'this machine'} ({' '.join(str(error).split())})") from None


def _own(error: BaseException) -> IntcError:
    """The error of ours that made ``error``, or a line about it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, IntcError):
            return UsageError(str(cause))
        cause = getattr(cause, "cause", None) or cause.__cause__ or cause.__context__
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return UsageError(f"Ray: {lines[-1].strip()}")


def _bytes(reference: Any) -> memoryview:
    return memoryview(ray.get(reference))
