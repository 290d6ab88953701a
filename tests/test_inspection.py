"""What a page of ``intc inspect`` holds, against the graphs, formulas and kernels themselves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intc
from intc.cli import main
from intc.codegen.disassembly import disassembly
from intc.codegen.machine_code import machine_code
from intc.codegen.targets import resolve
from intc.errors import ArtifactCorrupt, UsageError
from intc.ir.bound import bound
from intc.ir.diff import aligned, compared_lines
from intc.ir.graph import Builder, Graph
from intc.ir.layout import layout
from intc.ir.op import FormulaOp
from intc.ir.types import TensorType
from intc.module import Module
from intc.ops.elementwise import Add
from intc.ops.scalar import EXACT
from intc.report.formula import formula
from intc.report.inspect import inspect_artifact, inspect_onnx
from intc.report.inspection import Inspection
from intc.report.inspection_data import inspection_data
from intc.report.listings import listings
from tests.op_cases import CASES, Case, sample
from tests.pages import Page
from tests.small import small_feeds, small_graph, small_module

FUNCTIONS: dict[str, Any] = {
    "min": np.minimum,
    "max": np.maximum,
    **{name: getattr(EXACT, name) for name in ("where", "floor_div", "bit_length", "isqrt", "take")},
    **{name: getattr(EXACT, name) for name in ("row_sum", "row_max")},
}


@pytest.fixture(scope="module")
def data(inspection: Inspection) -> dict[str, Any]:
    return json.loads(json.dumps(inspection_data(inspection), allow_nan=False))


# ---------------------------------------------------------------- graphs


def test_every_line_of_every_pass_is_there(inspection: Inspection, data: dict[str, Any]) -> None:
    assert [p["name"] for p in data["passes"]] == ["import", *intc.passes.pipeline.PASS_NAMES]
    for seen, graph in zip(data["passes"], inspection.graphs.values(), strict=True):
        records = [data["lines"][i] for i in seen["rows"]]
        assert [r["text"] for r in records] == [text for _, text in compared_lines(graph)]
        named = {r["name"]: r for r in records if "name" in r}
        assert set(named) == set(graph.inputs) | set(graph.constants) | set(graph.producers())
        for node in graph.nodes:
            record, type_ = named[node.output], graph.type(node.output)
            assert (record["kind"], record["op"], record["source"]) == ("node", node.op.name, node.source)
            assert (record["inputs"], record["dtype"]) == ([*node.inputs], type_.dtype)
            assert record.get("interval") == (None if type_.is_float else [*type_.interval])
            assert data["formulas"][record["formula"]] == formula(graph, node)
        drawn = {name for name, _, _ in seen["places"]}
        assert drawn == {*graph.inputs, *graph.producers()}


def test_the_pairs_of_a_diff_are_both_graphs_in_order(data: dict[str, Any]) -> None:
    changed = 0
    for before, after in zip(data["passes"], data["passes"][1:], strict=False):
        left: list[int] = []
        right: list[int] = []
        for i, j, count in after["pairs"]:
            if i is not None:
                left += before["rows"][i : i + count]
            if j is not None:
                right += after["rows"][j : j + count]
        assert (left, right) == (before["rows"], after["rows"])
        assert after["changed"] == (before["rows"] != after["rows"])
        changed += after["changed"]
    assert 5 < changed < len(data["passes"]) - 1


def test_lines_of_equal_text_and_other_weights_differ() -> None:
    def graph(weight: float) -> Graph:
        b = Builder("g")
        x = b.input("x", TensorType((20,), "float32"))
        b.output(b.emit(Add(), x, b.constant("w", np.full(20, weight, np.float32))))
        return b.finish()

    same, other = graph(1.0), graph(2.0)
    seen = inspection_data(Inspection("t", {"a": same, "b": graph(1.0), "c": other}))
    assert [p["changed"] for p in seen["passes"]] == [False, False, True]


def test_alignment_keeps_order_and_pairs_equal_keys() -> None:
    before, after = list("abcdef"), list("axcdyzf")
    pairs = list(aligned(before, after))
    assert [before[i] for i, _ in pairs if i is not None] == before
    assert [after[j] for _, j in pairs if j is not None] == after
    assert {(before[i], after[j]) for i, j in pairs if i is not None and j is not None} >= {
        (c, c) for c in "acdf"
    }


def test_places_go_down_and_do_not_overlap(encoder: Module) -> None:
    assert encoder.passes is not None
    for graph in (encoder.passes.source, encoder.graph, encoder.prepared):
        drawn = layout(graph)
        assert drawn == layout(graph)
        rows: dict[int, list[float]] = {}
        for x, y in drawn.places.values():
            rows.setdefault(y, []).append(x)
        for xs in rows.values():
            assert all(b - a > 0.999 for a, b in zip(sorted(xs), sorted(xs)[1:], strict=False))
        for node in graph.nodes:
            for name in node.inputs:
                if name not in graph.constants:
                    between = drawn.places[node.output][1] - drawn.places[name][1] - 1
                    assert between >= 0
                    assert len(drawn.lanes.get(name, ())) >= between


def test_thousands_of_nodes_make_a_small_page() -> None:
    b = Builder("long")
    x = b.input("x", TensorType((4,), "float32"))
    held = x
    for i in range(2000):
        x = b.emit(Add(), x, held if i % 50 == 0 else x, name=f"/model/layers.{i}/Add")
        held = x if i % 50 == 0 else held
    b.output(x)
    assert len(Inspection("long", {"import": b.finish()}).html()) < 2_000_000


# ---------------------------------------------------------------- formulas


FORMULAS = [
    pytest.param(c, id=f"{i}-{c.op.name}") for i, c in enumerate(CASES) if isinstance(c.op, FormulaOp)
]


@pytest.mark.parametrize("case", FORMULAS)
def test_a_formula_is_what_the_operator_computes(case: Case) -> None:
    """The text is run as Python, on operands of the types that the case names."""
    rng = np.random.default_rng(3)
    arrays = [sample(t, rng) for t in case.inputs]
    b = Builder("case")
    names = [b.constant(f"v{i}", a) for i, a in enumerate(arrays)]
    b.emit(case.op, *names, name="y")
    text = formula(b.graph, b.graph.nodes[0])
    operands = {f"x{i}": a if a.dtype == bool else a.astype(np.int64) for i, a in enumerate(arrays)}
    scope: dict[str, Any] = {**FUNCTIONS, **operands}
    exec(text, scope)
    np.testing.assert_array_equal(scope["y"], case.op.evaluate(*arrays, sizes={}))


def test_fused_operators_are_shown_as_what_they_mean(inspection: Inspection, data: dict[str, Any]) -> None:
    fused = [n for n in inspection.graphs["merge_linears"].nodes if n.op.name in ("linear", "attention")]
    assert {n.op.name for n in fused} == {"linear", "attention"}
    assert set(data["parts"]) == {n.output for n in fused}
    for node in fused:
        parts = [data["lines"][i] for i in data["parts"][node.output]]
        assert parts[-1]["name"] == node.output
        known = {*node.inputs}
        for part in parts:
            assert part["op"] not in ("linear", "attention")
            assert set(part["inputs"]) <= known
            known.add(part["name"])


# ---------------------------------------------------------------- kernels, errors, proofs


def test_every_value_has_its_kernel_in_tir_and_machine_code(encoder: Module, data: dict[str, Any]) -> None:
    stages = encoder.lowered.stages  # type: ignore[union-attr]
    for kernel, _, value in stages:
        if value in encoder.prepared.values:
            assert kernel in data["kernels"][value]
    for node in encoder.prepared.nodes:
        assert (node.output in data["kernels"]) != (node.output in data["holders"])
    sources = encoder.inspect(samples=0).listings.sources
    assert set(sources) == {kernel for kernel, _, _ in stages}
    for kernel, texts in sources.items():
        assert "T.prim_func" in texts["TIR"], kernel
        assert "mov" in texts["assembly"], kernel


def test_disassembly_names_what_was_put_inside() -> None:
    library = small_module().lowered.library  # type: ignore[union-attr]
    texts, code = disassembly(library), machine_code(library)
    assert code is not None
    homes = 0
    for name, text in texts.items():
        lines = text.splitlines()
        pieces = [line for line in lines if line.startswith("; inside ")]
        homes += len(pieces)
        if not pieces:
            assert len(lines) == code.functions[name]
        for piece in pieces:
            home = texts[piece.removeprefix("; inside ")]
            assert all(line in home for line in lines if not line.startswith(";"))
    assert homes
    with pytest.raises(ArtifactCorrupt, match="no readable ELF"):
        disassembly(b"not a library")


def test_errors_and_proofs_are_those_of_report_and_certificate(encoder: Module, data: dict[str, Any]) -> None:
    report = encoder.report(samples=2)
    assert set(data["measured"]) == {n.name for n in report.nodes}
    for node in report.nodes:
        assert data["measured"][node.name]["isolated_db"] == node.isolated_db
        assert data["measured"][node.name]["histogram"] == node.histogram
    assert data["proofs"] == encoder.certificate["proofs"]
    assert encoder.passes is not None
    floats = encoder.passes["integerise"].before.values
    assert data["standsFor"] and set(data["standsFor"]) <= set(floats)
    assert set(data["standsFor"].values()) <= set(data["measured"])


def test_an_artifact_shows_what_it_holds(artifact: Path) -> None:
    graph = small_graph()
    found = inspect_artifact(artifact, data=small_feeds(4))
    assert list(found.graphs) == ["artifact"]
    assert {n.output for n in found.graphs["artifact"].nodes} == {n.output for n in graph.nodes}
    assert set(found.checked) == {n.output for n in graph.nodes}
    assert all(check["differences"] == 0 for check in found.checked.values())
    assert found.facts["float values"] == found.facts["of them float"] == "0"
    assert set(found.listings.kernels["logits"]) <= set(found.listings.sources)
    with pytest.raises(UsageError, match="--after needs the ONNX file"):
        inspect_artifact(artifact, after="integerise")
    with pytest.raises(UsageError, match="give --data"):
        inspect_artifact(artifact, model=Path("model.onnx"))


def test_other_targets_show_the_source_they_have() -> None:
    graph = small_graph()
    for target, languages in (("cuda:sm_80", {"CUDA"}), ("c", {"TIR", "C"})):
        found = listings(bound(graph, {"batch": 2}), resolve(target))
        assert found.sources and all(set(texts) == languages for texts in found.sources.values())
        assert set(found.kernels) == {n.output for n in graph.nodes}


def test_the_command_line_writes_the_page(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", str(artifact), "--html", str(page), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["html"] == str(page) and said["nodes"] == {"artifact": 4}
    assert said["kernels"] == len(json.loads(Page(page.read_text()).scripts[1]))
    kept = artifact.read_bytes()
    assert main(["inspect", str(artifact), "--html", str(artifact)]) == 2
    assert "would overwrite" in capsys.readouterr().err and artifact.read_bytes() == kept


def test_an_onnx_file_is_followed_as_far_as_it_goes(encoder_onnx: Path) -> None:
    found = inspect_onnx(encoder_onnx)
    assert list(found.graphs)[-1] == "simplify_movement"
    assert "give calibration data" in found.notes[0] and found.notes[0] in found.html()
    found = inspect_onnx(encoder_onnx, "recover_gelu")
    assert list(found.graphs)[-1] == "recover_gelu" and not found.notes
    with pytest.raises(UsageError, match="no pass 'gelu'"):
        inspect_onnx(encoder_onnx, "gelu")
    with pytest.raises(UsageError, match="no graph after 'x'; there are import, fold_constants"):
        found.html(after="x")


# ---------------------------------------------------------------- notebooks


def test_passes_are_found_by_name_and_shown_side_by_side(encoder: Module) -> None:
    assert encoder.passes is not None
    step = encoder.passes["recover_gelu"]
    diff = step.diff()
    assert isinstance(diff, str) and "+%" in diff
    table = diff._repr_html_()
    assert table.count("class='edit'") + table.count("class='add'") > 0
    assert "= gelu(" in table and "erf(" in table
    Page(table)
    Page(step._repr_html_())
    assert "<td>recover_gelu</td>" in encoder.passes._repr_html_()
    assert [s.name for s in encoder.passes] == list(intc.passes.pipeline.PASS_NAMES)
    assert "no difference" in replace(step, graph=step.before).diff()._repr_html_()
    assert "requantize(" in encoder.passes["requantise"].diff()
    assert encoder.passes["requantise"] is encoder.passes["integerise"]
    with pytest.raises(UsageError, match="no pass 'gelu' has run; the passes are fold_constants"):
        encoder.passes["gelu"]
