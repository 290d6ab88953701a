"""Import of index arithmetic: positions that exporters compute become slices, reshapes and transposes."""

from __future__ import annotations

import numpy as np
import pytest

from intc.frontend import import_onnx
from intc.ir.dims import symbol
from intc.passes.simplify_movement import SimplifyMovement
from tests.onnx_models import PASSES, Feeds, canonical, expected, floats, model, operators

POSITIONS = {
    "GatherND": "rb = Range(zero, b, one) rs = Range(zero, s, one)"
    " bu = Unsqueeze(rb, a123) su = Unsqueeze(rs, a012) m = Max(bu, su) d = Shape(m)"
    " be = Expand(bu, d) se = Expand(su, d) bt = Unsqueeze(be, last)"
    " st = Unsqueeze(se, last) i = Concat<axis=-1>(bt, st) k = GatherND(keep, i)",
    "Gather of the flattened mask": "rb = Range(zero, b, one) rs = Range(zero, s, one)"
    " bu = Unsqueeze(rb, a123) su = Unsqueeze(rs, a012) bm = Mul(bu, s) i = Add(su, bm)"
    " f = Flatten<axis=2>(keep) g = Gather(f, i)"
    " d = Shape(i) k = Reshape(g, d)",
}


@pytest.mark.parametrize("sizes", [None, (2, "seq"), ("batch", 5), (2, 5), (1, "seq"), (1, 5)])
@pytest.mark.parametrize("form", POSITIONS)
def test_spelt_out_mask_positions(form: str, sizes: tuple[int | str, int | str] | None) -> None:
    """Exporters index the mask by ranges over batch and keys; the result is the mask reshaped."""
    body = "keep = Cast<to=9>(mask) z = Shape(mask) b = Gather(z, zero) s = Gather(z, one) " + POSITIONS[form]
    body += " a = Where(k, fzero, inf) t = Add(x, a) y = Softmax(t)"
    weights = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "a123": np.array([1, 2, 3]),
        "a012": np.array([0, 1, 2]),
        "last": np.array([-1]),
        "fzero": np.float32(0),
        "inf": np.float32(-np.inf),
    }
    inputs = "float[batch, 2, seq, seq] x, int64[batch, seq] mask"
    proto = model(body, inputs, "float[batch, 2, seq, seq] y", weights)
    given = None if sizes is None else {"mask": sizes, "x": (sizes[0], 2, sizes[1], sizes[1])}
    graph = import_onnx(proto, given)
    for step in (*PASSES, SimplifyMovement()):
        graph = step.run(graph)
    assert operators(graph) == {"cast": 1, "reshape": 1, "softmax": 1}
    feeds: Feeds = {"x": floats(2, 2, 5, 5), "mask": np.array([[1, 1, 0, 1, 0], [1, 1, 1, 1, 1]])}
    if sizes is not None and sizes[0] == 1:
        feeds = {k: v[:1] for k, v in feeds.items()}
    np.testing.assert_allclose(graph.evaluate(feeds)[0], expected(proto, feeds)[0], atol=1e-6)


def test_attention_spelt_by_either_exporter_is_one_graph() -> None:
    """Keys transposed as one permutation, or flattened over heads and transposed as matrices."""
    split = "r = Reshape(x, heads) q = Transpose<perm=[0, 2, 1, 3]>(r) "
    legacy = split + "k = Transpose<perm=[0, 2, 3, 1]>(r) s = MatMul(q, k) y = Softmax(s)"
    dynamo = (
        split + "f = Reshape(q, merged) g = Transpose<perm=[0, 2, 1]>(f) d = Shape(q) b = Gather(d, first)"
    )
    dynamo += (
        " h = Gather(d, second) w = Gather(d, third) l = Gather(d, fourth) t = Concat<axis=0>(b, h, l, w)"
    )
    dynamo += " k = Reshape(g, t) s = MatMul(q, k) y = Softmax(s)"
    weights = {"heads": np.array([0, 0, 2, 4]), "merged": np.array([-1, 5, 4])}
    weights |= {n: np.array([i]) for i, n in enumerate(("first", "second", "third", "fourth"))}
    counts = []
    for body in (legacy, dynamo):
        used = {k: v for k, v in weights.items() if k in body}
        proto = model(body, "float[batch, 5, 8] x", "float[batch, 2, 5, 5] y", used)
        graph = SimplifyMovement().run(canonical(proto, {"x": floats(2, 5, 8)}))
        counts.append(operators(graph))
    assert counts[0] == counts[1] == {"reshape": 1, "transpose": 2, "matmul": 1, "softmax": 1}


@pytest.mark.parametrize(
    ("indices", "left"),
    [
        ([2, 3], {"slice": 1}),
        ([0, 1, 2, 3, 4], {}),
        ([[0, 1], [2, 3]], {"gather": 1}),
        ([0, 0], {"gather": 1}),
        ([2], {"slice": 1}),
        ([[4]], {"slice": 1, "reshape": 1}),
        ([4, 3], {"gather": 1}),
        ([-1, 0], {"gather": 1}),
        ([[1, 1], [2, 2]], {"slice": 1, "reshape": 1, "expand": 1}),
    ],
)
def test_constant_positions(indices: list[object], left: dict[str, int]) -> None:
    """Positions in order are a slice; all others are looked up."""
    shape = ", ".join(["batch", *(str(n) for n in np.shape(indices)), "3"])
    proto = model(
        "g = Gather<axis=1>(x, i) y = Relu(g)",
        "float[batch, 5, 3] x",
        f"float[{shape}] y",
        {"i": np.array(indices)},
    )
    assert operators(canonical(proto, {"x": floats(2, 5, 3)})) == {**left, "relu": 1}


def test_the_smaller_of_a_length_and_a_number_is_the_length_where_a_table_bounds_it() -> None:
    body = "d = Shape(x) n = Gather(d, at) m = Min(n, c) u = Unsqueeze(m, ax) "
    weights: Feeds = {
        "at": np.array(1),
        "c": np.array(16),
        "ax": np.array([0]),
        "one": np.ones(1, np.float32),
    }
    inputs, outputs = "float[batch, seq, 8] x", "float[a, b, c2] y"
    table = {**weights, "table": floats(16, 8)}
    proto = model(body + "t = Slice(table, ax, u, ax) y = Add(x, t)", inputs, outputs, table)
    graph = canonical(proto, {"x": floats(2, 12, 8)})
    assert graph.limits()[symbol("seq")] == 16
    proto = model(body + "t = Expand(one, u) s = ReduceSum(t) y = Add(x, s)", inputs, outputs, weights)
    for length in (12, 20):
        assert canonical(proto, {"x": floats(2, length, 8)}).limits()[symbol("seq")] > 20


SINUSOIDS = {
    "interleaved by writes": " p = Unsqueeze(r, last) a = Mul(p, f) sa = Sin(a) ca = Cos(a)"
    " t = Concat<axis=0>(n1, width) zs = ConstantOfShape(t)"
    " rn = Range(zero, n, one) rc = Reshape(rn, to_n) ev = Reshape(even, to_c) od = Reshape(odd, to_c)"
    " k = Concat<axis=0>(n1, half) re = Expand(rc, k) ce = Expand(ev, k) co = Expand(od, k)"
    " ru = Unsqueeze(re, last) cu = Unsqueeze(ce, last) ou = Unsqueeze(co, last)"
    " ei = Concat<axis=-1>(ru, cu) oi = Concat<axis=-1>(ru, ou)"
    " s1 = ScatterND(zs, ei, sa) pe = ScatterND(s1, oi, ca)",
    "an outer product": ' a = Einsum<equation="i,j->ij">(r, f) sa = Sin(a) ca = Cos(a)'
    " pe = Concat<axis=-1>(sa, ca)",
}
DIRECTIONS = {
    "up": "r = Range(fzero, nf, fone)",
    "down from the last": "l = Sub(nf, fone) r = Range(l, mone, mone)",
    "around the middle": "h = Div(n, two) m = Neg(h) e = Add(m, n) mf = Cast<to=1>(m) ef = Cast<to=1>(e)"
    " r = Range(mf, ef, fone)",
}


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("form", SINUSOIDS)
def test_sinusoids_computed_in_the_model_are_one_table(form: str, direction: str) -> None:
    """Positions as floats, from either end or relative to the middle; sines and cosines written side by side
    into zeros.
    """
    body = "d = Shape(x) n = Gather(d, one) nf = Cast<to=1>(n) n1 = Unsqueeze(n, first) "
    body += DIRECTIONS[direction] + SINUSOIDS[form] + " y = Add(x, pe)"
    weights: Feeds = {
        "zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "fzero": np.float32(0),
        "fone": np.float32(1), "mone": np.float32(-1), "first": np.array([0]), "last": np.array([-1]),
        "f": 0.1 ** np.arange(3, dtype=np.float32), "width": np.array([6]), "half": np.array([3]),
        "to_n": np.array([-1, 1]), "to_c": np.array([1, -1]), "even": np.arange(0, 6, 2),
        "odd": np.arange(1, 6, 2),
    }  # fmt: skip
    weights = {k: v for k, v in weights.items() if k in body}
    proto = model(body, "float[batch, length, 6] x", "float[batch, length, 6] y", weights)
    graph = import_onnx(proto)
    for length in (1, 4, 9):
        feeds: Feeds = {"x": floats(2, length, 6)}
        np.testing.assert_allclose(graph.evaluate(feeds)[0], expected(proto, feeds)[0], atol=1e-5)
    assert operators(graph) == {"lookup": 1, "add": 1}


@pytest.mark.parametrize(
    "place", ["l = Sub(n, one)", "l = Neg(n)", "t = Mul(n, four) m = Mod(two, t) l = Sub(m, one)"]
)
def test_entries_at_places_that_are_sizes(place: str) -> None:
    """``x[:, n - 1]``; ``x[:, -n]``, from the end; a number modulo a larger size."""
    body = f"d = Shape(x) n = Gather(d, one) {place} y = Gather<axis=1>(x, l)"
    weights = {"one": np.int64(1), "two": np.int64(2), "four": np.int64(4)}
    graph = canonical(
        model(body, "float[batch, n, 4] x", "float[batch, 4] y", weights), {"x": floats(2, 5, 4)}
    )
    assert operators(graph).keys() == {"slice", "reshape"}
