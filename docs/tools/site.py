"""What MkDocs does beside the pages of docs/: the README becomes the front page, notebooks become pages.

Links to files that are no pages (sources, scripts, LICENSE) become their paths in the repository.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any, Final

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

ROOT: Final = Path(__file__).parents[2]
NOTEBOOKS: Final = ROOT / "examples" / "notebooks"
LINK: Final = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
PICTURE: Final = re.compile(r"(!\[[^\]]*\]\()docs/")  # in the README
TERMINAL: Final = re.compile(r"\x1b\[[0-9;]*m")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that have their text elsewhere."""
    add(files, config, "index.md", placed(ROOT / "README.md", "index.md"))
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        for name, content in notebook_files(path).items():
            add(files, config, f"notebooks/{name}", content)
    return files


def add(files: Files, config: MkDocsConfig, name: str, content: str | bytes) -> None:
    files.append(File.generated(config, name, content=content))


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links of the pages in docs/ to files outside of it."""
    name = str(page.file.src_uri)
    generated = name == "index.md" or name.startswith("notebooks/")
    return markdown if generated else relinked(markdown, ROOT / "docs" / name, name)


def placed(source: Path, name: str) -> str:
    """The text of ``source`` as the page ``name``."""
    return PICTURE.sub(r"\1", relinked(source.read_text(encoding="utf-8"), source, name))


def relinked(text: str, source: Path, page: str) -> str:
    """``text`` of the file ``source`` with its links as seen from ``page``; a link that leads to no page
    becomes text and path.
    """

    def link(found: re.Match[str]) -> str:
        label, target, anchor = found[1], found[2], found[3] or ""
        to = page_of((source.parent / target).resolve())
        if to is None:
            path = (source.parent / target).resolve().relative_to(ROOT)
            return label if str(path) in label else f"{label} (`{path}`)"
        up = "../" * (len(PurePosixPath(page).parts) - 1)
        return f"[{label}]({up}{to}{anchor})"

    return LINK.sub(link, text)


def page_of(path: Path) -> str | None:
    """The page that shows the file ``path``."""
    if path == ROOT / "README.md":
        return "index.md"
    if path.parent == NOTEBOOKS and path.suffix == ".ipynb":
        return f"notebooks/{path.stem}.md"
    docs = ROOT / "docs"
    return path.relative_to(docs).as_posix() if path.suffix == ".md" and docs in path.parents else None


def notebook_files(path: Path) -> dict[str, str | bytes]:
    """The page of a committed notebook, outputs as they were executed, and its pictures."""
    text, resources = MarkdownExporter().from_notebook_node(
        nbformat.read(path, as_version=4), {"unique_key": path.stem, "output_files_dir": path.stem}
    )
    page = relinked(TERMINAL.sub("", text), path, f"notebooks/{path.name}")
    return {f"{path.stem}.md": page, **resources["outputs"]}
