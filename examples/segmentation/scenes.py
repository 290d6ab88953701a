"""Labelled scenes drawn by program: woven discs, squares, triangles and crosses on shaded, noisy grounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIDE = 64
CLASSES = ("ground", "disc", "square", "triangle", "cross")


def scenes(count: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images float32 [count, 3, SIDE, SIDE] about zero; every pixel's class, int64 [count, SIDE, SIDE].

    Colours say nothing about the class, weaves and outlines do; later shapes cover earlier ones.
    """
    rng = np.random.default_rng(seed)
    images = np.empty((count, 3, SIDE, SIDE), np.float32)
    labels = np.zeros((count, SIDE, SIDE), np.int64)
    for image, label in zip(images, labels, strict=True):
        _ground(image, rng)
        for _ in range(rng.integers(2, 5)):
            kind = int(rng.integers(1, len(CLASSES)))
            inside = _shape(CLASSES[kind], rng)
            image[:, inside] = rng.uniform(-1.2, 1.2, (3, 1)) + _weave(kind)[inside]
            label[inside] = kind
        image += rng.normal(0, 0.15, image.shape)
    return images, labels


def _ground(image: NDArray[np.float32], rng: np.random.Generator) -> None:
    """A plane of light per colour."""
    y, x = np.mgrid[-1 : 1 : SIDE * 1j, -1 : 1 : SIDE * 1j]
    for channel in image:
        level, dy, dx = rng.normal(0, (0.5, 0.4, 0.4))
        channel[:] = level + dy * y + dx * x


def _weave(kind: int) -> NDArray[np.float64]:
    """The pattern of a class: plain, stripes either way, or both."""
    y, x = (np.sign(np.sin(np.pi * (axis + 0.5) / 2)) for axis in np.mgrid[0:SIDE, 0:SIDE])
    return (0 * y, 0 * y, 0.4 * y, 0.4 * x, 0.4 * x * y)[kind]


def _shape(kind: str, rng: np.random.Generator) -> NDArray[np.bool_]:
    """The pixels of one shape of random size and place, a little turned."""
    size, angle = rng.uniform(8, 16), rng.uniform(-0.2, 0.2)
    cy, cx = rng.uniform(8, SIDE - 8, 2)
    y, x = np.mgrid[0:SIDE, 0:SIDE] - np.array([cy, cx])[:, None, None]
    u, v = (np.cos(angle) * x + np.sin(angle) * y) / size, (np.cos(angle) * y - np.sin(angle) * x) / size
    if kind == "disc":
        return u * u + v * v < 1
    if kind == "square":
        return np.maximum(abs(u), abs(v)) < 0.85
    if kind == "triangle":
        return (v < 0.7) & (1.7 * abs(u) - v < 0.9)
    return (np.minimum(abs(u), abs(v)) < 0.3) & (np.maximum(abs(u), abs(v)) < 1.1)
