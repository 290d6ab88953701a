"""What samples lose that calibration has not seen, and the widths that follow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.calibration.histogram import Histogram
from intc.calibration.observers import CHANNEL_BINS, TELLING, Statistics
from intc.calibration.peaks import Peaks
from intc.frontend import import_onnx
from intc.ir.graph import Graph
from intc.ops.matmul import MatMul
from intc.passes.integer.equalise import channel_scales, room
from intc.passes.match import divided
from intc.passes.pipeline import canonicalise
from tests.compiled_models import compiled, distance
from tests.onnx_models import floats, model

ROWS, CHANNELS = 12, 8


def samples(count: int, tail: float, seed: int = 0) -> np.ndarray:
    """[count, ROWS, CHANNELS], whose sizes have a tail of the exponent ``tail``."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(size=(count, 1, 1)) ** -tail
    return (rng.normal(size=(count, ROWS, CHANNELS)).clip(-2, 2) * size).astype(np.float32)


def statistics(parts: list[np.ndarray]) -> Statistics:
    whole = Statistics(channel=Histogram(CHANNEL_BINS), peaks=Peaks())
    for x in parts:
        part = Statistics(channel=Histogram(CHANNEL_BINS), peaks=Peaks())
        part.update(x.reshape(-1, x.shape[-1]))
        assert part.peaks is not None
        part.peaks.update(x)
        whole.merge(part)
    return whole


@pytest.mark.parametrize("tail", [0.25, 0.5])
def test_it_is_what_leaving_out_each_sample_cuts(tail: float) -> None:
    x = samples(60, tail)
    cut = 0.0
    for i in range(len(x)):
        known = np.abs(np.delete(x, i, axis=0)).max(axis=(0, 1))
        cut += float((np.maximum(np.abs(x[i]) - known, 0) ** 2).sum())
    normal = float((x**2).sum()) / (60 * ROWS * np.log(60 * ROWS))
    found = statistics([x]).left_out
    assert found is not None
    assert found.sum() * 60 * ROWS == pytest.approx(cut - normal, rel=0.2)


def test_of_normal_values_it_is_next_to_nothing() -> None:
    for count in (32, 64, 256):
        x = np.random.default_rng(count).normal(size=(count, ROWS, 64)).astype(np.float32)
        found = statistics([x]).left_out
        assert found is not None and found.mean() < 4e-4


def test_parts_are_as_good_as_the_whole() -> None:
    x = samples(40, 0.5)
    for cuts in ([7], [1, 2, 39]):
        whole, parts = (statistics(each).left_out for each in ([x], np.split(x, cuts)))
        assert whole is not None and whole.sum() > 0
        np.testing.assert_array_equal(parts, whole)
    assert statistics([x[:31]]).left_out is None  # too few to tell


def test_8_bits_hold_more_where_samples_stand_out() -> None:
    """Of bounded values no room is left, of heavy tails so much that other samples lose less."""
    weights, noise = [floats(CHANNELS, 4)], np.zeros(2)
    for seed in range(8):
        for tail, count in ((0.0, 64), (0.2, 31), (0.2, 32)):
            seen, held = statistics([samples(count, tail, seed)]), samples(400, tail, seed + 100)
            scales = channel_scales(seen.channels, weights, 8, 0.8)
            factor = room(seen, scales, weights, 0.8)
            assert (factor > 1) == (tail > 0 and count >= TELLING)
        for i, s in enumerate((scales, factor * scales)):
            noise[i] += float(((held - np.rint(held / s).clip(-127, 127) * s) ** 2).mean())
    assert noise[1] < 0.7 * noise[0]


def test_quotients_by_computed_values_have_more_room() -> None:
    """Unseen samples count with the square there, and as they do elsewhere in other quotients."""
    weights, plain, more = [floats(CHANNELS, 4)], [], []
    for seed in range(8):
        seen = statistics([samples(64, 0.05, seed)])
        scales = channel_scales(seen.channels, weights, 8, 0.8)
        plain.append(room(seen, scales, weights, 0.8))
        more.append(room(seen, scales, weights, 0.8, quotient=True))
    assert sum(plain) < sum(more) and all(p <= m for p, m in zip(plain, more, strict=True))
    proto = model(
        "n = MatMul(x, a) e = Exp(x) d = ReduceSum(e, last) q = Div(n, d) t = Transpose<perm=[1, 0, 2]>(q)"
        " c = Div(n, half) y = MatMul(t, b) z = MatMul(c, b)",
        f"float[batch, {ROWS}, {CHANNELS}] x", "float[b, s, c] y, float[d, e, f] z",
        {"a": floats(CHANNELS, CHANNELS), "b": floats(CHANNELS, 4), "last": np.array([-1]),
         "half": np.float32([2])},
    )  # fmt: skip
    graph = canonicalise(import_onnx(proto)).graph
    read = [n.inputs[0] for n in graph.nodes if isinstance(n.op, MatMul)]
    assert sum(divided(graph, graph.producers(), value) for value in read) == 1


@pytest.mark.parametrize("body", ["y = MatMul(x, w)", "a = MatMul(x, w) b = MatMul(x, w) y = Add(a, b)"])
def test_outputs_are_not_cut_off_at_twice_what_was_seen(body: str, tmp_path: Path) -> None:
    """Inputs within their range, whose signs are those of the weights."""
    weights = floats(32, 4)
    proto = model(body, "float[batch, 3, 32] x", "float[b, s, c] y", {"w": weights})
    seen = np.random.default_rng(0).uniform(-1, 1, (64, 3, 32)).astype(np.float32)
    held = np.sign(weights.T)[None, :3]
    largest = (np.abs(seen @ weights).max(), np.abs(held @ weights).max())
    assert 2 < largest[1] / largest[0] < 4
    assert distance(compiled(proto, {"x": seen}, tmp_path), proto, {"x": held}) < 0.02


def products(graph: Graph) -> list[str]:
    """The types of what constant matrices multiply."""
    nodes = [n for n in graph.nodes if isinstance(n.op, MatMul)]
    return [graph.type(n.inputs[0]).dtype for n in nodes if n.inputs[1] in graph.constants]


@pytest.mark.parametrize(("tail", "dtype"), [(0.5, "int16"), (0.0, "int8")])
def test_products_that_read_such_values_have_16_bits(tail: float, dtype: str, tmp_path: Path) -> None:
    weights = {"w": floats(CHANNELS, 24), "v": floats(24, 16)}
    proto = model(
        "a = MatMul(x, w) r = Relu(a) y = MatMul(r, v)",
        f"float[batch, {ROWS}, {CHANNELS}] x", "float[b, s, c] y", weights,
    )  # fmt: skip
    module = compiled(proto, {"x": samples(64, tail)}, tmp_path)
    assert set(products(module.graph)) == ({dtype} if tail else {"int8", "uint8"})
    assert not module.plan.nodes
    held = samples(64, min(tail, 0.25), seed=1)
    assert distance(module, proto, {"x": held}) < (0.01 if tail else 0.05)


def test_recurrent_layers_and_what_reads_their_states_have_16_bits(tmp_path: Path) -> None:
    h, width, steps = 16, 12, 3
    weights = {
        "w": floats(1, 4 * h, width), "r": floats(1, 4 * h, h) / 4, "b": floats(1, 8 * h),
        "one": np.array([1]), "o": floats(h, 8),
    }  # fmt: skip
    proto = model(
        f"s, last, cell = LSTM<hidden_size={h}>(x, w, r, b) t = Squeeze(s, one) y = MatMul(t, o)",
        f"float[{steps}, batch, {width}] x", f"float[{steps}, b, 8] y", weights,
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(steps, 64, width)).astype(np.float32)
    module = compiled(proto, {"x": x}, tmp_path)
    assert set(products(module.graph)) == {"int16"}
    assert distance(module, proto, {"x": x[:, ::-1].copy()}) < 0.02


def test_one_row_for_all_beside_many(tmp_path: Path) -> None:
    """A product of one row, to which products of all rows are added: attention by a sum of queries and
    keys.
    """
    body = "a = MatMul(q, w) b = MatMul(k, v) c = Add(b, d) s = Add(a, c) n = Relu(s) y = MatMul(n, u)"
    weights = {"w": floats(24, 16) / 5, "v": floats(8, 16) / 3, "d": floats(16), "u": floats(16, 5) / 4}
    proto = model(body, "float[batch, 1, 24] q, float[batch, 10, 8] k", "float[b, c, 5] y", weights)
    feeds = {"q": floats(16, 1, 24), "k": floats(16, 10, 8)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.02
