"""Convolutions as matrix products: windows are read from the image, panels are as wide as their columns."""

from __future__ import annotations

import numpy as np
import pytest

from intc.codegen.targets import TARGETS, host_features
from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.fused import Linear
from intc.ops.im2col import Im2col
from tests.kernel_cases import ints
from tests.native import check_graph

B = symbol("batch")
NATIVE = [t for t in TARGETS if t.native and host_features().issuperset(t.features)]
WINDOWS = {
    "3x3": Im2col((3, 3), (1, 1), (1, 1, 1, 1), channels_last=True),
    "strided": Im2col((3, 2), (2, 1), (1, 0, 2, 1), channels_last=True, fill=7),
    "dilated": Im2col((2, 3), (1, 2), (0, 2, 0, 2), (2, 2), channels_last=True),
    "inside": Im2col((3, 3), (1, 1), channels_last=True),
    "dilated inside": Im2col((2, 2), (1, 1), dilations=(2, 3), channels_last=True),
    "planes": Im2col((3, 5), (2, 2), (1, 2, 1, 2), fill=-3),
    "patches": Im2col((4, 4), (4, 4)),
    "beyond the image": Im2col((3, 3), (1, 1), (3, 3, 3, 3), channels_last=True),
}


def product(b: Builder, x: str, columns: int) -> str:
    k = b.graph.type(x).shape[-1]
    assert isinstance(k, int)
    w, bias = ints(-127, 127, (k, columns), np.int8), ints(-999, 999, columns, np.int32)
    raw = Linear(0, 0, "int32", raw=True)
    return b.emit(raw, x, b.constant(b.fresh("w"), w), b.constant(b.fresh("bias"), bias))


def convolved(op: Im2col, dtype: str, channels: int, columns: int = 24) -> Graph:
    """The rows of windows over 6 x 8 images, or over ones whose sizes are free, times weights."""
    b = Builder("convolved")
    low = 0 if dtype == "uint8" else -127
    for height, width in ((6, 8), (symbol("height"), symbol("width"))):
        shape = (B, height, width, channels) if op.channels_last else (B, channels, height, width)
        x = b.input(b.fresh("x"), TensorType(shape, dtype, low, 127))  # type: ignore[arg-type]
        b.output(product(b, b.emit(op, x), columns))
    return b.finish()


@pytest.mark.parametrize("target", NATIVE, ids=lambda t: t.name)
@pytest.mark.parametrize("name", WINDOWS)
def test_the_matrix_of_windows_is_never_made(name: str, target: object) -> None:
    op = WINDOWS[name]
    dtype, channels = ("uint8", 3) if op.fill > 0 else ("int8", 40 if op.channels_last else 3)
    lowered = check_graph(convolved(op, dtype, channels), {"batch": 2, "height": 9, "width": 7}, target)
    assert [kernel.split("_")[0] for kernel, _, _ in lowered.stages] == ["linear"] * 2


def test_images_of_sixteen_bits() -> None:
    b = Builder("sixteen")
    x = b.input("x", TensorType((B, 5, 5, 17), "int16", -4095, 4095))
    b.output(product(b, b.emit(WINDOWS["3x3"], x), 70))
    assert len(check_graph(b.finish(), {"batch": 3}).stages) == 1


def test_windows_that_others_read_are_stored() -> None:
    """Two products may read them from the image; an output is a value of its own."""
    b = Builder("shared")
    rows = b.emit(WINDOWS["3x3"], b.input("x", TensorType((B, 5, 5, 8), "int8", -127, 127)))
    for columns in (8, 72):
        b.output(product(b, rows, columns))
    assert len(check_graph(b.graph, {"batch": 2}).stages) == 2
    b.output(rows)
    assert len(check_graph(b.finish(), {"batch": 2}).stages) == 3


@pytest.mark.parametrize("target", NATIVE, ids=lambda t: t.name)
def test_panels_are_as_wide_as_their_columns(target: object) -> None:
    """Every end of a row that a register tile can have, on its own and behind whole panels."""
    b = Builder("panels")
    x = b.input("x", TensorType((B, 37), "int8", -127, 127))
    for columns in (1, 7, 8, 15, 16, 23, 24, 31, 33, 47, 48, 63, 65, 81, 96, 120):
        b.output(product(b, x, columns))
    check_graph(b.finish(), {"batch": 8}, target)
