"""Reshapes and transposes pass each other."""

from __future__ import annotations

import numpy as np
import pytest

from intc.ir.dims import symbol
from intc.ir.graph import Builder
from intc.ir.types import TensorType
from intc.ops.conv import Conv
from intc.ops.gelu import Gelu
from intc.ops.movement import Reshape, Transpose
from intc.passes.axes import reshaped_first
from intc.passes.pipeline import canonicalise

B = symbol("batch")


@pytest.mark.parametrize(
    ("shape", "perm", "out"),
    [
        ((2, 12, 5), (0, 2, 1), (2, 5, 3, 4)),  # tokens become an image
        ((2, 3, 4, 5), (0, 3, 1, 2), (2, 5, 12)),  # an image becomes tokens
        ((2, 3, 4, 5), (2, 3, 0, 1), (20, 6)),
        ((6, 8, 4), (2, 0, 1), (4, 2, 3, 2, 4)),
        ((6, 8, 4), (0, 2, 1), (1, 6, 4, 8)),  # keys of one sample
    ],
)
def test_the_reshape_comes_first(shape: tuple[int, ...], perm: tuple[int, ...], out: tuple[int, ...]) -> None:
    x = np.arange(np.prod(shape)).reshape(shape)
    moved = x.transpose(perm)
    found = reshaped_first(perm, moved.shape, out)
    assert found is not None
    assert np.array_equal(x.reshape(found[0]).transpose(found[1]), moved.reshape(out))


@pytest.mark.parametrize(
    ("moved", "perm", "out"),
    [
        ((2, 4, 3, 5), (0, 2, 1, 3), (8, 3, 5)),  # joins axes that were apart
        ((2, 5, 3, 4), (0, 3, 2, 1), (2, 5, 12)),  # joins them the wrong way round
        ((2, 5, 6), (0, 2, 1), (2, 3, 10)),  # splits and joins
        ((2, 5, 6), (0, 2, 1), (2, 1, 5, 6)),  # an axis of size 1 has no place of its own
    ],
)
def test_a_reshape_that_mixes_stays(
    moved: tuple[int, ...], perm: tuple[int, ...], out: tuple[int, ...]
) -> None:
    assert reshaped_first(perm, moved, out) is None


def test_images_of_tokens_are_never_transposed() -> None:
    """A depthwise convolution between token layers, as in SegFormer and PVT."""
    b = Builder("mlp")
    x = b.input("x", TensorType((B, 12, 8), "float32"))
    image = b.emit(Reshape((B, 8, 3, 4)), b.emit(Transpose((0, 2, 1)), x))
    w = b.constant("w", np.ones((8, 1, 3, 3), np.float32))
    y = b.emit(Conv((1, 1), (1, 1, 1, 1), (1, 1), 8), image, w, b.constant("b", np.ones(8, np.float32)))
    y = b.emit(Transpose((0, 2, 1)), b.emit(Reshape((B, 8, 12)), y))
    b.output(b.emit(Gelu("none"), y))
    after = canonicalise(b.finish()).graph
    assert [n.op.name for n in after.nodes] == ["reshape", "pad", "grouped_conv", "add", "reshape", "gelu"]
