"""An endpoint of Ray Serve on loopback: the same bits, clear errors, health, metrics."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from intc.integrations.serve import endpoint

    path = tmp_path_factory.mktemp("serve") / "small.intc"
    small_module().save(path)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(endpoint(path, batch=8, wait=0.05, rows=16))
        yield MODEL
    finally:
        serve.shutdown()
        ray.shutdown()


def get(path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{PORT}{path}", timeout=60) as response:
        return response.read().decode()


def test_the_endpoint(url: str) -> None:
    def one(n: int) -> bool:
        body = post(f"{url}/infer", request(1 + n % 4, seed=n) | {"id": str(n)})
        expected = SESSION.run(None, small_feeds(1 + n % 4, seed=n))
        found = [np.reshape(t["data"], t["shape"]) for t in body["outputs"]]
        return body["id"] == str(n) and all(
            np.array_equal(a.astype(e.dtype), e) for a, e in zip(found, expected, strict=True)
        )

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
    assert metrics["intc_batch_requests_sum"] == 48 and metrics["intc_batch_requests_count"] < 48
