"""Products that are stored inside the zeros around them: the Pad that reads them copies nothing."""

from __future__ import annotations

import numpy as np
import pytest

from intc.codegen.lower import outlined
from intc.codegen.targets import TARGETS, host_features, native
from intc.ir.dims import symbol
from intc.ir.graph import Builder
from intc.ir.types import TensorType
from intc.ops.fused import Linear
from intc.ops.movement import Pad, Reshape
from intc.report.listings import listings
from intc.report.profile import stage_times
from tests import emulated
from tests.kernel_cases import ints
from tests.native import check_graph

B = symbol("batch")
NATIVE = [t for t in TARGETS if t.native and host_features().issuperset(t.features)]
BORDERS = [(1, 1, 1, 1), (0, 1, 2, 0), (0, 0, 1, 0), (2, 0, 0, 0), (0, 3, 0, 0), (3, 0, 1, 4)]


def images(b: Builder, height: int, width: int, columns: int, tokens: bool = False) -> str:
    """[B, H, W, columns], the product of such images of 9 channels; with ``tokens``, of rows [B, H*W, 9]."""
    shape = (B, height * width, 9) if tokens else (B, height, width, 9)
    x = b.input(b.fresh("x"), TensorType(shape, "int8", -127, 127))
    w, bias = ints(-127, 127, (9, columns), np.int8), ints(-999, 999, columns, np.int32)
    raw = Linear(0, 0, "int32", raw=True)
    y = b.emit(raw, x, b.constant(b.fresh("w"), w), b.constant(b.fresh("bias"), bias))
    return b.emit(Reshape((B, height, width, columns)), y) if tokens else y


def padded(b: Builder, y: str, border: tuple[int, int, int, int]) -> str:
    top, left, bottom, right = border
    return b.emit(Pad((0, top, left, 0), (0, bottom, right, 0)), y)


@pytest.mark.parametrize("target", NATIVE, ids=lambda t: t.name)
@pytest.mark.parametrize("border", BORDERS, ids=str)
def test_a_product_is_stored_inside_its_border(border: tuple[int, int, int, int], target: object) -> None:
    """Blocks of rows end anywhere in an image; columns fill panels or not."""
    b = Builder("framed")
    for height, width, columns in ((13, 17, 24), (1, 1, 7), (3, 70, 81), (40, 1, 64)):
        b.output(padded(b, images(b, height, width, columns, tokens=columns == 24), border))
    lowered = check_graph(b.finish(), {"batch": 3}, target)
    assert [kernel.split("_")[0] for kernel, _, _ in lowered.stages] == ["linear"] * 4


def test_on_a_gpu_every_pad_is_a_kernel() -> None:
    b = Builder("padded")
    b.output(padded(b, images(b, 5, 6, 24, tokens=True), BORDERS[0]))
    with emulated.emulation():
        emulated.check_graph(b.finish(), {"batch": 2})


def test_other_pads_are_stages() -> None:
    """Around what others read too, around channels, and around images of any size."""
    b = Builder("other")
    shared = images(b, 4, 4, 8)
    b.output(padded(b, shared, BORDERS[0]))
    b.output(shared)
    b.output(b.emit(Pad((0, 0, 0, 1), (0, 0, 0, 1)), images(b, 4, 4, 8)))
    b.output(b.emit(Pad((1, 0, 0, 0), (0, 0, 0, 0)), images(b, 4, 4, 8)))
    free = b.input("free", TensorType((B, symbol("height"), 5, 9), "int8", -127, 127))
    w, bias = b.constant("m", ints(-127, 127, (9, 8), np.int8)), b.constant("c", ints(-9, 9, 8, np.int32))
    b.output(padded(b, b.emit(Linear(0, 0, "int32", raw=True), free, w, bias), BORDERS[1]))
    lowered = check_graph(b.finish(), {"batch": 2, "height": 3})
    assert sum(kernel.startswith("pad") for kernel, _, _ in lowered.stages) == 4


def test_reports_know_which_kernel_computes_what() -> None:
    b = Builder("reported")
    x = b.input("x", TensorType((B, 12, 9), "int8", -127, 127))
    w, bias = b.constant("w", ints(-127, 127, (9, 8), np.int8)), b.constant("c", ints(-9, 9, 8, np.int32))
    y = b.emit(Linear(0, 0, "int32", raw=True), x, w, bias)
    z = padded(b, b.emit(Reshape((B, 3, 4, 8)), y), BORDERS[0])
    b.output(z)
    graph = b.finish()
    found = listings(graph, native())
    assert found.kernels[y] == found.kernels[z] and found.kernels[z][0].startswith("linear")
    (stage,) = stage_times(
        graph, outlined(graph, native()).within, [("linear_0", "", (z,))], [1.0], {"batch": 2}
    )
    assert stage.macs == 2 * 12 * 9 * 8
    assert stage.bytes == 2 * 12 * 9 + 9 * 8 + 4 * 8 + 4 * 2 * 5 * 6 * 8
