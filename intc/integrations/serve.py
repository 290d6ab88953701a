"""Ray Serve: an artifact behind the HTTP of the Open Inference Protocol, with Serve's dynamic batching.

``serve.run(endpoint("model.intc"))``, or for the command line a file with ``app = endpoint("model.intc")``
and ``serve run file:app``. Replicas, queues, restarts and shutdown are Serve's. See docs/scale.md.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import ray
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from ray import serve
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

import intc
from intc.artifact.signature import Key
from intc.errors import FeedError
from intc.integrations import requests
from intc.integrations.ray import RayModel, put
from intc.integrations.requests import Feeds

LATENCIES: Final = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
LIMIT: Final = 64 * 2**20  # bytes of a request


class Endpoint:
    """One replica: ``/v2/health/live`` and ``ready``, ``/v2/models/NAME``, ``.../infer``, ``/metrics``."""

    def __init__(
        self,
        name: str,
        artifact: Any,
        rows: int,
        batch: int,
        wait: float,
        limit: int,
        settings: dict[str, Any],
    ):
        self.name, self.rows, self.limit = name, rows, limit
        self.session = RayModel(artifact, **settings).session
        self.inputs, self.outputs = self.session.get_inputs(), self.session.get_outputs()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        made: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter("intc_requests", "Requests by status.", ["status"], **made)
        self.latency = Histogram("intc_latency_seconds", "From request to answer.", buckets=LATENCIES, **made)
        sizes = [2**n for n in range(1 + max(batch - 1, 1).bit_length())]
        self.batches = Histogram("intc_batch_requests", "Requests run together.", buckets=sizes, **made)
        self._together.set_max_batch_size(batch)
        self._together.set_batch_wait_timeout_s(wait)

    async def __call__(self, request: Request) -> Response:
        """Answer one HTTP request."""
        path, model = request.url.path.rstrip("/"), f"/v2/models/{self.name}"
        if path == "/metrics":
            return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)
        if path in ("/v2/health/live", "/v2/health/ready", f"{model}/ready"):
            return JSONResponse({"ready": True})
        if path == "/v2":
            return JSONResponse({"name": "intc", "version": intc.__version__, "extensions": []})
        if path == model:
            return JSONResponse(self._metadata())
        if path != f"{model}/infer":
            return JSONResponse({"error": f"no {path[:200]}; the model is at {model}"}, 404)
        if request.method != "POST":
            return JSONResponse({"error": f"{path} takes POST"}, 405)
        start = time.perf_counter()
        status, body = await self._infer(request)
        self.latency.observe(time.perf_counter() - start)
        self.requests.labels(status).inc()
        return JSONResponse(body, status)

    def check_health(self) -> None:
        """Serve restarts the replica where this raises: a model that does not even answer is broken."""
        self.session.get_inputs()

    async def _infer(self, request: Request) -> tuple[int, dict[str, Any]]:
        try:
            body = await self._body(request)
            if body is None:
                return 413, {"error": f"the request is larger than {self.limit} bytes"}
            try:
                given = json.loads(body)
            except (ValueError, RecursionError):
                raise FeedError("the request is not JSON") from None
            outputs = await self._together(requests.feeds_of(given, self.inputs, self.rows))
            if isinstance(outputs, FeedError):
                raise outputs
        except FeedError as error:
            return 400, {"error": str(error)}
        answer = requests.answer(self.name, self.outputs, outputs)
        return 200, answer | ({"id": given["id"]} if isinstance(given.get("id"), str) else {})

    async def _body(self, request: Request) -> bytearray | None:
        """The bytes of the request; None once they are more than the limit, whatever its header says."""
        body = bytearray()
        async for part in request.stream():
            body += part
            if len(body) > self.limit:
                return None
        return body

    @serve.batch  # type: ignore[untyped-decorator]
    async def _together(self, feeds: list[Feeds]) -> list[Any]:
        self.batches.observe(len(feeds))
        return await asyncio.to_thread(requests.run_together, self.session, feeds)

    def _metadata(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "platform": "intc",
            "versions": [self.session.digest],
            "inputs": [requests.tensor_metadata(p) for p in self.inputs],
            "outputs": [requests.tensor_metadata(p) for p in self.outputs],
        }


def endpoint(
    artifact: str | Path,
    name: str | None = None,
    *,
    replicas: int = 1,
    threads: int = 1,
    batch: int = 32,
    wait: float = 0.002,
    rows: int = 256,
    ongoing: int = 64,
    queued: int = 256,
    shutdown: float = 20.0,
    limit: int = LIMIT,
    trusted_keys: Sequence[Key] | None = None,
) -> Any:
    """A Serve application for ``artifact`` as model ``name`` (default: the file's), for ``serve.run``.

    A replica waits up to ``wait`` seconds to run up to ``batch`` requests together, of ``rows`` rows at most
    each, by ``threads`` threads. ``ongoing`` requests may be in a replica and ``queued`` before it; more are
    refused with status 503, and those of more than ``limit`` bytes with 413. Requests that run get
    ``shutdown`` seconds to end when it stops.
    """
    settings = {"threads": threads, "trusted_keys": trusted_keys}
    deployment = serve.deployment(
        Endpoint,
        name=name or Path(artifact).stem,
        num_replicas=replicas,
        ray_actor_options={"num_cpus": threads},
        max_ongoing_requests=ongoing,
        max_queued_requests=queued,
        graceful_shutdown_timeout_s=shutdown,
        health_check_period_s=10,
    )
    held = put(artifact) if ray.is_initialized() else str(Path(artifact).absolute())
    return deployment.bind(name or Path(artifact).stem, held, rows, batch, wait, limit, settings)
