"""An endpoint of Ray Serve on loopback: the same bits, clear errors, health, metrics."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.small import small_feeds, small_module
from tests.test_requests import SESSION, post, request

ray = pytest.importorskip("ray", reason="serving needs the extra [ray]: pip install -e '.[ray]'")
serve = pytest.importorskip("ray.serve", reason="serving needs the extra [ray]: pip install -e '.[ray]'")
pytestmark = pytest.mark.slow
PORT = 18517
MODEL = f"http://127.0.0.1:{PORT}/v2/models/small"


LIMIT = 20_000
WAIT = 3.0  # seconds that a request of the slow endpoint waits for others


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A running Serve, and an artifact."""
    path = tmp_path_factory.mktemp("serve") / "small.intc"
    small_module().save(path)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        yield path
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def url(served: Path) -> str:
    from intc.integrations.serve import endpoint

    serve.run(endpoint(served, batch=8, wait=0.05, rows=16, limit=LIMIT))
    return MODEL


@pytest.fixture
def slow(served: Path) -> str:
    """Two requests in the replica and two before it: a lone request stays in it for WAIT seconds."""
    from intc.integrations.serve import endpoint

    serve.run(endpoint(served, batch=8, wait=WAIT, ongoing=2, queued=2))
    return MODEL


def status_of(call: Callable[[], Any]) -> int:
    try:
        call()
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def right(body: Any, rows: int, seed: int) -> bool:
    """The bits that the session gives."""
    found = [np.reshape(t["data"], t["shape"]) for t in body["outputs"]]
    expected = SESSION.run(None, small_feeds(rows, seed=seed))
    return all(np.array_equal(a.astype(e.dtype), e) for a, e in zip(found, expected, strict=True))


def get(path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=60) as response:
        return response.read().decode()


def test_the_endpoint(url: str) -> None:
    def one(n: int) -> bool:
        body = post(f"{url}/infer", request(1 + n % 4, seed=n) | {"id": str(n)})
        return body["id"] == str(n) and right(body, 1 + n % 4, n)

    with ThreadPoolExecutor(16) as clients:
        assert all(clients.map(one, range(48)))

    for given, cause in (({"inputs": []}, "input 'x' is missing"), (request(17), "from 1 to 16 are taken")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{url}/infer", given)
        assert refused.value.code == 400 and cause in json.load(refused.value)["error"]
    with pytest.raises(urllib.error.HTTPError) as refused:
        get("/v2/models/other")
    assert refused.value.code == 404

    assert json.loads(get("/v2/health/ready")) == {"ready": True}
    described = json.loads(get("/v2/models/small"))
    assert [t["name"] for t in described["inputs"]] == ["x", "ids"]
    metrics = {
        line.split()[0]: float(line.split()[1])
        for line in get("/metrics").splitlines()
        if line and not line.startswith("#")
    }
    assert metrics['intc_requests_total{status="200"}'] == 48
    assert metrics['intc_requests_total{status="400"}'] == 2
    assert metrics["intc_latency_seconds_count"] == 50
    assert metrics["process_cpu_seconds_total"] > 0
    assert metrics["intc_batch_requests_sum"] == 48 and metrics["intc_batch_requests_count"] < 48


def test_a_body_beyond_the_limit_is_refused(url: str) -> None:
    """With a header that says so, or piece by piece without one."""
    large = json.dumps(request(1) | {"id": " " * LIMIT}).encode()
    for encode_chunked in (False, True):
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
        body = iter((large[:LIMIT], large[LIMIT:])) if encode_chunked else large
        connection.request("POST", "/v2/models/small/infer", body, encode_chunked=encode_chunked)
        response = connection.getresponse()
        assert response.status == 413
        assert json.loads(response.read()) == {"error": f"the request is larger than {LIMIT} bytes"}
        connection.close()
    assert right(post(f"{url}/infer", request(1)), 1, 0)


def test_more_requests_than_places_are_refused(slow: str) -> None:
    with ThreadPoolExecutor(12) as clients:
        found = list(
            clients.map(lambda n: status_of(lambda: post(f"{slow}/infer", request(1, seed=n))), range(12))
        )
    assert set(found) == {200, 503} and found.count(200) >= 4
    assert right(post(f"{slow}/infer", request(1)), 1, 0)


def test_shutdown_lets_requests_end_and_takes_no_more(slow: str) -> None:
    with ThreadPoolExecutor(2) as threads:
        running = threads.submit(post, f"{slow}/infer", request(2, seed=5))
        time.sleep(WAIT / 6)
        assert not running.done() and json.loads(get("/v2/health/ready")) == {"ready": True}
        stopped = threads.submit(serve.delete, "default")
        seen = []
        while not running.done():
            seen.append(status_of(lambda: get("/v2/health/ready")))
            time.sleep(0.05)
        assert right(running.result(), 2, 5)
        assert seen[-1] in (404, 503)
        stopped.result(60)
    assert status_of(lambda: get("/v2/health/ready")) == 404
