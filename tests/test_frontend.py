"""Import and canonicalisation: each spelling of a layer gives the same nodes and onnxruntime's numbers."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from intc.frontend import import_onnx
from intc.ir.verify import verify
from tests.onnx_models import Feeds, canonical, expected, floats, model, operators

MEAN = "m = ReduceMean<axes=[-1]>(x)  d = Sub(x, m)"
LAYER_NORMS = {
    "pow": MEAN + " s = Pow(d, two) v = ReduceMean<axes=[-1]>(s) e = Add(v, eps) r = Sqrt(e) n = Div(d, r)"
    " g = Mul(n, gamma) y = Add(g, beta)",
    "product, constants first": MEAN
    + " s = Mul(d, d) v = ReduceMean<axes=[2], keepdims=1>(s) e = Add(eps, v)"
    " r = Sqrt(e) n = Div(d, r) g = Mul(gamma, n) y = Add(beta, g)",
    "difference computed twice": MEAN + " m2 = ReduceMean<axes=[-1]>(x) d2 = Sub(x, m2) s = Pow(d2, two)"
    " v = ReduceMean<axes=[-1]>(s) e = Add(v, eps) r = Sqrt(e) n = Div(d, r) g = Mul(n, gamma)"
    " y = Add(g, beta)",
    "fused": "y = LayerNormalization<axis=-1, epsilon=0.001>(x, gamma, beta)",
}


@pytest.mark.parametrize("form", LAYER_NORMS)
def test_layer_norm_forms(form: str) -> None:
    weights = {"two": np.float32(2), "eps": np.float32(1e-3), "gamma": floats(8), "beta": floats(8, seed=1)}
    proto = model(LAYER_NORMS[form], "float[batch, s, 8] x", "float[batch, s, 8] y", weights)
    graph = canonical(proto, {"x": floats(2, 3, 8)})
    assert operators(graph) == {"layer_norm": 1}
    (node,) = graph.nodes
    assert node.output == "y"
    assert node.op.epsilon == pytest.approx(1e-3)


def test_layer_norm_without_affine_part() -> None:
    body = MEAN + " s = Pow(d, two) v = ReduceMean<axes=[-1]>(s) e = Add(v, eps) r = Sqrt(e) y = Div(d, r)"
    weights = {"two": np.float32(2), "eps": np.float32(1e-5)}
    graph = canonical(model(body, "float[batch, 8] x", "float[batch, 8] y", weights), {"x": floats(3, 8)})
    assert operators(graph) == {"layer_norm": 1}


GELU_WEIGHTS = {
    "root2": np.float32(math.sqrt(2)),
    "half": np.float32(0.5),
    "one": np.float32(1),
    "three": np.float32(3),
    "c": np.float32(0.044715),
    "k": np.float32(math.sqrt(2 / math.pi)),
    "q": np.float32(1.702),
    "zero": np.float32(0),
    "six": np.float32(6),
}
GELUS = {
    (
        "none",
        "x (1 + erf) half",
    ): "u = Div(x, root2) e = Erf(u) a = Add(e, one) b = Mul(x, a) y = Mul(b, half)",
    (
        "none",
        "x (half (1 + erf))",
    ): "u = Div(x, root2) e = Erf(u) a = Add(one, e) b = Mul(half, a) y = Mul(x, b)",
    ("none", "half first"): "h = Mul(x, half) u = Div(x, root2) e = Erf(u) a = Add(e, one) y = Mul(h, a)",
    (
        "tanh",
        "power",
    ): "p = Pow(x, three) t = Mul(p, c) s = Add(x, t) u = Mul(s, k) e = Tanh(u) a = Add(e, one)"
    " h = Mul(half, x) y = Mul(h, a)",
    (
        "tanh",
        "products",
    ): "x2 = Mul(x, x) x3 = Mul(x2, x) t = Mul(c, x3) s = Add(x, t) u = Mul(k, s) e = Tanh(u)"
    " a = Add(one, e) b = Mul(x, a) y = Mul(half, b)",
    (
        "tanh",
        "factored",
    ): "x2 = Mul(x, x) t = Mul(c, x2) f = Add(t, one) g = Mul(f, x) u = Mul(k, g) e = Tanh(u)"
    " a = Add(one, e) b = Mul(x, a) y = Mul(half, b)",
    ("quick", "sigmoid"): "u = Mul(x, q) e = Sigmoid(u) y = Mul(x, e)",
    ("hard", "ReLU6"): "u = Add(x, three) e = Clip(u, zero, six) b = Mul(x, e) y = Div(b, six)",
    ("hard", "HardSigmoid"): "e = HardSigmoid<alpha=0.16666667>(x) y = Mul(x, e)",
    ("silu", "sigmoid"): "e = Sigmoid(x) y = Mul(x, e)",
    ("silu", "tanh"): "u = Mul(x, half) e = Tanh(u) a = Add(one, e) b = Mul(x, half) y = Mul(a, b)",
}


@pytest.mark.parametrize("form", GELUS, ids=" ".join)
def test_gelu_forms(form: tuple[str, str]) -> None:
    proto = model(GELUS[form], "float[batch, 16] x", "float[batch, 16] y", GELU_WEIGHTS)
    graph = canonical(proto, {"x": 3 * floats(4, 16)})
    assert operators(graph) == {"gelu": 1}
    assert graph.nodes[0].op.approximate == form[0]


def test_gelu_of_a_scaled_value_keeps_the_scaling() -> None:
    body = "z = Mul(x, q) u = Div(z, root2) e = Erf(u) a = Add(e, one) b = Mul(z, a) y = Mul(b, half)"
    proto = model(body, "float[batch, 16] x", "float[batch, 16] y", GELU_WEIGHTS)
    assert operators(canonical(proto, {"x": floats(2, 16)})) == {"mul": 1, "gelu": 1}


@pytest.mark.parametrize("product", ["Mul(r, a)", "Mul(a, r)"])
def test_gelu_behind_a_corner(product: str) -> None:
    """The argument is what Erf is of, not what the ReLU in front is of."""
    body = f"r = Relu(x) u = Div(r, root2) e = Erf(u) a = Add(e, one) b = {product} y = Mul(b, half)"
    proto = model(body, "float[batch, 16] x", "float[batch, 16] y", GELU_WEIGHTS)
    assert operators(canonical(proto, {"x": 3 * floats(4, 16)})) == {"relu": 1, "gelu": 1}


@pytest.mark.parametrize(
    "body", ["u = Mul(x, root2) e = Sigmoid(u) y = Mul(x, e)", "u = Mul(x, half) e = Tanh(u) y = Mul(x, e)"]
)
def test_other_gates_are_no_gelu(body: str) -> None:
    proto = model(body, "float[batch, 16] x", "float[batch, 16] y", GELU_WEIGHTS)
    assert "gelu" not in operators(canonical(proto, {"x": floats(2, 16)}))


MASK_WEIGHTS = {
    "axes": np.array([1, 2]),
    "one": np.float32(1),
    "zero": np.float32(0),
    "low": np.float32(-10000),
    "high": np.float32(1e6),
    "least": np.finfo(np.float32).min,
    "none": np.int64(0),
    "inf": np.float32(-np.inf),
}
WIDE = "w = Unsqueeze(attention_mask, axes) "
MASKS = {
    "(1 - mask) * -10000": WIDE
    + "f = Cast<to=1>(w) i = Sub(one, f) a = Mul(i, low) s = Add(x, a) y = Softmax(s)",
    "less (1 - mask) * 1000000": WIDE
    + "f = Cast<to=1>(w) i = Sub(one, f) a = Mul(high, i) s = Sub(x, a) y = Softmax(s)",
    "less what is chosen": WIDE + "b = Cast<to=9>(w) a = Where(b, zero, high) s = Sub(x, a) y = Softmax(s)",
    "masked fill of the complement": WIDE + "f = Cast<to=1>(w) i = Sub(one, f) b = Cast<to=9>(i)"
    " a = Where(b, least, i) s = Add(x, a) y = Softmax(s)",
    "where 0 or least": WIDE + "b = Cast<to=9>(w) a = Where(b, zero, least) s = Add(a, x) y = Softmax(s)",
    "where scores or -inf": WIDE + "b = Cast<to=9>(w) s = Where(b, x, inf) y = Softmax(s)",
    "where -inf or scores": WIDE + "b = Equal(w, none) s = Where(b, inf, x) y = Softmax(s)",
    "expanded, NaN guarded": "b = Cast<to=9>(attention_mask) w = Unsqueeze(b, axes) d = Shape(x)"
    " h = Expand(w, d) a = Where(h, zero, inf) s = Add(x, a) p = Softmax(s) n = IsNaN(p)"
    " y = Where(n, zero, p)",
}


@pytest.mark.parametrize("form", MASKS)
def test_mask_forms(form: str) -> None:
    sizes = "batch, 2, sequence, sequence"
    inputs = f"float[{sizes}] x, int64[batch, sequence] attention_mask"
    proto = model(MASKS[form], inputs, f"float[{sizes}] y", MASK_WEIGHTS)
    mask = np.array([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    graph = canonical(proto, {"x": floats(3, 2, 5, 5), "attention_mask": mask})
    assert graph.nodes[-1].op.name == "softmax"
    assert str(graph.type(graph.nodes[-1].inputs[1])) == "TensorType(bool[batch, 1, 1, sequence])"
    assert not {"add", "mul", "sub", "where", "expand"} & set(operators(graph))


def test_a_mask_that_keeps_everything_vanishes() -> None:
    body = "d = Shape(x) k = ConstantOfShape<value=bool[1] {1}>(d) a = Where(k, zero, least)"
    body += " s = Add(x, a) y = Softmax(s)"
    proto = model(body, "float[batch, 2, 5, 5] x", "float[batch, 2, 5, 5] y", MASK_WEIGHTS)
    assert operators(canonical(proto, {"x": floats(2, 2, 5, 5)})) == {"softmax": 1}


def test_a_causal_constant_becomes_a_bool_constant() -> None:
    causal = np.where(np.tril(np.ones((5, 5))), 0, -10000).astype(np.float32)
    proto = model(
        "s = Add(x, c) y = Softmax(s)", "float[batch, 5, 5] x", "float[batch, 5, 5] y", {"c": causal}
    )
    graph = canonical(proto, {"x": floats(2, 5, 5)})
    assert operators(graph) == {"softmax": 1}
    assert graph.type(graph.nodes[0].inputs[1]).dtype == "bool"


def test_a_small_bias_on_scores_stays() -> None:
    proto = model(
        "s = Add(x, c) y = Softmax(s)", "float[batch, 5, 5] x", "float[batch, 5, 5] y", {"c": floats(5, 5)}
    )
    assert operators(canonical(proto, {"x": floats(2, 5, 5)})) == {"add": 1, "softmax": 1}


def test_gemm_becomes_a_product_with_the_transposed_weight() -> None:
    body = "y = Gemm<alpha=0.5, beta=2.0, transB=1>(x, w, b)"
    weights = {"w": floats(6, 4), "b": floats(6)}
    graph = canonical(model(body, "float[batch, 4] x", "float[batch, 6] y", weights), {"x": floats(3, 4)})
    assert operators(graph) == {"matmul": 1, "add": 1}
    assert {a.shape for a in graph.constants.values()} == {(4, 6), (6,)}


def test_normalised_input_folds_into_the_convolution() -> None:
    body = "a = Div(x, full) d = Sub(a, mean) n = Div(d, std) y = Conv<strides=[4, 4]>(n, w, b)"
    weights = {
        "full": np.float32(255),
        "mean": np.array([0.4, 0.5, 0.6], np.float32).reshape(1, 3, 1, 1),
        "std": np.array([0.2, 0.3, 0.25], np.float32).reshape(3, 1, 1),
        "w": floats(5, 3, 4, 4),
        "b": floats(5),
    }
    proto = model(body, "float[batch, 3, 8, 8] x", "float[batch, 5, 2, 2] y", weights)
    feeds: Feeds = {"x": np.random.default_rng(5).integers(0, 256, (2, 3, 8, 8)).astype(np.float32)}
    assert operators(canonical(proto, feeds, 1e-3)) == {"conv": 1}
    padded = model(
        body.replace("strides=", "pads=[1, 1, 1, 1], strides="),
        "float[batch, 3, 8, 8] x",
        "float[b, 5, h, w2] y",
        weights,
    )
    assert operators(canonical(padded, feeds, 1e-3)) == {"mul": 2, "sub": 1, "conv": 1}


SHAPES = {
    "heads by Shape": "d = Shape(x) b = Gather(d, zero) s = Gather(d, one) bu = Unsqueeze(b, axis)"
    " su = Unsqueeze(s, axis) t = Concat<axis=0>(bu, su, heads, rest) y = Reshape(x, t)",
    "heads by slices": "b = Shape<start=0, end=1>(x) s = Shape<start=1, end=2>(x)"
    " t = Concat<axis=0>(b, s, heads, rest) y = Reshape(x, t)",
    "copied sizes": "y = Reshape(x, copied)",
}


@pytest.mark.parametrize("form", SHAPES)
def test_shape_arithmetic_leaves_no_nodes(form: str) -> None:
    weights = {
        "zero": np.int64(0),
        "one": np.int64(1),
        "axis": np.array([0]),
        "heads": np.array([2]),
        "rest": np.array([-1]),
        "copied": np.array([0, 0, 2, -1]),
    }
    proto = model(SHAPES[form], "float[batch, seq, 8] x", "float[b, s, 2, 4] y", weights)
    graph = canonical(proto, {"x": floats(2, 3, 8)})
    assert operators(graph) == {"reshape": 1}
    assert str(graph.type("y")) == "TensorType(float32[batch, seq, 2, 4])"


def test_sizes_forced_equal_become_one_symbol() -> None:
    proto = model("y = Add(a, b)", "float[n, k] a, float[m, k2] b", "float[n, k] y")
    graph = import_onnx(proto)
    assert graph.type("a").shape == graph.type("b").shape
    assert len(graph.symbols()) == 2


def test_inputs_replace_shapes_and_element_types() -> None:
    proto = model("y = Relu(x)", "float[n, k] x", "float[n, k] y")
    assert import_onnx(proto, {"x": (2, "width")}).type("y").shape[0] == 2
    assert import_onnx(proto, {"x": "uint8"}).type("x").dtype == "uint8"


def test_outputs_keep_their_names_whatever_folds() -> None:
    body = "i = Identity(x) y = Identity(i) z = Relu(x) w = Identity(z) c = Add(k, k)"
    proto = model(body, "float[n] x", "float[n] y, float[n] z, float[n] w, float[1] c", {"k": floats(1)})
    graph = import_onnx(proto)
    verify(graph)
    assert graph.outputs == ["y", "z", "w", "c"]
    x = floats(3)
    for got, want in zip(graph.evaluate({"x": x}), expected(proto, {"x": x}), strict=True):
        np.testing.assert_array_equal(got, want)


FUSED = {
    "SkipLayerNormalization": (
        "y, , , s = com.microsoft.SkipLayerNormalization<epsilon=0.001>(x, r, g, g, b)",
        {"add": 2, "layer_norm": 1},
    ),
    "BiasGelu": ("y = com.microsoft.BiasGelu(x, b)", {"add": 1, "gelu": 1}),
    "FastGelu": ("y = com.microsoft.FastGelu(x, b)", {"add": 1, "gelu": 1}),
    "QuickGelu": ("y = com.microsoft.QuickGelu<alpha=1.702>(x)", {"gelu": 1}),
    "Gelu": ("y = com.microsoft.Gelu(x)", {"gelu": 1}),
    "FusedMatMul": (
        "y = com.microsoft.FusedMatMul<alpha=0.5, transB=1>(x, sq)",
        {"matmul": 1, "mul": 1},
    ),
    "Attention": (
        "y = com.microsoft.Attention<num_heads=2>(x, w, wb, mask)",
        {"add": 1, "cast": 1, "matmul": 3, "mul": 1, "reshape": 5, "slice": 3, "softmax": 1, "transpose": 5},
    ),
    "MultiHeadAttention": (
        "y = com.microsoft.MultiHeadAttention<num_heads=2>(x, r, r, wb, mask)",
        {"add": 3, "cast": 1, "matmul": 2, "mul": 1, "reshape": 5, "softmax": 1, "transpose": 5},
    ),
}


@pytest.mark.parametrize("name", FUSED)
def test_fused_operators_come_apart(name: str) -> None:
    body, want = FUSED[name]
    weights = {
        "g": floats(8),
        "b": floats(8, seed=1),
        "sq": floats(8, 8),
        "w": floats(8, 24),
        "wb": floats(24),
    }
    used = {k: v for k, v in weights.items() if re.search(rf"[(,] ?{k}[,)]", body)}
    mask = "mask" in body
    inputs = "float[batch, seq, 8] x" + (", float[batch, seq, 8] r" if ", r" in body else "")
    inputs += ", int32[batch, seq] mask" if mask else ""
    proto = model(body, inputs, "float[batch, seq, 8] y", used, microsoft=True)
    feeds: Feeds = {"x": floats(2, 5, 8), "r": floats(2, 5, 8, seed=1)}
    feeds["mask"] = np.array([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], np.int32)
    feeds = {k: v for k, v in feeds.items() if k in {i.name for i in proto.graph.input}}
    graph = canonical(proto, feeds, 1e-4)
    got = operators(graph)
    assert {k: got[k] for k in want if k != "reshape"} == {k: v for k, v in want.items() if k != "reshape"}
    assert set(got) == set(want)


def test_embed_layer_normalization() -> None:
    body = "y, m = com.microsoft.EmbedLayerNormalization<epsilon=0.001>"
    body += "(ids, types, words, positions, kinds, g, b)"
    weights = {
        "words": floats(20, 8),
        "positions": floats(12, 8),
        "kinds": floats(2, 8),
        "g": floats(8),
        "b": floats(8, seed=1),
    }
    inputs = "int32[batch, seq] ids, int32[batch, seq] types"
    proto = model(body, inputs, "float[batch, seq, 8] y", weights, microsoft=True)
    rng = np.random.default_rng(5)
    feeds: Feeds = {
        "ids": rng.integers(0, 20, (2, 5)).astype(np.int32),
        "types": rng.integers(0, 2, (2, 5)).astype(np.int32),
    }
    got = operators(canonical(proto, feeds))
    assert got == {"gather": 2, "slice": 1, "add": 2, "layer_norm": 1}
