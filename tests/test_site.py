"""The documentation's own tools: links, notebooks, figures, and what a page may fetch."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

ROOT = Path(__file__).parent.parent


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_site_that_asks_another_host_or_misses_a_file_is_found(tmp_path: Path) -> None:
    offline = tool("offline")
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.css").write_text("@import 'https://fonts.example/x.css'; p { background: url(data:x) }")
    page = tmp_path / "sub" / "p.html"
    page.write_text('<link href="../a.css"><a href="https://elsewhere.example">a link may lead there</a>')
    assert list(offline.faults(tmp_path)) == ["a.css asks https://fonts.example/x.css"]
    page.write_text(
        '<script src="//cdn.example/x.js"></script><img src="gone.png" style="background: url(b.png)">'
    )
    found = list(offline.faults(tmp_path))[1:]
    assert [line.split(" ", 1)[1] for line in found] == [
        "asks //cdn.example/x.js",
        "misses gone.png",
        "misses b.png",
    ]


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r"(\w+)\.md", (ROOT / "mkdocs.yml").read_text()))
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} <= named


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """By the command of `make docs`: strict, and not quiet, which would silence what strict counts."""
    (recipe,) = re.findall(r"mkdocs (build.*)", (ROOT / "Makefile").read_text())
    command = [sys.executable, "-m", "mkdocs", *recipe.split(), "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "INFO" in done.stderr, done.stderr
    assert list(tool("offline").faults(tmp_path)) == []


def test_the_figures_of_the_pages_exist_and_hold_curves() -> None:
    shown = [
        line for line in (ROOT / "docs" / "arithmetic.md").read_text().splitlines() if line.startswith("![")
    ]
    names = {line.split("(figures/")[1].rstrip(")") for line in shown}
    assert names == {path.name for path in (ROOT / "docs" / "figures").iterdir()}
    for name in names:
        text = (ROOT / "docs" / "figures" / name).read_text()
        assert text.count("at most") >= 1 and text.count("<path") > 5, name


def test_what_is_drawn_keeps_the_largest_error() -> None:
    figures = tool("figures")
    y = np.zeros(100_000)
    y[12345], y[777] = 3.0, -2.0
    drawn = y[figures.ends(y)]
    assert drawn.max() == 3.0 and drawn.min() == -2.0 and len(drawn) <= 800


def test_links_out_of_the_pages_become_text() -> None:
    site = tool("site")
    relinked = site.relinked(
        "[a](../examples/c/main.c) [b](../README.md#install) [n](../examples/notebooks/quickstart.ipynb)",
        ROOT / "docs" / "c.md",
        "c.md",
    )
    assert relinked == "a (`examples/c/main.c`) [b](index.md#install) [n](notebooks/quickstart.md)"
    assert site.relinked("[p](docs/plan.md)", ROOT / "README.md", "index.md") == "[p](plan.md)"
