"""Requests of the Open Inference Protocol, and what Triton is given: checked against its own schema."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intc.cli import main
from intc.errors import FeedError
from intc.integrations.requests import answer, feeds_of, run_together, tensor_metadata
from tests.small import FEATURES, small_feeds, small_module

SESSION = small_module().session()
PORTS = SESSION.get_inputs()


def request(batch: int, seed: int = 0) -> dict[str, Any]:
    feeds = small_feeds(batch, seed)
    return {
        "inputs": [
            {
                "name": "x",
                "shape": [batch, FEATURES],
                "datatype": "FP32",
                "data": feeds["x"].ravel().tolist(),
            },
            {"name": "ids", "shape": [batch], "datatype": "INT64", "data": feeds["ids"].tolist()},
        ]
    }


def test_a_request_is_its_feeds() -> None:
    found = feeds_of(request(3), PORTS, 8)
    assert all(np.array_equal(found[name], array) for name, array in small_feeds(3).items())
    assert [a.dtype for a in found.values()] == [np.float32, np.int64]
    assert tensor_metadata(PORTS[0]) == {"name": "x", "datatype": "FP32", "shape": [-1, FEATURES]}
    body = answer("small", SESSION.get_outputs(), SESSION.run(None, found))
    assert [o["datatype"] for o in body["outputs"]] == ["FP32", "INT32"]
    assert np.array_equal(np.reshape(body["outputs"][1]["data"], (3, 10)), SESSION.run(["sums"], found)[0])


def changed(number: int, **changes: Any) -> dict[str, Any]:
    given = request(2)
    given["inputs"][number] |= changes
    return given


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        ([], "not a JSON object with a list 'inputs'"),
        ({"inputs": [7]}, "input '7' is not known; the model takes x, ids"),
        ({"inputs": request(2)["inputs"][:1]}, "input 'ids' is missing"),
        (changed(0, name="y"), "input 'y' is not known"),
        (changed(0, datatype="FP64"), "input 'x' has datatype FP64, expected FP32"),
        (changed(0, shape=[2, FEATURES + 1]), "input 'x' has 48 elements, not those of shape [2, 25]"),
        (changed(0, shape=[-1, FEATURES]), "input 'x' has no shape of whole numbers"),
        (changed(0, data=["a"] * 48), "input 'x' has data that is not FP32"),
        (changed(0, data=[[1], [2, 3]]), "input 'x' has data that is not FP32"),
        (changed(1, data=[1.5, 2]), "input 'ids' has data that is not INT64"),
        (changed(1, data=[2**70, 2]), "input 'ids' has data that is not INT64"),
        (changed(1, shape=[1, 2]), "inputs have different numbers of rows: [1, 2]"),
        (request(9), "the request has 9 rows; from 1 to 8 are taken at once"),
    ],
)
def test_a_request_that_does_not_fit(given: Any, cause: str) -> None:
    with pytest.raises(FeedError) as refused:
        feeds_of(given, PORTS, 8)
    assert cause in str(refused.value)


def test_requests_that_run_together_get_what_each_gets_alone() -> None:
    requests = [small_feeds(n, seed=n) for n in (1, 5, 2, 3)]
    requests[2]["ids"][:] = 9999
    answers = run_together(SESSION, requests)
    assert isinstance(answers[2], FeedError) and "holds 9999" in str(answers[2])
    for number in (0, 1, 3):
        assert all(map(np.array_equal, answers[number], SESSION.run(None, requests[number])))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton")
    small_module().save(folder / "small.intc")
    command = ["export", folder / "small.intc", "--triton", folder / "models" / "small", "--batch", 16]
    assert main([*map(str, command), "--delay", "500", "--instances", "2"]) == 0
    return folder / "models"


def test_the_repository_is_triton_s(repository: Path) -> None:
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2",
        reason="Triton's schema is in the package tritonclient[grpc], which is not installed",
    )
    from google.protobuf import text_format

    config = text_format.Parse((repository / "small" / "config.pbtxt").read_text(), schema.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("small", "python", 16)
    assert [(t.name, t.data_type, list(t.dims)) for t in config.input] == [
        ("x", schema.TYPE_FP32, [FEATURES]),
        ("ids", schema.TYPE_INT64, [1]),
    ]
    assert config.input[1].HasField("reshape") and not config.input[1].reshape.shape
    assert [(t.name, t.data_type, list(t.dims)) for t in config.output] == [
        ("logits", schema.TYPE_FP32, [10]),
        ("sums", schema.TYPE_INT32, [10]),
    ]
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 256
    assert (config.instance_group[0].kind, config.instance_group[0].count) == (
        schema.ModelInstanceGroup.KIND_CPU,
        2,
    )
    assert sorted(p.name for p in (repository / "small" / "1").iterdir()) == ["model.intc", "model.py"]


def test_a_repository_is_not_written_over(repository: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = repository.parent / "small.intc"
    assert main(["export", str(artifact), "--triton", str(repository / "small")]) == 2
    assert "exists; remove it or name another folder" in capsys.readouterr().err
    assert main(["export", str(artifact), "--triton", str(repository / "a b")]) == 2
    assert "'a b' cannot be a model's name" in capsys.readouterr().err


class Tensor:
    """What the test below needs of Triton's ``pb_utils.Tensor``."""

    def __init__(self, name: str, array: np.ndarray) -> None:
        self.name, self.array = name, array

    def as_numpy(self) -> np.ndarray:
        return self.array


def test_the_model_file_answers_every_request(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file of the repository itself, with objects in place of Triton's that keep what they are given."""
    backend = types.ModuleType("triton_python_backend_utils")
    backend.Tensor = Tensor  # type: ignore[attr-defined]
    backend.get_input_tensor_by_name = lambda request, name: Tensor(name, request[name])  # type: ignore[attr-defined]
    backend.InferenceResponse = lambda tensors, error=None: (tensors, error)  # type: ignore[attr-defined]
    backend.TritonError = type("TritonError", (str,), {"__new__": lambda c, m, code: str.__new__(c, m)})  # type: ignore[attr-defined]
    backend.TritonError.INVALID_ARG = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", backend)
    folder = repository / "small"
    model = runpy.run_path(str(folder / "1" / "model.py"))["TritonPythonModel"]()
    model.initialize({"model_repository": str(folder), "model_version": "1"})
    requests = [small_feeds(n, seed=n) for n in (1, 3)] + [small_feeds(1) | {"ids": np.array([9999])}]
    responses = model.execute(requests)
    for feeds, (tensors, error) in zip(requests[:2], responses, strict=False):
        assert error is None and [t.name for t in tensors] == ["logits", "sums"]
        assert all(map(np.array_equal, [t.array for t in tensors], SESSION.run(None, feeds)))
    assert responses[2][0] == [] and "holds 9999" in responses[2][1]
    model.finalize()


TRITON = Path(os.environ.get("INTC_TRITON", "nowhere")).absolute()


def triton(folder: Path) -> tuple[list[str], dict[str, str]]:
    """The server's command and environment; its Python backend finds packages through the first python3."""
    venv.create(folder / "env")
    (site,) = (folder / "env" / "lib").glob("python3*/site-packages")
    (site / "all.pth").write_text("\n".join([str(TRITON), *(p for p in sys.path if p)]))
    environment = os.environ | {"PATH": f"{folder / 'env' / 'bin'}:{os.environ['PATH']}"}
    server = TRITON / "pytriton" / "tritonserver"
    if not server.is_dir():
        return ["tritonserver"], environment
    stub = "{}.{}/triton_python_backend_stub".format(*sys.version_info)
    backends = shutil.copytree(server / "backends", folder / "backends")
    shutil.copy2(server / "python_backend_stubs" / stub, backends / "python")
    environment["LD_LIBRARY_PATH"] = str(TRITON / "nvidia_pytriton.libs")
    return [str(server / "bin" / "tritonserver"), "--backend-directory", str(backends)], environment


@pytest.mark.slow
@pytest.mark.skipif(
    not (TRITON.is_dir() or shutil.which("tritonserver")),
    reason="Triton is not installed: no tritonserver in PATH (`make triton` fetches one)",
)
def test_triton_answers_with_the_same_bits(repository: Path, tmp_path: Path) -> None:
    command, environment = triton(tmp_path)
    command += ["--model-repository", str(repository), "--http-port", "18431"]
    command += ["--allow-grpc", "false", "--metrics-port", "18433"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        url = "http://127.0.0.1:18431/v2/models/small"
        wait_for(f"{url}/ready", server, tmp_path / "log")

        def asked(rows: int, seed: int) -> dict[str, Any]:
            given = request(rows, seed)
            given["inputs"][1]["shape"] = [rows, 1]
            return given

        def equal(n: int) -> bool:
            rows = 1 + n % 4
            found = [
                np.reshape(t["data"], t["shape"]) for t in post(f"{url}/infer", asked(rows, n))["outputs"]
            ]
            expected = SESSION.run(None, small_feeds(rows, n))
            return all(np.array_equal(f.astype(e.dtype), e) for f, e in zip(found, expected, strict=True))

        with ThreadPoolExecutor(16) as clients:
            assert all(clients.map(equal, range(48)))
        with urllib.request.urlopen("http://127.0.0.1:18433/metrics", timeout=60) as response:
            text = response.read().decode()
        counted = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        assert float(counted['nv_inference_request_success{model="small",version="1"}']) == 48
        assert float(counted['nv_inference_exec_count{model="small",version="1"}']) < 48

        given = asked(5, 0)
        given["inputs"][1]["data"][0] = 9999
        with pytest.raises(urllib.error.HTTPError) as refused:
            post(f"{url}/infer", given)
        assert "holds 9999" in json.load(refused.value)["error"]
    finally:
        server.terminate()
        server.wait(60)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path, seconds: int = 60) -> None:
    for _ in range(seconds * 5):
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:])


def post(url: str, given: Any) -> Any:
    made = urllib.request.Request(url, json.dumps(given).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(made, timeout=60) as response:
        return json.load(response)
