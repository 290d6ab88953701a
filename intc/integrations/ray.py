"""Ray Data: an artifact in the actors of ``Dataset.map_batches``, and jobs over a cluster.

Scheduling, retries and restarts of dead workers are Ray's. See docs/scale.md.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data

from intc.errors import IntcError, UsageError
from intc.integrations.batches import BatchModel
from intc.integrations.blocks import Block
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
    own = not ray.is_initialized()
    if own:
        _start(address)
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        most = min(workers or int(ray.cluster_resources().get("CPU", 1)), len(pending))
        results = ray.data.range(len(pending), override_num_blocks=len(pending)).map_batches(
            _BlockActor,
            batch_size=None,
            fn_constructor_args=(job, put(job.artifact), pending),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            num_cpus=job.threads,
        )
        for batch in results.iter_batches(batch_size=None):
            for row in zip(*(batch[name] for name in Done._fields), strict=True):
                yield Done(*map(int, row))
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
