"""What a page of ``intc inspect`` holds, against the graphs, formulas and kernels themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
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
from intc.ops.requantize import Clip
from intc.ops.scalar import EXACT
from intc.report.formula import formula
from intc.report.inspect import inspect_artifact, inspect_onnx
from intc.report.inspection import Inspection
from intc.report.inspection_data import inspection_data
from intc.report.listings import listings
from tests.browser import DESKTOP, PHONE, Tab, browser
from tests.op_cases import CASES, Case, sample
from tests.pages import HOSTILE, Page, needs_chromium, opened
from tests.small import small_feeds, small_graph, small_module
from tests.tiny_encoder import tiny_encoder, tiny_feeds

FUNCTIONS: dict[str, Any] = {
    "min": np.minimum,
    "max": np.maximum,
    **{name: getattr(EXACT, name) for name in ("where", "floor_div", "bit_length", "isqrt", "take")},
    **{name: getattr(EXACT, name) for name in ("row_sum", "row_max")},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    onnx.save(tiny_encoder(), path)
    return path


@pytest.fixture(scope="module")
def module(model: Path) -> Module:
    return intc.compile(model, calibration=tiny_feeds(8, 24, seed=1), rounding="nearest", calibrator="minmax")


@pytest.fixture(scope="module")
def inspection(module: Module) -> Inspection:
    return module.inspect(samples=2)


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


def test_places_go_down_and_do_not_overlap(module: Module) -> None:
    assert module.passes is not None
    for graph in (module.passes.source, module.graph, module.prepared):
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


def test_every_value_has_its_kernel_in_tir_and_machine_code(module: Module, data: dict[str, Any]) -> None:
    stages = module.lowered.stages  # type: ignore[union-attr]
    for kernel, _, value in stages:
        if value in module.prepared.values:
            assert kernel in data["kernels"][value]
    for node in module.prepared.nodes:
        assert (node.output in data["kernels"]) != (node.output in data["holders"])
    sources = module.inspect(samples=0).listings.sources
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


def test_errors_and_proofs_are_those_of_report_and_certificate(module: Module, data: dict[str, Any]) -> None:
    report = module.report(samples=2)
    assert set(data["measured"]) == {n.name for n in report.nodes}
    for node in report.nodes:
        assert data["measured"][node.name]["isolated_db"] == node.isolated_db
        assert data["measured"][node.name]["histogram"] == node.histogram
    assert data["proofs"] == module.certificate["proofs"]
    assert module.passes is not None
    floats = module.passes["integerise"].before.values
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


def test_an_onnx_file_is_followed_as_far_as_it_goes(model: Path) -> None:
    found = inspect_onnx(model)
    assert list(found.graphs)[-1] == "simplify_movement"
    assert "give calibration data" in found.notes[0] and found.notes[0] in found.html()
    found = inspect_onnx(model, "recover_gelu")
    assert list(found.graphs)[-1] == "recover_gelu" and not found.notes
    with pytest.raises(UsageError, match="no pass 'gelu'"):
        inspect_onnx(model, "gelu")
    with pytest.raises(UsageError, match="no graph after 'x'; there are import, fold_constants"):
        found.html(after="x")


# ---------------------------------------------------------------- the page


def hostile() -> Inspection:
    """Graphs in which every name tries to leave its place."""
    graphs = {}
    for scale in (1.0, 2.0):
        b = Builder(HOSTILE)
        x = b.input(HOSTILE, TensorType((2, 3), "int8"), scale)
        y = b.emit(Add(), x, x, name=HOSTILE, source=HOSTILE)
        b.output(y)
        graphs[f"{HOSTILE}{scale}"] = b.finish()
    return Inspection(HOSTILE, graphs, {HOSTILE: HOSTILE}, (HOSTILE,))


def test_the_page_needs_nothing_and_escapes_names() -> None:
    text = hostile().html()
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 3
    assert page.asks_for_nothing(text)
    assert page.policy_names_its_script()
    seen = json.loads(page.scripts[0])
    assert HOSTILE in {line.get("name") for line in seen["lines"]}
    assert HOSTILE in "".join(page.text)
    assert [p["name"] for p in seen["passes"]] == [f"{HOSTILE}1.0", f"{HOSTILE}2.0"]
    frame = hostile()._repr_html_()
    assert frame.startswith('<iframe sandbox="allow-scripts"') and frame.count("<") == 2


def test_the_page_holds_the_sources(inspection: Inspection) -> None:
    text = inspection.html(after="integerise", diff=True)
    page = Page(text)
    assert page.asks_for_nothing(text)
    seen, sources = (json.loads(script) for script in page.scripts[:2])
    assert sources == inspection.listings.sources
    assert seen["start"] == {"pass": list(inspection.graphs).index("integerise"), "view": "diff"}


@needs_chromium
def test_the_page_runs_in_a_browser(inspection: Inspection, tmp_path: Path) -> None:
    node = next(n for n in inspection.graphs["merge_linears"].nodes if n.op.name == "attention")
    kernel = inspection.listings.kernels[node.output][0]
    shown = opened(
        inspection.html(), f"pass=merge_linears&view=diff&node={node.output}&code={kernel} TIR", tmp_path
    )
    text = "".join(shown.text)
    assert "after fuse_linear" in text and " removed" in text
    assert "weights = shift_weights(scores" in text
    assert "through the passes" in text
    assert "T.prim_func" in text
    assert any(tag == "dialog" and "open" in a for tag, a in shown.tags)


@needs_chromium
def test_a_hostile_page_stays_text_in_a_browser(tmp_path: Path) -> None:
    shown = opened(hostile().html(), "view=diff&search=img", tmp_path)
    assert "img" not in [tag for tag, _ in shown.tags]
    assert "1 changed" in "".join(shown.text)


SPY = """
window.drawn = {texts: []};
const drawing = CanvasRenderingContext2D.prototype, {scale, translate, fillText} = drawing;
drawing.scale = function (x, y) { drawn.scale = x; drawn.texts = []; scale.call(this, x, y); };
drawing.translate = function (x, y) { [drawn.left, drawn.top] = [-x, -y]; translate.call(this, x, y); };
drawing.fillText = function (text, x, y) { drawn.texts.push([text, x, y]); fillText.call(this, text, x, y); };
"""  # what was drawn last: the scale, the graph's point in the corner, texts and their places in the graph


def seen(tab: Tab) -> dict[str, Any]:
    tab.settle()
    found: dict[str, Any] = tab.value("drawn")
    return found


@contextmanager
def open_tab(page: str, folder: Path, screen: Mapping[str, Any]) -> Iterator[Tab]:
    (folder / "page.html").write_text(page)
    with browser(folder, screen) as tab:
        tab.call("Page.addScriptToEvaluateOnNewDocument", source=SPY)
        tab.open((folder / "page.html").as_uri())
        yield tab


@needs_chromium
def test_fingers_move_zoom_and_choose_on_a_phone(inspection: Inspection, tmp_path: Path) -> None:
    with open_tab(inspection.html(), tmp_path, PHONE) as tab:
        canvas = tab.value(
            "(({left, top}) => [left, top])(document.getElementById('canvas').getBoundingClientRect())"
        )
        start = seen(tab)
        tab.touch("Start", (200, 600))
        for step in range(1, 10):
            tab.touch("Move", (200 - 3 * step, 600 - 20 * step))
        tab.touch("End")
        dragged = seen(tab)
        assert dragged["scale"] == start["scale"]
        assert dragged["left"] - start["left"] == pytest.approx(27 / start["scale"])
        assert dragged["top"] - start["top"] == pytest.approx(180 / start["scale"])

        tab.touch("Start", (180, 500))
        tab.touch("Start", (180, 500), (220, 500))
        for step in range(11):
            tab.touch("Move", (180 - 2 * step, 500), (220 + 2 * step, 500))
        tab.touch("End")
        pinched = seen(tab)
        assert pinched["scale"] == pytest.approx(2 * start["scale"])
        for at, corner, middle in (("left", canvas[0], 200), ("top", canvas[1], 500)):
            between = [view[at] + (middle - corner) / view["scale"] for view in (dragged, pinched)]
            assert between[0] == pytest.approx(between[1])
        assert tab.value("visualViewport.scale") == 1  # the graph was zoomed, not the page
        assert tab.value("document.getElementById('details').hidden")

        name = inspection.graphs["merge_linears"].nodes[-1].output
        tab.value(f"document.getElementById('search').value = {json.dumps(name)}")
        tab.value("document.getElementById('search').dispatchEvent(new Event('input'))")
        tab.value("document.querySelector('#found button').click()")
        shown = seen(tab)
        _, x, y = next(text for text in shown["texts"] if text[0] == name)
        tab.value("document.querySelector('#details .close').click()")
        assert tab.value("document.getElementById('details').hidden")
        tab.touch(
            "Start",
            (
                (x - shown["left"]) * shown["scale"] + canvas[0] + 5,
                (y - shown["top"]) * shown["scale"] + canvas[1],
            ),
        )
        tab.touch("End")
        tab.settle()
        assert tab.value("document.querySelector('#details h2').textContent") == name


@needs_chromium
@pytest.mark.parametrize("screen", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_of_a_large_graph_only_what_is_in_sight_is_drawn(tmp_path: Path, screen: Mapping[str, Any]) -> None:
    b = Builder("large")
    last = b.input("x", TensorType((4,), "int8"), 1.0)
    for _ in range(3000):
        last = b.emit(Clip(-5, 5, "int8"), last)
    b.output(last)
    with open_tab(Inspection("large", {"artifact": b.finish()}).html(), tmp_path, screen) as tab:
        drawn = seen(tab)
        assert 3 * 5 < len(drawn["texts"]) < 3 * 40  # three lines of text in a box
        tab.value("document.getElementById('fit').click()")
        assert len(seen(tab)["texts"]) < 3 * 40


# ---------------------------------------------------------------- notebooks


def test_passes_are_found_by_name_and_shown_side_by_side(module: Module) -> None:
    assert module.passes is not None
    step = module.passes["recover_gelu"]
    diff = step.diff()
    assert isinstance(diff, str) and "+%" in diff
    table = diff._repr_html_()
    assert table.count("class='edit'") + table.count("class='add'") > 0
    assert "= gelu(" in table and "erf(" in table
    Page(table)
    Page(step._repr_html_())
    assert "<td>recover_gelu</td>" in module.passes._repr_html_()
    assert [s.name for s in module.passes] == list(intc.passes.pipeline.PASS_NAMES)
    assert "no difference" in replace(step, graph=step.before).diff()._repr_html_()
    assert "requantize(" in module.passes["requantise"].diff()
    assert module.passes["requantise"] is module.passes["integerise"]
    with pytest.raises(UsageError, match="no pass 'gelu' has run; the passes are fold_constants"):
        module.passes["gelu"]
