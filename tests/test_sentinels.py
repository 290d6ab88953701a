"""Numbers far below (or above) all others: around maxima, behind functions, and in what a caller is given."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import intc
from intc.ir.text import parse_graph, print_graph, side_tensors
from intc.ops import OPS
from intc.report.reference import fidelity
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, expected, floats, model

LENGTHS = np.random.default_rng(3).integers(4, 13, 48)
KEPT = np.arange(12)[None] < LENGTHS[:, None]
WEIGHTS: Feeds = {
    "w": floats(8, 8) / 2,
    "v": floats(8, 1, seed=1),
    "low": np.float32(-1e4),
    "far": np.float32(-1e30),
    "least": np.float32(np.finfo(np.float32).min),
    "below": np.float32(-np.inf),
    "high": np.float32(1e4),
    "one": np.float32(1),
    "four": np.float32(4),
    "pads": np.array([0, 0, 2, 0, 0, 0]),
    "k": np.array([3]),
    "ax": np.array([2]),
    "at": np.array([1]),
}
X = "float[batch, seq, 8] x"
FEEDS: Feeds = {"x": floats(48, 12, 8), "m": KEPT}
# the result is read by maxima alone
MAXIMA = {
    "padding of a pool": "p = Pad(t, pads, low) y = MaxPool<kernel_shape=[3], strides=[1]>(p)",
    "infinity around a pool": "p = Pad(t, pads, below) y = MaxPool<kernel_shape=[3], strides=[1]>(p)",
    "a column that never is the largest": "p = Pad(t, pads, least) y = ReduceMax<axes=[2]>(p)",
    "a column that never is the smallest": "p = Pad(t, pads, high) y = ReduceMin<axes=[2]>(p)",
    "entries that a condition leaves out": (
        "c = Less(t, limit) q = Where(c, low, t) y = MaxPool<kernel_shape=[12], strides=[1]>(q)"
    ),
    "all but the largest few": "p = Pad(t, pads, low) y, i = TopK<axis=2>(p, k)",
}


@pytest.mark.parametrize("form", MAXIMA)
def test_what_maxima_ignore_takes_no_part_in_their_range(form: str, tmp_path: Path) -> None:
    body = "h = MatMul(x, w) t = Transpose<perm=[0, 2, 1]>(h) " + MAXIMA[form]
    weights = {**WEIGHTS, "limit": np.float32(-0.5)}
    shape = "float[a, b] y" if "Reduce" in form or "ReduceM" in body else "float[a, b, c] y"
    proto = model(body, "float[batch, 12, 8] x", shape, weights)
    feeds = {"x": FEEDS["x"]}
    assert distance(compiled(proto, feeds, tmp_path, rounding="nearest"), proto, feeds) < 0.03


MASKED = {
    "added": ("u = Cast<to=1>(m) r = Sub(one, u) b = Mul(r, far) y = Add(s, b)", np.float32(-1e30)),
    "chosen": ("n = Not(m) y = Where(n, least, s)", np.finfo(np.float32).min),
    "chosen and moved": ("e = Where(m, s, low) y = Unsqueeze(e, at)", np.float32(-1e4)),
    "infinite": ("y = Where(m, s, below)", np.finfo(np.float32).min),
}


@pytest.mark.parametrize("form", MASKED)
def test_what_a_mask_sets_comes_out_as_it_is_and_costs_the_rest_nothing(form: str, tmp_path: Path) -> None:
    body, number = MASKED[form]
    shape = "float[a, b, c] y" if "moved" in form else "float[a, b] y"
    body = "h = MatMul(x, w) g = MatMul(h, v) s = Squeeze(g, ax) " + body
    proto = model(body, f"{X}, bool[batch, seq] m", shape, WEIGHTS)
    module = compiled(proto, FEEDS, tmp_path, rounding="nearest")
    module.save(tmp_path / "m.intc")
    session = intc.load(tmp_path / "m.intc")
    (ours,), (exact,) = session.run(None, FEEDS), module.graph.evaluate(FEEDS)
    np.testing.assert_array_equal(ours, exact)
    (theirs,) = expected(proto, FEEDS)
    kept = KEPT.reshape(theirs.shape)
    assert (ours[~kept] == number).all()
    assert np.linalg.norm((ours - theirs)[kept]) < 0.03 * np.linalg.norm(theirs[kept])
    assert fidelity(ours, theirs)["sqnr_db"] == pytest.approx(fidelity(ours[kept], theirs[kept])["sqnr_db"])
    (raw,) = session.run(None, FEEDS, raw=True)
    (port,) = session.get_outputs()
    assert ((raw == port.interval[0]) == ~kept).all()
    assert port.lowest == number


def test_the_largest_few_of_masked_and_of_forced_entries(tmp_path: Path) -> None:
    """Numbers far below and far above are compared with the others, and with the last that is chosen."""
    body = (
        "h = MatMul(x, w) c = Where(m, below, h) f = Where(n, above, c) best, i = TopK<axis=2>(f, k)"
        " t = Slice(best, two, k, ax) b = GreaterOrEqual(f, t) y = Where(b, h, zero)"
    )
    weights = {**WEIGHTS, "above": np.float32(np.inf), "two": np.array([2]), "zero": np.float32(0)}
    weights["n"] = np.arange(8) == 2
    proto = model(body, "float[batch, 6, 8] x, bool[batch, 1, 8] m", "float[a, b, c] y", weights)
    hidden = np.arange(8) >= np.random.default_rng(5).integers(4, 9, (48, 1, 1))
    feeds: Feeds = {"x": floats(48, 6, 8), "m": hidden}
    module = compiled(proto, feeds, tmp_path, rounding="nearest")
    (found,), (want,) = module.session().run(None, feeds), expected(proto, feeds)
    assert ((found != 0) == (want != 0)).mean() > 0.98
    assert ((found != 0).sum(-1) == 3).all()


def test_kept_numbers_beyond_the_range_are_no_masked_ones(tmp_path: Path) -> None:
    body = "h = MatMul(x, w) g = MatMul(h, v) s = Squeeze(g, ax) y = Where(m, s, far)"
    proto = model(body, f"{X}, bool[batch, seq] m", "float[a, b] y", WEIGHTS)
    module = compiled(proto, FEEDS, tmp_path, rounding="nearest")
    large = {"x": np.float32(1000) * FEEDS["x"], "m": np.ones_like(KEPT)}
    (found,) = module.session().run(None, large)
    np.testing.assert_array_equal(found, module.graph.evaluate(large)[0])
    assert found.min() > -1e4


def test_the_text_of_a_graph_keeps_the_lowest_number(tmp_path: Path) -> None:
    body = "h = MatMul(x, w) g = MatMul(h, v) s = Squeeze(g, ax) y = Where(m, s, far)"
    proto = model(body, f"{X}, bool[batch, seq] m", "float[a, b] y", WEIGHTS)
    graph = compiled(proto, FEEDS, tmp_path, rounding="nearest").graph
    text = print_graph(graph)
    again = parse_graph(text, side_tensors(graph), OPS.values())
    assert " lowest -1.0000000150474662e+30 = " in text
    assert print_graph(again) == text
    np.testing.assert_array_equal(again.evaluate(FEEDS)[0], graph.evaluate(FEEDS)[0])


LOGARITHMS = {
    "one operator": "q = Where(m, s, far) y = LogSoftmax(q)",
    "written out": (
        "u = Cast<to=1>(m) r = Sub(one, u) b = Mul(r, far) q = Add(s, b) l = ReduceMax<axes=[1]>(q)"
        " d = Sub(q, l) e = Exp(d) t = ReduceSum(e, at) f = Log(t) y = Sub(d, f)"
    ),
}


@pytest.mark.parametrize("form", LOGARITHMS)
def test_masked_logarithms_of_probabilities(form: str, tmp_path: Path) -> None:
    """What else is added to a masked value does not meet the mask."""
    body = "h = MatMul(x, w) g = MatMul(h, v) s = Squeeze(g, ax) " + LOGARITHMS[form]
    proto = model(body, f"{X}, bool[batch, seq] m", "float[a, b] y", WEIGHTS)
    module = compiled(proto, FEEDS, tmp_path, rounding="nearest")
    (found,), (wanted,) = module.session().run(None, FEEDS), expected(proto, FEEDS)
    np.testing.assert_array_equal(found, module.graph.evaluate(FEEDS)[0])
    assert (found[~KEPT] == np.float32(-1e30)).all()
    assert np.linalg.norm((found - wanted)[KEPT]) < 0.03 * np.linalg.norm(wanted[KEPT])


@pytest.mark.parametrize("function", ["Sigmoid", "Softplus"])
def test_functions_do_not_see_what_a_mask_sets(function: str, tmp_path: Path) -> None:
    head = "h = MatMul(x, w) g = MatMul(h, v) d = Div(g, four) s = Squeeze(d, ax) "
    body = f"{head} q = Where(m, s, low) y = {function}(q)"
    proto = model(body, f"{X}, bool[batch, seq] m", "float[a, b] y", WEIGHTS)
    module = compiled(proto, FEEDS, tmp_path, rounding="nearest")
    assert distance(module, proto, FEEDS) < 0.03


def test_sums_read_the_whole_range(tmp_path: Path) -> None:
    """Where anything but a maximum reads the number, it must be right itself."""
    body = "h = MatMul(x, w) p = Pad(h, pads, low) y = ReduceMax<axes=[2]>(p) z = ReduceMean<axes=[2]>(p)"
    proto = model(body, X, "float[a, b] y, float[c, d] z", WEIGHTS)
    feeds = {"x": FEEDS["x"]}
    means = compiled(proto, feeds, tmp_path, rounding="nearest").session().run(None, feeds)[1]
    wanted = expected(proto, feeds)[1]
    np.testing.assert_allclose(means, wanted, rtol=1e-3)


def test_many_choices_behind_one_another_are_looked_through_once(tmp_path: Path) -> None:
    body = "h0 = MatMul(x, w) " + " ".join(
        f"d{i} = Mul(h{i}, half) c{i} = Less(h{i}, d{i}) h{i + 1} = Where(c{i}, d{i}, h{i})"
        for i in range(40)
    )
    proto = model(body + " y = Mul(h40, one)", X, "float[a, b, c] y", {**WEIGHTS, "half": np.float32(0.999)})
    feeds = {"x": FEEDS["x"]}
    assert distance(compiled(proto, feeds, tmp_path, rounding="nearest"), proto, feeds) < 0.05


@pytest.mark.parametrize("low", ["low", "least"])
def test_a_logarithm_of_sums_where_a_mask_keeps_nothing(low: str, tmp_path: Path) -> None:
    """Gates by what attention summed up: 0 where nothing was kept."""
    body = (
        f"h = MatMul(x, w) t = Transpose<perm=[0, 2, 1]>(h) s = MatMul(x, t) u = Unsqueeze(m, at)"
        f" a = Where(u, s, {low}) l = ReduceLogSumExp<axes=[2], keepdims=1>(a) g = Sigmoid(l) y = Mul(x, g)"
    )
    proto = model(body, f"{X}, bool[batch, seq] m", "float[a, b, c] y", WEIGHTS)
    module = compiled(proto, FEEDS, tmp_path, rounding="nearest")
    assert distance(module, proto, FEEDS) < 0.05
    some = {**FEEDS, "m": KEPT & (np.arange(48) > 0)[:, None]}
    assert np.isfinite(module.session().run(None, some)[0]).all()
    nothing = compiled(proto, some, tmp_path, rounding="nearest")
    assert np.array_equal(nothing.session().run(None, some)[0], nothing.graph.evaluate(some)[0])


def test_rows_of_masked_tokens_stay_zeros_in_front_of_norms(tmp_path: Path) -> None:
    body = (
        "c = Cast<to=1>(m) u = Unsqueeze(c, ax) k = Mul(x, u) h = MatMul(k, w) i = MatMul(k, w2)"
        " g = Mul(h, i) o = MatMul(g, w3) n = SimplifiedLayerNormalization<axis=-1>(o, scale) y = Add(x, n)"
    )
    weights = {
        "w": floats(8, 32) / 3, "w2": floats(8, 32, seed=1) / 3, "w3": floats(32, 8) / 6,
        "scale": np.ones(8, np.float32), "ax": np.array([2]),
    }  # fmt: skip
    proto = model(body, f"{X}, bool[batch, seq] m", "float[a, b, c] y", weights)
    assert distance(compiled(proto, FEEDS, tmp_path), proto, FEEDS) < 0.05


def test_zeros_of_masked_tokens_pass_functions_on_their_way_to_a_norm(tmp_path: Path) -> None:
    body = (
        "c = Cast<to=1>(m) u = Unsqueeze(c, ax) p = Add(x, one) k = Mul(p, u) h = MatMul(k, w) s = Sigmoid(h)"
        " g = Mul(h, s) n = SimplifiedLayerNormalization<axis=-1, epsilon=1e-9>(g, scale) y = Add(n, one)"
    )
    weights = {
        "w": floats(8, 32) / 3, "scale": np.ones(32, np.float32), "ax": np.array([2]),
        "one": np.ones(1, np.float32),
    }  # fmt: skip
    proto = model(body, f"{X}, bool[batch, seq] m", "float[a, b, c] y", weights)
    module = compiled(proto, FEEDS, tmp_path, approximation="shift")  # with which no plan is searched
    assert distance(module, proto, FEEDS) < 0.05
