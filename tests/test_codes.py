"""Eight bits for ranges on one side of zero: what stands for zero, also around images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import intc
from intc.ir.graph import Graph
from intc.ops.im2col import Im2col
from intc.passes.integer import codes
from intc.report.reference import fidelity
from tests.onnx_models import expected, model

SIZE, CHANNELS = 9, 8
SWISH = "s = Sigmoid(h) a = Mul(h, s)"
LEAKY = "a = LeakyRelu<alpha=0.1>(h)"


def image_net(function: str, channels: int = CHANNELS) -> onnx.ModelProto:
    """Two convolutions, and between them ``function``, which gives ``channels``."""
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(CHANNELS, 3, 3, 3)), rng.normal(size=(6, channels, 3, 3))
    weights = {"v": first / 4, "w": second / 8, "tenth": np.float32([0.1])}
    return model(
        f"h = Conv<pads=[1, 1, 1, 1]>(x, v) {function} y = Conv<pads=[1, 1, 1, 1]>(a, w)",
        f"float[batch, 3, {SIZE}, {SIZE}] x",
        f"float[batch, 6, {SIZE}, {SIZE}] y",
        {name: array.astype(np.float32) for name, array in weights.items()},
    )


def images(count: int, seed: int) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, SIZE, SIZE)).astype(np.float32)}


def compiled(proto: onnx.ModelProto, folder: Path) -> intc.Module:
    onnx.save(proto, folder / "m.onnx")
    return intc.compile(folder / "m.onnx", images(32, 1))


def windows(graph: Graph) -> tuple[int, str]:
    """What surrounds the images of the second convolution, and the type of its windows."""
    node = [n for n in graph.nodes if isinstance(n.op, Im2col)][-1]
    assert isinstance(node.op, Im2col)
    return node.op.fill, graph.type(node.output).dtype


def distance(proto: onnx.ModelProto, folder: Path) -> float:
    """dB from float on other data, where the kernels give the graph's own integers."""
    module, held = compiled(proto, folder), images(16, 2)
    (found,) = module.session().run(None, held)
    np.testing.assert_array_equal(found, module.graph.evaluate(held)[0])
    return fidelity(found, expected(proto, held)[0])["sqnr_db"]


@pytest.mark.parametrize("function", [SWISH, LEAKY])
def test_codes_of_one_sided_ranges_are_finer(
    function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = image_net(function)
    finer = distance(proto, tmp_path)
    monkeypatch.setattr(codes, "WORTHWHILE", 0.0)
    assert finer > distance(proto, tmp_path) + 1.0


def test_what_surrounds_an_image_is_zero(tmp_path: Path) -> None:
    """Nothing in gives the same at the border as within, which is next to nothing."""
    module = compiled(image_net(SWISH), tmp_path)
    fill, dtype = windows(module.graph)
    assert dtype == "int8" and -127 <= fill < -40
    (found,) = module.session().run(None, {"x": np.zeros((2, 3, SIZE, SIZE), np.float32)})
    assert (found == found[0, :, :1, :1]).all()
    assert np.abs(found).max() < 0.02


def test_values_that_are_never_negative_are_unsigned_behind_moves(tmp_path: Path) -> None:
    moved = "b = Relu(h) a = Transpose<perm=[0, 1, 3, 2]>(b)"
    assert windows(compiled(image_net(moved), tmp_path).graph) == (0, "uint8")


def test_even_ranges_stay_signed(tmp_path: Path) -> None:
    assert windows(compiled(image_net("a = Tanh(h)"), tmp_path).graph) == (0, "int8")


def test_the_parts_of_a_joined_value_count_alike(tmp_path: Path) -> None:
    """A branch that is never negative beside one that is at times."""
    proto = image_net("p = Relu(h) n = Mul(h, tenth) a = Concat<axis=1>(p, n)", 2 * CHANNELS)
    fill, dtype = windows(compiled(proto, tmp_path).graph)
    assert dtype == "int8" and fill < -40
    assert distance(proto, tmp_path) > 30
