"""On a real GPU: every operator equals ``evaluate``, and a network runs many times without a bit changing."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from intc.codegen.cuda import compiler
from intc.codegen.lower import lower
from intc.errors import UsageError
from intc.module import Module
from intc.runtime.cuda.driver import Device
from tests.emulated import check_graph
from tests.native import check_op
from tests.small import small_feeds, small_graph
from tests.test_kernels_generic import GROUPS

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def target() -> str:
    """The target of this machine's GPU; the test is skipped where there is none, or no compiler for it."""
    try:
        device = Device("cuda:0")
    except UsageError as error:
        pytest.skip(str(error))
    if compiler.nvcc() is None:
        pytest.skip("nvcc is not installed")
    return f"cuda:sm_{device.architecture}"


@pytest.mark.parametrize("group", GROUPS)
def test_kernels_equal_evaluate(group: str, target: str) -> None:
    cases = [(case.op, case.inputs, case.sizes) for case in GROUPS[group]()]
    check_op(cases, partial(check_graph, target=target))


def test_many_runs_give_the_same_bits(target: str) -> None:
    graph = small_graph()
    session = Module(graph, graph, lower(graph, target), tuple(graph.outputs)).session()
    for seed in range(200):
        feeds = small_feeds(1 + seed % 40, seed)
        assert all(map(np.array_equal, session.run(None, feeds), graph.evaluate(feeds)))
