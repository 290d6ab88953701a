"""Reports as one HTML file that needs no network, no server and no other file.

Names and settings come from models and are untrusted: what is put into a page's body is escaped by its maker,
what is given as data is only ever handled as text by the script, and the page's own policy forbids every
request and every script but its own.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import Any


def document(
    title: str,
    body: str,
    styles: Sequence[str] = (),
    scripts: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> str:
    """The whole document around the HTML ``body``.

    ``styles`` and ``scripts`` are assets beside the common ones; ``data`` are JSON values that scripts find
    in elements of these ids. A page without ``scripts`` has none at all.
    """
    script = "\n".join(asset(name) for name in ("page.js", *scripts)) if scripts else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    elements = [
        f'<script type="application/json" id="{name}">{json_text(value)}</script>\n'
        for name, value in (data or {}).items()
    ]
    if script:
        policy += f"; script-src 'sha256-{digest}'"
        elements.append(f"<script>{script}</script>\n")
    return Template(asset("page.html")).substitute(
        policy=policy,
        title=escape(title),
        style="\n".join(asset(name) for name in ("page.css", *styles)),
        body=body,
        scripts="".join(elements),
    )


def asset(name: str) -> str:
    """The text of a file of this folder."""
    return resources.files("intc.report").joinpath(name).read_text(encoding="utf-8")


def json_text(value: Any) -> str:
    """JSON in which no character is left that could end a script element or start a comment."""
    text = json.dumps(value, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def chip(key: str, value: str) -> str:
    """A setting; of a long one, such as a digest, the beginning."""
    short = value if len(value) <= 40 else f"{value[:16]}…"
    return f"<span title='{escape(value)}'><b>{escape(key)}</b>{escape(short)}</span>"
