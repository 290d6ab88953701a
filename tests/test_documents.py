"""What the documents promise: the README's session, the documented commands, links and the version."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pytest

import intc
from intc.frontend.converters.registry import STANDARD
from intc.report.operators import document
from intc.report.refusals import refusals

ROOT = Path(__file__).parent.parent
MODEL = ROOT / "examples" / "digits" / "digits_vit.onnx"
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")])


def test_the_readme_session_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "calibration.npz", input=rng.uniform(-1, 1, (24, 1, 8, 8)).astype(np.float32))
    shutil.copy(MODEL, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "model.intc").exists()


def test_the_documented_make_targets_exist() -> None:
    listed = subprocess.run(["make", "help"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    targets = {line.split()[0] for line in listed.splitlines()}
    for page in PAGES:
        for line in re.findall(r"(?:^|`)make ([a-z]+)", page.read_text(), re.MULTILINE):
            assert line in targets, f"{page.name} names `make {line}`"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_command_line_s_options_are_those_of_its_page() -> None:
    sources = [(ROOT / "intc" / name).read_text() for name in ("arguments.py", "cli.py")]
    options = {option for text in sources for option in re.findall(r'"(--[a-z-]+)"', text)}
    named = set(re.findall(r"--[a-z][a-z-]*", (ROOT / "docs" / "cli.md").read_text()))
    assert options - named <= {"--output", "--version"} and named - options <= {"--help"}


def test_every_page_names_folders_that_exist() -> None:
    for page in PAGES:
        for path in re.findall(r"`(intc/[\w/.]+)`", page.read_text()):
            assert (ROOT / path).exists(), f"{page.name} names {path}"


def test_refusals_are_read_from_converters_and_what_they_call() -> None:
    conv, cast = refusals(STANDARD["Conv"]), refusals(STANDARD["Cast"])
    assert "only convolutions in one to three dimensions are supported" in conv  # refused by the converter
    assert ".. frames are fewer than a window of .." in conv  # by a function it calls
    assert "the weights depends on input values" in conv  # asked of the call
    assert cast == [
        "the type does not hold the grid",  # by another converter
        "cast to .. is not supported",
        "a cast to .. of numbers that may not fit",
    ]
    assert refusals(STANDARD["Relu"]) == []


def test_the_page_of_operators_is_that_of_the_registries() -> None:
    assert (ROOT / "docs" / "operators.md").read_text() == document(), "python -m intc.report.operators"


def test_the_version_is_the_distribution_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == intc.__version__
