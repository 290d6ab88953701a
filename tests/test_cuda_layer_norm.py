"""Layer norms on a GPU with the requantisations around them are one kernel, and equal ``evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from intc.codegen.lower import staged
from intc.codegen.targets import resolve
from intc.errors import CodegenError
from intc.ir.dims import symbol
from intc.ir.graph import Builder, Graph
from intc.ir.types import TensorType
from intc.ops.fused import Linear
from intc.ops.movement import Slice
from intc.ops.requantize import Requantize
from intc.ops.shift import ShiftLayerNorm
from intc.report.profile import stage_times
from tests.emulated import check_graph, emulation
from tests.kernel_cases import ints

B = symbol("batch")
SEVERAL = (24, 31, 44, 96, 768, 1000, 2304)  # by one lane up to all, whole and ragged, held and read again
FEW = (31, 200, 2304)
WIDE = Requantize(-32767, 32767, "int16")
BYTES = Requantize(-127, 127, "int8")
SUM = ShiftLayerNorm(3, 40, -32767, 32767, "int16")


def factors(b: Builder, channels: int, low: int = 35, high: int = 38) -> tuple[str, str]:
    m = b.constant("m", ints(2**30, 2**31 - 1, (channels,), np.int32))
    return m, b.constant("e", ints(low, high, (channels,), np.int32))


def norm(b: Builder, x: str, op: ShiftLayerNorm = SUM) -> str:
    channels = b.graph.type(x).shape[-1]
    gamma = b.constant("g", ints(-(2**29), 2**29, (channels,), np.int32))
    return b.emit(op, x, gamma, b.constant("b", ints(-(2**50), 2**50, (channels,), np.int64)))


def rows(b: Builder, channels: int, dtype: Any = "int16", bits: int = 15) -> str:
    return b.input("x", TensorType((B, 3, channels), dtype, 1 - 2**bits, 2**bits - 1))


def residual(b: Builder, channels: int) -> None:
    """As in BERT: rescaled in front, rescaled by channels for products, and read itself."""
    y = norm(b, b.emit(WIDE, rows(b, channels), *factors(b, 1, 31, 31)))
    small = b.emit(BYTES, y, *factors(b, channels))
    weights = b.constant("w", ints(-127, 127, (channels, 8), np.int8)), b.constant("z", np.zeros(8, np.int32))
    b.output(b.emit(Linear(-(2**31), 2**31 - 1, "int32", raw=True), small, *weights))
    b.output(y)


def two_rescaled(b: Builder, channels: int) -> None:
    """Nothing reads the norm itself; one factor for all channels, and 16 bits of few."""
    y = norm(b, rows(b, channels))
    b.output(b.emit(BYTES, y, *factors(b, 1, 37, 37)))
    b.output(b.emit(Requantize(0, 9999, "int16"), y, *factors(b, channels, 31, 32)))


def two_norms(b: Builder, channels: int) -> None:
    """Both rescale the same sum, which is an output; a factor for every channel, that never clips."""
    x = rows(b, channels)
    small = b.emit(WIDE, x, *factors(b, channels, 31, 33))
    b.output(norm(b, small, ShiftLayerNorm(1, 44, -127, 127, "int8")))
    b.output(norm(b, small, ShiftLayerNorm(1, 44, 0, 255, "uint8", centred=False)))


def wide_sum(b: Builder, channels: int) -> None:
    """32 bits in front, and one norm behind another."""
    y = norm(b, b.emit(WIDE, rows(b, channels, "int32", 24), *factors(b, 1, 39, 39)))
    b.output(norm(b, b.emit(WIDE, y, *factors(b, channels, 31, 33))))
    b.output(b.emit(BYTES, y, *factors(b, channels)))


def apart(b: Builder, channels: int) -> None:
    """The rescaled input is an output; exponents lie too far apart; a chain takes some rows only."""
    small = b.emit(WIDE, rows(b, channels), *factors(b, 1, 31, 31))
    y = norm(b, small)
    far = b.constant("e", (20 + 30 * np.arange(channels) % 60).astype(np.int32))
    b.output(small)
    b.output(b.emit(BYTES, y, factors(b, channels)[0], far))
    b.output(b.emit(Slice(1, 0, 1), b.emit(BYTES, y, *factors(b, channels))))


GRAPHS: dict[str, tuple[Callable[[Builder, int], None], int, tuple[int, ...]]] = {  # kernels needed, channels
    "residual": (residual, 2, SEVERAL),
    "two rescaled": (two_rescaled, 1, FEW),
    "two norms": (two_norms, 2, FEW),
    "wide sum": (wide_sum, 2, FEW),
    "apart": (apart, 4, FEW[:1]),
}


def graph(name: str, channels: int) -> Graph:
    b = Builder("norm")
    GRAPHS[name][0](b, channels)
    return b.finish()


@pytest.mark.parametrize("name", GRAPHS)
def test_kernels_with_all_outputs(name: str) -> None:
    _, kernels, several = GRAPHS[name]
    with emulation():
        for channels in several:
            found = graph(name, channels)
            program, _ = staged(found, resolve("cuda:sm_90"))
            assert len(program.stages) == kernels, [stage.writes for stage in program.stages]
            check_graph(found, {"batch": 5})


@pytest.mark.parametrize("order", ["backward", "shuffled"])
def test_in_any_order(order: str) -> None:
    with emulation(order):
        for batch in (1, 2, 7):
            check_graph(graph("residual", 200), {"batch": batch})


def test_what_is_stored() -> None:
    program, _ = staged(graph("two rescaled", 96), resolve("cuda:sm_90"))
    (stage,) = program.stages
    assert stage.writes == tuple(program.graph.outputs)
    assert set(program.within) == {node.output for node in program.graph.nodes} - set(stage.writes)
    program, _ = staged(graph("residual", 96), resolve("cuda:sm_90"))
    assert [len(stage.writes) for stage in program.stages] == [2, 1]


def test_profiles_count_all_outputs() -> None:
    """Of 3 rows of 96 channels: x, y and the rescaled y, and the parameters of each."""
    program, _ = staged(graph("residual", 96), resolve("cuda:sm_90"))
    stages = [(stage.kernel, stage.source, stage.writes) for stage in program.stages]
    first, _ = stage_times(program.graph, program.within, stages, [0.0, 0.0], {"batch": 1})
    assert first.bytes == 3 * 96 * (2 + 2 + 1) + 96 * (4 + 8) + 96 * (4 + 4) + (4 + 4)


def test_computed_gamma_is_refused() -> None:
    b = Builder("gamma")
    gamma = b.input("g", TensorType((24,), "int32", -99, 99))
    b.output(b.emit(SUM, rows(b, 24), gamma, b.constant("b", np.zeros(24, np.int64))))
    with pytest.raises(CodegenError, match="gamma and beta must be constants"):
        staged(b.finish(), resolve("cuda:sm_90"))
