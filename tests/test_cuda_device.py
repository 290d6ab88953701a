"""On a real GPU: every operator equals ``evaluate``, a network runs many times without a bit changing,
torch's tensors go in and out, and a decoder's state stays there.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

import intc
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
DECODER = Path(__file__).resolve().parents[1] / "examples" / "decoder" / "llama_characters.onnx"


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


def test_torch_shares_memory_and_streams(target: str) -> None:
    """Feeds that torch still computes, results that it takes at once; on its default stream and others."""
    torch = pytest.importorskip("torch", reason="of the extra [examples]")
    if not torch.cuda.is_available():
        pytest.skip("this torch has no CUDA")
    graph = small_graph()
    session = Module(graph, graph, lower(graph, target), tuple(graph.outputs)).session()
    large = torch.randn(2048, 2048, device="cuda")
    for seed in range(50):
        given = small_feeds(1 + seed % 3, seed)
        with torch.cuda.stream(torch.cuda.Stream() if seed % 2 else torch.cuda.default_stream()):
            busy = (large @ large).sum() * 0  # the feed comes late
            x = torch.from_numpy(given["x"]).cuda() + torch.nan_to_num(busy)
            ids = torch.from_numpy(given["ids"]).cuda()
            results = session.run(None, {"x": x, "ids": ids}, on_device=True)
            for got, want in zip(map(torch.from_dlpack, results), graph.evaluate(given), strict=True):
                assert got.is_cuda and np.array_equal(got.cpu().numpy(), want)


def test_states_stay_on_the_device(target: str) -> None:
    text = np.random.default_rng(0).integers(0, 96, (2, 24))
    modules = [intc.compile(DECODER, {"input_ids": text}, t, rounding="nearest") for t in ("native", target)]
    (here, there), states = [m.session() for m in modules], []
    for session in (here, there):
        states.append(session.create_state(2))
    for piece in np.split(text, [5, 6, 7, 8, 20], axis=1):
        (want,) = here.run(["logits"], {"input_ids": piece}, state=states[0], raw=True)
        (got,) = there.run(["logits"], {"input_ids": piece}, state=states[1], raw=True, on_device=True)
        np.testing.assert_array_equal(got.numpy(), want)
    for state in states:
        state.select([1, 0, 0])
        state.truncate(9)
    np.testing.assert_equal(states[1].arrays(), states[0].arrays())
