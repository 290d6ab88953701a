"""Convolutions whose weights are computed: by a hypernetwork, from experts, from an exemplar."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.frontend import import_onnx
from intc.passes.pipeline import canonicalise
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, expected, floats, model


@pytest.mark.parametrize(
    ("op", "attributes", "x", "w", "bias"),
    [
        ("Conv", "pads=[1,1,1,1], strides=[2,1]", (2, 3, 7, 8), (4, 3, 3, 3), 4),
        ("Conv", "group=3, dilations=[1,2]", (1, 6, 7, 8), (12, 2, 2, 3), 0),
        ("Conv", "group=6", (1, 6, 9, 9), (6, 1, 4, 4), 6),
        ("Conv", "pads=[2,2]", (3, 4, 9), (5, 4, 5), 5),
        ("Conv", "group=2, strides=[2,1,1]", (2, 4, 5, 6, 7), (4, 2, 3, 2, 1), 0),
        ("ConvTranspose", "strides=[2,2],pads=[1,0,1,1],output_padding=[1,0]", (2, 3, 5, 6), (3, 4, 3, 3), 4),
        ("ConvTranspose", "group=2, strides=[3]", (2, 4, 5), (4, 3, 4), 0),
        ("ConvTranspose", "dilations=[1,2,1], strides=[1,2,1]", (1, 2, 3, 4, 5), (2, 3, 2, 2, 3), 3),
    ],
)  # fmt: skip
def test_every_form(op: str, attributes: str, x: tuple[int, ...], w: tuple[int, ...], bias: int) -> None:
    names = ["b", *"cdhv"][: len(x)]
    inputs = f"float[batch, {', '.join(map(str, x[1:]))}] x, float[{', '.join(map(str, w))}] w"
    weights = {"bias": floats(bias)} if bias else {}
    body = f"s = Sin(w) y = {op}<{attributes}>({', '.join(('x', 's', *weights))})"
    proto = model(body, inputs, f"float[{', '.join(names)}] y", weights)
    feeds: Feeds = {"x": floats(*x), "w": floats(*w)}
    canonical(proto, feeds)
    (want,) = expected(proto, feeds)
    (found,) = canonicalise(import_onnx(proto)).graph.evaluate(feeds)
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=2e-5)


def test_weights_mixed_from_experts_for_a_single_sample(tmp_path: Path) -> None:
    """The groups are the samples of the exporter's example: a batch of one."""
    weights: Feeds = {
        "gate": floats(8, 3) / 3, "experts": floats(3, 5 * 8 * 9) / 6,
        "filters": np.array([-1, 8, 3, 3]), "image": np.array([1, -1, 6, 6]),
    }  # fmt: skip
    body = (
        "m = ReduceMean<axes=[2,3], keepdims=0>(x) g = MatMul(m, gate) a = Sigmoid(g) e = MatMul(a, experts)"
        " w = Reshape(e, filters) r = Reshape(x, image) y = Conv<pads=[1,1,1,1]>(r, w)"
    )
    proto = model(body, "float[batch, 8, 6, 6] x", "float[b, o, 6, 6] y", weights)
    feeds: Feeds = {"x": floats(1, 8, 6, 6)}
    assert import_onnx(proto).type("x").shape[0] == 1
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.03


def test_correlation_of_every_channel_with_an_exemplar(tmp_path: Path) -> None:
    weights = {"kernel": np.array([8, 1, 3, 3]), "image": np.array([1, 8, 7, 7])}
    body = "k = Reshape(z, kernel) i = Reshape(x, image) y = Conv<group=8>(i, k)"
    proto = model(body, "float[1, 8, 3, 3] z, float[1, 8, 7, 7] x", "float[b, 8, 5, 5] y", weights)
    feeds: Feeds = {"z": floats(1, 8, 3, 3), "x": floats(1, 8, 7, 7)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.01
