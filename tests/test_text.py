"""The text form of graphs: exact round trips, golden texts, and refusals that name the line."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from intc.errors import GraphError
from intc.ir.diff import diff_graphs, diff_html
from intc.ir.dims import parse, symbol
from intc.ir.display import graph_html, graph_svg
from intc.ir.graph import Builder, Graph
from intc.ir.op import Op
from intc.ir.text import parse_graph, print_graph, side_tensors
from intc.ir.types import TensorType, type_of_array
from intc.ir.verify import float_operators, float_values, verify
from intc.ops import OPS
from tests.op_cases import CASES, Case
from tests.small import small_graph


@dataclass(frozen=True)
class Anything(Op):
    """An operator of the tests: one attribute of any printable kind."""

    value: Any
    name: ClassVar[str] = "anything"
    arity: ClassVar[tuple[int, ...]] = (1, 2)

    def infer(self, *types: TensorType) -> TensorType:
        return types[0]


def round_trip(graph: Graph) -> Graph:
    text = print_graph(graph)
    parsed = parse_graph(text, side_tensors(graph), [*OPS.values(), Anything])
    assert print_graph(parsed) == text
    assert parsed.nodes == graph.nodes
    assert parsed.values == graph.values
    assert (parsed.name, parsed.inputs, parsed.outputs) == (graph.name, graph.inputs, graph.outputs)
    for name, array in graph.constants.items():
        assert parsed.constants[name].dtype == array.dtype
        np.testing.assert_array_equal(parsed.constants[name], array)
    return parsed


def one_node(value: object, name: str = "x", source: str = "") -> Graph:
    b = Builder("g")
    b.input(name, TensorType((symbol("batch"), 3), "int8"), scale=0.1)
    b.output(b.emit(Anything(value), name, name="y", source=source, scale=(0.5, 1e-300, 3.0)))
    return b.finish()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.op.name)
def test_every_operator_round_trips(case: Case) -> None:
    b = Builder("case")
    inputs = [b.input(f"x{i}", type_) for i, type_ in enumerate(case.inputs)]
    b.output(b.emit(case.op, *inputs))
    round_trip(b.finish())


ATOMS = st.one_of(
    st.booleans(),
    st.none(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.sampled_from(["batch", "true", "inf", "nan", "none"]).map(symbol),
    st.builds(lambda a, b: symbol("batch") * symbol("seq") * a + b, st.integers(1, 9), st.integers(-5, 5)),
)
VALUES = st.recursive(ATOMS, lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8)


@given(VALUES)
def test_every_attribute_round_trips(value: object) -> None:
    round_trip(one_node(value))


@given(st.text(min_size=1, max_size=30), st.text(max_size=30))
def test_every_name_round_trips(name: str, source: str) -> None:
    if name != "y":
        round_trip(one_node(1, name, source))


def test_nan_attribute_round_trips() -> None:
    parsed = parse_graph(print_graph(one_node(math.nan)), side_tensors(one_node(1)), [Anything])
    assert math.isnan(parsed.nodes[0].op.value)  # type: ignore[attr-defined]


@given(
    st.sampled_from(["float32", "bool", "uint8", "int8", "int16", "int32", "int64"]),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 2**32),
)
def test_every_constant_round_trips(dtype: str, shape: list[int], seed: int) -> None:
    bits = np.random.default_rng(seed).integers(0, 2**63, tuple(shape))
    array = (bits % 2 if dtype == "bool" else bits).astype(dtype)
    b = Builder("constants")
    b.output(b.emit(Anything(0), b.constant("c", array)))
    round_trip(b.finish())


def test_golden(golden: Callable[[str, str], None]) -> None:
    golden("small_graph", print_graph(small_graph()))


def test_diff_shows_the_changed_line_only() -> None:
    before, after = one_node(1), one_node(2)
    assert diff_graphs(before, before) == ""
    changed = [line for line in diff_graphs(before, after).splitlines() if line[0] in "+-"][2:]
    assert len(changed) == 2
    assert "value=1" in changed[0]
    assert "value=2" in changed[1]


REFUSED = {
    "header": ("intc graph 1", "intc graph 2", "line 1"),
    "unknown operator": ("= matmul(", "= matmal(", "'matmal' is not known"),
    "unknown attribute": ("{lo=", "{low=", "has the attributes lo, hi, dtype"),
    "undefined input": ("matmul(%x, ", "matmul(%z, ", "uses 'z' before its definition"),
    "wrong interval": (
        "%sums : int32[batch, 10] in [-",
        "%sums : int32[batch, 10] in [-1",
        "its operator gives",
    ),
    "wrong type": ("%logits : int16", "%logits : int32", "its operator gives"),
    "unknown type": ("int8[batch", "int7[batch", "element type 'int7'"),
    "defined twice": ("const %m ", "const %w ", "defined twice"),
    "missing output": ("output %logits", "output %nothing", "output 'nothing' is not defined"),
    "trailing text": ("output %sums", "output %sums 7", "unexpected '7'"),
    "bad size": ("int8[batch,", "int8[batch**,", "not a size"),
    "lying constant": ("= [40]", "= [41]", "holds values in [41, 41]"),
    "constant of another length": ("= [40]", "= [40, 40]", "does not hold"),
    "huge number": ("= [40]", f"= [{'9' * 5000}]", "is not a number"),
    "missing tensor": ("const %w ", "const %ww ", "tensor 'ww' is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_text_is_refused(case: str) -> None:
    old, new, message = REFUSED[case]
    graph = small_graph()
    text = print_graph(graph)
    assert old in text
    with pytest.raises(GraphError) as caught:
        parse_graph(text.replace(old, new, 1), side_tensors(graph), OPS.values())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_digit_that_is_no_number_names_a_symbol() -> None:
    assert parse("\u00b21") == symbol("\u00b21")


@given(st.data())
def test_damaged_text_is_refused_or_parsed(data: st.DataObject) -> None:
    graph = small_graph()
    text = print_graph(graph)
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.text(max_size=3)) + text[at + data.draw(st.integers(0, 9)) :]
    try:
        parse_graph(damaged, side_tensors(graph), OPS.values())
    except GraphError as error:
        assert "\n" not in str(error)


def test_deep_nesting_is_refused() -> None:
    text = print_graph(one_node(5)).replace("value=5", "value=" + "[" * 5000)
    with pytest.raises(GraphError, match="nested"):
        parse_graph(text, side_tensors(one_node(5)), [Anything])


def test_verify_refuses_what_no_text_can_say() -> None:
    graph = small_graph()
    verify(graph)
    graph.values["stray"] = replace(graph.values["m"], name="stray")
    with pytest.raises(GraphError, match="'stray' is declared but nothing defines it"):
        verify(graph)
    graph = small_graph()
    graph.values["logits"] = replace(graph.values["logits"], scale=(1.0, 2.0))
    with pytest.raises(GraphError, match="has 2 scales"):
        verify(graph)


def test_float_values_and_operators_are_listed() -> None:
    b = Builder("floats")
    x = b.input("x", TensorType((2,), "float32"))
    b.output(b.emit(Anything(1), x, name="y"))
    graph = b.finish()
    assert float_values(graph) == ["x", "y"]
    assert float_operators(graph) == ["y"]
    assert float_values(small_graph()) == []
    assert float_operators(small_graph()) == []


def test_views_escape_names_and_name_every_node() -> None:
    graph = one_node(1, "<x>")
    html = graph_html(graph) + diff_html(graph, one_node(2, "<x>"))
    assert "<x>" not in html
    assert "&lt;x&gt;" in html
    assert graph_svg(small_graph()).count("<rect") == 6
    assert small_graph()._repr_html_().startswith("<style>")
    assert str(small_graph()) == print_graph(small_graph())


def test_type_of_constants_is_tight() -> None:
    assert type_of_array(np.array([3, -2], np.int16)).interval == (-2, 3)
