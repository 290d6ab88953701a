"""HTML pages as tests see them: parsed strictly, and opened in a browser where there is one."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from intc.files import write_text

VOID = {"meta", "input", "br", "wbr"}
HOSTILE = "</script><img src=x onerror=alert(1)>'\"&<!--[red]"


class Page(HTMLParser):
    """Checks that elements nest, and collects tags, attributes, scripts and texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs), f"an attribute of <{tag}> is given twice"
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")
        if tag not in VOID and not self.get_starttag_text().endswith("/>"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    def policy_names_its_script(self) -> bool:
        """Whether the page's policy allows its last script, and nothing but that and styles."""
        digest = base64.b64encode(hashlib.sha256(self.scripts[-1].encode()).digest()).decode()
        (policy,) = (a["content"] for t, a in self.tags if t == "meta" and "http-equiv" in a)
        return policy == f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"

    def asks_for_nothing(self, text: str) -> bool:
        """Whether nothing in ``text``, which this page was read from, leads outside or runs by itself."""
        leading = [n for _, a in self.tags for n in a if n.startswith("on") or n in ("src", "href", "srcset")]
        kinds = {"img", "link", "iframe", "object", "embed", "base"} & {tag for tag, _ in self.tags}
        plain = text.replace("http://www.w3.org/2000/svg", "")
        return not (leading or kinds or "http://" in plain or "https://" in plain or "@import" in plain)


needs_chromium = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")


def opened(html: str, address: str, folder: Path, width: int = 390) -> Page:
    """The page as it stands once its scripts have run, opened at ``#address``."""
    path = folder / "page.html"
    write_text(path, html)
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    place = [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},844", "--dump-dom"]
    command += [*quiet, *place, f"{path.as_uri()}#{address}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout, done.stderr[-500:]
    return Page(done.stdout.replace("<!--", ""))
