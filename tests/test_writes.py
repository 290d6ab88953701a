"""ScatterND and ScatterElements: boxes, known rows, and rows at positions that are read at run time, such as
those of a cache of fixed length. Each gives what onnxruntime gives, and compiles.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.errors import FeedError, ImportFailure, UnsupportedModel
from intc.frontend import import_onnx
from intc.passes.pipeline import canonicalise
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, expected, floats, model, operators

RNG = np.random.default_rng(53)


def close(folder: Path, proto: onnx.ModelProto, feeds: Feeds, others: Feeds | None = None) -> intc.Module:
    """``proto`` compiled on ``feeds``: the exact reference's bits, close to fp32, on ``others`` as well."""
    module = compiled(proto, [feeds], folder, rounding="nearest")
    for given in (feeds, others or feeds):
        assert distance(module, proto, given) < 0.03
    return module


def grid(*ranges: range) -> np.ndarray:
    return np.stack(np.meshgrid(*(np.array(r) for r in ranges), indexing="ij"), axis=-1).astype(np.int64)


def test_a_box_of_a_fixed_tensor_is_cut_and_joined(tmp_path: Path) -> None:
    body = "r = Relu(x) s = Relu(u) y = ScatterND(r, i, s)"
    inputs = "float[4, 6, 5] x, float[4, 3, 2] u"
    weights = {"i": grid(range(4), range(1, 4), range(3, 5))}
    feeds: Feeds = {"x": floats(4, 6, 5), "u": floats(4, 3, 2)}
    module = close(tmp_path, model(body, inputs, "float[4, 6, 5] y", weights), feeds)
    assert {"slice", "concat"} <= operators(module.graph).keys() and "gather" not in operators(module.graph)


def test_a_range_of_channels_at_any_batch_and_length() -> None:
    """What ``x[..., 2:5] = u`` is traced to."""
    body = (
        "r = Relu(x) d = Shape(r) b = Gather(d, zero) s = Gather(d, one) ib = Range(zero, b, one)"
        " is = Range(zero, s, one) ub = Reshape(ib, to_b) us = Reshape(is, to_s) uc = Reshape(channels, to_c)"
        " eb = Expand(ub, whole) k = Concat<axis=0>(b1, s1, three1)"
        " zb = Expand(ub, k) zs = Expand(us, k) zc = Expand(uc, k)"
        " tb = Unsqueeze(zb, last) ts = Unsqueeze(zs, last) tc = Unsqueeze(zc, last)"
        " i = Concat<axis=-1>(tb, ts, tc) y = ScatterND(r, i, u)"
    ).replace("eb = Expand(ub, whole) ", "b1 = Unsqueeze(b, first) s1 = Unsqueeze(s, first) ")
    weights: Feeds = {
        "zero": np.int64(0), "one": np.int64(1), "channels": np.arange(2, 5), "three1": np.array([3]),
        "to_b": np.array([-1, 1, 1]), "to_s": np.array([1, -1, 1]), "to_c": np.array([1, 1, -1]),
        "last": np.array([-1]), "first": np.array([0]),
    }  # fmt: skip
    inputs = "float[batch, seq, 6] x, float[batch, seq, 3] u"
    proto = model(body, inputs, "float[b2, s2, 6] y", weights)
    graph = import_onnx(proto)
    feeds: Feeds = {"x": floats(2, 5, 6), "u": floats(2, 5, 3)}
    np.testing.assert_array_equal(graph.evaluate(feeds)[0], expected(proto, feeds)[0])
    assert operators(graph) == {"relu": 1, "slice": 2, "concat": 1}


def test_known_rows_out_of_order(tmp_path: Path) -> None:
    body = "r = Relu(x) y = ScatterND(r, i, u)"
    weights = {"i": np.array([[3, 1], [-4, 0], [2, 2]])}
    inputs = "float[4, 3, 5] x, float[3, 5] u"
    feeds: Feeds = {"x": floats(4, 3, 5), "u": floats(3, 5)}
    close(tmp_path, model(body, inputs, "float[4, 3, 5] y", weights), feeds)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_cache_of_fixed_length(rows: int, tmp_path: Path) -> None:
    """Positions are an input; rows that are not written stay; negative positions count from the end."""
    body = (
        "t = Transpose<perm=[2, 0, 1, 3]>(cache) v = Transpose<perm=[2, 0, 1, 3]>(new)"
        " p = Unsqueeze(at, last) w = ScatterND(t, p, v) y = Transpose<perm=[1, 2, 0, 3]>(w)"
    )
    inputs = f"float[batch, 2, 8, 4] cache, float[batch, 2, {rows}, 4] new, int64[{rows}] at"
    proto = model(body, inputs, "float[b2, 2, 8, 4] y", {"last": np.array([-1])})
    feeds: Feeds = {"cache": floats(4, 2, 8, 4), "new": floats(4, 2, rows, 4), "at": np.arange(rows) + 2}
    others: Feeds = {**feeds, "at": np.array([-1, 0, 4])[:rows]}
    close(tmp_path, proto, feeds, others)


def test_elements_along_one_axis_at_positions_that_are_repeated() -> None:
    body = "e = Expand(at, shape) y = ScatterElements<axis=2>(cache, e, new)"
    inputs = "float[3, 2, 8, 4] cache, float[3, 2, 2, 4] new, int64[1, 1, 2, 1] at"
    proto = model(body, inputs, "float[3, 2, 8, 4] y", {"shape": np.array([3, 2, 2, 4])})
    feeds: Feeds = {
        "cache": floats(3, 2, 8, 4),
        "new": floats(3, 2, 2, 4),
        "at": np.array([6, 1]).reshape(1, 1, 2, 1),
    }
    np.testing.assert_array_equal(import_onnx(proto).evaluate(feeds)[0], expected(proto, feeds)[0])


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = ScatterND<reduction=\"add\">(x, i, u)", "only plain writes"),
        ("y = ScatterND(x, i, u)", "computed coordinates of several axes"),
        ("y = ScatterElements<axis=0>(x, e, x)", "differ along other axes"),
    ],
)  # fmt: skip
def test_other_writes_are_refused(body: str, reason: str) -> None:
    inputs = "float[40, 3] x, int64[2, 2] i, float[2] u, int64[40, 3] e"
    with pytest.raises(UnsupportedModel, match=reason):
        import_onnx(model(body, inputs, "float[40, 3] y", opset=18))


def test_one_place_of_every_row() -> None:
    """``mask[arange(batch), lengths] = 1``, as speech encoders mark where each sample ends."""
    body = (
        "d = Shape(x) b = Gather(d, first) r = Range(first, b, one) i = Unsqueeze(r, last)"
        " j = Unsqueeze(n, last) at = Concat<axis=1>(i, j) z = ConstantOfShape(d) y = ScatterND(z, at, u)"
    )
    weights = {"first": np.array(0), "one": np.array(1), "last": np.array([1])}
    proto = model(body, "float[batch, 8] x, int64[batch] n, float[batch] u", "float[a, b2] y", weights)
    canonical(proto, {"x": floats(5, 8), "n": np.array([3, 0, 7, -1, 2]), "u": floats(5)})


@pytest.mark.parametrize(("far", "count"), [(2**62, None), (-1, -1)])
def test_everything_moved_by_one(far: int, count: int | None) -> None:
    """``y[:, 1:] = x[:, :-1]``, where the positions are cut from a range of all."""
    body = (
        "r = Relu(x) d = Shape(r) b = Gather(d, zero) s = Gather(d, one) ib = Range(zero, b, one)"
        " is = Range(zero, s, one) cut = Slice(is, a1, far, a0) u = Slice(x, a0, last, a1) k = Shape(u)"
        " v = Slice(u, a0, end, a1) h = Shape(v) tb = Reshape(ib, to_b) eb = Expand(tb, h)"
        " es = Expand(cut, h) ub = Unsqueeze(eb, last) us = Unsqueeze(es, last) i = Concat<axis=-1>(ub, us)"
        " y = ScatterND(r, i, v)"
    )
    weights: Feeds = {
        "zero": np.int64(0), "one": np.int64(1), "a0": np.array([0]), "a1": np.array([1]),
        "far": np.array([far]), "last": np.array([-1]), "to_b": np.array([-1, 1]),
        "end": np.array([count or 2**62]),
    }  # fmt: skip
    x = np.random.default_rng(3).standard_normal((3, 7)).astype(np.float32)
    canonical(model(body, "float[batch, n] x", "float[batch, n] y", weights), {"x": x})


def test_a_part_of_an_axis_of_any_size_is_written() -> None:
    """What ``x[:, 2:5] = u`` is traced to; an input without five of them is refused."""
    body = (
        "r = Relu(x) d = Shape(r) b = Gather(d, zero) s = Gather(d, one) ib = Range(zero, b, one)"
        " all = Range(zero, s, one) is = Slice(all, two1, five1) ub = Reshape(ib, to_b)"
        " k = Unsqueeze(b, first)"
        " whole = Concat<axis=0>(k, three1) zb = Expand(ub, whole) zs = Expand(is, whole)"
        " tb = Unsqueeze(zb, last) ts = Unsqueeze(zs, last)"
        " i = Concat<axis=-1>(tb, ts) y = ScatterND(r, i, u)"
    )
    weights: Feeds = {
        "zero": np.int64(0), "one": np.int64(1), "two1": np.array([2]), "five1": np.array([5]),
        "three1": np.array([3]), "to_b": np.array([-1, 1]), "last": np.array([-1]), "first": np.array([0]),
    }  # fmt: skip
    proto = model(body, "float[batch, seq, 6] x, float[batch, 3, 6] u", "float[b2, s2, 6] y", weights)
    graph = import_onnx(proto)
    for length in (5, 9):
        feeds: Feeds = {"x": floats(2, length, 6), "u": floats(2, 3, 6)}
        np.testing.assert_array_equal(graph.evaluate(feeds)[0], expected(proto, feeds)[0])
    assert operators(graph) == {"relu": 1, "slice": 2, "concat": 1}
    with pytest.raises(FeedError):
        graph.evaluate({"x": floats(2, 4, 6), "u": floats(2, 3, 6)})


def test_positions_cut_where_no_operator_needs_them_are_refused() -> None:
    body = "d = Shape(x) s = Gather(d, zero) a = Range(zero, s, one) c = Slice(a, two1, five1)"
    body += " f = Cast<to=1>(c) y = Add(f, u)"
    weights: Feeds = {
        "zero": np.int64(0), "one": np.int64(1), "two1": np.array([2]), "five1": np.array([5])
    }  # fmt: skip
    with pytest.raises(ImportFailure, match="as if seq were at least 5, and no operator refuses a smaller"):
        import_onnx(model(body, "float[seq] x, float[3] u", "float[3] y", weights))


def test_a_row_of_sizes_is_written() -> None:
    """The shape that ``index_fill`` computes: that of its data but for one axis."""
    body = "d = Shape(x) t = ScatterElements<axis=0>(d, one, two) y = Expand(u, t)"
    weights: Feeds = {"one": np.array([1]), "two": np.array([2])}
    graph = import_onnx(model(body, "float[batch, 5, 6] x, float[6] u", "float[batch, 2, 6] y", weights))
    assert [str(d) for d in graph.type("y").shape] == ["batch", "2", "6"]


@pytest.mark.parametrize("count", [3, 20])
def test_the_largest_of_every_row(count: int, tmp_path: Path) -> None:
    """``mean[b, h, top] = rows``, as sparse attention writes its active queries; a shape is the largest of
    three.
    """
    body = (
        "v, top = TopK(s, k) d = Shape(s) n = Gather(d, zero) b = Range(zero, n, one)"
        " ub = Unsqueeze(b, behind) db = Shape(ub) dt = Shape(top) m = Max(db, dh, dt)"
        " eb = Expand(ub, m) eh = Expand(heads, m) et = Expand(top, m) tb = Unsqueeze(eb, last)"
        " th = Unsqueeze(eh, last) tt = Unsqueeze(et, last) i = Concat<axis=3>(tb, th, tt)"
        " y = ScatterND(x, i, u)"
    )
    weights: Feeds = {
        "k": np.array([count]), "zero": np.int64(0), "one": np.int64(1), "behind": np.array([1, 2]),
        "heads": np.arange(2).reshape(1, 2, 1), "dh": np.array([1, 2, 1]), "last": np.array([-1]),
    }  # fmt: skip
    inputs = f"float[batch, 2, 24] s, float[batch, 2, 24, 5] x, float[batch, 2, {count}, 5] u"
    proto = model(body, inputs, "float[b2, 2, 24, 5] y", weights)
    scores = RNG.permuted(np.tile(np.linspace(-1, 1, 24, dtype=np.float32), (4, 2, 1)), axis=2)
    close(tmp_path, proto, {"s": scores, "x": floats(4, 2, 24, 5), "u": floats(4, 2, count, 5)})


def test_columns_that_are_written_one_after_the_other(tmp_path: Path) -> None:
    """``x[..., 0] = x[..., 0] / w`` (SAM): a column is that of what was joined, at a scale of its own."""
    column = """c{k} = Slice({x}, n{k}, n{k1}, two) d{k} = Mul(c{k}, w) s{k} = Shape(d{k})
        i{k} = Expand(n{k}, s{k}) x{k1} = ScatterElements<axis=2>({x}, i{k}, d{k}) """
    body = column.format(x="x", k=0, k1=1) + column.format(x="x1", k=1, k1=2) + "m = MatMul(x2, p) y = Sin(m)"
    weights: Feeds = {f"n{k}": np.array([k]) for k in range(3)}
    weights |= {"two": np.array([2]), "w": np.float32(1 / 1024), "p": floats(2, 8) * 5}
    proto = model(body, "float[b, 3, 2] x", "float[b, 3, 8] y", weights)
    feeds: Feeds = {"x": RNG.uniform(0, 1024, size=(16, 3, 2)).astype(np.float32)}
    found = operators(canonicalise(import_onnx(proto)).graph)
    assert found["concat"] == 1 and "where" not in found and found["slice"] == 2
    close(tmp_path, proto, feeds)


def test_many_columns_written_one_after_the_other(tmp_path: Path) -> None:
    """The steps of a recurrence: each write reads both sides of what was written before."""
    body, count = "", 24
    for k in range(count):
        body += f"u{k} = Slice(u, n{k}, n{k + 1}, one) v{k} = Mul(u{k}, u{k}) "
        body += f"x{k + 1} = ScatterElements<axis=1>({f'x{k}' if k else 'x'}, i{k}, v{k}) "
    weights: Feeds = {f"n{k}": np.array([k]) for k in range(count + 1)} | {"one": np.array([1])}
    weights |= {f"i{k}": np.full((4, 1), k) for k in range(count)}
    size = f"float[4, {count}]"
    proto = model(f"{body} y = Tanh(x{count})", f"{size} x, {size} u", f"{size} y", weights)
    close(tmp_path, proto, {"x": floats(4, count), "u": floats(4, count)})
