"""How many bits values get where no plan says it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.ops.fused import Attention, Linear
from intc.passes.plan import Choice, Plan
from tests.onnx_models import Feeds, floats, model

HEADS, DIM = 2, 8
WIDTH = HEADS * DIM
ATTENTION = (
    "q0 = MatMul(x, wq) q1 = Reshape(q0, split) q = Transpose<perm=[0, 2, 1, 3]>(q1)"
    " k0 = MatMul(x, wk) k1 = Reshape(k0, split) k = Transpose<perm=[0, 2, 3, 1]>(k1)"
    " v0 = MatMul(x, wv) v1 = Reshape(v0, split) v = Transpose<perm=[0, 2, 1, 3]>(v1)"
    " s0 = MatMul(q, k) s = Mul(s0, scale) p = Softmax<axis=-1>(s) c0 = MatMul(p, v)"
    " c1 = Transpose<perm=[0, 2, 1, 3]>(c0) y = Reshape(c1, merge)"
)
X = floats(32, 12, WIDTH)


def attention(scale: float) -> onnx.ModelProto:
    """Attention whose scores are about ``scale`` large."""
    rng = np.random.default_rng(3)
    weights = {n: rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 4 for n in ("wq", "wk", "wv")}
    weights |= {"split": np.array([0, 0, HEADS, DIM]), "merge": np.array([0, 0, WIDTH])}
    weights["scale"] = np.array(scale / np.sqrt(DIM), np.float32)
    return model(ATTENTION, f"float[batch, seq, {WIDTH}] x", f"float[b, s, {WIDTH}] y", weights)


def compiled(proto: onnx.ModelProto, feeds: Feeds, folder: Path, **options: object) -> intc.Module:
    """A module whose kernels give the reference's bits."""
    onnx.save(proto, folder / "m.onnx")
    module = intc.compile(folder / "m.onnx", feeds, rounding="nearest", **options)
    part = {name: array[:3] for name, array in feeds.items()}
    assert np.array_equal(module.session().run(None, part)[0], module.graph.evaluate(part)[0])
    return module


def operands(module: intc.Module) -> tuple[str, ...]:
    """The types of queries, keys and values."""
    node = next(n for n in module.prepared.nodes if isinstance(n.op, Attention))
    return tuple(module.prepared.type(x).dtype for x in node.inputs[:3])


def test_scores_that_rounding_would_move_are_of_wide_products(tmp_path: Path) -> None:
    small = compiled(attention(0.5), {"x": X}, tmp_path)
    large = compiled(attention(8.0), {"x": X}, tmp_path)
    assert operands(small) == ("int8", "int8", "int8")
    assert operands(large) == ("int16", "int16", "int8")


def test_a_plan_has_its_way_with_scores(tmp_path: Path) -> None:
    proto, feeds = attention(8.0), {"x": X}
    narrow = compiled(proto, feeds, tmp_path, bits=Plan({"s0": Choice(activations=8)}))
    assert operands(narrow) == ("int8", "int8", "int8")
    wide = compiled(attention(0.5), feeds, tmp_path, bits=Plan({"s0": Choice(activations=16)}))
    assert operands(wide) == ("int16", "int16", "int8")
    with pytest.raises(
        intc.errors.UsageError, match="'s0' is a matmul, which takes activations, not weights"
    ):
        compiled(proto, feeds, tmp_path, bits=Plan({"s0": Choice(weights=4)}))


def test_published_formulas_keep_their_8_bits(tmp_path: Path) -> None:
    module = compiled(attention(8.0), {"x": X}, tmp_path, approximation="ivit")
    products = [n for n in module.graph.nodes if n.op.name == "matmul"]
    assert {module.graph.type(x).dtype for n in products for x in n.inputs} <= {"int8", "uint8"}


def test_wide_scores_are_nearer(tmp_path: Path) -> None:
    proto, feeds = attention(8.0), {"x": X}
    narrow = compiled(proto, feeds, tmp_path, bits=Plan({"s0": Choice(activations=8)}))
    wide = compiled(proto, feeds, tmp_path)
    exact = intc.frontend.import_onnx(tmp_path / "m.onnx").evaluate(feeds)[0]
    near, far = (np.square(m.graph.evaluate(feeds)[0] - exact).sum() for m in (wide, narrow))
    assert near < 0.7 * far


def test_what_is_never_negative_has_all_256_codes(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    weights = {
        "w": rng.normal(size=(16, 24)).astype(np.float32),
        "u": rng.normal(size=(24, 8)).astype(np.float32),
    }
    body = "h = MatMul(x, w) r = Relu(h) y = MatMul(r, u)"
    proto = model(body, "float[batch, seq, 16] x", "float[b, s, c] y", weights)
    module = compiled(proto, {"x": X}, tmp_path)
    first, second = (n for n in module.prepared.nodes if isinstance(n.op, Linear))
    assert (first.op.dtype, first.op.lo, first.op.hi) == ("uint8", 0, 255)
    assert second.inputs[0] == first.output


@pytest.mark.parametrize(("rows", "dtype"), [(512, "int16"), (2**16, "int8")])
def test_small_tables_have_sixteen_bits(rows: int, dtype: str, tmp_path: Path) -> None:
    table = np.random.default_rng(5).normal(size=(rows, 24)).astype(np.float32)
    proto = model("g = Gather(t, i) y = Relu(g)", "int64[batch, seq] i", "float[b, s, c] y", {"t": table})
    module = compiled(proto, {"i": np.arange(96).reshape(32, 3)}, tmp_path)
    assert (
        module.graph.type(next(n.output for n in module.graph.nodes if n.op.name == "gather")).dtype == dtype
    )


def test_products_of_few_columns_read_sixteen_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    weights = {"w": rng.normal(size=(16, 64)), "u": rng.normal(size=(64, 16)), "g": rng.normal(size=(16, 2))}
    proto = model(
        "a = MatMul(x, w) b = Tanh(a) h = MatMul(b, u) t = Tanh(h) y = MatMul(t, g)",
        "float[batch, seq, 16] x",
        "float[b, s, 2] y",
        {name: array.astype(np.float32) for name, array in weights.items()},
    )
    module = compiled(proto, {"x": X}, tmp_path)
    linears = [n for n in module.prepared.nodes if isinstance(n.op, Linear)]
    assert [module.prepared.type(n.inputs[0]).dtype for n in linears] == ["int8", "int8", "int16"]
