"""Scores that are joined with others (sinks), masks that are padded, and sizes of the exporter's example."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from intc.errors import FeedError
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, floats, model, operators

MASKED = {
    "where": "s = Where(m, q, low)",
    "infinite": "s = Where(m, q, lowest)",
    "added": "a = Where(m, zero, low) s = Add(q, a)",
    "moved": "a = Where(m, zero, low) s = Add(q, a)",
}
JOINED = {
    "": "c = Concat<axis=-1>(s, e) p = Softmax(c)",
    "moved": "c = Concat<axis=-1>(e, s) t = ReduceMax<axes=[-1]>(c) d = Sub(c, t) p = Softmax(d)",
}
NUMBERS: Feeds = {
    "low": np.float32(-3e38),
    "lowest": np.float32(-np.inf),
    "zero": np.float32(0),
    "sink": floats(3, 1, 1),
    "shape": np.array([1, 3, 6, 1]),
}


@pytest.mark.parametrize("form", MASKED)
def test_masked_scores_beside_others(form: str, tmp_path: Path) -> None:
    """The learned score beside those of keys, which takes weight away."""
    body = f"q = Mul(x, x) {MASKED[form]} e = Expand(sink, shape) {JOINED.get(form, JOINED[''])}"
    body += " y = Slice(p, from, to, last)"
    start = int(form == "moved")
    weights = NUMBERS | {"from": np.array([start]), "to": np.array([start + 6]), "last": np.array([-1])}
    used = {name: weights[name] for name in weights.keys() & set(re.findall(r"\w+", body))}
    proto = model(body, "float[1, 3, 6, 6] x, bool[6, 6] m", "float[1, 3, 6, 6] y", used)
    feeds: Feeds = {"x": floats(1, 3, 6, 6), "m": np.tri(6, dtype=bool)}
    graph = canonical(proto, feeds)
    found = operators(graph)
    assert "where" not in found and "reduce_max" not in found and found["softmax"] == 1
    if form == "moved":
        several = {"x": np.repeat(feeds["x"][None], 4, 0), "m": np.repeat(feeds["m"][None], 4, 0)}
        module = compiled(proto, [{k: v[i] for k, v in several.items()} for i in range(4)], tmp_path)
        assert distance(module, proto, feeds) < 0.05


def test_masked_scores_that_are_moved_before_they_are_joined(tmp_path: Path) -> None:
    """Criss-cross attention: the pixels of a column but one's own, and those of a row."""
    body = (
        "r = Mul(x, x) q = Reshape(r, flat) s = Add(q, own) v = Reshape(s, split)"
        " h = Transpose<perm=[0, 2, 1, 3]>(v) c = Concat<axis=3>(h, z) y = Softmax(c)"
    )
    own = np.where(np.eye(4, dtype=bool), -np.inf, 0).astype(np.float32)
    weights: Feeds = {"own": own, "flat": np.array([-1, 4, 4]), "split": np.array([-1, 3, 4, 4])}
    proto = model(body, "float[b, 3, 4, 4] x, float[b, 4, 3, 3] z", "float[b, 4, 3, 7] y", weights)
    feeds: Feeds = {"x": floats(8, 3, 4, 4), "z": floats(8, 4, 3, 3)}
    assert operators(canonical(proto, feeds))["softmax"] == 1
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.05


def test_a_mask_with_more_kept_entries_around_it() -> None:
    """Keys of zeros behind those that are given, as ``add_zero_attn`` joins them."""
    body = "a = Where(m, zero, lowest) w = Pad(a, pads) s = Add(x, w) y = Softmax(s)"
    weights = {"zero": np.float32(0), "lowest": np.float32(-np.inf), "pads": np.array([0, 0, 0, 1])}
    proto = model(body, "float[b, 7] x, bool[b, 6] m", "float[b, 7] y", weights)
    graph = canonical(proto, {"x": floats(2, 7), "m": np.arange(6) < np.array([[2], [5]])})
    assert operators(graph) == {"not": 2, "pad": 1, "softmax": 1}


def test_masks_are_padded_with_true() -> None:
    body = "w = Pad(m, pads, one) s = Where(w, x, low) y = Softmax(s)"
    weights = {"one": np.array(True), "low": np.float32(-1e9), "pads": np.array([0, 2, 0, 0])}
    proto = model(body, "float[b, 8] x, bool[b, 6] m", "float[b, 8] y", weights)
    canonical(proto, {"x": floats(2, 8), "m": np.arange(6) < np.array([[2], [5]])})


def test_the_sizes_of_an_example() -> None:
    """Both sizes of the exporter's example stand in a reshape: the model takes nothing else."""
    proto = model("y = Reshape(x, shape)", "float[batch, n, 4] x", "float[2, 1, 6, 4] y",
                  {"shape": np.array([2, 1, 6, 4])})  # fmt: skip
    graph = canonical(proto, {"x": floats(2, 6, 4)})
    with pytest.raises(FeedError, match=r"expected \[2, 6, 4\]"):
        graph.evaluate({"x": floats(2, 5, 4)})


@pytest.mark.parametrize("spelt", ("where", "bool"))
def test_corners_of_windows_are_masked_in_the_whole(spelt: str, tmp_path: Path) -> None:
    """Windows of keys whose ends lie outside (Longformer): minus infinity is written to both corners. The
    padding is a product of ones with a mask.
    """
    body = """s = Mul(x, x) top = Slice(s, n0, n2, n1) below = Slice(s, n2, n6, n1)
        a = Slice(top, n0, n2, n2) aw = Where(corner, lowest, a) ar = Slice(top, n2, n5, n2)
        at = Concat<axis=2>(aw, ar) t = Concat<axis=1>(at, below)
        above = Slice(t, n0, n4, n1) end = Slice(t, n4, n6, n1)
        b = Slice(end, n3, n5, n2) bw = Where(corner, lowest, b) br = Slice(end, n0, n3, n2)
        bt = Concat<axis=2>(br, bw) c = Concat<axis=1>(above, bt)
        u = Unsqueeze(m, n1) o = Cast<to=1>(u) h = Sub(one, o) """
    body += {
        "where": "k = Cast<to=9>(u) p = Where(k, zero, least) ",
        "bool": "k = Cast<to=9>(h) g = Where(k, least, h) r = Equal(g, zero) p = Where(r, zero, least) ",
    }[spelt]
    body += "q = MatMul(ones, p) z = Add(c, q) y = Softmax(z)"
    weights: Feeds = {f"n{k}": np.array([k]) for k in range(7)} | {
        "corner": np.array([[True, True], [True, False]]),
        "lowest": np.float32(-np.inf),
        "least": np.finfo(np.float32).min,
        "zero": np.float32(0),
        "one": np.float32(1),
        "ones": np.ones((6, 1), np.float32),
    }
    used = {name: value for name, value in weights.items() if re.search(rf"\b{name}\b", body)}
    proto = model(body, "float[b, 6, 5] x, int64[b, 5] m", "float[b, 6, 5] y", used)
    feeds: Feeds = {"x": floats(8, 6, 5), "m": (np.arange(5) < np.array([[3], [5]] * 4)).astype(np.int64)}
    module = compiled(proto, feeds, tmp_path)
    assert spelt == "bool" or "where" not in operators(module.graph)
    assert distance(module, proto, feeds) < 0.02
