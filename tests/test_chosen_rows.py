"""Rows that a condition chooses (NonZero, and what reads and writes at its coordinates) are computed for all
entries of the condition: each form gives what onnxruntime gives, and compiles; what reads several is refused.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

import intc
from intc.errors import ImportFailure, UnsupportedModel
from intc.frontend import import_onnx
from tests.onnx_models import Feeds, canonical, expected, model, operators

RNG = np.random.default_rng(61)
WIDTH, EXPERTS = 8, 3
CHOICE = " g = MatMul(x, gate) s = Softmax(g) w, k = TopK(s, two)"


def floats(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


WEIGHTS: Feeds = {
    "gate": floats(WIDTH, EXPERTS), "two": np.array([2]), "first": np.array([0]),
    "second": np.array([1]),
    "last": np.array([-1]), "axis2": np.array([2]), "ones": np.array([1, 1]),
    "zero": np.float32(0), "none": np.int64(0), "width": np.array([WIDTH]), "flat": np.array([-1]),
    "start": np.array([0]),
    **{f"e{i}": np.int64(i) for i in range(EXPERTS)},
    **{f"w{i}": floats(WIDTH, WIDTH) for i in range(EXPERTS)},
}  # fmt: skip


def mixture(add: bool) -> onnx.ModelProto:
    """The two best of three experts for every token, as exporters write a loop over the experts."""
    body = "x = Relu(t)" + CHOICE + " d = Shape(x) o0 = Expand(zero, d) v = Unsqueeze(w, axis2)"
    for i in range(EXPERTS):
        body += (
            f" h{i} = Equal(k, e{i}) n{i} = NonZero(h{i}) r{i} = Transpose<perm=[1, 0]>(n{i})"
            f" p{i}, q{i} = Split<axis=1>(r{i}, ones) a{i} = Squeeze(p{i}, second)"
            f" x{i} = Gather(x, a{i}) m{i} = MatMul(x{i}, w{i}) y{i} = Relu(m{i})"
            f" i{i} = Concat<axis=-1>(p{i}, q{i}) v{i} = GatherND(v, i{i}) u{i} = Mul(y{i}, v{i})"
        )
        if add:
            body += f" o{i + 1} = ScatterND<reduction='add'>(o{i}, p{i}, u{i})".replace("'", '"')
        else:
            body += f" old{i} = GatherND(o{i}, p{i}) new{i} = Add(old{i}, u{i})"
            body += f" o{i + 1} = ScatterND(o{i}, p{i}, new{i})"
    body += f" y = Identity(o{EXPERTS})"
    return model(body, f"float[tokens, {WIDTH}] t", f"float[tokens, {WIDTH}] y", WEIGHTS)


@pytest.mark.parametrize("add", [True, False])
def test_experts_that_gather_their_tokens_are_computed_for_all(add: bool) -> None:
    graph = canonical(mixture(add), {"t": floats(11, WIDTH)})
    assert operators(graph)["matmul"] == 1 + EXPERTS  # once per token, not once per choice
    assert [str(graph.type(n.output).shape[0]) for n in graph.nodes if n.op.name == "matmul"] == [
        "tokens"
    ] * 4


def test_kernels_give_the_bits_of_the_reference(tmp_path: Path) -> None:
    proto = mixture(True)
    onnx.save(proto, tmp_path / "m.onnx")
    module = intc.compile(tmp_path / "m.onnx", {"t": floats(64, WIDTH)}, rounding="nearest")
    for count in (1, 33):
        feeds = {"t": floats(count, WIDTH)}
        (found,), (exact,) = module.session().run(None, feeds), module.graph.evaluate(feeds)
        assert np.array_equal(found, exact)
    error = found - expected(proto, feeds)[0]
    assert np.linalg.norm(error) < 0.15 * np.linalg.norm(found)  # a choice that falls the other way included


@pytest.mark.parametrize("old", ["x", "o"])
def test_rows_replaced_by_a_mask_of_all_numbers(old: str) -> None:
    """``old[m] = f(x[m])`` where ``m`` is computed twice, and its entries written one number at a time."""
    body = (
        " x = Relu(t) d = Shape(x) o = Expand(zero, d) c = ReduceMax<axes=[2], keepdims=0>(x)"
        " l = Less(half, c) n = NonZero(l) r = Transpose<perm=[1, 0]>(n) a = GatherND(x, r)"
        " m = MatMul(a, w0) s = Relu(m) f = Reshape(s, flat)"
        " k = Less(half, c) e = Unsqueeze(k, last) b = Expand(e, d) nb = NonZero(b)"
        " i = Transpose<perm=[1, 0]>(nb) z = Shape(i) z0 = Gather(z, none) z1 = Unsqueeze(z0, first)"
        " u = Slice(f, start, z1, first)"
        f" y = ScatterND({old}, i, u)"
    )
    weights: Feeds = {**WEIGHTS, "half": np.float32(1.5)}
    proto = model(body, f"float[batch, n, {WIDTH}] t", f"float[batch, n, {WIDTH}] y", weights)
    graph = canonical(proto, {"t": floats(3, 5, WIDTH)})
    assert operators(graph)["where"] == 1


def test_the_number_of_true_entries_as_a_size() -> None:
    """One row for all, expanded to as many as there are."""
    body = (
        " x = Relu(t) c = ReduceMax<axes=[1], keepdims=0>(x) l = Less(half, c) n = NonZero(l)"
        " i = Transpose<perm=[1, 0]>(n) j = Cast<to=7>(l) z = ReduceSum<keepdims=1>(j)"
        " k = Concat<axis=0>(z, width) u = Expand(row, k) y = ScatterND(x, i, u)"
    )
    weights: Feeds = {**WEIGHTS, "half": np.float32(1), "row": floats(1, WIDTH)}
    proto = model(body, f"float[n, {WIDTH}] t", f"float[n, {WIDTH}] y", weights)
    canonical(proto, {"t": floats(9, WIDTH)})


def test_of_several_entries_for_a_row_the_last_counts() -> None:
    """onnx's reference implementation writes in order."""
    body = (
        " l = Less(zero, t) n = NonZero(l) r = Transpose<perm=[1, 0]>(n) p, q = Split<axis=1>(r, ones)"
        " u = GatherND(v, r) y = ScatterND(x, p, u)"
    )
    inputs = f"float[n, 4] t, float[n, 4, {WIDTH}] v, float[n, {WIDTH}] x"
    proto = model(body, inputs, f"float[n, {WIDTH}] y", WEIGHTS)
    feeds: Feeds = {"t": floats(7, 4), "v": floats(7, 4, WIDTH), "x": floats(7, WIDTH)}
    feeds["t"][0] = -1
    (want,) = ReferenceEvaluator(proto).run(None, feeds)
    (found,) = import_onnx(proto).evaluate(feeds)
    assert np.array_equal(found, want)


def test_a_condition_among_rows_that_a_condition_chose() -> None:
    body = (
        " x = Relu(t) c = ReduceMax<axes=[1], keepdims=0>(x) l = Less(one, c) n = NonZero(l)"
        " i = Transpose<perm=[1, 0]>(n) a = GatherND(x, i) b = MatMul(a, w0)"
        " c2 = ReduceMax<axes=[1], keepdims=0>(b) l2 = Less(one, c2) n2 = NonZero(l2)"
        " i2 = Transpose<perm=[1, 0]>(n2) a2 = GatherND(b, i2) b2 = MatMul(a2, w1) s2 = Relu(b2)"
        " d = ScatterND(b, i2, s2) y = ScatterND(x, i, d)"
    )
    proto = model(body, f"float[n, {WIDTH}] t", f"float[n, {WIDTH}] y", {**WEIGHTS, "one": np.float32(1)})
    canonical(proto, {"t": floats(12, WIDTH)})


def test_features_in_the_order_of_the_places_that_take_them() -> None:
    """What a vision-language model does with the tokens that stand for an image."""
    body = (
        " e = Gather(table, ids) l = Equal(ids, e2) u = Unsqueeze(l, last) s = Shape(e)"
        " m = Expand(u, s) n = NonZero(m) i = Transpose<perm=[1, 0]>(n) p = MatMul(image, w0)"
        " f = Reshape(p, flat) z = Shape(i) z0 = Gather(z, none) z1 = Unsqueeze(z0, first)"
        " v = Slice(f, start, z1, first)"
        " y = ScatterND(e, i, v)"
    )
    inputs, weights = (
        f"int64[batch, n] ids, float[batch, 2, {WIDTH}] image",
        {**WEIGHTS, "table": floats(9, WIDTH)},
    )
    proto = model(body, inputs, f"float[batch, n, {WIDTH}] y", weights)
    ids = np.array([[2, 4, 5, 2, 1], [0, 2, 2, 1, 3]])
    canonical(proto, {"ids": ids, "image": floats(2, 2, WIDTH)})


def test_features_that_are_widened_to_as_many_as_there_are_places() -> None:
    """What torch's newer exporter writes for ``e[mask] = features``."""
    body = (
        " e = Gather(table, ids) l = Equal(ids, e2) u = Unsqueeze(l, last) s = Shape(e) m = Expand(u, s)"
        " n = NonZero(m) i = Transpose<perm=[1, 0]>(n) p = MatMul(image, w0) f = Reshape(p, rows)"
        " a = Reshape(l, flat) c = Cast<to=7>(a) k = ReduceSum<keepdims=1>(c) wide = Slice(s, axis2, three)"
        " t = Concat<axis=0>(k, wide) g = Expand(f, t) v = Reshape(g, flat) y = ScatterND(e, i, v)"
    )
    inputs = f"int64[batch, n] ids, float[batch, 2, {WIDTH}] image"
    weights = {
        **WEIGHTS, "table": floats(9, WIDTH), "rows": np.array([-1, WIDTH]), "three": np.array([3]),
    }  # fmt: skip
    proto = model(body, inputs, f"float[batch, n, {WIDTH}] y", weights)
    ids = np.array([[2, 4, 5, 2, 1], [0, 2, 2, 1, 3]])
    canonical(proto, {"ids": ids, "image": floats(2, 2, WIDTH)})


ALONE = {
    "heads": "b = Reshape(a, heads) c = MatMul(b, half) d = Softmax(c) u = Reshape(d, wide)",
    "rows of heads": "b = Reshape(a, narrow) c = MatMul(b, half) d = Add(c, a4) u = Reshape(d, wide)",
    "columns": "b = Transpose<perm=[1, 0]>(a) c = Softmax<axis=0>(b) u = Transpose<perm=[1, 0]>(c)",
    "parts": "b, c = Split<axis=1>(a, fours) d = Mul(b, c) u = Concat<axis=1>(d, c)",
    "choices": "b = ArgMax<axis=1, keepdims=0>(a) c = Gather(w0, b) u = Mul(a, c)",
    "sums": "b = CumSum(a, e1) c = ReduceMax<axes=[1], keepdims=1>(b) u = Div(b, c)",
    "images": "b = Reshape(a, image) c = Conv<pads=[1, 1, 1, 1]>(b, kernel) u = Reshape(c, wide)",
    "another mask": "b = Less(zero, a) c = Where(b, a, two_) u = LayerNormalization(c, gamma)",
    "the best": "b, c = TopK(a, two) d = ReduceSum(b, second) u = Mul(a, d)",
}


@pytest.mark.parametrize("form", ALONE)
def test_operators_that_treat_every_row_alone(form: str) -> None:
    body = (
        " x = Relu(t) c0 = ReduceMax<axes=[1], keepdims=0>(x) l = Less(zero, c0) n = NonZero(l)"
        f" i = Transpose<perm=[1, 0]>(n) a = GatherND(x, i) {ALONE[form]} y = ScatterND(x, i, u)"
    )
    weights: Feeds = {
        **WEIGHTS, "heads": np.array([-1, 2, 4]), "wide": np.array([-1, WIDTH]), "narrow": np.array([-1, 4]),
        "half": floats(4, 4), "a4": floats(4), "fours": np.array([4, 4]), "image": np.array([-1, 1, 2, 4]),
        "kernel": floats(1, 1, 3, 3), "two_": np.float32(2), "gamma": floats(WIDTH),
    }  # fmt: skip
    feeds: Feeds = {"t": floats(9, WIDTH)}
    feeds["t"][2:5] = -1
    canonical(model(body, f"float[n, {WIDTH}] t", f"float[n, {WIDTH}] y", weights), feeds)


@pytest.mark.parametrize("batch", ["batch", "2"])
@pytest.mark.parametrize("place", [0, -1])
def test_the_first_or_last_of_every_samples_true_entries(place: int, batch: str) -> None:
    """``x[ids == end].view(batch, -1, width)[:, place]``, which classifiers on the end of a text read."""
    body = (
        " e = Gather(table, ids) r = MatMul(e, w0) l = Equal(ids, e2) n = NonZero(l)"
        " i = Transpose<perm=[1, 0]>(n) a = GatherND(r, i) f = Relu(a) s = Shape(ids) b = Gather(s, first)"
        " k = Concat<axis=0>(b, flat, width) v = Reshape(f, k) y = Gather<axis=1>(v, place)"
    )
    inputs, output = f"int64[{batch}, n] ids", f"float[{batch}, {WIDTH}] y"
    weights: Feeds = {**WEIGHTS, "table": floats(9, WIDTH), "place": np.int64(place)}
    ids = np.array([[2, 4, 5, 2, 1], [0, 2, 2, 1, 3]])
    canonical(model(body, inputs, output, weights), {"ids": ids})
    with pytest.raises(UnsupportedModel, match="only the first or the last row of every sample"):
        import_onnx(model(body, inputs, output, {**weights, "place": np.int64(1)}))


def unrolled(taken: int) -> onnx.ModelProto:
    """A loop over the experts that were hit in the exporter's example, of four where the last never is."""
    body = (
        "x = Relu(t)" + CHOICE + " hot = OneHot<axis=-1>(k, four, off_on) h = Transpose<perm=[2, 1, 0]>(hot)"
        " c = ReduceSum<keepdims=0>(h, behind) some = Greater(c, none) hits = NonZero(some)"
        " hit = Transpose<perm=[1, 0]>(hits)"
        f" {', '.join(f'j{i}' for i in range(taken))} = Split<axis=0>(hit, parts)"
        " d = Shape(x) o0 = Expand(zero, d)"
    )
    for i in range(taken):
        body += (
            f" f{i} = Squeeze(j{i}, first) g{i} = Gather(f{i}, none) m{i} = Gather(h, g{i})"
            f" b{i} = Cast<to=9>(m{i}) n{i} = NonZero(b{i}) r{i} = Transpose<perm=[1, 0]>(n{i})"
            f" q{i} = Gather<axis=1>(r{i}, e1) x{i} = Gather(x, q{i}) w{i} = Gather(every, g{i})"
            f" u{i} = MatMul(x{i}, w{i})"
            f" a{i} = Unsqueeze(q{i}, last)"
            f" o{i + 1} = ScatterND<reduction='add'>(o{i}, a{i}, u{i})".replace("'", '"')
        )
    body += f" y = Identity(o{taken})"
    weights = {k: v for k, v in WEIGHTS.items() if k not in ("w0", "w1", "w2")}
    weights |= {"four": np.int64(4), "off_on": np.array([0, 1]), "behind": np.array([-1, -2])}
    weights |= {"parts": np.ones(taken, np.int64), "every": floats(EXPERTS, WIDTH, WIDTH)}
    return model(body, f"float[tokens, {WIDTH}] t", f"float[tokens, {WIDTH}] y", weights)


def test_a_loop_over_the_entries_that_were_true_is_one_over_all_that_can_be() -> None:
    proto = unrolled(EXPERTS)
    feeds: Feeds = {"t": floats(40, WIDTH)}
    graph = canonical(proto, feeds)
    few = {"t": feeds["t"][:1]}  # two of three experts: onnxruntime fails
    assert np.allclose(graph.evaluate(few)[0], graph.evaluate(feeds)[0][:1], atol=1e-5)
    with pytest.raises(UnsupportedModel, match="2 of 3 entries of a condition true"):
        import_onnx(unrolled(2))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("b = ReduceMean<axes=[0], keepdims=1>(a) u = Sub(a, b) y = ScatterND(x, i, u)", "reads all rows"),
        (
            "b = Transpose<perm=[1, 0]>(a) g = MatMul(b, a) u = MatMul(a, g) y = ScatterND(x, i, u)",
            "reads all rows",
        ),
        ("s = Softmax<axis=0>(a) y = ScatterND(x, i, s)", "does not treat every row alone.*softmax"),
        ("y = Identity(a)", "the size of output 'y' depends on the values"),
        ("j = Cast<to=1>(i) u = Add(a, j) y = ScatterND(x, i, u)", "is used as data"),
        (
            "d = Shape<end=1>(a) e = Squeeze(d) r = Range(none, e, e1) k = Cast<to=1>(r)"
            " j = Unsqueeze(k, second) u = Add(a, j) y = ScatterND(x, i, u)",
            "does not treat every row alone.*positions",
        ),
        ("u = Add(a, three) y = ScatterND(x, i, u)", "how many entries of a condition are true"),
    ],
)
def test_what_reads_several_rows_is_refused(body: str, reason: str) -> None:
    start = (
        " x = Relu(t) c = ReduceMax<axes=[1], keepdims=0>(x) l = Less(zero, c) n = NonZero(l)"
        " i = Transpose<perm=[1, 0]>(n) a = GatherND(x, i) "
    )
    weights: Feeds = {**WEIGHTS, "three": floats(3, WIDTH)}
    proto = model(start + body, f"float[n, {WIDTH}] t", f"float[m, {WIDTH}] y", weights)
    with pytest.raises(ImportFailure, match=reason):
        import_onnx(proto)
