"""Valid models of every kind of operator, for :mod:`tests.fuzz.models` to mutate."""

from __future__ import annotations

import re

import numpy as np
import onnx

from tests import test_causal_masks, test_frontend, test_quantised_models, test_wide_import
from tests.onnx_models import Feeds, floats, model

IMAGE = "float[batch, 4, 6, 8] x"
TOKENS = "float[batch, seq, 6] x"
OTHERS: dict[str, tuple[str, str, str, Feeds, bool]] = {
    "decoder": (
        "k = Concat<axis=2>(past, x) t = Transpose<perm=[0,1,3,2]>(k) s = MatMul(x, t) p = Softmax(s)"
        " y = MatMul(p, k)",
        "float[batch, 2, seq, 4] x, float[batch, 2, past, 4] past",
        "float[batch, 2, seq, 4] y, float[batch, 2, all, 4] k",
        {},
        False,
    ),
    "indices": (
        "e = Gather(table, ids) s = ReduceSum<keepdims=0>(e, ax) c = CumSum(s, end)"
        " t = Tile(c, times) q, r = Split<axis=0>(table, sizes) y = MatMul(t, q)",
        "int64[batch, 3] ids",
        "float[batch, n, 4] y",
        {
            "table": floats(6, 4),
            "ax": np.array([1]),
            "end": np.int64(1),
            "times": np.array([1, 1]),
            "sizes": np.array([4, 2]),
        },
        False,
    ),
    "einsum": (
        'e = Einsum<equation="bid,bjd->bij">(x, x) a = ArgMax<axis=2>(e) l = LeakyRelu<alpha=0.1>(e)'
        " y = Add(l, l)",
        TOKENS,
        "float[batch, a, b] y",
        {},
        False,
    ),
    "microsoft": (
        "s = com.microsoft.SkipLayerNormalization(x, x, g, b) h = com.microsoft.BiasGelu(s, b)"
        " y = com.microsoft.FusedMatMul<transB=1, alpha=0.5>(h, w)",
        TOKENS,
        "float[batch, seq, 6] y",
        {"g": floats(6), "b": floats(6, seed=1), "w": floats(6, 6)},
        True,
    ),
    "quantised": (
        "q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear<axis=1>(w, t, u)"
        " m = MatMul(d, v) p = QuantizeLinear(m, s, z) y = DequantizeLinear(p, s, z)",
        TOKENS,
        "float[batch, seq, 4] y",
        {
            "s": np.float32(0.05),
            "z": np.int8(3),
            "w": np.arange(24, dtype=np.int8).reshape(6, 4),
            "t": np.full(4, 0.01, np.float32),
            "u": np.zeros(4, np.int8),
        },
        False,
    ),
    "constants": (
        "f = ConstantOfShape<value=float[1] {0.5}>(n) r = Range(zero, ten, one) c = Cast<to=1>(r)"
        " e = Expand(c, n) t = Add(e, f) u = Reshape(t, flat) d = Gather(u, picks) y = Mul(x, d)",
        TOKENS,
        "float[batch, seq, 6] y",
        {
            "n": np.array([4, 10]),
            "zero": np.int64(0),
            "ten": np.int64(10),
            "one": np.int64(1),
            "flat": np.array([-1]),
            "picks": np.arange(6),
        },
        False,
    ),
}


def corpus() -> dict[str, onnx.ModelProto]:
    """Valid models of every kind of operator, named."""
    out = {}
    for name, (body, inputs, outputs, weights, microsoft) in OTHERS.items():
        out[name] = model(body, inputs, outputs, weights, microsoft=microsoft)
    for name, (body, weights, _) in test_wide_import.SEQUENCES.items():
        out[name] = model(
            body, TOKENS, "float[b2, s2, 6] y", used(body, {**test_wide_import.SIZE, **weights})
        )
    for name, (body, weights, _) in test_wide_import.IMAGES.items():
        out[name] = model(body, IMAGE, "float[b2, c2, h2, w2] y", used(body, weights))
    norm = {"two": np.float32(2), "eps": np.float32(1e-3), "gamma": floats(8), "beta": floats(8, seed=1)}
    for name, body in test_frontend.LAYER_NORMS.items():
        out[name] = model(body, "float[batch, s, 8] x", "float[batch, s, 8] y", norm)
    for number_, body in enumerate(test_frontend.GELUS.values()):
        weights = used(body, test_frontend.GELU_WEIGHTS)
        out[f"gelu {number_}"] = model(body, "float[batch, 16] x", "float[batch, 16] y", weights)
    for name, body in test_causal_masks.FORMS.items():
        square = "float[batch, 2, seq, seq]"
        keys = ", int64[batch, seq] keys" if "g =" in body else ""
        weights = used(body, test_causal_masks.WEIGHTS)
        out[name] = model(f"{body} y = Softmax(p)", f"{square} x{keys}", f"{square} y", weights)
    body, weights = test_quantised_models.BODY, test_quantised_models.WEIGHTS
    out["network"] = model(body, "float[batch, 3, 8, 8] x", "float[b2, 5] y", weights)
    return out


def used(body: str, weights: Feeds) -> Feeds:
    return {name: array for name, array in weights.items() if name in re.findall(r"\w+", body)}
