"""Images sampled at computed places: as onnxruntime computes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from tests.compiled_models import compiled, distance
from tests.onnx_models import Feeds, canonical, floats, model, operators

RNG = np.random.default_rng(41)


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("corners", [0, 1])
def test_sampled_images(padding: str, corners: int, tmp_path: Path) -> None:
    body = f'y = GridSample<mode="bilinear", align_corners={corners}, padding_mode="{padding}">(x, g)'
    proto = model(body, "float[batch, 3, 9, 7] x, float[batch, 5, 4, 2] g", "float[a, b, c, d] y")
    grid = (0.7 * RNG.normal(size=(24, 5, 4, 2))).astype(np.float32)  # many places lie outside
    feeds = {"x": floats(24, 3, 9, 7), "g": grid}
    graph = canonical(proto, feeds, 1e-4)
    assert operators(graph)["gather_elements"] == 4
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.1


def test_images_sampled_at_pixels(tmp_path: Path) -> None:
    """The shares of the pixels are 0 but for the rounding of floats, which says nothing of their range."""
    body = 'y = GridSample<mode="bilinear", align_corners=1, padding_mode="zeros">(x, g)'
    proto = model(body, "float[batch, 3, 7, 7] x, float[batch, 5, 4, 2] g", "float[a, b, c, d] y")
    pixels = RNG.integers(0, 7, (24, 5, 4, 2)).astype(np.float32)
    feeds: Feeds = {"x": floats(24, 3, 7, 7), "g": pixels / np.float32(3) - np.float32(1 - 3e-7)}
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.01


@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_the_nearest_pixels(padding: str, tmp_path: Path) -> None:
    body = f'y = GridSample<mode="nearest", padding_mode="{padding}">(x, g)'
    proto = model(body, "float[batch, 3, 9, 7] x, float[batch, 5, 4, 2] g", "float[a, b, c, d] y")
    places = RNG.integers(-2, 11, (24, 5, 4, 2)) + RNG.uniform(-0.45, 0.45, (24, 5, 4, 2))
    places = (places + 0.5) / np.array([7, 9]) * 2 - 1
    feeds: Feeds = {"x": floats(24, 3, 9, 7), "g": places.astype(np.float32)}
    canonical(proto, feeds)
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.01


def test_cubic_mixtures_of_pixels_are_refused() -> None:
    body, inputs = 'y = GridSample<mode="cubic">(x, g)', "float[n, 3, 9, 7] x, float[n, 5, 4, 2] g"
    with pytest.raises(UnsupportedModel, match="the mode cubic is not supported"):
        import_onnx(model(body, inputs, "float[a, b, c, d] y", opset=20))


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("sides", [(5, 4), (3, 5, 4)])
def test_places_that_affine_maps_give(sides: tuple[int, ...], corners: int, tmp_path: Path) -> None:
    rank = len(sides)
    body, result = f"y = AffineGrid<align_corners={corners}>(t, size)", "abcde"[: rank + 2]
    weights = {"size": np.array([24, 3, *sides])}
    inputs, outputs = f"float[n, {rank}, {rank + 1}] t", f"float[{', '.join(result)}] y"
    proto = model(body, inputs, outputs, weights, opset=20)
    feeds: Feeds = {"t": floats(24, rank, rank + 1)}
    canonical(proto, feeds)
    assert distance(compiled(proto, feeds, tmp_path), proto, feeds) < 0.001
