"""The notebooks are committed as executed, and run from top to bottom."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from intc.passes.pipeline import PASS_NAMES

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

FOLDER = Path(__file__).parent.parent / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LARGEST = 300_000  # bytes
SHORTER = {
    "own_approximation": ("split.x_train[:128]", "split.x_train[:16]"),
    "qat_to_artifact": ("train(model, 30, 5e-3)", "train(model, 6, 5e-3)"),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_committed_as_executed(path: Path) -> None:
    """From top to bottom, in one go, without an error."""
    assert path.stat().st_size < LARGEST
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = outputs_of(notebook)
    assert outputs and not [out for out in outputs if out.output_type == "error"]


def test_committed_with_the_passes_that_there_are() -> None:
    for name in ("quickstart", "inside_the_passes"):
        notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
        said = "".join(out.get("text", "") + str(out.get("data", "")) for out in outputs_of(notebook))
        assert [p for p in PASS_NAMES if p not in said] == [], "make notebooks"


def outputs_of(notebook: Any) -> list[Any]:
    return [out for cell in notebook.cells if cell.cell_type == "code" for out in cell.outputs]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_executes(path: Path) -> None:
    """In a fresh kernel, with less data or training where that takes long; `make notebooks` takes all."""
    if path.stem == "qat_to_artifact":
        pytest.importorskip("torch", reason="it trains with torch: pip install -e '.[examples]'")
    notebook = nbformat.read(path, as_version=4)
    committed = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    long, short = SHORTER.get(path.stem, ("", ""))
    assert any(long in cell.source for cell in notebook.cells)
    for cell in notebook.cells:
        cell.source = cell.source.replace(long, short) if long else cell.source
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert [kinds(found) for found in outputs] == [kinds(found) for found in committed]


def kinds(outputs: Iterable[Any]) -> set[str]:
    """Which forms the outputs of a cell have: text, pictures, pages; not what was printed to stderr."""
    return {kind for out in outputs for kind in (out.get("data") or {out.get("name"): 0})} - {"stderr"}
