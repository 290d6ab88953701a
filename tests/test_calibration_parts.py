"""Statistics of parts merge to those of the whole; divided or not, calibration gives the same artifact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import intc
from intc.calibration.histogram import Histogram
from intc.calibration.moments import Moments
from intc.errors import CalibrationError, UsageError
from intc.integrations.blocks import Block
from intc.integrations.calibration import ParquetFeeds, Part, Seen, local
from tests.tiny_encoder import VOCABULARY, tiny_encoder

BINS = 16
VALUES = st.sampled_from([0.0, -0.0, 0.25, 0.5, -0.5, 1.0, -1.0, 2.0, 4.0]) | st.floats(-100, 100, width=32)
ROWS = hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(2)), elements=VALUES)


def counted(parts: Sequence[np.ndarray]) -> Histogram:
    histogram = Histogram(BINS)
    for part in parts:
        histogram.update(part)
    return histogram


@given(st.lists(ROWS, min_size=1, max_size=5), st.integers(0, 5), st.randoms())
def test_histograms_depend_on_the_values_alone(parts: list[np.ndarray], cut: int, rng: object) -> None:
    whole = counted([np.concatenate(parts)])
    rng.shuffle(parts)  # type: ignore[attr-defined]
    left, right = counted(parts[:cut]), counted(parts[cut:])
    left.merge(right)
    for found in (counted(parts), left):
        assert np.array_equal(found.counts, whole.counts) and np.array_equal(found.limit, whole.limit)


def test_moments_of_parts() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(3, 2, (600, 5)).astype(np.float32)
    parts = [Moments(), Moments(), Moments()]
    for part, piece in zip(parts, (rows[:0], rows[:100], rows[100:] + 1), strict=True):
        part.update(piece)
    parts[0].merge(parts[1])
    parts[0].merge(parts[2])
    everything = np.concatenate([rows[:100], rows[100:] + 1]).astype(np.float64)
    assert parts[0].mean == pytest.approx(everything.mean(axis=0), rel=1e-6)
    assert parts[0].covariance() == pytest.approx(np.cov(everything.T, bias=True), rel=1e-4, abs=1e-4)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 rows of 9 ids and masks."""
    pa = pytest.importorskip(
        "pyarrow", reason="reading Parquet needs the extra [ray]: pip install -e '.[ray]'"
    )
    rng = np.random.default_rng(1)
    ids = rng.integers(0, VOCABULARY, (300, 9))
    columns = {
        "ids": list(ids),
        "mask": list((np.arange(9) < rng.integers(3, 10, (300, 1))).astype(np.int64)),
    }
    from pyarrow import parquet

    path = tmp_path_factory.mktemp("texts") / "texts.parquet"
    parquet.write_table(pa.table(columns), path, row_group_size=200)
    return path


def decode(columns: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"input_ids": np.stack(columns["ids"]), "attention_mask": np.stack(columns["mask"])}


def out_of_order(part: Part, every: Sequence[Block]) -> Iterator[Seen]:
    """Blocks computed by two workers, the last first, as results of a cluster may arrive."""
    found = {b.number: part(b) for worker in (1, 0) for b in reversed(every) if b.number % 2 == worker}
    return (found[b.number] for b in every)


def test_one_worker_and_two_give_the_same_artifact(texts: Path, tmp_path: Path) -> None:
    onnx.save(tiny_encoder(), tmp_path / "tiny.onnx")
    told: list[str] = []
    for name, engine in (("one", local), ("two", out_of_order)):
        data = ParquetFeeds((texts,), ("ids", "mask"), decode, engine)
        module = intc.compile(tmp_path / "tiny.onnx", data, progress=told.append)  # type: ignore[arg-type]
        module.save(tmp_path / f"{name}.intc")
    assert (tmp_path / "one.intc").read_bytes() == (tmp_path / "two.intc").read_bytes()
    assert any(step.startswith("calibrate (batch 38") for step in told)


def test_what_parquet_files_cannot_do(texts: Path, tmp_path: Path) -> None:
    onnx.save(tiny_encoder(), tmp_path / "tiny.onnx")
    data = ParquetFeeds((texts,), ("ids", "mask"), decode)
    with pytest.raises(UsageError, match=r"give an \.npz file"):
        intc.compile(tmp_path / "tiny.onnx", data, calibration_cache=tmp_path / "cache.npz")  # type: ignore[arg-type]
    wrong = ParquetFeeds((texts,), ("ids",), decode)
    with pytest.raises(CalibrationError, match=r"texts\.parquet: rows from 0 on: KeyError: 'mask'"):
        intc.compile(tmp_path / "tiny.onnx", wrong)  # type: ignore[arg-type]
