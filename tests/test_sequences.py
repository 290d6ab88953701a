"""Sequences of tensors, which legacy exports write for `hstack` and for loops over the parts of a split."""

from __future__ import annotations

import numpy as np
import pytest

from intc.errors import UnsupportedModel
from intc.frontend import import_onnx
from tests.onnx_models import Feeds, expected, floats, model, operators

INT = {"zero": np.int64(0), "one": np.int64(1), "minus": np.int64(-1), "two": np.int64(2)}
FORMS = {
    "joined": "s = SequenceConstruct(x, u) y = ConcatFromSequence<axis=1>(s)",
    "stacked": "s = SequenceConstruct(x, x) y = ConcatFromSequence<axis=-1, new_axis=1>(s)",
    "filled in a loop": "e = SequenceEmpty() a = SequenceInsert(e, x) b = SequenceInsert(a, u, zero)"
    " c = SequenceErase(b, minus) y = SequenceAt(c, zero)",
    "in equal parts": "s = SplitToSequence<axis=1>(x, two) a = SequenceAt(s, zero) b = SequenceAt(s, minus)"
    " y = Concat<axis=1>(b, a)",
    "in given parts": "s = SplitToSequence<axis=1>(x, parts) y = SequenceAt(s, one)",
    "in single rows": "s = SplitToSequence<axis=1, keepdims=0>(x) y = SequenceAt(s, two)",
    "counted": "s = SplitToSequence<axis=1>(x, two) n = SequenceLength(s) f = Cast<to=1>(n) y = Mul(x, f)",
}


@pytest.mark.parametrize("form", FORMS)
def test_sequences_are_resolved_while_importing(form: str) -> None:
    weights = {k: v for k, v in {**INT, "parts": np.array([1, 4])}.items() if k in FORMS[form]}
    axes = {"stacked": "a, b, c, d", "in single rows": "a, b"}.get(form, "a, b, c")
    proto = model(FORMS[form], "float[batch, 5, 3] x, float[batch, 2, 3] u", f"float[{axes}] y", weights)
    feeds: Feeds = {"x": floats(2, 5, 3), "u": floats(2, 2, 3)}
    graph = import_onnx(proto)
    np.testing.assert_array_equal(graph.evaluate(feeds)[0], expected(proto, feeds)[0])
    assert operators(graph).keys() <= {"slice", "concat", "reshape", "mul"}


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("s = SequenceConstruct(x, x) y = SequenceAt(s, two)", "position 2 lies outside the 2 tensors"),
        ("s = SequenceConstruct(x, x) y = Relu(s)", "a sequence of tensors is used as data"),
        ("s = SplitToSequence<axis=0>(x, two) y = SequenceAt(s, zero)", "symbolic size"),
        ("i = Cast<to=7>(u) j = ReduceMax<keepdims=0>(i) s = SequenceConstruct(x, x) y = SequenceAt(s, j)",
         "the position depends on input values"),
    ],
)  # fmt: skip
def test_what_a_sequence_cannot_do_is_refused_with_its_reason(body: str, reason: str) -> None:
    weights = {k: v for k, v in INT.items() if k in body}
    proto = model(body, "float[batch, 5, 3] x, float[2] u", "float[batch, 5, 3] y", weights)
    with pytest.raises(UnsupportedModel, match=reason):
        import_onnx(proto)


def test_what_is_done_to_every_tensor_of_a_sequence() -> None:
    """What the dynamo exporter writes for `hstack`: a branch on the rank of each tensor."""
    body = "s = SequenceConstruct(x, u) m = SequenceMap(s) <body = each (float[a, b, c] t) => (o)"
    body += " { d = Shape(t) n = Size(d) k = Equal(n, zero) o = If(k) <then_branch = flat () => (p)"
    body += " { p = Neg(t) }, else_branch = same () => (q) { q = Tanh(t) }> }>"
    body += " y = ConcatFromSequence<axis=1>(m)"
    proto = model(body, "float[2, 5, 3] x, float[2, 2, 3] u", "float[2, 7, 3] y", {"zero": np.int64(0)})
    feeds: Feeds = {"x": floats(2, 5, 3), "u": floats(2, 2, 3)}
    graph = import_onnx(proto)
    want = np.tanh(np.concatenate([feeds["x"], feeds["u"]], axis=1))
    np.testing.assert_allclose(graph.evaluate(feeds)[0], want, atol=1e-6)
    assert operators(graph) == {"tanh": 2, "concat": 1}


@pytest.mark.parametrize("stop", ["k = Identity(c)", "k = Less(i, one)"])
def test_loops_of_a_known_number_of_rounds(stop: str) -> None:
    """What scripted loops over a range, and `tensor_split`, are exported as."""
    body = (
        "y, z = Loop(three, yes, x) <body = g (int64 i, bool c, float[n, 4] s) =>"
        f" (bool k, float[n, 4] t, float[n, 4] r) {{ {stop} u = Gather(w, i) t = Mul(s, u) r = Relu(t) }}>"
    )
    weights = {"three": np.int64(3), "yes": np.bool_(True), "w": floats(3, 4), "one": np.int64(1)}
    proto = model(body, "float[n, 4] x", "float[n, 4] y, float[r, n, 4] z", weights)
    graph = import_onnx(proto)
    feeds: Feeds = {"x": floats(5, 4)}
    for found, want in zip(graph.evaluate(feeds), expected(proto, feeds), strict=True):
        np.testing.assert_allclose(found, want, rtol=1e-5)


def test_loops_whose_end_is_computed_are_refused() -> None:
    body = (
        "y = Loop(three, yes, x) <body = g (int64 i, bool c, float[1, 4] s) => (bool k, float[1, 4] t) {"
        " t = Relu(s) m = ReduceMax<keepdims=0>(t) k = Less(m, zero) }>"
    )
    weights = {"three": np.int64(3), "yes": np.bool_(True), "zero": np.float32(0)}
    with pytest.raises(UnsupportedModel, match="how often a loop runs depends on input values"):
        import_onnx(model(body, "float[1, 4] x", "float[1, 4] y", weights))
