"""Image and sequence operators at any size: steps, windows, resizing and padding of free sizes.

Each model's float graph gives what onnxruntime gives at two sizes; some are compiled, and their kernels give
the exact reference's bits.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.errors import FeedError, GraphError, IntcError
from intc.frontend import import_onnx
from intc.ir.bound import admissible
from intc.ir.dims import exact_div, symbol
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, expected, floats, model

N, M = symbol("n"), symbol("m")
SEQUENCE, IMAGE = "float[batch, 6, n] x", "float[batch, 3, n, m] x"
W1, W2 = floats(8, 6, 3) / 4, floats(8, 3, 3, 3) / 5
CONV = "y = Conv<strides=[2,2], pads=[1,1,1,1]>(x, w)"
# the last axis n, filled up with zeros to whole chunks of eight: pads that are (8 - n % 8) % 8 and a number
CHUNKED = (
    "s = Shape(x) n = Gather(s, last) r = Mod(n, eight) d = Sub(eight, r) m = Mod(d, eight)"
    " p = Concat<axis=0>(none, m) c = Pad(x, p)"
)
CHUNKS: Feeds = {
    "last": np.array([2]), "eight": np.array([8]), "none": np.zeros(5, int), "ch": np.array([0, 6, -1, 8]),
    "one": np.array([0, 6, 8]), "h": floats(8, 8) / 3,
}  # fmt: skip
# name: (body, input, weights, sizes that it takes, sizes that it refuses)
FORMS: dict[str, tuple[str, str, Feeds, tuple[tuple[int, ...], ...], tuple[int, ...] | None]] = {
    "audio stem": (
        "a = Conv<strides=[5]>(x, k) r = Relu(a) y = Conv<strides=[2]>(r, w)",
        SEQUENCE, {"k": floats(6, 6, 10) / 8, "w": W1}, ((2, 6, 40), (1, 6, 57)), (1, 6, 19),
    ),
    "image stem": (CONV, IMAGE, {"w": W2}, ((2, 3, 8, 9), (1, 3, 7, 12)), None),
    "SAME in steps": (
        'y = Conv<strides=[2,2], auto_pad="SAME_UPPER">(x, w)',
        IMAGE, {"w": W2}, ((2, 3, 8, 10), (1, 3, 6, 4)), (1, 3, 7, 4),
    ),
    "depthwise": (
        "y = Conv<strides=[2,1], group=3, pads=[1,0,1,0]>(x, w)",
        IMAGE, {"w": floats(6, 1, 3, 2) / 2}, ((2, 3, 8, 9), (1, 3, 7, 5)), (1, 3, 7, 1),
    ),
    "windows": (
        "p = MaxPool<kernel_shape=[3,2], strides=[2,2], pads=[1,0,1,0]>(x)"
        " y = AveragePool<kernel_shape=[2,1], count_include_pad=1, pads=[1,0,0,0]>(p)",
        IMAGE, {}, ((2, 3, 8, 9), (1, 3, 7, 4)), (1, 3, 7, 1),
    ),
    "means of what is inside": (
        "y = AveragePool<kernel_shape=[3,2], strides=[2,1], pads=[1,0,1,1]>(x)",
        IMAGE, {}, ((2, 3, 8, 9), (1, 3, 3, 2)), None,
    ),
    "the last window reaches over the end": (
        "p = MaxPool<kernel_shape=[3,2], strides=[2,2], pads=[0,1,1,0], ceil_mode=1>(x)"
        " y = AveragePool<kernel_shape=[2,3], strides=[2,3], ceil_mode=1>(p)",
        IMAGE, {}, ((2, 3, 8, 9), (1, 3, 7, 4)), None,
    ),
    "means of what is inside a sequence": (
        'y = AveragePool<kernel_shape=[3], strides=[1], auto_pad="SAME_UPPER">(x)',
        SEQUENCE, {}, ((2, 6, 9), (1, 6, 2)), None,
    ),
    "whole chunks": (
        CHUNKED + " k = Reshape(c, ch) y = MatMul(k, h)",
        SEQUENCE, CHUNKS, ((2, 6, 9), (1, 6, 16), (2, 6, 1)), None,
    ),
    "one chunk": (
        CHUNKED + " k = Reshape(c, one) y = MatMul(k, h)",
        SEQUENCE, CHUNKS, ((2, 6, 5), (1, 6, 8), (2, 6, 1)), (1, 6, 9),
    ),
    "vocoder": (
        "y = ConvTranspose<strides=[4], pads=[2,2]>(x, w, b)",
        SEQUENCE, {"w": floats(6, 4, 8) / 4, "b": floats(4)}, ((2, 6, 5), (1, 6, 1)), None,
    ),
    "transposed, dilated in groups": (
        "y = ConvTranspose<strides=[3], pads=[1,2], output_padding=[2], dilations=[2], group=2>(x, w)",
        SEQUENCE, {"w": floats(6, 4, 3)}, ((2, 6, 5), (1, 6, 2)), None,
    ),
    "transposed image": (
        "y = ConvTranspose<strides=[2,1], output_padding=[1,0]>(x, w)",
        IMAGE, {"w": floats(3, 4, 3, 2)}, ((2, 3, 4, 5), (1, 3, 1, 2)), None,
    ),
    "nearest": (
        'y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">'
        "(x, , scales)",
        IMAGE, {"scales": np.array([1, 1, 2, 3], np.float32)}, ((2, 3, 4, 5), (1, 3, 1, 2)), None,
    ),
    "bilinear": (
        'y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, , scales)',
        IMAGE, {"scales": np.array([1, 1, 2, 4], np.float32)}, ((2, 3, 4, 5), (1, 3, 1, 2)), None,
    ),
    "half as large": (
        'y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, , scales)',
        IMAGE, {"scales": np.array([1, 1, 0.5, 1], np.float32)}, ((2, 3, 4, 5), (1, 3, 7, 2)), None,
    ),
    "half as large again": (
        'y = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, , scales)',
        IMAGE, {"scales": np.array([1, 1, 1.5, 0.75], np.float32)}, ((2, 3, 4, 8), (1, 3, 2, 4)),
        (1, 3, 3, 4),
    ),
    "corners stay": (
        'y = Resize<mode="linear", coordinate_transformation_mode="align_corners">(x, , scales)',
        IMAGE, {"scales": np.array([1, 1, 2, 1], np.float32)}, ((2, 3, 4, 8), (1, 3, 7, 1), (1, 3, 1, 2)),
        None,
    ),
    "to another size": (
        "s = Shape<start=3>(x) t = Concat<axis=0>(b, s, s)"
        ' y = Resize<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">(x, , , t)',
        "float[2, 3, n, m] x", {"b": np.array([2, 3])}, ((2, 3, 4, 9), (2, 3, 9, 4), (2, 3, 2, 5)),
        (2, 3, 4, 5000),
    ),
    "to another size, rounded": (
        "s = Shape<start=3>(x) t = Concat<axis=0>(b, s, s)"
        ' y = Resize<mode="nearest", coordinate_transformation_mode="half_pixel">(x, , , t)',
        "float[2, 3, n, m] x", {"b": np.array([2, 3])}, ((2, 3, 4, 9), (2, 3, 9, 4), (2, 3, 2, 5)), None,
    ),
    "to another size, as torch rounds": (
        "s = Shape<start=3>(x) t = Concat<axis=0>(b, s, s) y = Resize<mode=\"nearest\","
        ' coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , , t)',
        "float[2, 3, n, m] x", {"b": np.array([2, 3])}, ((2, 3, 4, 9), (2, 3, 9, 4), (2, 3, 2, 5)), None,
    ),
    "mirrored": (
        'y = Pad<mode="reflect">(x, pads)',
        SEQUENCE, {"pads": np.array([0, 0, 2, 0, 0, 3])}, ((2, 6, 9), (1, 6, 4)), (1, 6, 3),
    ),
    "last entries repeated": (
        'y = Pad<mode="edge">(x, pads)',
        SEQUENCE, {"pads": np.array([0, 0, 2, 0, 0, 3])}, ((2, 6, 9), (1, 6, 1)), None,
    ),
    "every second entry": (
        "a = Slice(x, one, far, two, step) b = Slice(x, zero, far, two, step) s = Shape(a)"
        " c = ReduceSum(a, two) d = ReduceSum(b, two) y = Sub(c, d)",
        SEQUENCE,
        {"zero": np.array([0]), "one": np.array([1]), "two": np.array([2]), "step": np.array([2]),
         "far": np.array([2**62])},
        ((2, 6, 9), (1, 6, 4)), None,
    ),
    "the first five": (
        "y = Slice(x, zero, five, two)",
        SEQUENCE, {"zero": np.array([0]), "five": np.array([5]), "two": np.array([2])},
        ((2, 6, 9), (1, 6, 5)), (1, 6, 4),
    ),
    "blocks of four": (
        "y = Reshape(x, shape)",
        SEQUENCE, {"shape": np.array([0, 6, -1, 4])}, ((2, 6, 8), (1, 6, 12)), (1, 6, 10),
    ),
    "half of a length": (
        "s = Shape<start=2, end=3>(x) h = Div(s, two) y = Slice(x, h, s, two)",
        SEQUENCE, {"two": np.array([2])}, ((2, 6, 9), (1, 6, 4)), None,
    ),
    "up and down again": (
        "p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(x) u = ConvTranspose<strides=[2,2]>(p, w)"
        " y = Concat<axis=1>(u, x)",
        IMAGE, {"w": floats(3, 2, 2, 2)}, ((2, 3, 8, 6), (1, 3, 2, 4)), (1, 3, 8, 5),
    ),
    "normalised groups": (
        "y = InstanceNormalization(x, w, b)",
        IMAGE, {"w": floats(3), "b": floats(3, seed=1)}, ((2, 3, 4, 5), (1, 3, 9, 2)), None,
    ),
    "mean of an image": (
        "y = GlobalAveragePool(x)", IMAGE, {}, ((2, 3, 4, 5), (1, 3, 9, 2)), None,
    ),
    "largest few": (
        "v, y = TopK<axis=2>(x, k)", SEQUENCE, {"k": np.array([3])}, ((2, 6, 9), (1, 6, 3)), (1, 6, 2),
    ),
    "frames": (
        "c = Conv<strides=[2,1,1]>(x, w) y = MaxPool<kernel_shape=[2,2,1], strides=[1,2,1]>(c)",
        "float[batch, 2, f, n, m] x", {"w": floats(4, 2, 2, 2, 2)}, ((2, 2, 6, 5, 4), (1, 2, 5, 3, 2)),
        (1, 2, 3, 3, 2),
    ),
    "transposed frames": (
        "y = ConvTranspose<strides=[2,1,2], pads=[1,0,0,0,1,0], group=2>(x, w, b)",
        "float[batch, 2, f, n, m] x", {"w": floats(2, 3, 3, 2, 2), "b": floats(6)},
        ((2, 2, 4, 3, 5), (1, 2, 2, 2, 1)), None,
    ),
    "a stem's length by hand": (
        "a = Conv<strides=[2]>(x, k) c = Conv<strides=[2]>(a, w) s = Shape<start=2>(x) d = Sub(s, three)"
        " q = Div(d, four) t = Concat<axis=0>(b, q) y = Reshape(c, t)",
        SEQUENCE, {"k": floats(6, 6, 3) / 4, "w": W1, "three": np.array([3]), "four": np.array([4]),
         "b": np.array([0, 8])}, ((2, 6, 40), (1, 6, 13)), (1, 6, 6),
    ),
    "repeated for all but three": (
        "c = ReduceMean<axes=[2]>(x) s = Shape<start=2>(x) n = Sub(s, three) t = Concat<axis=0>(b, n)"
        " y = Expand(c, t)",
        SEQUENCE, {"three": np.array([3]), "b": np.array([1, 1])}, ((2, 6, 9), (1, 6, 4)), (1, 6, 2),
    ),
    "means of frames": (
        "y = AveragePool<kernel_shape=[2,2,2], strides=[2,1,2], pads=[1,0,0,0,1,0]>(x)",
        "float[batch, 2, 4, 5, 6] x", {}, ((2, 2, 4, 5, 6),), None,
    ),
}  # fmt: skip
COMPILED = (
    "audio stem", "windows", "means of what is inside", "vocoder", "bilinear", "half as large again",
    "up and down again", "corners stay", "transposed frames", "whole chunks",
    "repeated for all but three", "one chunk",
)  # fmt: skip


def proto_of(name: str) -> onnx.ModelProto:
    body, given, weights = FORMS[name][:3]
    kind = "int64" if name == "largest few" else "float"
    ranks = {"blocks of four": 4, "whole chunks": 4, "every second entry": 2}
    rank = ranks.get(name, given.count(",") + 1)
    sizes = ", ".join(f"o{i}" for i in range(rank))
    return model(body, given, f"{kind}[{sizes}] y", weights)


@pytest.mark.parametrize("name", FORMS)
def test_the_float_graph_takes_every_size(name: str) -> None:
    _, _, _, sizes, refused = FORMS[name]
    proto = proto_of(name)
    for size in sizes:
        canonical(proto, {"x": floats(*size)})
    if refused is not None:
        with pytest.raises(FeedError):
            import_onnx(proto).evaluate({"x": floats(*refused)})


@pytest.mark.parametrize("name", COMPILED)
def test_kernels_give_the_bits_of_the_reference(name: str, tmp_path: Path) -> None:
    _, _, _, sizes, refused = FORMS[name]
    proto = proto_of(name)
    onnx.save(proto, tmp_path / "m.onnx")
    module = intc.compile(tmp_path / "m.onnx", {"x": floats(16, *sizes[0][1:])}, rounding="nearest")
    module.save(tmp_path / "m.intc")
    session = intc.load(tmp_path / "m.intc", threads=2)
    for size in sizes:
        feeds = {"x": floats(*size)}
        (found,), (exact,) = session.run(None, feeds), module.graph.evaluate(feeds)
        assert np.array_equal(found, exact)
        want = expected(proto, feeds)[0]
        assert np.linalg.norm(found - want) < 0.06 * np.linalg.norm(want)
    if refused is not None:
        told = r"too small|at most 8$|expected \[batch, 3, 2\*n_by_2, [24]\*m_by_[24]\]"
        with pytest.raises(FeedError, match=told):
            session.run(None, {"x": floats(*refused)})


def test_sizes_are_chosen_that_windows_fit() -> None:
    assert admissible(import_onnx(proto_of("audio stem")), {"batch": 1, "n": 2}) == {"batch": 1, "n": 20}


@pytest.mark.parametrize(
    ("body", "inputs", "size"),
    [
        # 5 tokens in front of a text; the exporter wrote the length that it traced
        ("c = Concat<axis=1>(p, x) y = Reshape(c, heads)", "float[3, 5, 6] p, float[3, text, 6] x", "8"),
        # the batch of another input under a name of its own, behind the length
        ("a = Shape(x) b = Gather(a, first) h = Mul(b, three) d = Shape(u) n = Gather(d, first)"
         " t = Concat<axis=0>(n, h, two) y = Reshape(u, t)",
         "float[batch, 6] x, float[length, other, 6] u", ""),
    ],
)  # fmt: skip
def test_a_size_that_a_reshape_leaves_only_one_value(body: str, inputs: str, size: str) -> None:
    given = {"heads": [3, 13, 3, 2], "first": [0], "three": [3], "two": [2]}
    weights = {k: np.array(v) for k, v in given.items() if k in body}
    outputs = "float[a, b, c, d] y" if "heads" in body else "float[a, b, c] y"
    graph = import_onnx(model(body, inputs, outputs, weights))
    first, second = (graph.type(x).shape for x in graph.inputs)
    assert str(second[1]) == size or second[1] == first[0]


@pytest.mark.parametrize(
    ("body", "names", "shapes"),
    [
        # a mask for each head: [n, 4, m] and [4*s, t] are n = s and m = t
        (
            "d = Shape(x) b = Gather(d, at) f = Mul(b, four) o = Gather(d, next) c = Concat<axis=0>(f, o)"
            " p = Gather(d, two) r = Concat<axis=0>(c, p) g = Unsqueeze(x, next) h = Expand(g, whole)"
            " q = Reshape(h, r) t = Unsqueeze(k, next) e = Expand(t, heads) v = Reshape(e, c)"
            " z = Unsqueeze(v, two) y = Mul(q, z)",
            "float[s, t, 3] x, float[n, m] k",
            ((2, 5, 3), (2, 5)),
        ),
        # every second position of both
        ("a = Slice(x, at, far, next, step) b = Slice(k, at, far, next, step) y = Add(a, b)",
         "float[s, t] x, float[s, m] k", ((2, 7), (2, 7))),
    ],
)  # fmt: skip
def test_sizes_that_differ_by_name_alone(body: str, names: str, shapes: tuple[tuple[int, ...], ...]) -> None:
    weights: Feeds = {"at": np.array([0]), "next": np.array([1]), "two": np.array([2]), "four": np.array([4])}
    weights |= {"heads": np.array([1, 4, 1]), "far": np.array([99999]), "step": np.array([2])}
    weights["whole"] = np.array([1, 4, 1, 1])
    proto = model(body, names, "float[a, b, c] y" if "Mul" in body else "float[a, b] y", weights, opset=18)
    graph = canonical(proto, {name: floats(*shape) for name, shape in zip("xk", shapes, strict=True)})
    (x, k) = (graph.type(name).shape for name in graph.inputs)
    assert x[:2] == k


def test_sums_of_sizes_agree_in_the_order_of_the_inputs() -> None:
    """Text and image, and their positions, each under a size of its own."""
    body = "a = Concat<axis=1>(u, x) b = Concat<axis=1>(v, z) y = Mul(a, b)"
    names = "float[n, j, 3] x, float[n, k, 3] u, float[n, c, 3] z, float[n, a, 3] v"
    graph = import_onnx(model(body, names, "float[n, s, 3] y"))
    x, u, z, v = (graph.type(name).shape for name in graph.inputs)
    assert x == z
    assert u == v
    assert x[1] != u[1]


def test_a_product_of_halves_is_divided() -> None:
    """Pixels unshuffled by a reshape to computed halves: both sides are even."""
    body = (
        "d = Shape(x) n = Gather(d, at) h = Gather(d, next) w = Gather(d, two) i = Div(h, two)"
        " j = Div(w, two) s = Concat<axis=0>(n, four, i, j) y = Reshape(x, s)"
    )
    weights = {"at": np.array([0]), "next": np.array([1]), "two": np.array([2]), "four": np.array([-1])}
    graph = canonical(model(body, "float[n, h, w] x", "float[a, b, c, d] y", weights), {"x": floats(2, 6, 4)})
    assert [str(d) for d in graph.type("x").shape] == ["n", "2*h_by_2", "2*w_by_2"]


def test_a_part_that_is_added_to_the_whole_bounds_the_length() -> None:
    """x[:, :min(n, 16)] + x works up to 16 only, which something must refuse."""
    head = "d = Shape(x) n = Gather(d, next) l = Min(n, most)"
    body = " a = Slice(x, at, l, next) y = Add(a, x)"
    weights = {"at": np.array([0]), "most": np.array([16]), "next": np.array([1])}
    with pytest.raises(IntcError, match="which of n and 16 is smaller"):
        import_onnx(model(head + body, "float[batch, n] x", "float[b, c] y", weights))
    table = " i = Slice(rows, at, n, at) c = Add(x, i) a = Slice(c, at, l, next) y = Add(a, c)"
    weights["rows"] = floats(12)
    graph = import_onnx(model(head + table, "float[batch, n] x", "float[b, c] y", weights))
    assert graph.limits()[N] == 12


def test_sizes_are_divided_by_sums_of_sizes() -> None:
    assert exact_div(4 * N * M * M + 136 * N * M + 1156 * N, N * M * M + 34 * N * M + 289 * N) == 4
    assert exact_div((N + M) * (N + 1) * (3 * M - 2), N + M) == (N + 1) * (3 * M - 2)
    for size, divisor in ((N * N + 1, N + 1), (N, N + 1), (N * M + M, N + 2)):
        with pytest.raises(GraphError, match="cannot be divided"):
            exact_div(size, divisor)


# rows -4 to 4 around the diagonal, filled up with zeros or cut where the text is longer or shorter
RELATIVE = (
    "d = Shape(x) n = Gather(d, next) a = Sub(n, five) b = Max(a, none) o = Unsqueeze(b, at)"
    " p = Concat<axis=0>(o, zero, o, zero) r = Pad(rows, p) e = Sub(five, n) s = Max(e, none)"
    " h = Unsqueeze(s, at) t = Mul(n, two) u = Add(s, t) v = Sub(u, one) w = Unsqueeze(v, at)"
    " q = Slice(r, h, w, at) k = Transpose<perm=[1, 0]>(q) y = MatMul(x, k)"
)
RELATIVE_WEIGHTS: Feeds = {
    "next": np.int64(1), "five": np.int64(5), "none": np.int64(0), "at": np.array([0]), "zero": np.array([0]),
    "rows": floats(9, 8), "two": np.int64(2), "one": np.int64(1),
}  # fmt: skip


def test_relative_positions_that_are_filled_up_or_cut(tmp_path: Path) -> None:
    """max(0, n - 5) and max(0, 5 - n) in one model, as VITS has them."""
    proto = model(RELATIVE, "float[batch, n, 8] x", "float[a, b, c] y", RELATIVE_WEIGHTS)
    for length in (3, 5, 9):
        feeds = {"x": floats(2, length, 8)}
        canonical(proto, feeds)
    module = compiled(proto, {"x": floats(16, 9, 8)}, tmp_path, rounding="nearest")
    for length in (1, 5, 7):
        feeds = {"x": floats(2, length, 8)}
        assert np.array_equal(module.session().run(None, feeds)[0], module.graph.evaluate(feeds)[0])
        assert distance(module, proto, feeds) < 0.03


def test_pads_that_are_turned() -> None:
    """Pads in torch's order, last axis first, as pairs in a matrix of sizes."""
    body = (
        "d = Shape(x) n = Gather(d, next) m = Mod(n, eight) l = Sub(eight, m) o = Unsqueeze(l, at)"
        " p = Concat<axis=0>(zero, zero, zero, o, zero, zero) r = Reshape(p, pairs)"
        " f = Slice(r, back, first, at, back) t = Transpose<perm=[1, 0]>(f) v = Reshape(t, back)"
        " y = Pad(x, v)"
    )
    weights: Feeds = {
        "next": np.int64(1), "eight": np.int64(8), "at": np.array([0]), "zero": np.array([0]),
        "pairs": np.array([-1, 2]), "back": np.array([-1]), "first": np.array([-(2**63)]),
    }  # fmt: skip
    canonical(model(body, "float[batch, n, 3] x", "float[a, b, c] y", weights), {"x": floats(2, 5, 3)})


def test_a_table_is_padded_to_the_length_where_it_is_shorter() -> None:
    """What shorter inputs would cut off; relative positions of VITS, exported by tracing a longer one."""
    body = (
        "s = Shape(x) n = Gather(s, one) m = Sub(n, five) z = Concat<axis=0>(m, none, m, none)"
        " t = Pad(table, z) r = Transpose<perm=[1, 0]>(t) y = MatMul(x, r)"
    )
    weights: Feeds = {
        "one": np.array([1]), "five": np.array([5]), "none": np.array([0]), "table": floats(9, 8),
    }  # fmt: skip
    proto = model(body, "float[batch, n, 8] x", "float[a, b, c] y", weights)
    graph = canonical(proto, {"x": floats(2, 7, 8)})
    assert graph.limits()[5 - symbol("n")] == 0


def test_constants_of_32_and_64_bits_meet() -> None:
    """Positions have 64 bits here, whatever type the model gives them."""
    body = "p = Range(none, five, one) a = Add(p, more) f = Cast<to=1>(a) y = Add(x, f)"
    weights: Feeds = {"none": np.int32(0), "five": np.int32(5), "one": np.int32(1)}
    weights["more"] = np.array([[3], [-1]], np.int32)
    canonical(model(body, "float[2, 5] x", "float[2, 5] y", weights), {"x": floats(2, 5)})
