"""``intc map``: rows of Parquet files through an artifact, block by block, each good row exactly once."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from intc.cli import main
from intc.errors import FeedError, UsageError
from intc.integrations import job as jobs
from intc.integrations.batches import BatchModel, stored
from intc.integrations.blocks import Block
from intc.integrations.decoders import Columns, Inputs, Prepared
from tests.small import FEATURES, small_feeds, small_module

pa = pytest.importorskip("pyarrow", reason="reading Parquet needs the extra [ray]: pip install -e '.[ray]'")
parquet = pytest.importorskip("pyarrow.parquet")
ROWS, BAD = 230, (5, 119)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artifact") / "small.intc"
    small_module().save(path)
    return path


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """230 rows in row groups of 100; row 5 holds NaN, row 119 an index beyond the table."""
    feeds = small_feeds(ROWS)
    feeds["x"][BAD[0], 3] = np.nan
    feeds["ids"][BAD[1]] = 9999
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    names = pa.array([f"n{i}" for i in range(ROWS)])
    columns = pa.table({"x": pa.array(list(feeds["x"])), "ids": feeds["ids"], "name": names})
    parquet.write_table(columns, path, row_group_size=100)
    return path


def job(artifact: Path, table: Path, output: Path, **changes: object) -> jobs.Job:
    settings = {"keep": ("name",), "raw": True, "block_rows": 40, "batch": 7} | changes
    return jobs.Job(artifact, (table,), output, ("x", "ids"), **settings)  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def check_results(folder: Path) -> None:
    """Every good row once, equal to the exact graph; every bad one in the side table."""
    found = parquet.read_table(folder)
    good = [i for i in range(ROWS) if i not in BAD]
    assert found["row"].to_pylist() == good and found["name"].to_pylist() == [f"n{i}" for i in good]
    feeds = {name: array[good] for name, array in small_feeds(ROWS).items()}
    logits, sums = small_module().run(None, feeds, raw=True)
    assert np.array_equal(np.stack(found["logits"].to_numpy()), logits)
    assert np.array_equal(np.stack(found["sums"].to_numpy()), sums)
    assert json.loads(found.schema.field("logits").metadata[b"scale"]) == pytest.approx(0.001)
    bad = parquet.read_table(folder / "_rejected")
    assert bad["row"].to_pylist() == list(BAD)
    assert "NaN" in bad["cause"][0].as_py() and "holds 9999, outside [0, 49]" in bad["cause"][1].as_py()


def test_every_good_row_once_and_the_bad_ones_apart(artifact: Path, table: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    summary = jobs.run(job(artifact, table, tmp_path / "out"), progress=lambda *n: told.append(n))
    check_results(tmp_path / "out")
    assert (summary.blocks, summary.resumed, summary.rows, summary.rejected) == (7, 0, 228, 2)
    assert summary.cause is not None and summary.cause.startswith("row 5: ")
    assert told[0] == (0, ROWS) and told[-1] == (ROWS, ROWS)


def test_results_do_not_depend_on_the_batch(artifact: Path, table: Path, tmp_path: Path) -> None:
    for batch in (1, 64):
        jobs.run(job(artifact, table, tmp_path / str(batch), batch=batch))
    assert contents(tmp_path / "1") == contents(tmp_path / "64")


def test_what_a_killed_worker_left_is_removed(artifact: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    jobs.run(job(artifact, table, out))
    first = next(out.glob("part-*"))
    (out / f".{first.name}.abc").write_bytes(b"PAR1")
    first.unlink()
    jobs.run(job(artifact, table, out))
    assert first.exists() and not list(out.glob(".part-*"))


def test_finished_blocks_are_not_computed_again(artifact: Path, table: Path, tmp_path: Path) -> None:
    whole, cut = job(artifact, table, tmp_path / "whole"), job(artifact, table, tmp_path / "cut")
    jobs.run(whole)

    def three_blocks(task: jobs.Job, pending: Sequence[Block]) -> Iterator[jobs.Done]:
        yield from jobs.local(task, pending[:3])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        jobs.run(cut, three_blocks)
    (tmp_path / "cut" / "part-000001.parquet").unlink()
    computed: list[int] = []

    def noting(task: jobs.Job, pending: Sequence[Block]) -> Iterator[jobs.Done]:
        for done in jobs.local(task, pending):
            computed.append(done.number)
            yield done

    assert jobs.run(cut, noting).resumed == 2
    assert computed == [1, 3, 4, 5, 6]
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


def test_results_of_another_job_are_left_alone(artifact: Path, table: Path, tmp_path: Path) -> None:
    jobs.run(job(artifact, table, tmp_path / "out"))
    with pytest.raises(UsageError, match="another job \\(other block_rows, raw\\)"):
        jobs.run(job(artifact, table, tmp_path / "out", raw=False, block_rows=50))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match="is no job's output"):
        jobs.run(job(artifact, table, tmp_path / "mine"))


def program(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "intc", "map", *map(str, args)], capture_output=True, text=True, check=False
    )


def test_the_program(artifact: Path, table: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = (artifact, "--input", table, "--output", out, "--keep", "name", "--raw", "--engine", "local")
    done = program(*options, "--block-rows", 40)
    assert done.returncode == 1 and done.stderr == ""
    assert done.stdout.splitlines()[0] == f"{out}: 228 rows in 7 block(s)"
    assert done.stdout.splitlines()[1].startswith(f"{out}/_rejected: 2 bad row(s); the first: row 5: ")
    check_results(out)
    again = program(*options, "--block-rows", 40, "--json")
    assert json.loads(again.stdout)["resumed"] == 7


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        (("--column", "y=x"), "'y' is no input; the model takes x, ids"),
        (("--column", "x=z"), "no column 'z'; it holds x, ids, name"),
        (("--keep", "y"), "no column 'y'"),
        (("--keep", "logits"), "two columns 'logits'"),
        (("--length", "8"), "give --tokenizer DIR"),
        (("--tokenizer", "nowhere"), "tokenizer.json: no such file"),
        (("--workers", "4"), "--workers and --address are Ray's"),
        (("--input", "nowhere.parquet"), "nowhere.parquet: no such file or folder"),
        (("--input", __file__), "not a readable Parquet file"),
    ],
)
def test_bad_usage_is_one_line(
    artifact: Path,
    table: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    cause: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = (artifact, "--input", table, "--output", tmp_path / "o", "--engine", "local", *options)
    assert main(["map", *map(str, given)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("intc: error: ") and cause in error
    assert error.count("\n") == 1 and not (tmp_path / "o").exists()


def test_a_full_disk_stops_the_job_and_loses_nothing(artifact: Path, table: Path, tmp_path: Path) -> None:
    """The quota is the size that a file may have: as on a full disk, a write fails in the middle."""
    task = job(artifact, table, tmp_path / "out")

    def fills_up(task: jobs.Job, pending: Sequence[Block]) -> Iterator[jobs.Done]:
        work = jobs.Worker(task)
        yield from map(work, pending[:2])
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        yield from map(work, pending[2:])

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(UsageError, match=r"part-000002.parquet: cannot be written \(File too large\)"):
            jobs.run(task, fills_up)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in task.output.iterdir() if p.name != "_job.json") == [
        "_rejected",
        "part-000000.parquet",
        "part-000001.parquet",
    ]
    assert jobs.run(task).resumed == 2
    check_results(task.output)


def test_a_damaged_file_is_named(artifact: Path, table: Path, tmp_path: Path) -> None:
    data = bytearray(table.read_bytes())
    data[4:12] = b"\xff" * 8
    (tmp_path / "rows.parquet").write_bytes(data)
    with pytest.raises(UsageError, match=r"rows.parquet: row group 0 cannot be read"):
        jobs.run(job(artifact, tmp_path / "rows.parquet", tmp_path / "out"))


def test_a_model_as_a_function_of_batches(artifact: Path) -> None:
    model, feeds = BatchModel(artifact, batch=4), small_feeds(11)
    expected = dict(zip(model.names, small_module().run(None, feeds), strict=True))
    found = model(
        {"x": np.array([*feeds["x"], None], object)[:-1], "ids": feeds["ids"]}
    )  # as Ray gives lists
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    feeds["x"][7] = np.inf
    with pytest.raises(FeedError, match=r"row 7 of the batch: input 'x' holds NaN or infinite"):
        model(feeds)
    renamed = BatchModel(artifact, Inputs(model.session.manifest, ["ids=number"]))
    assert renamed({"x": feeds["x"][:2], "number": feeds["ids"][:2]})["logits"].shape == (2, 10)
    assert model({"x": np.zeros((0, FEATURES)), "ids": np.zeros(0, int)})["logits"].shape == (0,)


@pytest.mark.parametrize(
    ("pads", "groups"), [(False, [[4, 4, 4], [4], [7, 7]]), (True, [[4, 4, 4], [4, 7, 7]])]
)
def test_a_decoder_says_which_rows_run_together(artifact: Path, pads: bool, groups: list[list[int]]) -> None:
    together: list[list[int]] = []

    class Grouped:
        def __call__(self, columns: Columns) -> Columns:
            together.append(columns["ids"].tolist())
            return columns

        def prepare(self, columns: Columns) -> Prepared:
            return Prepared(columns, columns["ids"], pads)

    feeds = small_feeds(6)
    feeds["ids"][:] = [7, 4, 4, 7, 4, 4]
    found = BatchModel(artifact, Grouped(), batch=3).outcome(feeds)
    assert together == groups and found.kept.tolist() == list(range(6))
    (logits,) = small_module().run(["logits"], feeds)
    assert np.array_equal(found.outputs["logits"], logits)


def test_a_row_that_the_users_own_code_refuses(artifact: Path) -> None:
    def decode(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if (columns["ids"] == 13).any():
            raise LookupError("thirteen\nis unlucky")
        return columns

    feeds = small_feeds(40)
    feeds["ids"][:] = 1
    feeds["ids"][[0, 39]] = 13
    outcome = BatchModel(artifact, decode).outcome(feeds)
    assert outcome.rejected == [(n, "LookupError: thirteen is unlucky") for n in (0, 39)]
    assert outcome.kept.tolist() == list(range(1, 39))


def test_bytes_of_an_artifact_are_stored_once(artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir(mode=0o700)
    path = stored(artifact.read_bytes(), tmp_path / "shared")
    before = path.stat().st_mtime_ns
    assert stored(memoryview(artifact.read_bytes()), tmp_path / "shared") == path
    assert path.stat().st_mtime_ns == before and path.read_bytes() == artifact.read_bytes()
