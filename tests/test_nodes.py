"""Node by node: a wrong kernel is found at the first value that it spoils."""

from __future__ import annotations

import pytest

from intc.codegen import rules
from intc.codegen.kernel import Frame, store
from intc.codegen.program import Program
from intc.ir.graph import Node
from intc.report.nodes import check_nodes, first_divergence
from tests.small import small_feeds, small_graph

T = pytest.importorskip("tvm.tirx.script.builder").ir


def off_by_two(program: Program, node: Node) -> None:
    """A kernel for ``a + b`` that adds 2 to the third sum."""

    def body(frame: Frame) -> None:
        with frame.share(30) as i:
            wrong = T.Select(T.EQ(i, 2), T.IntImm("int32", 2), T.IntImm("int32", 0))
            store(frame.buffers["y"], frame.buffers["x0"][i] + frame.buffers["x1"][i] + wrong, i)

    program.generic("off_by_two", (), node.inputs, node.output, body, source=node.source)


def test_the_first_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = check_nodes(small_graph(), "native", small_feeds(3))
    assert [c.differences for c in checks] == [0] * 4
    assert first_divergence(checks) is None
    monkeypatch.setattr(rules, "RULES", {**rules.RULES, "add": off_by_two})
    checks = check_nodes(small_graph(), "native", small_feeds(3))
    assert first_divergence(checks) == "sums"
    assert {c.name: (c.differences, c.largest) for c in checks}["sums"] == (1, 2)
    assert [c.name for c in checks] == ["acc", "rows", "sums", "logits"]


def test_what_lies_at_the_ends_is_counted() -> None:
    graph = small_graph()
    feeds = small_feeds(3)
    feeds["x"] = feeds["x"] * 1e6  # saturates every feature
    checks = {c.name: c for c in check_nodes(graph, "native", feeds)}
    assert checks["acc"].interval == graph.type("acc").interval
    assert checks["acc"].saturated == 0.0
    assert checks["rows"].source == "embed/Gather"
    assert checks["rows"].seen[0] >= -9999
