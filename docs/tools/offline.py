"""Checks a built site: no page, style sheet or picture asks another host, and none is missing.

python docs/tools/offline.py build/site      # exit status 1 with every such reference
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src", "use": "href"}
STYLE = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")


class Fetches(HTMLParser):
    """What a browser fetches for a page by itself: what is merely linked to is not among it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") == "canonical":
            return
        if target := values.get(FETCHED.get(tag, "")):
            self.found.append(target)
        self.found += [a or b for a, b in STYLE.findall(values.get("style") or "")]


def faults(site: Path) -> Iterator[str]:
    """Each reference to another host or to no file, with the file that holds it."""
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            found = Fetches(path.read_text(encoding="utf-8")).found
        elif path.suffix == ".css":
            found = [a or b for a, b in STYLE.findall(path.read_text(encoding="utf-8"))]
        else:
            continue
        for target in found:
            where = urlsplit(target)
            if where.scheme == "data" or not (where.path or where.netloc):
                continue
            if where.scheme or where.netloc:
                yield f"{path.relative_to(site)} asks {target}"
            elif path.name != "404.html" and not (path.parent / unquote(where.path)).exists():
                yield f"{path.relative_to(site)} misses {target}"


if __name__ == "__main__":
    problems = list(faults(Path(sys.argv[1])))
    print("\n".join(problems) or "the site is complete and asks no other host")
    sys.exit(bool(problems))
