"""Histograms are exact, each calibrator equals a direct computation, statistics survive a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intc.calibration import Observer, collect, collect_cached, count_batches, open_feeds
from intc.calibration.histogram import LEVELS, PERCENTILE, Histogram, divergence
from intc.calibration.moments import Moments
from intc.calibration.observers import Statistics
from intc.calibration.peaks import Peaks
from intc.errors import CalibrationError, FeedError
from intc.frontend import import_onnx
from intc.ir.graph import Graph
from intc.passes import pipeline
from tests.onnx_models import model
from tests.tiny_encoder import tiny_encoder, tiny_feeds

BINS = 512


@pytest.fixture(scope="module")
def graph() -> Graph:
    return pipeline.canonicalise(import_onnx(tiny_encoder())).graph


def heavy(rows: int = 4000, channels: int = 3, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.standard_t(3, (rows, channels)) * [0.1, 1.0, 30.0][:channels], np.float32)


def streamed(rows: np.ndarray) -> Histogram:
    histogram = Histogram(BINS)
    for part in np.array_split(rows[np.argsort(np.abs(rows[:, 0]), kind="stable")], 7):
        histogram.update(part)  # growing values: the range doubles on the way
    return histogram


def test_histogram_merges_are_exact() -> None:
    rows = heavy()
    histogram = streamed(rows)
    for c in range(rows.shape[1]):
        edges = np.linspace(-histogram.limit[c], histogram.limit[c], BINS + 1)
        assert np.array_equal(histogram.counts[c], np.histogram(rows[:, c].astype(np.float64), edges)[0])


def test_channels_of_zeros_start_later() -> None:
    histogram = Histogram(BINS)
    histogram.update(np.zeros((5, 2), np.float32))
    histogram.update(np.array([[0.0, 3.0]], np.float32))
    assert histogram.counts.sum(axis=1).tolist() == [6, 6]
    assert np.all(np.isfinite(histogram.magnitudes("mse")))


def test_percentile_is_the_bin_of_the_order_statistic() -> None:
    rows = heavy()
    histogram = streamed(rows)
    width = 2 * histogram.limit / BINS
    found = histogram.magnitudes("percentile")
    wanted = np.quantile(np.abs(rows), PERCENTILE / 100, axis=0, method="inverted_cdf")
    assert np.all((found - width <= wanted) & (wanted <= found))


def test_mse_is_the_best_clip_of_the_samples_themselves() -> None:
    rows = np.random.default_rng(0).standard_normal((200_000, 1)).astype(np.float32)
    rows[0] = 12  # worth clipping
    histogram = streamed(rows)

    def cost(limit: float) -> float:
        x, step = rows, limit / 127
        return float(((np.clip(np.rint(x / step), -127, 127) * step - x) ** 2).mean())

    found = float(histogram.magnitudes("mse")[0])
    best = min(cost(limit) for limit in np.linspace(0.2, 1, 60) * np.abs(rows).max())
    assert cost(found) <= 1.1 * best < 0.7 * cost(float(np.abs(rows).max()))


def test_few_rows_leave_room() -> None:
    """For what a channel may still show: less with more rows, none from 1024 on."""
    rows = np.random.default_rng(0).normal(size=(2048, 4)).astype(np.float32)
    room = []
    for count in (16, 64, 1024, 2048):
        stats = Statistics(channel=Histogram(BINS))
        stats.update(rows[:count])
        room.append(float((stats.channel_ranges("mse") / stats.channel.magnitudes("mse")).min()))  # type: ignore[union-attr]
    assert room[0] == pytest.approx(1.58, abs=0.01) and room[1] == pytest.approx(1.29, abs=0.01)
    assert room[2] == room[3] == 1.0


@pytest.mark.parametrize("exponent", [0.05, 0.3, 0.6])
def test_the_tail_of_samples_is_found(exponent: float) -> None:
    """On average, of samples whose largest magnitudes have a tail of that exponent, in parts or not."""
    rng, found = np.random.default_rng(0), []
    for _ in range(200):
        samples = rng.normal(size=(256, 3)).clip(-1, 1)
        samples[:, 1] = -(rng.uniform(size=256) ** -exponent)
        peaks, rest = Peaks(), Peaks()
        peaks.update(samples[:100])
        rest.update(samples[100:])
        peaks.merge(rest)
        whole = Peaks()
        whole.update(samples)
        assert peaks.exponent == whole.exponent
        found.append(peaks.exponent)
    assert np.mean(found) == pytest.approx(exponent, rel=0.15)


def test_few_or_equal_samples_have_no_tail() -> None:
    for samples in (np.arange(15.0)[:, None], np.ones((64, 2)), np.zeros((64, 2))):
        peaks = Peaks()
        peaks.update(samples)
        assert peaks.exponent == 0.0


def test_few_rows_of_heavy_tails_leave_more_room() -> None:
    rng, room = np.random.default_rng(0), []
    for count in (64, 1024):
        rows = (rng.uniform(size=(count, 1)) ** -0.5 * rng.choice([-1.0, 1.0], (count, 8))).astype(np.float32)
        stats = Statistics(channel=Histogram(BINS), peaks=Peaks())
        assert stats.channel is not None and stats.peaks is not None
        stats.update(rows)
        stats.peaks.update(rows)
        room.append(float((stats.channel_ranges("mse") / stats.channel.magnitudes("mse")).min()))
    assert room[0] > 2 and room[1] == 1.0


def test_entropy_is_the_least_divergence() -> None:
    rows = heavy(channels=1)
    histogram = Histogram(2048)
    histogram.update(rows)
    size = 1024
    counts = np.histogram(np.abs(rows), np.linspace(0, histogram.limit[0], size + 1))[0]

    def direct(edge: int) -> float:
        p = counts[:edge].astype(float)
        p[-1] += counts[edge:].sum()
        q, level = np.zeros(edge), np.arange(edge) * LEVELS // edge
        for n in range(LEVELS):
            at = (level == n) & (counts[:edge] > 0)
            q[at] = counts[:edge][at].mean() if at.any() else 0
        p, q = p / p.sum(), q / q.sum()
        return float(sum(a * np.log(a / max(b, 1e-12)) for a, b in zip(p, q, strict=True) if a))

    for edge in (LEVELS, 300, 777, size):
        assert divergence(counts[None], edge)[0] == pytest.approx(direct(edge))
    found = round(histogram.magnitudes("entropy")[0] / (histogram.limit[0] / size))
    candidates = np.unique(np.linspace(LEVELS, size, 64).round().astype(int))
    assert direct(found) == pytest.approx(min(direct(int(e)) for e in candidates))


def test_moments_are_those_of_all_rows() -> None:
    rows = heavy() + np.float32(1000)  # a mean that would cancel in raw products
    moments = Moments()
    for part in np.array_split(rows, 9):
        moments.update(part)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0, dtype=np.float64), rtol=1e-7)
    np.testing.assert_allclose(moments.covariance(), np.cov(rows.T, bias=True), rtol=1e-3, atol=1e-3)
    assert Moments(wide=False).covariance() is None


def test_padding_does_not_count(graph: Graph) -> None:
    feeds = tiny_feeds(6, 12)
    changed = {k: v.copy() for k, v in feeds.items()}
    changed["input_ids"][::2, 8:] = 3  # tokens that the mask hides
    a, b = (collect(graph, open_feeds(graph, f)) for f in (feeds, changed))
    name = next(n.output for n in graph.nodes if n.op.name == "layer_norm")
    np.testing.assert_array_equal(a[name].high, b[name].high)


def cached(graph: Graph, path: Path, feeds: dict, calls: list[int], stop: int = 99, key: str = "k") -> dict:
    def progress(done: int) -> None:
        calls.append(done)
        if done == stop:
            raise KeyboardInterrupt

    batches = open_feeds(graph, feeds, batch=2)
    return collect_cached(Observer(graph, "mse", True), batches, path, key, progress, interval=-1)


def test_cache_resumes_and_is_reused(graph: Graph, tmp_path: Path) -> None:
    path, feeds = tmp_path / "stats.npz", tiny_feeds(10, 12)
    wanted = collect(graph, open_feeds(graph, feeds, batch=2), "mse", products=True)
    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        cached(graph, path, feeds, calls, stop=4)
    resumed = cached(graph, path, feeds, calls)
    assert calls == [1, 2, 3, 4, 4, 5]  # three batches had been saved
    again = cached(graph, path, feeds, calls)
    assert len(calls) == 6, "nothing runs twice"
    for found in (resumed, again):
        assert found.keys() == wanted.keys()
        for name, stats in wanted.items():
            other = found[name]
            assert np.array_equal(stats.low, other.low) and np.array_equal(stats.high, other.high)
            assert np.array_equal(stats.tensor.counts, other.tensor.counts)  # type: ignore[union-attr]
            if stats.moments is not None:
                assert np.array_equal(stats.moments.products, other.moments.products)  # type: ignore[union-attr]
    assert [p.name for p in tmp_path.iterdir()] == ["stats.npz"]


def test_cache_of_other_data_or_another_model_is_not_used(graph: Graph, tmp_path: Path) -> None:
    path, calls = tmp_path / "stats.npz", list[int]()
    cached(graph, path, tiny_feeds(4, 12), calls)
    cached(graph, path, tiny_feeds(4, 12), calls, key="other")
    cached(graph, path, tiny_feeds(4, 12, seed=9), calls, key="other")
    assert calls == [1, 2] * 3
    more = {k: np.concatenate([v, v]) for k, v in tiny_feeds(4, 12, seed=9).items()}
    cached(graph, path, more, calls, key="other")
    assert calls[6:] == [3, 4], "a longer run goes on from the shorter"
    with pytest.raises(CalibrationError, match="holds 4 batches, the data 2"):
        cached(graph, path, tiny_feeds(4, 12, seed=9), calls, key="other")
    path.write_bytes(b"PK\x03\x04 nonsense")
    with pytest.raises(CalibrationError, match="not a calibration cache"):
        cached(graph, path, tiny_feeds(4, 12), calls)


def test_nan_is_refused_by_name() -> None:
    graph = import_onnx(model("y = Sqrt(x)", "float[n,4] x", "float[n,4] y"))
    with pytest.raises(CalibrationError, match="'y' becomes NaN"):
        collect(graph, [{"x": np.full((1, 4), -1, np.float32)}])


@pytest.mark.parametrize(
    ("feeds", "reason"), [(3, "is a int, not feeds"), ({"x": [[1.0, 2.0], [3.0]]}, "input 'x' is no array")]
)
def test_what_is_no_data_is_refused(feeds: Any, reason: str) -> None:
    graph = import_onnx(model("y = Relu(x)", "float[n,2] x", "float[n,2] y"))
    with pytest.raises(CalibrationError, match=reason):
        list(open_feeds(graph, feeds))


def test_tokens_beyond_the_vocabulary_are_refused_by_node(graph: Graph) -> None:
    feeds = tiny_feeds(2, 6)
    with pytest.raises(FeedError, match=r"node '.*' \(gather\): .*index 5000 is out of bounds"):
        collect(graph, [feeds | {"input_ids": np.full_like(feeds["input_ids"], 5000)}])


def test_batches_are_counted_where_they_can_be(graph: Graph) -> None:
    feeds = tiny_feeds(17, 6)
    assert count_batches(graph, feeds) == len(list(open_feeds(graph, feeds))) == 3
    assert count_batches(graph, iter([feeds])) is None


def test_what_the_data_holds_is_said() -> None:
    graph = import_onnx(model("y = Relu(x)", "float[batch, 4] x", "float[batch, 4] y"))
    for data, reason in (
        ({"z": np.zeros((2, 4))}, "input 'x' is missing; it holds z"),
        ({"x": np.float32(3)}, "input 'x' is one number, not samples along axis 0"),
        ({"x": np.full((2, 4), 1e300)}, "input 'x' holds NaN or infinite values"),  # as float32
    ):
        with pytest.raises(CalibrationError, match=reason):
            list(open_feeds(graph, data))
