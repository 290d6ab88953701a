"""Operators at the edge of models: log-probabilities, positions looked up in constants."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.errors import FeedError, UnsupportedModel
from intc.frontend import import_onnx
from intc.ops.conv import Conv
from intc.ops.window import MaxPool
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, expected, floats, model, operators


def test_log_probabilities(tmp_path: Path) -> None:
    weights: Feeds = {"w": floats(8, 6)}
    proto = model(
        "m = MatMul(x, w) y = LogSoftmax(m)", "float[batch, seq, 8] x", "float[b2, s2, 6] y", weights
    )
    feeds: Feeds = {"x": floats(32, 5, 8)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.02


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_elements_of_long_constants(axis: int) -> None:
    """More than the 64 choices that the reference implementation has."""
    table, index = floats(90, 90), np.random.default_rng(3).integers(-90, 90, (7, 5))
    body = f"g = GatherElements<axis={axis}>(table, index) y = Add(x, g)"
    proto = model(body, "float[7, 5] x", "float[7, 5] y", {"table": table, "index": index})
    graph = canonical(proto, {"x": floats(7, 5)})
    assert operators(graph) == {"add": 1}
    with pytest.raises(UnsupportedModel, match="an index lies outside the 90 entries"):
        import_onnx(model(body, "float[7, 5] x", "float[7, 5] y", {"table": table, "index": index + 90}))


def test_magnitudes_of_integers() -> None:
    """Of distances between blocks, say, of which logarithms choose a bias."""
    proto = model("a = Abs(i) f = Cast<to=1>(a) y = Mul(f, x)", "int64[n] i, float[n] x", "float[m] y")
    canonical(proto, {"i": np.array([-7, 0, 5]), "x": floats(3)})


def test_elements_of_a_part_of_the_other_axes() -> None:
    """Positions may have fewer entries than the data along the axes that they do not choose in."""
    index = np.random.default_rng(3).integers(-6, 6, (2, 9, 3, 1))
    proto = model(
        "g = GatherElements<axis=1>(x, i)", "float[2, 6, 4, 2] x, int64[2, 9, 3, 1] i", "float[2, 9, 3, 1] g"
    )
    graph = canonical(proto, {"x": floats(2, 6, 4, 2), "i": index})
    assert operators(graph) == {"slice": 2, "gather_elements": 1}


@pytest.mark.parametrize(
    ("attributes", "kernel"),
    [
        ("kernel_shape=[2560,2560], strides=[2560,2560], ceil_mode=1", (5, 7)),
        ("kernel_shape=[9,12], strides=[9,12], ceil_mode=1, pads=[1,2,0,0], count_include_pad=1", (6, 9)),
        ("kernel_shape=[9,7], pads=[1,0,3,0]", (5, 7)),
    ],
)
def test_windows_larger_than_the_image(attributes: str, kernel: tuple[int, int]) -> None:
    """Only what counts of a window is laid out: EfficientNets end in means over 2560 x 2560."""
    for pool in ("AveragePool", "MaxPool"):
        given = attributes.replace(", count_include_pad=1", "") if pool == "MaxPool" else attributes
        proto = model(f"y = {pool}<{given}>(x)", "float[batch, 3, 5, 7] x", "float[b, 3, 1, 1] y")
        graph = canonical(proto, {"x": floats(2, 3, 5, 7)})
        if pool == "MaxPool":
            (largest,) = (n.op for n in graph.nodes if isinstance(n.op, MaxPool))
            assert largest.kernel == (5, 7)
        else:
            (mean,) = (n for n in graph.nodes if isinstance(n.op, Conv))
            assert graph.type(mean.inputs[1]).shape[2:] == kernel


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_one_hot(axis: int) -> None:
    body = f"h = OneHot<axis={axis}>(i, depth, values) y = Mul(h, two)"
    weights: Feeds = {"depth": np.array([4]), "values": np.array([0.5, 3], np.float32), "two": np.float32(2)}
    proto = model(body, "int64[batch, seq] i", "float[a, b, c] y", weights)
    canonical(proto, {"i": np.array([[0, 3, -1], [2, 5, -4]])})


@pytest.mark.parametrize("k", [0, 1, -2])
def test_identity_of_any_length(k: int) -> None:
    body = "d = Shape(x) n = Gather(d, at) s = Concat<axis=0>(n, n) z = ConstantOfShape(s)"
    body += f" e = EyeLike<k={k}>(z) y = Add(x, e)"
    proto = model(body, "float[batch, seq, seq] x", "float[b2, s2, s3] y", {"at": np.array([1])})
    canonical(proto, {"x": floats(2, 5, 5)})


def test_positions_that_count_down() -> None:
    body = "d = Shape(x) n = Gather(d, at) r = Range(n, zero, minus) f = Cast<to=1>(r) y = Add(x, f)"
    weights = {"at": np.int64(1), "zero": np.int64(0), "minus": np.int64(-1)}
    canonical(model(body, "float[batch, seq] x", "float[b2, s2] y", weights), {"x": floats(2, 5)})


def test_parts_of_a_joined_axis_of_any_length() -> None:
    """Tokens in front, which are cut off again: by Slice, and by Split at a computed size."""
    body = "z = Concat<axis=1>(front, x) d = Shape(x) n = Gather(d, at) p = Concat<axis=0>(four, n)"
    body += " a, b = Split<axis=1>(z, p) c = Slice(z, zero, four, axis)"
    body += " s = ReduceSum<keepdims=1>(c, axis) t = Mul(a, s)"
    body += " u = ReduceSum<keepdims=1>(t, axis) y = Add(b, u)"
    numbers = {"at": 1, "four": 4, "zero": 0, "axis": 1}
    weights = {"front": floats(1, 4, 3), **{k: np.array([v]) for k, v in numbers.items()}}
    proto = model(body, "float[1, seq, 3] x", "float[1, s2, 3] y", weights)
    canonical(proto, {"x": floats(1, 2, 3)})


def test_columns_of_one_input_that_choose_from_tables_of_different_sizes(tmp_path: Path) -> None:
    body = "a = Gather<axis=1>(ids, zero) b = Gather<axis=1>(ids, one)"
    body += " p = Gather(small, a) q = Gather(large, b) z = Concat<axis=1>(p, q) y = MatMul(z, w)"
    weights = {"zero": np.int64(0), "one": np.int64(1), "w": floats(8, 6)}
    weights |= {"small": floats(3, 4), "large": floats(9, 4)}
    proto = model(body, "int64[batch, 2] ids", "float[batch, 6] y", weights)
    rng = np.random.default_rng(0)
    feeds = {"ids": np.stack([rng.integers(0, 3, 32), rng.integers(0, 9, 32)], axis=1)}
    module = compiled(proto, feeds, tmp_path)
    assert distance(module, proto, feeds) < 0.02
    with pytest.raises(FeedError, match=r"outside \[0, 8\]"):
        module.session().run(None, {"ids": np.array([[0, 9]])})


def test_known_coordinates_of_the_first_axes() -> None:
    """Pairs below the diagonal, as torch exports ``x[:, rows, columns]``."""
    pairs = np.stack(np.tril_indices(4, -1), axis=-1)
    body = "t = Transpose<perm=[1, 2, 0]>(x) g = GatherND(t, pairs) y = Transpose<perm=[1, 0]>(g)"
    proto = model(body, "float[batch, 4, 4] x", "float[b, 6] y", {"pairs": pairs})
    canonical(proto, {"x": floats(3, 4, 4)})
    with pytest.raises(UnsupportedModel, match="an index lies outside the 4x4 entries"):
        import_onnx(model(body, "float[batch, 4, 4] x", "float[b, 6] y", {"pairs": pairs + 2}))


@pytest.mark.parametrize("equation", ["bii->bi", "bii,bid->bd", "bii->b"])
def test_diagonals(equation: str) -> None:
    second = ", x" if "," in equation else ""
    shape = {"bi": "batch, n", "bd": "batch, n", "b": "batch"}[equation.partition("->")[2]]
    body = f'r = Relu(x) y = Einsum<equation="{equation}">(r{second})'
    proto = model(body, "float[batch, n, n] x", f"float[{shape}] y")
    canonical(proto, {"x": floats(2, 5, 5)})


def test_a_reversed_axis_of_any_length() -> None:
    """What ``flip`` is exported as."""
    body = "r = Relu(x) y = Slice(r, ends, starts, axes, steps)"
    weights = {
        "ends": np.array([-1, -1]), "starts": np.array([-(2**63) + 1, -(2**63) + 1]),
        "axes": np.array([1, 2]), "steps": np.array([-1, -1]),
    }  # fmt: skip
    proto = model(body, "float[batch, n, 4] x", "float[batch, n, 4] y", weights)
    graph = canonical(proto, {"x": floats(2, 5, 4)})
    assert operators(graph) == {"relu": 1, "slice": 2}


def test_a_padding_mask_of_int32_numbers() -> None:
    """``1 - mask``, which nothing keeps within 32 bits, is computed in 64 and wraps."""
    body = "m = Sub(one, mask) k = Cast<to=9>(m) u = Unsqueeze(k, axis) s = Where(u, inf, x) y = Softmax(s)"
    weights = {"one": np.int32(1), "axis": np.array([1]), "inf": np.float32(-np.inf)}
    proto = model(body, "float[batch, n, n] x, int32[batch, n] mask", "float[batch, n, n] y", weights)
    feeds = {"x": floats(2, 5, 5), "mask": np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]], np.int32)}
    graph = canonical(proto, feeds)
    assert operators(graph).keys() == {"cast", "reshape", "softmax"}


def test_every_second_entry_of_an_axis_that_must_be_even() -> None:
    body = "a = Slice(x, zero, last, one, two) b = Slice(x, one, last, one, two) y = Add(a, b)"
    weights = {
        "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "last": np.array([2**63 - 1])
    }  # fmt: skip
    proto = model(body, "float[batch, n, 3] x", "float[batch, half, 3] y", weights)
    assert str(import_onnx(proto).type("x").shape[1]) == "2*n_by_2"


def test_running_sums_of_constants_along_an_axis_of_one_element() -> None:
    """What legacy exports of `diagonal` write."""
    body = "c = CumSum(w, axis) f = Cast<to=1>(c) y = Mul(x, f)"
    weights = {"w": np.arange(4), "axis": np.array([0])}
    canonical(model(body, "float[batch, 4] x", "float[batch, 4] y", weights), {"x": floats(2, 4)})


@pytest.mark.parametrize(
    ("attributes", "rows"),
    [
        ("strides=[1, 1], pads=[1, 1, 1, 1]", 64),
        ("strides=[2, 2]", 9),
        ("strides=[2, 3], pads=[0, 1, 1, 1], dilations=[1, 2]", 8),
    ],
)
def test_patches_that_overlap_add_up(attributes: str, rows: int) -> None:
    """What `fold` is exported as."""
    body = f"r = Relu(x) y = Col2Im<{attributes}>(r, image, block)"
    weights = {"image": np.array([8, 8]), "block": np.array([3, 3])}
    proto = model(body, f"float[batch, 18, {rows}] x", "float[batch, 2, 8, 8] y", weights, opset=18)
    graph = import_onnx(proto)
    feeds: Feeds = {"x": floats(2, 18, rows)}
    np.testing.assert_allclose(graph.evaluate(feeds)[0], expected(proto, feeds)[0], atol=1e-5)


def test_constants_of_brain_floats_become_float32() -> None:
    body = "c = Cast<to=16>(w) r = Sqrt(c) h = Cast<to=16>(x) m = Mul(h, r) y = Cast<to=1>(m)"
    proto = model(
        body, "float[batch, 4] x", "float[batch, 4] y", {"w": np.arange(1, 5, dtype=np.float32) ** 2}
    )
    (found,) = import_onnx(proto).evaluate({"x": np.ones((2, 4), np.float32)})
    np.testing.assert_array_equal(found, np.tile(np.arange(1, 5), (2, 1)))


def test_buckets_of_any_integers_are_counted(tmp_path: Path) -> None:
    """Logarithms of times that have passed, cut to whole numbers, choose rows of a table."""
    body = (
        "d = Sub(a, b) m = Abs(d) p = Max(m, one) f = Cast<to=1>(p) l = Log(f) s = Div(l, share)"
        " i = Cast<to=7>(s) t = Min(i, last) y = Gather(rows, t)"
    )
    weights = {"one": np.int64(1), "share": np.float32(0.301), "last": np.int64(16), "rows": floats(17, 4)}
    proto = model(body, "int64[batch, n] a, int64[batch, n] b", "float[batch, n, 4] y", weights)
    rng = np.random.default_rng(8)
    a, b = (np.exp(rng.uniform(0, 14, (32, 9))).astype(np.int64) for _ in range(2))
    feeds: Feeds = {"a": a, "b": b}
    canonical(proto, feeds)
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.001
