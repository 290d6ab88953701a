"""The committed text models as integers: kernels equal the reference, and little of their quality is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import intc
from examples.accuracy import outliers, run, texts
from tests.onnx_models import expected, floats, model, several

FOLDER = Path(texts.__file__).parent


def fp32(name: str) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(FOLDER / name), providers=["CPUExecutionProvider"])


def test_classifier() -> None:
    train, test = texts.snippets(test=False), texts.snippets(test=True)
    pick = texts.spread(len(train.labels), 128)
    module = intc.compile(FOLDER / "classifier.onnx", {k: v[pick] for k, v in train.feeds.items()})
    (found,) = module.run(None, test.feeds)
    few = {name: array[::16] for name, array in test.feeds.items()}
    assert np.array_equal(found[::16], module.graph.evaluate(few)[0])
    (wanted,) = fp32("classifier.onnx").run(None, test.feeds)
    scores = [float((logits.argmax(1) == test.labels).mean()) for logits in (wanted, found)]
    assert 0.5 < scores[0] < 0.95, "well above chance and not saturated"
    assert abs(scores[1] - scores[0]) <= 0.005


def test_character_model() -> None:
    train, test = texts.windows(test=False), texts.windows(test=True)
    test = test[texts.spread(len(test), 64)]
    inputs = test[:, :-1]
    calibration = {"input_ids": train[texts.spread(len(train), 128)][:, :-1]}
    module = intc.compile(FOLDER / "characters.onnx", calibration)
    assert [n.op.name for n in module.prepared.nodes].count("attention") == 4
    (found,) = module.run(None, {"input_ids": inputs})
    for part in (inputs[:4], inputs[:2, :37]):
        (y,) = module.run(None, {"input_ids": part})
        assert np.array_equal(y, module.graph.evaluate({"input_ids": part})[0])
    (wanted,) = fp32("characters.onnx").run(None, {"input_ids": inputs})
    perplexity, integer = (texts.perplexity(logits, test[:, 1:]) for logits in (wanted, found))
    assert perplexity < 10
    assert abs(integer / perplexity - 1) < 0.01


def test_the_character_model_is_causal() -> None:
    rows = texts.windows(test=True)[:2, :-1]
    calibration = {"input_ids": rows}
    module = intc.compile(FOLDER / "characters.onnx", calibration)
    (whole,) = module.run(None, {"input_ids": rows})
    (start,) = module.run(None, {"input_ids": rows[:, :50]})
    assert np.array_equal(whole[:, :50], start), "later characters change nothing, not even a bit"


def test_texts_are_split_by_their_own_hash() -> None:
    parts = [texts.snippets(test=test) for test in (False, True)]
    rows = [{row.tobytes() for row in part.ids} for part in parts]
    assert len(rows[1]) > 1000
    assert len(rows[0]) > 6 * len(rows[1])
    for part in parts:
        assert set(part.labels) == set(range(len(texts.PACKAGES)))
    assert texts.held_out("a") == texts.held_out("a")


@pytest.mark.parametrize("residual", [False, True])
def test_injected_outliers_keep_the_function(residual: bool) -> None:
    """Pre-norm: folded into the matrices. Post-norm: the residual sum reads the norm through a product."""
    body = "n = LayerNormalization(x, gamma, beta) a = MatMul(n, w1) b = MatMul(n, w2) c = Mul(a, b)"
    body += " y = Add(c, n)" if residual else " y = Relu(c)"
    weights = several(("w1", "w2"), 64, 64) | several(("gamma", "beta"), 64)
    proto = model(body, "float[batch, 64] x", "float[batch, 64] y", weights)
    feeds = {"x": floats(5, 64)}
    before = expected(proto, feeds)[0]
    assert outliers.inject(proto) == 1
    onnx.checker.check_model(proto)
    after = expected(proto, feeds)[0]
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4 * np.abs(before).max())
    norm = next(node for node in proto.graph.node if node.op_type == "LayerNormalization")
    gamma = next(t for t in proto.graph.initializer if t.name == norm.input[1])
    grown = np.abs(onnx.numpy_helper.to_array(gamma) / weights["gamma"])
    assert (grown > 7.9).sum() == 1
    assert [node.op_type for node in proto.graph.node].count("Mul") == 1 + residual


def test_a_norm_that_no_matrix_reads_gets_no_outliers() -> None:
    weights = {"gamma": floats(8), "beta": floats(8, seed=1)}
    body = "n = LayerNormalization(x, gamma, beta) y = Relu(n)"
    proto = model(body, "float[batch, 8] x", "float[batch, 8] y", weights)
    before = proto.SerializeToString()
    assert outliers.inject(proto) == 0
    assert proto.SerializeToString() == before


def test_the_table_shows_failures_and_exact_results() -> None:
    cells = {"fp32": {"SQNR of logits, dB": None}, "a": {"SQNR of logits, dB": 22.54}, "b": {"error": "no"}}
    rows = [{"model": "m", "cells": cells}]
    text = run.markdown({"engines": ["fp32", "a", "b"], "rows": rows, "versions": {"intc": "1"}})
    assert text.splitlines()[2:] == ["| m | SQNR of logits, dB | exact | 22.5 | failed |", "", "intc 1"]
