"""Experts as transformers writes them: tokens sorted by expert, counted, and the rows between two computed
positions multiplied by the weights of one; and functions of integers that take few values.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from intc.errors import ImportFailure, UnsupportedModel
from intc.frontend import import_onnx
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, floats, model, operators, several

EXPERTS, WIDTH, INNER = 3, 6, 5
GATE = floats(WIDTH, EXPERTS)
SORTED = """
 g = MatMul(x, gate) s = Softmax(g) i = ArgMax<axis=-1, keepdims=0>(g) b = ReduceMax<axes=[-1], keepdims=1>(s)
 d = Shape(i) e, p = TopK<largest=0>(i, d) r = Gather(x, p) w = Gather(b, p)
 f = Cast<to=1>(e) q = Div(f, bin) k = Cast<to=7>(q) c = Clip(k, zero, last)
 ones = Expand(one_real, d) h = ScatterElements<axis=0, reduction="add">(none, c, ones)
 o = Cast<to=6>(h) t = CumSum(o, zero) u = Cast<to=7>(t) ends = Split<axis=0>(u)
"""
BACK = """
 z = Mul(up, w) n = Squeeze(d, first) every = Range(zero, n, one) old = Expand(zero, d)
 at = Unsqueeze(p, behind) back = ScatterND(old, at, every) y = Gather(z, back)
"""


def grouped(rows: str, weights: str, out: str, ranges: str = "between") -> str:
    """Products of each expert with its own rows, joined again."""
    parts = [
        f" a{out}{e} = Gather({rows}, {ranges}{e}) m{out}{e} = MatMul(a{out}{e}, {weights}{e})"
        for e in range(EXPERTS)
    ]
    return "".join(parts) + f" {out} = Concat<axis=0>({', '.join(f'm{out}{e}' for e in range(EXPERTS))})"


def experts(body: str, output: str = "float[m, c] y") -> onnx.ModelProto:
    ends = ", ".join(f"end{e}" for e in range(EXPERTS))
    ranges = "".join(
        f" stop{e} = Squeeze(end{e}, first) between{e} = Range({start}, stop{e}, one)"
        for e, start in enumerate(("zero", "stop0", "stop1"))
    )
    weights: Feeds = several((f"w{e}" for e in range(EXPERTS)), WIDTH, INNER)
    weights |= several((f"v{e}" for e in range(EXPERTS)), INNER, WIDTH)
    weights |= {"gate": GATE, "none": np.zeros(EXPERTS, np.float32), "one_real": np.ones(1, np.float32)}
    weights |= {"bin": np.float32((EXPERTS - 1) / EXPERTS), "last": np.int64(EXPERTS - 1)}
    weights |= {"zero": np.int64(0), "one": np.int64(1), "first": np.array([0]), "behind": np.array([-1])}
    text = SORTED.replace("ends = Split", f"{ends} = Split") + ranges + body
    return model(text, "float[n, 6] x", output, weights)


LAYERS = grouped("r", "w", "low") + " act = Relu(low)" + grouped("act", "v", "up")


def decided(count: int) -> np.ndarray:
    """Rows of which rounding cannot change the largest gate."""
    rows = floats(8 * count, WIDTH)
    gates = np.sort(rows @ GATE, axis=-1)
    return rows[gates[:, -1] - gates[:, -2] > 0.3][:count]


def test_rows_of_each_expert(tmp_path: Path) -> None:
    proto = experts(LAYERS + BACK)
    for count in (1, 9):
        canonical(proto, {"x": floats(count, WIDTH)})
    feeds = {"x": decided(40)}
    assert distance(compiled(proto, feeds, tmp_path, rounding="nearest"), proto, feeds) < 0.05


def test_rows_split_by_how_many_each_expert_has(tmp_path: Path) -> None:
    parts = [f"part{e}" for e in range(EXPERTS)]
    products = "".join(
        f" low{e} = MatMul({part}, w{e}) act{e} = Relu(low{e}) high{e} = MatMul(act{e}, v{e})"
        for e, part in enumerate(parts)
    )
    body = f" many = Cast<to=7>(o) {', '.join(parts)} = Split<axis=0>(r, many)" + products
    body += f" up = Concat<axis=0>({', '.join(f'high{e}' for e in range(EXPERTS))})"
    proto = experts(body + BACK)
    for count in (1, 9):
        canonical(proto, {"x": floats(count, WIDTH)})
    feeds = {"x": decided(40)}
    assert distance(compiled(proto, feeds, tmp_path, rounding="nearest"), proto, feeds) < 0.05


def test_how_many_rows_are_joined_must_follow() -> None:
    with pytest.raises(ImportFailure, match="the size of output 'low' depends on the values of the inputs"):
        import_onnx(experts(grouped("r", "w", "low"), "float[m, c] low"))


def test_rows_joined_in_another_order_are_refused() -> None:
    body = LAYERS.replace("(mlow0, mlow1, mlow2)", "(mlow0, mlow2, mlow1)")
    with pytest.raises(UnsupportedModel, match="joined in another order"):
        import_onnx(experts(body + BACK))


def test_functions_of_few_integers_are_tables() -> None:
    weights: Feeds = {"w": floats(6, 9), "c": np.float32(0.37), "d": np.float32(-5)}
    body = "m = MatMul(x, w) i = ArgMax<axis=-1>(m) f = Cast<to=1>(i)"
    body += " q = Div(f, c) s = Add(q, d) k = Cast<to=7>(s)"
    proto = model(body, "float[n, 6] x", "int64[m, one] k", weights)
    assert operators(canonical(proto, {"x": floats(30, 6)}))["gather"] == 1
