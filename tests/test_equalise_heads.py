"""Factors between the weights around attention: the function stays, ranges become equal, outliers vanish."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from intc.calibration import collect
from intc.frontend import import_onnx
from intc.ir.graph import Graph
from intc.ir.op import Array
from intc.ops.elementwise import Add
from intc.ops.matmul import MatMul
from intc.ops.softmax import Softmax
from intc.passes import pipeline
from tests.tiny_encoder import tiny_encoder, tiny_feeds

DECODER = Path(__file__).resolve().parents[1] / "examples" / "decoder" / "llama_characters.onnx"
Feeds = dict[str, Array]


def ranges(graph: Graph, feeds: Feeds) -> dict[str, Array]:
    return {name: seen.channels for name, seen in collect(graph, [feeds], "minmax").items()}


def equalised(graph: Graph, feeds: Feeds) -> Graph:
    return pipeline.equalise(pipeline.Pipeline(graph), ranges(graph, feeds)).graph


def projections(graph: Graph) -> list[str]:
    """The biased products with square weights that end up in attention, in order: q, k, v of every layer."""
    producers, found = graph.producers(), []
    for node in graph.nodes:
        if isinstance(node.op, Softmax):
            reader = next(n for n in graph.nodes if node.output in n.inputs)
            scores = node.inputs[0]
            while not isinstance(producers[scores].op, MatMul):
                scores = producers[scores].inputs[0]
            for value in (*producers[scores].inputs, reader.inputs[1]):
                while not isinstance(producers[value].op, Add):
                    value = producers[value].inputs[0]
                found.append(value)
    return found


@pytest.fixture(scope="module")
def encoder() -> Graph:
    return pipeline.canonicalise(import_onnx(tiny_encoder())).graph


@pytest.fixture(scope="module")
def feeds() -> Feeds:
    return tiny_feeds(8, 24, seed=5)


def close(a: dict[str, Array], b: dict[str, Array]) -> bool:
    return all(np.allclose(x, y, rtol=1e-3, atol=1e-4) for x, y in zip(a.values(), b.values(), strict=True))


def test_the_function_stays_and_ranges_become_equal(encoder: Graph, feeds: Feeds) -> None:
    graph = equalised(encoder, feeds)
    other = tiny_feeds(3, 11, seed=9)
    assert close(encoder.run(other), graph.run(other))
    before, after = ranges(encoder, feeds), ranges(graph, feeds)
    found = projections(graph)
    assert len(found) == 3 * sum(isinstance(n.op, Softmax) for n in graph.nodes) > 0
    for q, k, v in zip(*(found[i::3] for i in range(3)), strict=True):
        np.testing.assert_allclose(after[q], after[k], rtol=1e-3)
        assert after[v].max() < after[v].min() * 1.001 < before[v].max()


def test_planted_outliers_vanish(encoder: Graph, feeds: Feeds) -> None:
    """Channels of q times 40 and of k by 40, of v times 25 and the next rows by 25: all of it is undone."""
    spoilt = dict(encoder.constants)
    q, k, v = projections(encoder)[:3]
    producers = encoder.producers()
    for value, factor in ((q, 40.0), (k, 1 / 40), (v, 25.0)):
        add = producers[value]
        product = next(producers[x] for x in add.inputs if x in producers)
        for name in (next(x for x in add.inputs if x in spoilt), product.inputs[1]):
            spoilt[name] = spoilt[name].copy()
            spoilt[name][..., 3] *= factor
    uses = encoder.users()
    value = producers[next(iter(n.output for n in encoder.nodes if isinstance(n.op, Softmax)))].output
    node = uses[value][0]
    while not (isinstance(node.op, MatMul) and node.inputs[1] in encoder.constants):
        node = uses[node.output][0]
    spoilt[node.inputs[1]] = spoilt[node.inputs[1]].copy()
    spoilt[node.inputs[1]][3] /= 25
    graph = replace(encoder, constants=spoilt)
    assert close(encoder.run(feeds), graph.run(feeds))
    clean, mended = (ranges(equalised(g, feeds), feeds) for g in (encoder, graph))  # the common level is free
    for name in (q, k, v):
        a, b = (found[name] / found[name].mean() for found in (clean, mended))
        np.testing.assert_allclose(a, b, rtol=1e-3)


def test_rotary_positions_and_shared_heads(feeds: Feeds) -> None:
    """Only values are balanced behind rotary positions; heads that share keys agree on the factors."""
    graph = pipeline.canonicalise(import_onnx(DECODER)).graph
    texts = {"input_ids": np.random.default_rng(1).integers(0, 96, (2, 20))}
    empty = {name: np.zeros((2, 2, 0, 24), np.float32) for name in graph.states}
    balanced = equalised(graph, {**texts, **empty})
    changed = [name for name in balanced.constants if ".equal" in name]
    assert len(changed) in (0, 2 * 4), changed
    assert close(graph.run({**texts, **empty}), balanced.run({**texts, **empty}))
