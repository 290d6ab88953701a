"""Jobs on a two-node Ray cluster of this machine, with faults: the results are those of one process."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import intc
from intc.errors import UsageError
from intc.integrations import job as jobs
from intc.integrations.calibration import ParquetFeeds
from tests.small import small_feeds, small_module
from tests.test_calibration_parts import decode, texts
from tests.test_map import ROWS, artifact, check_results, contents, job, table
from tests.tiny_encoder import tiny_encoder

ray = pytest.importorskip("ray", reason="Ray jobs need the extra [ray]: pip install -e '.[ray]'")
pytestmark = pytest.mark.slow
__all__ = ["artifact", "table", "texts"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head and another node of one CPU each; this process is connected to it."""
    from ray.cluster_utils import Cluster

    os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes.add_node(num_cpus=1)
        ray.init(address=nodes.address, log_to_driver=False, logging_level="error")
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


def killing(folder: Path) -> Any:
    """Decodes columns; the worker that meets row 150 first is killed while it works on it."""

    class Killing:
        key = "x=x ids=ids"  # of the same job as without it

        def __call__(self, columns: dict[str, Any]) -> dict[str, Any]:
            mark = folder / "killed"
            if (columns["ids"] == small_feeds(ROWS)["ids"][150]).any() and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return {"x": np.stack(list(columns["x"])), "ids": columns["ids"]}

    return Killing()


def test_a_killed_worker_and_a_lost_node_change_nothing(
    cluster: Any, artifact: Path, table: Path, tmp_path: Path
) -> None:
    from intc.integrations.ray import engine

    changed: list[int] = []

    def change_nodes(done: int, total: int) -> None:
        if done and not changed:
            changed.append(done)
            cluster.remove_node(next(iter(cluster.worker_nodes)))
            cluster.add_node(num_cpus=1)

    task = job(artifact, table, tmp_path / "out", decode=killing(tmp_path), block_rows=10, batch=4)
    summary = jobs.run(task, engine(workers=2), change_nodes)
    assert (tmp_path / "killed").exists() and changed and changed[0] < ROWS
    assert (summary.blocks, summary.rows, summary.rejected) == (23, 228, 2)
    check_results(tmp_path / "out")
    jobs.run(job(artifact, table, tmp_path / "alone", decode=killing(tmp_path), block_rows=10, batch=4))
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


def test_a_full_disk_is_one_line_and_the_job_goes_on(
    cluster: Any, artifact: Path, table: Path, tmp_path: Path
) -> None:
    from intc.integrations.ray import engine

    class Full:
        key = "x=x ids=ids"
        limit = 2000

        def __call__(self, columns: dict[str, Any]) -> dict[str, Any]:
            import resource

            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.limit, hard))
            return {"x": np.stack(list(columns["x"])), "ids": columns["ids"]}

    with pytest.raises(UsageError, match=r"part-00000\d.parquet: cannot be written \(File too large\)"):
        jobs.run(job(artifact, table, tmp_path / "out", decode=Full()), engine(workers=2))
    assert not list((tmp_path / "out").glob("*.parquet"))
    Full.limit = -1
    jobs.run(job(artifact, table, tmp_path / "out", decode=Full()), engine(workers=2))
    check_results(tmp_path / "out")


def test_a_cluster_calibrates_as_one_machine(cluster: Any, texts: Path, tmp_path: Path) -> None:
    from intc.integrations.ray import part_engine

    onnx.save(tiny_encoder(), tmp_path / "tiny.onnx")
    for name, parts in (("one", None), ("cluster", part_engine(workers=2))):
        data = ParquetFeeds((texts,), ("ids", "mask"), decode, parts)
        intc.compile(tmp_path / "tiny.onnx", data).save(tmp_path / f"{name}.intc")
    assert (tmp_path / "one.intc").read_bytes() == (tmp_path / "cluster.intc").read_bytes()


def test_a_model_in_map_batches(cluster: Any, artifact: Path) -> None:
    from intc.integrations.ray import RayModel, put

    feeds = small_feeds(50)
    rows = [{"x": x, "ids": i, "n": n} for n, (x, i) in enumerate(zip(feeds["x"], feeds["ids"], strict=True))]

    class Numbered(RayModel):
        def __call__(self, batch: Any) -> Any:
            return {"n": batch["n"], **super().__call__({k: batch[k] for k in ("x", "ids")})}

    for model in (artifact, put(artifact)):
        results = ray.data.from_items(rows).map_batches(
            Numbered, fn_constructor_args=(model,), batch_size=7, compute=ray.data.ActorPoolStrategy(size=1)
        )
        found = sorted(results.take_all(), key=lambda row: row["n"])
        (logits,) = small_module().run(["logits"], feeds)
        assert np.array_equal(np.stack([row["logits"] for row in found]), logits)


def test_actors_of_a_machine_map_the_same_weights(cluster: Any, artifact: Path) -> None:
    from intc.integrations.ray import RayModel, put

    @ray.remote(num_cpus=0.1)
    class Actor(RayModel):
        def mapped(self) -> tuple[int, set[str]]:
            lines = Path("/proc/self/maps").read_text().splitlines()
            return os.getpid(), {
                line.split(maxsplit=3)[3] for line in lines if f"/intc-{os.getuid()}/" in line
            }

    held = put(artifact)
    (first, files), (second, others) = ray.get([Actor.remote(held).mapped.remote() for _ in range(2)])
    assert first != second and files and files == others  # device, inode and name


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "127.0.0.1:99999", "nonsense"])
def test_an_address_where_no_ray_is(
    artifact: Path, table: Path, tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from intc.integrations.ray import engine

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(UsageError, match=f"no Ray at {address} "):
        jobs.run(job(artifact, table, tmp_path / "out"), engine(address=address))
