"""LSTM, GRU and RNN over a fixed number of steps, in one and two directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, floats, model

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
H, WIDTH = 4, 3


def layer(
    kind: str, attributes: str = "", lengths: bool = False, given: bool = False, steps: int | str = 5
) -> onnx.ModelProto:
    """Y and the last states of one layer; with ``lengths`` and ``given`` initial states as inputs."""
    directions, gates = (2 if "bidirectional" in attributes else 1), GATES[kind]
    weights: Feeds = {
        "w": floats(directions, gates * H, WIDTH), "r": floats(directions, gates * H, H) / 2,
        "b": floats(directions, 2 * gates * H),
    }  # fmt: skip
    states = ["h", "c"] if kind == "LSTM" else ["h"]
    shape = f"{steps}, batch, {WIDTH}" if "layout" not in attributes else f"batch, {steps}, {WIDTH}"
    inputs = [f"float[{shape}] x", *(["int32[batch] l"] if lengths else [])]
    inputs += [f"float[{directions}, batch, {H}] {s}0" for s in states] if given else []
    fed = ", ".join(
        ["x, w, r, b", "l" if lengths else "", *(f"{s}0" for s in states)][: 2 + given * len(states)]
    )
    outputs = ["float[s0, s1, s2, s3] y", *(f"float[t0, t1, t2] {s}" for s in states)]
    marked = f"<hidden_size={H}{', ' + attributes if attributes else ''}>"
    body = f"y, {', '.join(states)} = {kind}{marked}({fed.rstrip(', ')})"
    return model(body, ", ".join(inputs), ", ".join(outputs), weights)


FORMS = {
    "LSTM": layer("LSTM"),
    "both ways": layer("LSTM", 'direction="bidirectional"'),
    "backwards": layer("GRU", 'direction="reverse"'),
    "states": layer("LSTM", given=True),
    "lengths": layer("LSTM", 'direction="bidirectional"', lengths=True),
    "GRU": layer("GRU"),
    "GRU, reset behind the product": layer(
        "GRU", 'linear_before_reset=1, direction="bidirectional"', given=True
    ),
    "RNN": layer("RNN", 'activations=["Relu"]'),
}


def feeds_of(proto: onnx.ModelProto, batch: int) -> Feeds:
    out: Feeds = {}
    for given in proto.graph.input:
        shape = [d.dim_value or batch for d in given.type.tensor_type.shape.dim]
        out[given.name] = np.arange(batch, dtype=np.int32) % 5 + 1 if given.name == "l" else floats(*shape)
    return out


@pytest.mark.parametrize("name", FORMS)
def test_steps_written_out_give_what_the_layer_gives(name: str) -> None:
    for batch in (2, 7):
        canonical(FORMS[name], feeds_of(FORMS[name], batch))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_kernels_give_the_bits_of_the_reference(kind: str, tmp_path: Path) -> None:
    proto = layer(kind, "linear_before_reset=1" if kind == "GRU" else "", steps=3)
    module = compiled(proto, [{"x": floats(3, 32, WIDTH)}], tmp_path, rounding="nearest")
    assert distance(module, proto, feeds_of(proto, 3)) < 0.05


@pytest.mark.parametrize(
    ("proto", "reason"),
    [
        (layer("GRU", steps="n"), "a symbolic number of steps, n"),
        (layer("RNN", steps=999), "999 steps are more than 128"),
        (layer("LSTM", "clip=3.0"), "clip is not supported"),
        (layer("RNN", 'activations=["Softsign"]'), "activations"),
    ],
)
def test_other_forms_are_refused(proto: onnx.ModelProto, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason):
        import_onnx(proto)
