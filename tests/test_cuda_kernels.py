"""Every operator on a GPU, as far as a CPU can tell: the kernels' own source, run by an emulator of the hardware,
equals ``evaluate`` bit for bit. Neighbouring launches see each other's memory, threads take turns in other orders,
asynchronous copies arrive as late as they may."""

from __future__ import annotations

import pytest

from tests.emulated import check_graph, emulation
from tests.native import check_op
from tests.test_kernels_generic import GROUPS


@pytest.mark.parametrize("group", GROUPS)
def test_kernels_equal_evaluate(group: str) -> None:
    with emulation():
        check_op([(case.op, case.inputs, case.sizes) for case in GROUPS[group]()], check_graph)
