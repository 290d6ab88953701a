"""Causal masks in every spelling of the exporters: one bool triangle, of fixed or symbolic size."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from tests.onnx_models import Feeds, canonical, expected, floats, model, operators

TRIANGLE = np.tril(np.ones((16, 16), np.bool_))
WEIGHTS: Feeds = {
    "one": np.float32(1),
    "zero": np.float32(0),
    "inf": np.float32(-np.inf),
    "least": np.finfo(np.float32).min,
    "first": np.int64(0),
    "next": np.int64(1),
    "three": np.int64(3),
    "ax0": np.array([0]),
    "ax1": np.array([1]),
    "a12": np.array([1, 2]),
    "begin": np.array([0, 0]),
    "a01": np.array([0, 1]),
    "buffer": TRIANGLE,
    "bias": np.where(TRIANGLE, 0, -10000).astype(np.float32),
}
SIZES = "d = Shape(x) s = Gather(d, three) u = Unsqueeze(s, ax0) z = Concat<axis=0>(u, u) "
RANGES = SIZES + "r = Range(first, s, next) c = Unsqueeze(r, ax0) w = Unsqueeze(r, ax1) "
KEYS = "f = Cast<to=9>(keys) g = Unsqueeze(f, a12) "
FORMS = {
    "tril of ones, equal to 0": SIZES
    + "e = Expand(one, z) t = Trilu<upper=0>(e) q = Equal(t, zero) a = Where(q, inf, zero) p = Add(x, a)",
    "triu of -inf": SIZES
    + "e = ConstantOfShape<value=float[1] {-inf}>(z) a = Trilu<upper=1>(e, next) p = Add(x, a)",
    "tril of true, complement": SIZES
    + "e = ConstantOfShape<value=bool[1] {1}>(z) t = Trilu<upper=0>(e) n = Not(t) p = Where(n, inf, x)",
    "tril of integers": SIZES
    + "e = ConstantOfShape<value=int64[1] {1}>(z) t = Trilu<upper=0>(e) b = Cast<to=9>(t)"
    " p = Where(b, x, inf)",
    "1 - tril, times least": SIZES
    + "e = Expand(one, z) t = Trilu<upper=0>(e) i = Sub(one, t) a = Mul(i, least) p = Add(a, x)",
    "slice of a bool buffer": SIZES + "b = Slice(buffer, begin, z, a01) p = Where(b, x, least)",
    "slice of an additive buffer": SIZES + "b = Slice(bias, begin, z, a01) p = Add(x, b)",
    "column <= row": RANGES + "b = LessOrEqual(c, w) p = Where(b, x, inf)",
    "column > row": RANGES + "b = Greater(c, w) p = Where(b, least, x)",
    "triangle and keys": RANGES + KEYS + "t = GreaterOrEqual(w, c) b = And(t, g) p = Where(b, x, inf)",
    "triangle, then keys": RANGES + KEYS + "b = Less(w, c) a = Where(b, inf, zero) o = Where(g, zero, least)"
    " h = Add(x, a) p = Add(h, o)",
}


@pytest.mark.parametrize("length", ["seq", 5])
@pytest.mark.parametrize("form", FORMS)
def test_every_spelling_is_one_bool_mask(form: str, length: str | int) -> None:
    shape, body = f"float[batch, 2, {length}, {length}]", FORMS[form] + " y = Softmax(p)"
    keys = "g =" in body
    inputs = f"{shape} x" + (f", int64[batch, {length}] keys" if keys else "")
    used = {name: value for name, value in WEIGHTS.items() if name in body}
    feeds: Feeds = {"x": floats(3, 2, 5, 5)}
    if keys:
        feeds["keys"] = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    graph = canonical(model(body, inputs, f"{shape} y", used), feeds)
    (softmax,) = (node for node in graph.nodes if node.op.name == "softmax")
    assert softmax.inputs[0] == "x"
    assert graph.type(softmax.inputs[1]).dtype == "bool"
    assert not {"where", "add", "mul", "sub"} & set(operators(graph))
    if length == 5 and not keys:
        assert operators(graph) == {"softmax": 1}, "a mask of fixed size is a constant"


def test_a_triangle_that_masks_by_a_small_number_stays_a_sum() -> None:
    body = (
        SIZES + "e = ConstantOfShape<value=float[1] {-3}>(z) a = Trilu(e, next) p = Add(x, a) y = Softmax(p)"
    )
    shape = "float[batch, 1, seq, seq]"
    used = {name: value for name, value in WEIGHTS.items() if name in body}
    graph = canonical(model(body, f"{shape} x", f"{shape} y", used), {"x": floats(2, 1, 4, 4)})
    assert {"where", "add"} <= set(operators(graph))


@pytest.mark.parametrize("diagonal", [-1, 0, 2])
@pytest.mark.parametrize("upper", [0, 1])
def test_triangles_of_computed_values(upper: int, diagonal: int) -> None:
    body = f"r = Relu(x) y = Trilu<upper={upper}>(r, k)"
    shape = "float[batch, seq, keys]"
    proto = model(body, f"{shape} x", f"{shape} y", {"k": np.int64(diagonal)})
    canonical(proto, {"x": floats(2, 4, 6)})


def test_triangles_of_all_layers_are_computed_once() -> None:
    layer = "e{0} = Expand(one, z) t{0} = Trilu<upper=0>(e{0}) q{0} = Equal(t{0}, zero)"
    layer += " a{0} = Where(q{0}, inf, zero) p{0} = Add({1}, a{0}) {2} = Softmax(p{0}) "
    body = SIZES + layer.format(1, "x", "v") + layer.format(2, "v", "y")
    shape = "float[batch, 1, seq, seq]"
    used = {name: WEIGHTS[name] for name in ("one", "zero", "inf", "three", "ax0")}
    graph = canonical(model(body, f"{shape} x", f"{shape} y", used), {"x": floats(2, 1, 4, 4)})
    assert operators(graph) == {"positions": 2, "less_or_equal": 1, "softmax": 2}


def attention(mask: str) -> onnx.ModelProto:
    """One attention layer of two heads of 8 on [batch, seq, 16], with ``mask`` applied to the scores s."""
    rng = np.random.default_rng(3)
    body = "".join(
        f"m{n} = MatMul(x, w{n}) r{n} = Reshape(m{n}, heads) {n}h = Transpose<perm={perm}>(r{n}) "
        for n, perm in (("q", [0, 2, 1, 3]), ("k", [0, 2, 3, 1]), ("v", [0, 2, 1, 3]))
    )
    body += f"scores = MatMul(qh, kh) {mask} probs = Softmax(p) o = MatMul(probs, vh)"
    body += " l = Transpose<perm=[0, 2, 1, 3]>(o) h = Reshape(l, flat) y = MatMul(h, wo)"
    weights: Feeds = {f"w{n}": rng.normal(size=(16, 16)).astype(np.float32) / 3 for n in "qkvo"}
    weights |= {"heads": np.array([0, 0, 2, 8]), "flat": np.array([0, 0, 16]), **WEIGHTS}
    used = {name: value for name, value in weights.items() if name in body}
    return model(body, "float[batch, seq, 16] x", "float[batch, seq, 16] y", used)


@pytest.mark.parametrize("form", ["tril of ones, equal to 0", "slice of a bool buffer"])
def test_causal_attention_kernels(form: str, tmp_path: Path) -> None:
    """Batch and sequence of equal size: a mask [queries, keys] is not one of [batch, keys]."""
    mask = FORMS[form].replace("Shape(x)", "Shape(scores)").replace("x, ", "scores, ")
    proto = attention(mask)
    path = tmp_path / "causal.onnx"
    onnx.save(proto, path)
    rng = np.random.default_rng(4)
    calibration = {"x": rng.normal(size=(32, 7, 16)).astype(np.float32)}
    module = intc.compile(path, calibration)
    assert "attention" in {node.op.name for node in module.prepared.nodes}
    for batch, length in ((7, 7), (2, 13), (3, 1)):
        feeds = {"x": rng.normal(size=(batch, length, 16)).astype(np.float32)}
        (y,) = module.run(None, feeds)
        assert np.array_equal(y, module.graph.evaluate(feeds)[0])
        (wanted,) = expected(proto, feeds)
        assert np.abs(y - wanted).max() < 0.05 * np.abs(wanted).max()


@pytest.mark.torch
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gpt2_of_either_exporter(attention: str, dynamo: bool, tmp_path: Path) -> None:
    """Positions compared, joined with a padding mask: one mask for all layers."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    if dynamo:
        pytest.importorskip("onnxscript")
    sizes = {"vocab_size": 40, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
    config = transformers.GPT2Config(**sizes, attn_implementation=attention, use_cache=False)
    gpt2 = transformers.GPT2LMHeadModel(config)

    class Logits(torch.nn.Module):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.model = gpt2

        def forward(self, ids: object, keys: object) -> object:
            return self.model(input_ids=ids, attention_mask=keys, use_cache=False).logits

    path, names, ids = tmp_path / "gpt2.onnx", ["ids", "keys"], torch.ones(2, 8, dtype=torch.int64)
    symbols = {0: "batch", 1: "seq"}
    if dynamo:
        dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("seq", max=32)}
        shapes = {"opset_version": 18, "verbose": False, "dynamic_shapes": (dims, dims)}
    else:
        shapes = {"opset_version": 17, "dynamic_axes": dict.fromkeys((*names, "logits"), symbols)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits().eval(), (ids, ids.clone()), str(path), dynamo=dynamo, input_names=names,
            output_names=["logits"], **shapes,
        )  # fmt: skip
    rng = np.random.default_rng(0)
    keys = np.array([[1] * 6, [1] * 4 + [0] * 2, [1] * 5 + [0]])
    graph = canonical(onnx.load(path), {"ids": rng.integers(0, 40, (3, 6)), "keys": keys})
    softmax = [node for node in graph.nodes if node.op.name == "softmax"]
    assert len(softmax) == 2
    assert len({node.inputs[1] for node in softmax}) == 1
    assert operators(graph)["less_or_equal"] == 1


def test_scores_times_a_triangle_of_ones_that_is_subtracted_too() -> None:
    """``x * b - 10000 * (1 - b)``, and a mask of keys behind it: x where both keep it."""
    body = (
        "d = Shape(x) e = Gather(d, at) c1 = Slice(buffer, zero1, e, rows) b = Slice(c1, zero1, e, columns)"
        " p = Mul(x, b) i = Sub(one, b) a = Mul(i, low) s = Add(p, a) f = Cast<to=1>(keep) m = Sub(one, f)"
        " k = Mul(m, least) t = Add(s, k) y = Softmax(t)"
    )
    weights: Feeds = {
        "buffer": np.tril(np.ones((1, 1, 9, 9), np.float32)), "at": np.array([2]), "zero1": np.array([0]),
        "rows": np.array([2]), "columns": np.array([3]), "one": np.float32(1), "low": np.float32(-1e4),
        "least": np.float32(-3.4e38),
    }  # fmt: skip
    shape = "float[batch, 2, seq, seq]"
    proto = model(body, f"{shape} x, int64[batch, 1, 1, seq] keep", f"{shape} y", weights)
    keep = np.ones((2, 1, 1, 6), np.int64)
    keep[1, ..., 4:] = 0
    graph = canonical(proto, {"x": floats(2, 2, 6, 6), "keep": keep})
    (softmax,) = (node for node in graph.nodes if node.op.name == "softmax")
    assert softmax.inputs[0] == "x"


def test_a_join_of_two_slices_of_a_buffer() -> None:
    """Two streams side by side, each with its own mask."""
    body = (
        "d = Shape(x) e = Gather(d, at) a = Slice(buffer, zero1, e, rows) b = Slice(a, zero1, e, columns)"
        " j = Concat<axis=2>(b, b) r = Concat<axis=2>(x, x) s = Add(r, j) y = Softmax(s)"
    )
    weights: Feeds = {
        "buffer": np.where(np.tril(np.ones((1, 9, 9))), 0, -3.4e38).astype(np.float32),
        "at": np.array([1]), "zero1": np.array([0]), "rows": np.array([1]), "columns": np.array([2]),
    }  # fmt: skip
    proto = model(body, "float[batch, seq, seq] x", "float[batch, seq, o] y", weights)
    graph = canonical(proto, {"x": floats(2, 6, 6)})
    (softmax,) = (node for node in graph.nodes if node.op.name == "softmax")
    assert graph.type(softmax.inputs[1]).dtype == "bool"
