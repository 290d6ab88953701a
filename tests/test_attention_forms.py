"""Attention as people write it: windows of five axes, one query for all, sequences first, masked rows; each
runs in one kernel, gives the exact reference's bits and is close to fp32.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.frontend import import_onnx
from intc.passes.pipeline import canonicalise
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, expected, floats, model, operators

RNG = np.random.default_rng(31)


def close(folder: Path, proto: onnx.ModelProto, feeds: Feeds) -> intc.Module:
    """``proto`` compiled on ``feeds``; its kernels equal the reference and are close to fp32."""
    module = compiled(proto, feeds, folder, rounding="nearest")
    for given in (feeds, {name: array[:2] for name, array in feeds.items()}):
        assert distance(module, proto, given) < 0.06
    return module


HEAD = "q = MatMul(x, wq) k = MatMul(x, wk) v = MatMul(x, wv) "
TAIL = " y = MatMul(m, wo)"
WEIGHTS: Feeds = {f"w{n}": (RNG.normal(size=(16, 16)) / 3).astype(np.float32) for n in "qkvo"}
WINDOWS = (
    "a = Reshape(q, win) b = Reshape(k, win) c = Reshape(v, win)"
    " qh = Transpose<perm=[0, 1, 3, 2, 4]>(a) kh = Transpose<perm=[0, 1, 3, 4, 2]>(b)"
    " vh = Transpose<perm=[0, 1, 3, 2, 4]>(c) s = MatMul(qh, kh) {mask} p = Softmax({s})"
    " o = MatMul(p, vh) t = Transpose<perm=[0, 1, 3, 2, 4]>(o) m = Reshape(t, flat)"
)
FLAT = {"flat": np.array([-1, 12, 16]), "win": np.array([-1, 3, 4, 2, 8])}
FIRST = np.where(RNG.random((3, 1, 4, 4)) < 0.6, 0.0, -1e9).astype(np.float32)
# name: (body between projections and output, weights)
FORMS: dict[str, tuple[str, Feeds]] = {
    "windows": (WINDOWS.format(mask="", s="s"), FLAT),
    "windows with a bias per head": (
        WINDOWS.format(mask="u = Add(s, bias)", s="u"),
        {**FLAT, "bias": floats(2, 4, 4)},
    ),
    "windows with a mask per window": (
        WINDOWS.format(mask="u = Add(s, hide)", s="u"),
        {**FLAT, "hide": FIRST},
    ),
    "sequence first, heads in the batch": (
        "qt = Transpose<perm=[1, 0, 2]>(q) kt = Transpose<perm=[1, 0, 2]>(k)"
        " vt = Transpose<perm=[1, 0, 2]>(v)"
        " a = Reshape(qt, heads) b = Reshape(kt, heads) c = Reshape(vt, heads)"
        " qh = Transpose<perm=[1, 0, 2]>(a) kh = Transpose<perm=[1, 2, 0]>(b)"
        " vh = Transpose<perm=[1, 0, 2]>(c) s = MatMul(qh, kh) p = Softmax(s) o = MatMul(p, vh)"
        " t = Transpose<perm=[1, 0, 2]>(o) g = Reshape(t, back) m = Transpose<perm=[1, 0, 2]>(g)",
        {"heads": np.array([12, -1, 8]), "back": np.array([12, -1, 16])},
    ),
    "keys turned by no transpose of their own": (
        "a = Reshape(q, heads) b = Reshape(k, heads) c = Reshape(v, heads)"
        " qh = Transpose<perm=[0, 2, 1, 3]>(a) kt = Transpose<perm=[1, 0, 2, 3]>(b)"
        " kh = Transpose<perm=[1, 2, 3, 0]>(kt) vh = Transpose<perm=[0, 2, 1, 3]>(c)"
        " s = MatMul(qh, kh) p = Softmax(s) o = MatMul(p, vh)"
        " t = Transpose<perm=[0, 2, 1, 3]>(o) m = Reshape(t, flat)",
        {"heads": np.array([0, 0, 2, 8]), "flat": np.array([0, 0, 16])},
    ),
    "one query for every sample": (
        "b = Reshape(k, heads) c = Reshape(v, heads) kh = Transpose<perm=[0, 2, 3, 1]>(b)"
        " vh = Transpose<perm=[0, 2, 1, 3]>(c) r = Relu(latent) s = MatMul(r, kh) p = Softmax(s)"
        " o = MatMul(p, vh) t = Transpose<perm=[0, 2, 1, 3]>(o) z = Reshape(t, flat) m = Add(z, q)",
        {"latent": floats(1, 2, 1, 8), "heads": np.array([0, 0, 2, 8]), "flat": np.array([0, 0, 16])},
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_attention(name: str, tmp_path: Path) -> None:
    body, weights = FORMS[name]
    shape = "float[batch, 12, 16]"
    proto = model(HEAD + body + TAIL, f"{shape} x", f"{shape} y", {**WEIGHTS, **weights})
    module = close(tmp_path, proto, {"x": RNG.normal(size=(24, 12, 16)).astype(np.float32)})
    assert operators(module.prepared).get("attention") == 1


def test_keys_of_one_sample_that_several_heads_share(tmp_path: Path) -> None:
    """As torch.onnx.export(dynamo=True) writes it where the batch is the number 1."""
    body = (
        "a = Reshape(q, heads) qh = Transpose<perm=[0, 2, 1, 3]>(a)"
        " b = Reshape(k, few) bt = Transpose<perm=[0, 2, 1, 3]>(b) b1 = Reshape(bt, apart)"
        " be = Expand(b1, each) bm = Reshape(be, rows) bk = Transpose<perm=[0, 2, 1]>(bm)"
        " kh = Reshape(bk, keys)"
        " c = Reshape(v, few) ct = Transpose<perm=[0, 2, 1, 3]>(c) c1 = Reshape(ct, apart)"
        " ce = Expand(c1, each) vh = Reshape(ce, values)"
        " s = MatMul(qh, kh) p = Softmax(s) o = MatMul(p, vh)"
        " t = Transpose<perm=[0, 2, 1, 3]>(o) m = Reshape(t, flat)"
    )
    shapes = {
        "heads": (1, 12, 4, 4), "few": (1, 12, 2, 4), "apart": (1, 2, 1, 12, 4), "each": (1, 2, 2, 12, 4),
        "rows": (4, 12, 4), "keys": (1, 4, 4, 12), "values": (1, 4, 12, 4), "flat": (1, 12, 16),
    }  # fmt: skip
    weights = {**WEIGHTS, **{name: np.array(shape) for name, shape in shapes.items()}}
    weights |= {name: weights[name][:, :8] for name in ("wk", "wv")}
    shape = "float[1, 12, 16]"
    proto = model(HEAD + body + TAIL, f"{shape} x", f"{shape} y", weights)
    feeds = {"x": RNG.normal(size=(1, 12, 16)).astype(np.float32)}
    module = compiled(proto, feeds, tmp_path, rounding="nearest")
    assert distance(module, proto, feeds) < 0.06
    assert operators(module.prepared).get("attention") == 1
    assert "expand" not in operators(module.prepared)


def test_a_length_that_was_written_as_a_number() -> None:
    """A reshape that works at one length only: that is the length of the input."""
    body = (
        "t = Transpose<perm=[1, 0, 2]>(x) n = Shape(x) b = Gather(n, zero) h = Mul(b, two)"
        " l = Concat<axis=0>(twelve, h, eight) r = Reshape(t, l) y = Softmax(r)"
    )
    weights = {"zero": np.array([0]), "two": np.array([2]), "twelve": np.array([12]), "eight": np.array([8])}
    proto = model(body, "float[batch, seq, 16] x", "float[seq, heads, 8] y", weights)
    assert [str(d) for d in import_onnx(proto).type("x").shape] == ["batch", "12", "16"]


MASKED = (
    "qr = Reshape(q, heads) kr = Reshape(k, heads) vr = Reshape(v, heads)"
    " qh = Transpose<perm=[0, 2, 1, 3]>(qr) kh = Transpose<perm=[0, 2, 3, 1]>(kr)"
    " vh = Transpose<perm=[0, 2, 1, 3]>(vr) s = MatMul(qh, kh) b = Cast<to=9>(keep) u = Unsqueeze(b, ax)"
    " n = Shape(x) l = Gather(n, one) i = Range(zero, l, one) j = Unsqueeze(i, last) d = Sub(j, i)"
    " near = Less(d, three) past = GreaterOrEqual(d, zero) w = And(near, past) both = And(u, w)"
    " h = Where(both, s, low) p = Softmax(h) o = MatMul(p, vh) t = Transpose<perm=[0, 2, 1, 3]>(o)"
    " m = Reshape(t, flat)"
)


@pytest.mark.parametrize("approximation", ["auto", "lut", "ibert", "ivit"])
def test_windows_that_hold_padding_alone_are_uniform(approximation: str, tmp_path: Path) -> None:
    """A sliding window joined with a mask of keys leaves rows empty; float weighs all keys there alike."""
    weights: Feeds = {
        **WEIGHTS,
        "heads": np.array([0, 0, 2, 8]), "flat": np.array([0, 0, 16]), "ax": np.array([1, 2]),
        "zero": np.int64(0), "one": np.int64(1), "three": np.int64(3), "last": np.array([-1]),
        "low": np.float32(-3.4e38),
    }  # fmt: skip
    inputs = "float[batch, seq, 16] x, int64[batch, seq] keep"
    proto = model(HEAD + MASKED + TAIL, inputs, "float[batch, seq, 16] y", weights)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    keep = (np.arange(12) < RNG.integers(2, 13, (32, 1))).astype(np.int64)
    keep[:8] = keep[:8, ::-1]
    feeds: Feeds = {"x": RNG.normal(size=(32, 12, 16)).astype(np.float32), "keep": keep}
    module = intc.compile(path, feeds, rounding="nearest", approximation=approximation)
    (found,), (exact,) = module.session().run(None, feeds), module.graph.evaluate(feeds)
    assert np.array_equal(found, exact)
    (want,) = expected(proto, feeds)
    empty = ~np.array([[keep[b, max(0, i - 2) : i + 1].any() for i in range(12)] for b in range(32)])
    assert 20 < empty.sum() < 200
    limit = 0.05 if approximation == "auto" else 0.2
    assert np.linalg.norm((found - want)[empty]) < limit * np.linalg.norm(want[empty])
    if approximation == "auto":
        assert operators(module.prepared)["attention"] == 1


def test_rows_of_pairs_that_a_near_mask_hides_are_kept_whole(tmp_path: Path) -> None:
    """``s + 10000 * (m_i * m_j - 1)``: float32 still tells the scores of a hidden row apart."""
    body = (
        "k = Transpose<perm=[0, 2, 1]>(x) s = MatMul(x, k) c = Unsqueeze(m, two) r = Unsqueeze(m, one)"
        " p = Mul(c, r) o = Sub(p, unit) b = Mul(o, lots) a = Add(s, b) w = Softmax(a) y = MatMul(w, x)"
    )
    weights: Feeds = {"one": np.array([1]), "two": np.array([2])}
    weights |= {"unit": np.float32(1), "lots": np.float32(10000)}
    inputs = "float[batch, seq, 8] x, float[batch, seq] m"
    proto = model(body, inputs, "float[batch, seq, 8] y", weights)
    keep = np.arange(12) < RNG.integers(4, 13, (32, 1))
    feeds: Feeds = {"x": RNG.normal(size=(32, 12, 8)).astype(np.float32), "m": keep.astype(np.float32)}
    close(tmp_path, proto, feeds)


def test_rows_without_keys_stay_zero_through_a_norm_behind(tmp_path: Path) -> None:
    """Where masked scores are minus infinity and NaN becomes 0, a product and an RMS norm behind give 0:
    nothing that is folded into the product may be magnified there.
    """
    weights: Feeds = {
        **WEIGHTS,
        "heads": np.array([0, 0, 2, 8]), "flat": np.array([0, 0, 16]), "ax": np.array([1, 2]),
        "zero": np.int64(0), "one": np.int64(1), "three": np.int64(3), "last": np.array([-1]),
        "low": np.float32(-np.inf), "none": np.float32(0), "two": np.float32(2), "eps": np.float32(1e-6),
    }  # fmt: skip
    body = MASKED.replace("p = Softmax(h)", "j1 = Softmax(h) j2 = IsNaN(j1) p = Where(j2, none, j1)")
    norm = " z = MatMul(m, wo) g = Pow(z, two) f = ReduceMean<axes=[-1]>(g) e = Add(f, eps)"
    norm += " r = Sqrt(e) y = Div(z, r)"
    inputs = "float[batch, seq, 16] x, int64[batch, seq] keep"
    proto = model(HEAD + body + norm, inputs, "float[batch, seq, 16] y", weights)
    onnx.save(proto, tmp_path / "model.onnx")
    keep = (np.arange(12) < RNG.integers(2, 13, (32, 1))).astype(np.int64)
    feeds: Feeds = {"x": RNG.normal(1, 1, size=(32, 12, 16)).astype(np.float32), "keep": keep}
    module = intc.compile(tmp_path / "model.onnx", feeds)
    (found,), (exact,) = module.session().run(None, feeds), module.graph.evaluate(feeds)
    assert np.array_equal(found, exact)
    empty = ~np.array([[keep[b, max(0, i - 2) : i + 1].any() for i in range(12)] for b in range(32)])
    assert empty.sum() > 20
    assert not found[empty].any()
    (want,) = expected(proto, feeds)
    assert np.linalg.norm(found - want) < 0.06 * np.linalg.norm(want)


def test_a_mask_turned_after_it_was_repeated_is_repeated_no_more() -> None:
    body = (
        "n = Shape(s) e = Equal(keep, zero) u = Unsqueeze(e, ax) h = Expand(u, n) q = Not(h) g = Not(q)"
        " t = Where(g, low, s) y = Softmax(t)"
    )
    shape = "float[batch, 2, seq, seq]"
    weights = {"zero": np.int64(0), "ax": np.array([1, 2]), "low": np.float32(-3.4e38)}
    proto = model(body, f"{shape} s, int64[batch, seq] keep", f"{shape} y", weights)
    graph = canonicalise(import_onnx(proto)).graph
    (softmax,) = (node for node in graph.nodes if node.op.name == "softmax")
    assert [str(d) for d in graph.type(softmax.inputs[1]).shape] == ["batch", "1", "1", "seq"]


def test_a_scale_beside_a_mask_that_keeps_everything_stays() -> None:
    """The factor 0.25 is no condition that holds, though it is not 0."""
    body = (
        "t = Transpose<perm=[0, 2, 1]>(x) s = MatMul(x, t) c = Mul(s, quarter) d = Shape(s)"
        " e = Expand(flag, d) f = Reshape(e, row) g = Reshape(f, d) m = Where(g, nought, lowest)"
        " a = Add(c, m) p = Softmax(a) y = MatMul(p, x)"
    )
    weights: Feeds = {"quarter": np.float32(0.25), "nought": np.float32(0), "flag": np.array([True])}
    weights |= {"lowest": np.float32(-3e38), "row": np.array([-1])}
    proto = model(body, "float[batch, 5, 8] x", "float[a, b, c] y", weights)
    feeds = {"x": floats(3, 5, 8)}
    (found,), (want,) = canonicalise(import_onnx(proto)).graph.evaluate(feeds), expected(proto, feeds)
    np.testing.assert_allclose(found, want, atol=1e-5)
