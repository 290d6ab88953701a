"""The page of ``intc inspect``: it needs nothing, escapes names, and runs in a browser."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from intc.ir.graph import Builder
from intc.ir.types import TensorType
from intc.ops.elementwise import Add
from intc.ops.requantize import Clip
from intc.report.inspection import Inspection
from tests.browser import DESKTOP, PHONE, Tab, browser
from tests.pages import HOSTILE, Page, needs_chromium, opened


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
