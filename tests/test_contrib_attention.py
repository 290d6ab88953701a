"""Attention, rotary embedding and what surrounds them as onnxruntime's optimiser and model builders write
them, past keys and values included: the float graph gives what onnxruntime gives.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import intc
from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from intc.passes.pipeline import canonicalise
from tests.onnx_models import Feeds, canonical, expected, floats, operators, several

RNG = np.random.default_rng(41)
HEADS, DIM, WIDTH = 4, 16, 64
KINDS = {"f": TensorProto.FLOAT, "i": TensorProto.INT32, "u": TensorProto.INT64}


RANKS = {"y": 3, "sum": 3, "k": 4, "v": 4, "present": 5, "present_k": 4, "present_v": 4}


def results(names: Iterable[str], **ranks: int) -> list[onnx.ValueInfoProto]:
    """The outputs of a graph, of which only the ranks are told."""
    shapes = {n: [f"{n}{i}" for i in range({**RANKS, **ranks}[n])] for n in names if n}
    return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]


def single(
    op: str,
    inputs: dict[str, Any],
    outputs: list[str],
    constants: Feeds | None = None,
    domain: str = "com.microsoft",
    opset: int = 17,
    **attributes: Any,
) -> onnx.ModelProto:
    """One node: ``inputs`` map names, which begin with their type, to shapes (None: a constant or none)."""
    given = {n: s for n, s in inputs.items() if s is not None}
    names = [n if s is not None or n in (constants or {}) else "" for n, s in inputs.items()]
    node = helper.make_node(op, names, outputs, domain=domain, **attributes)
    infos = [helper.make_tensor_value_info(n, KINDS[n[0]], s) for n, s in given.items()]
    rank = len(given["fq"]) if domain == "" else 3
    graph = helper.make_graph([node], "contrib", infos, results(outputs, y=rank))
    for name, array in (constants or {}).items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def agrees(proto: onnx.ModelProto, feeds: Feeds) -> None:
    graph = canonicalise(import_onnx(proto)).graph
    for found, want in zip(graph.evaluate(feeds), expected(proto, feeds), strict=True):
        assert found.shape == want.shape
        np.testing.assert_allclose(found, want, atol=2e-5, rtol=1e-4)


TOKENS = ["batch", "seq", WIDTH]
KEYS = ["batch", "keys", WIDTH]
CACHE = ["batch", HEADS, "past", DIM]
TABLES = {"fc": np.cos(np.outer(np.arange(40), 1 / 7.0 ** np.arange(8))).astype(np.float32),
          "fs": np.sin(np.outer(np.arange(40), 1 / 7.0 ** np.arange(8))).astype(np.float32)}  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("past", [0, 5])
@pytest.mark.parametrize("extra", [{}, {"do_rotary": 1}, {"do_rotary": 1, "rotary_interleaved": 1},
                                   {"local_window_size": 3}, {"softcap": 3.0, "scale": 0.4}])  # fmt: skip
def test_grouped_queries(packed: bool, past: int, extra: dict[str, Any]) -> None:
    batch, seq, groups = 2, 3 if past == 0 else 1, 2
    kv = groups * DIM
    inputs: dict[str, Any] = {
        "fq": ["batch", "seq", WIDTH + 2 * kv if packed else WIDTH],
        "fk": None if packed else ["batch", "seq", kv],
        "fv": None if packed else ["batch", "seq", kv],
        "fpk": ["batch", groups, "past", DIM], "fpv": ["batch", groups, "past", DIM],
        "il": ["batch"], "it": [1],
    }  # fmt: skip
    constants = TABLES if "do_rotary" in extra else {}
    inputs |= dict.fromkeys(constants)
    proto = single("GroupQueryAttention", inputs, ["y", "k", "v"], constants, num_heads=HEADS,
                   kv_num_heads=groups, **extra)  # fmt: skip
    feeds: Feeds = {"fq": floats(batch, seq, WIDTH + 2 * kv if packed else WIDTH)}
    if not packed:
        feeds |= {"fk": floats(batch, seq, kv), "fv": floats(batch, seq, kv, seed=1)}
    feeds |= {"fpk": floats(batch, groups, past, DIM), "fpv": floats(batch, groups, past, DIM, seed=1)}
    feeds |= {"il": np.full(batch, past + seq - 1, np.int32), "it": np.array([past + seq], np.int32)}
    agrees(proto, feeds)


@pytest.mark.parametrize("extra", [{}, {"do_rotary": 1}, {"local_window_size": 3}])
def test_grouped_queries_of_samples_that_are_not_equally_long(extra: dict[str, Any]) -> None:
    seq, groups, kv, past = 1, 2, 2 * DIM, 6
    cache = ["batch", groups, "past", DIM]
    inputs: dict[str, Any] = {"fq": ["batch", "seq", WIDTH], "fk": ["batch", "seq", kv],
                              "fv": ["batch", "seq", kv], "fpk": cache, "fpv": cache,
                              "il": ["batch"], "it": [1]}  # fmt: skip
    constants = TABLES if "do_rotary" in extra else {}
    proto = single("GroupQueryAttention", inputs | dict.fromkeys(constants), ["y", "k", "v"], constants,
                   num_heads=HEADS, kv_num_heads=groups, **extra)  # fmt: skip
    lengths = np.array([past, 3, 1])
    feeds: Feeds = {"fq": floats(3, seq, WIDTH), "fk": floats(3, seq, kv), "fv": floats(3, seq, kv, seed=1)}
    feeds |= {"fpk": floats(3, groups, past, DIM), "fpv": floats(3, groups, past, DIM, seed=1)}
    feeds |= {"il": (lengths + seq - 1).astype(np.int32), "it": np.array([past + seq], np.int32)}
    found = canonicalise(import_onnx(proto)).graph.evaluate(feeds)
    want = expected(proto, feeds)
    np.testing.assert_allclose(found[0], want[0], atol=2e-5, rtol=1e-4)
    for mine, right in zip(found[1:], want[1:], strict=True):
        for sample, length in enumerate(lengths):
            np.testing.assert_allclose(mine[sample, :, : length + seq], right[sample, :, : length + seq],
                                       atol=2e-5)  # fmt: skip


@pytest.mark.parametrize("mask", ["none", "keys", "lengths", "pairs"])
@pytest.mark.parametrize("past", [False, True])
def test_multi_head_attention(mask: str, past: bool) -> None:
    batch, seq, length = 2, 4, 3 if past else 0
    total = seq + length
    shapes = {"keys": ["batch", "total"], "lengths": ["batch"], "pairs": ["batch", "seq", "total"]}
    inputs: dict[str, Any] = {"fq": TOKENS, "fk": TOKENS, "fv": TOKENS, "fb": None,
                              "im": shapes.get(mask), "fa": [1, HEADS, "seq", "total"]}  # fmt: skip
    if past:
        inputs |= {"fpk": CACHE, "fpv": CACHE}
    proto = single("MultiHeadAttention", inputs, ["y", "k", "v"] if past else ["y"],
                   {"fb": floats(3 * WIDTH)}, num_heads=HEADS)  # fmt: skip
    feeds: Feeds = several(("fq", "fk", "fv"), batch, seq, WIDTH)
    feeds["fa"] = floats(1, HEADS, seq, total)
    masks = {"keys": np.array([[1] * total, [1] * (total - 2) + [0] * 2], np.int32),
             "lengths": np.array([total, total - 2], np.int32),
             "pairs": np.tril(np.ones((batch, seq, total), np.int32), length)}  # fmt: skip
    if mask in masks:
        feeds["im"] = masks[mask]
    if past:
        feeds |= {"fpk": floats(batch, HEADS, length, DIM), "fpv": floats(batch, HEADS, length, DIM, seed=1)}
    agrees(proto, feeds)


def test_packed_projections_and_keys_that_have_heads() -> None:
    """Packed rows, which onnxruntime computes on accelerators only, are those apart."""
    apart = single("MultiHeadAttention", {"fq": TOKENS, "fk": KEYS, "fv": KEYS}, ["y"], num_heads=HEADS)
    rows = floats(2, 5, HEADS, 3, DIM)
    q, k, v = (rows[:, :, :, i].reshape(2, 5, WIDTH) for i in range(3))
    (want,) = expected(apart, {"fq": q, "fk": k, "fv": v})
    for inputs, feeds in (
        ({"fq": ["batch", "seq", HEADS, 3, DIM]}, {"fq": rows}),
        ({"fq": TOKENS, "fkv": ["batch", "keys", HEADS, 2, DIM]}, {"fq": q, "fkv": rows[:, :, :, 1:]}),
    ):
        proto = single("MultiHeadAttention", inputs, ["y"], num_heads=HEADS)
        np.testing.assert_allclose(import_onnx(proto).evaluate(feeds)[0], want, atol=2e-5)
    crossed = {"fq": TOKENS, "fk": ["batch", HEADS, "keys", DIM], "fv": ["batch", HEADS, "keys", DIM]}
    headed = floats(2, HEADS, 7, DIM)
    agrees(
        single("MultiHeadAttention", crossed, ["y"], num_heads=HEADS),
        {"fq": q, "fk": headed, "fv": headed + 1},
    )


@pytest.mark.parametrize("past", [False, True])
def test_attention_that_holds_its_projections(past: bool) -> None:
    batch, seq, length = 2, 4, 3 if past else 0
    inputs: dict[str, Any] = {"fx": TOKENS, "fw": None, "fb": None, "im": ["batch", "total"]}
    if past:
        inputs["fp"] = [2, "batch", HEADS, "past", DIM]
    weights = {"fw": floats(WIDTH, 3 * WIDTH) / 4, "fb": floats(3 * WIDTH)}
    proto = single("Attention", inputs, ["y", "present"] if past else ["y"], weights, num_heads=HEADS,
                   unidirectional=1)  # fmt: skip
    mask = np.ones((batch, seq + length), np.int32)
    mask[1, -1] = 0
    feeds: Feeds = {"fx": floats(batch, seq, WIDTH), "im": mask}
    if past:
        feeds["fp"] = floats(2, batch, HEADS, length, DIM)
    agrees(proto, feeds)


@pytest.mark.parametrize("interleaved", [0, 1])
@pytest.mark.parametrize("positions", ["each", "first"])
def test_rotary_embedding(interleaved: int, positions: str) -> None:
    shape: list[Any] = ["batch", "seq"] if positions == "each" else [1]
    inputs: dict[str, Any] = {"fx": TOKENS, "up": shape, **dict.fromkeys(TABLES)}
    proto = single("RotaryEmbedding", inputs, ["y"], TABLES, interleaved=interleaved)
    where = np.array([[3, 4, 5], [9, 10, 11]]) if positions == "each" else np.array([7])
    agrees(proto, {"fx": floats(2, 3, WIDTH), "up": where})


def test_sums_before_norms() -> None:
    gamma = {"fg": floats(WIDTH)}
    skip: dict[str, Any] = {"fx": TOKENS, "fs": TOKENS, "fg": None}
    proto = single("SkipSimplifiedLayerNormalization", skip, ["y", "", "", "sum"], gamma, epsilon=1e-6)
    agrees(proto, {"fx": floats(2, 3, WIDTH), "fs": floats(2, 3, WIDTH, seed=1)})


def test_weights_of_four_bits_in_blocks() -> None:
    rows, depth, block = 6, 64, 32
    data = RNG.integers(0, 256, (rows, depth // block, block // 2)).astype(np.uint8)
    constants = {"fw": data, "fc": (RNG.random((rows, depth // block)) * 0.1).astype(np.float32)}
    inputs: dict[str, Any] = {"fx": ["batch", "seq", depth], **dict.fromkeys(constants)}
    proto = single("MatMulNBits", inputs, ["y"], constants, K=depth, N=rows, bits=4, block_size=block)
    graph = canonical(proto, {"fx": floats(2, 3, depth)}, tolerance=1e-4)
    assert operators(graph) == {"matmul": 1}


@pytest.mark.parametrize("alpha", [1.702, 1.0, 1.3])
def test_quick_gelu(alpha: float) -> None:
    canonical(single("QuickGelu", {"fx": TOKENS}, ["y"], alpha=alpha), {"fx": floats(2, 3, WIDTH)})


@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("form", ["past", "counted"])
def test_attention_of_onnx_with_its_keys_of_before(causal: int, form: str) -> None:
    """Checked against the ONNX reference implementation."""
    batch, seq, length = 2, 3, 4
    heads: list[Any] = ["batch", HEADS, "seq", DIM]
    keys: list[Any] = ["batch", HEADS, "keys", DIM]
    if form == "past":
        inputs: dict[str, Any] = {
            "fq": heads,
            "fk": heads,
            "fv": heads,
            "fm": None,
            "fpk": CACHE,
            "fpv": CACHE,
        }
        feeds: Feeds = several(("fq", "fk", "fv"), batch, HEADS, seq, DIM)
        feeds |= several(("fpk", "fpv"), batch, HEADS, length, DIM)
        outputs = ["y", "k", "v"]
    else:
        inputs = {"fq": heads, "fk": keys, "fv": keys, "fm": None, "fa": None, "fb": None, "uc": ["batch"]}
        feeds = {"fq": floats(batch, HEADS, seq, DIM), "uc": np.array([5, 4])}
        feeds |= several(("fk", "fv"), batch, HEADS, seq + length, DIM)
        outputs = ["y"]
    proto = single("Attention", inputs, outputs, None, "", 24, is_causal=causal)
    want = onnx.reference.ReferenceEvaluator(proto).run(None, feeds)
    for found, right in zip(canonicalise(import_onnx(proto)).graph.evaluate(feeds), want, strict=True):
        np.testing.assert_allclose(found, right, atol=2e-5)


def built(batch: int | str = "batch") -> onnx.ModelProto:
    """Projections around grouped queries; lengths come from a mask of all positions."""
    groups = 2

    def node(op: str, inputs: str, output: str, **attributes: Any) -> onnx.NodeProto:
        return helper.make_node(op, inputs.split(), output.split(), **attributes)

    nodes = [
        *(node("MatMul", f"fx w{n}", n) for n in "qkv"),
        node("ReduceSum", "um one", "n", keepdims=0),
        node("Sub", "n one", "l"),
        node("Cast", "l", "lengths", to=TensorProto.INT32),
        node("Shape", "um", "s"),
        node("Gather", "s at", "t"),
        node("Cast", "t", "total", to=TensorProto.INT32),
        node("GroupQueryAttention", "q k v fpk fpv lengths total fc fs", "a present_k present_v",
             domain="com.microsoft", num_heads=HEADS, kv_num_heads=groups, do_rotary=1),
        node("MatMul", "a wo", "y"),
    ]  # fmt: skip
    cache = [batch, groups, "past", DIM]
    shapes = {"fx": [batch, *TOKENS[1:]], "um": [batch, "total"], "fpk": cache, "fpv": cache}
    infos = [helper.make_tensor_value_info(n, KINDS[n[0]], s) for n, s in shapes.items()]
    graph = helper.make_graph(nodes, "built", infos, results(("y", "present_k", "present_v")))
    weights = several(("wq", "wo"), WIDTH, WIDTH) | several(("wk", "wv"), WIDTH, groups * DIM)
    quarters = {name: array / 4 for name, array in weights.items()}
    for name, array in {**quarters, "one": np.array([1]), "at": np.int64(1), **TABLES}.items():
        graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def test_what_a_model_builder_writes_decodes_step_by_step(tmp_path: Path) -> None:
    """Grouped queries of one sample, whose past is a state: as many steps as one call, with the exact
    reference's bits.
    """
    proto = built(1)
    onnx.save(proto, tmp_path / "built.onnx")
    empty = np.zeros((1, 2, 0, DIM), np.float32)
    feeds: Feeds = {"fx": floats(1, 7, WIDTH), "um": np.ones((1, 7), np.int64), "fpk": empty, "fpv": empty}
    module = intc.compile(tmp_path / "built.onnx", feeds, rounding="nearest")
    assert operators(module.prepared)["attention"] == 1
    (want, *_), (exact, *_) = expected(proto, feeds), module.graph.evaluate(feeds)
    (found, *_) = module.session().run(None, feeds)
    assert np.array_equal(found, exact)
    assert np.linalg.norm(found - want) < 0.05 * np.linalg.norm(want)
    state = module.create_state(1)
    steps = []
    for i in range(7):
        step = {"fx": feeds["fx"][:, i : i + 1], "um": np.ones((1, i + 1), np.int64)}
        steps += module.run(["y"], step, state=state)
    assert np.array_equal(np.concatenate(steps, axis=1), found)


def test_batches_of_unequal_lengths_decode_exactly(tmp_path: Path) -> None:
    """One kernel for the attention; the new keys stand behind those of their own sample."""
    proto, past = built(), 5
    onnx.save(proto, tmp_path / "built.onnx")
    lengths = np.tile([past, 3, 1, 4], 4)
    mask = (np.arange(past + 1) <= lengths[:, None]).astype(np.int64)
    feeds: Feeds = {"fx": floats(16, 1, WIDTH), "um": mask}
    feeds |= {"fpk": floats(16, 2, past, DIM), "fpv": floats(16, 2, past, DIM, seed=1)}
    module = intc.compile(tmp_path / "built.onnx", feeds, rounding="nearest")
    assert operators(module.prepared)["attention"] == 1
    (want, *_), exact = expected(proto, feeds), module.graph.evaluate(feeds)
    found = module.session().run(None, feeds)
    assert all(np.array_equal(a, b) for a, b in zip(found, exact, strict=True))
    assert np.linalg.norm(found[0] - want) < 0.05 * np.linalg.norm(want)


def test_caches_that_are_shared_or_indirect_are_refused() -> None:
    inputs: dict[str, Any] = dict.fromkeys(("fq", "fk", "fv"), TOKENS) | {
        "fb": None, "im": None, "fa": None, "fpk": CACHE, "fpv": CACHE, "il": [1]
    }  # fmt: skip
    proto = single("MultiHeadAttention", inputs, ["y", "k", "v"], num_heads=HEADS)
    with pytest.raises(UnsupportedModel, match=r"input\(s\) \[8\]"):
        import_onnx(proto)
