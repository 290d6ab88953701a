"""A headless Chromium under remote control, by its DevTools protocol over two pipes; no package is needed."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

DESKTOP: Mapping[str, Any] = MappingProxyType(
    {"width": 1280, "height": 800, "deviceScaleFactor": 1, "mobile": False}
)
PHONE: Mapping[str, Any] = MappingProxyType(
    {"width": 390, "height": 844, "deviceScaleFactor": 3, "mobile": True}
)
PATIENCE = 120.0  # seconds that one answer may take
QUIET = ("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET += ("--disable-component-update", "--disable-sync", "--no-sandbox", "--hide-scrollbars")


class Tab:
    """One open page."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers, self.rest, self.number, self.session = commands, answers, b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """The result of a command of the protocol; AssertionError where it fails."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != self.number:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def _message(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.rest:
            assert select.select([self.answers], [], [], until - time.monotonic())[0], "no answer"
            data = os.read(self.answers, 2**20)
            assert data, "the browser has ended"
            self.rest += data
        text, _, self.rest = self.rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def open(self, address: str) -> None:
        """Go there, and wait until all is loaded and drawn."""
        self.call("Page.navigate", url=address)
        self.value(
            "new Promise((done) => document.readyState === 'complete' ? done() : onload = () => done())"
        )
        self.settle()

    def value(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression; of a promise, what it becomes."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def settle(self) -> None:
        """Wait until what was asked for is drawn."""
        frames = "requestAnimationFrame(() => requestAnimationFrame(() => done(true)))"
        self.value(f"new Promise((done) => {frames})")

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """``kind`` is Start, Move or End, with all fingers that are down then."""
        fingers = [{"x": x, "y": y, "id": i} for i, (x, y) in enumerate(points)]
        self.call("Input.dispatchTouchEvent", type=f"touch{kind}", touchPoints=fingers)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextlib.contextmanager
def browser(folder: Path, screen: Mapping[str, Any] = DESKTOP) -> Iterator[Tab]:
    """A tab of a new browser with its profile in ``folder``; a mobile screen takes touches."""
    theirs, commands = os.pipe()
    answers, ours = os.pipe()
    options = ["--headless", "--remote-debugging-pipe", f"--user-data-dir={folder / 'profile'}", *QUIET]
    shell = ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "chromium", "chromium", *options]
    process = subprocess.Popen(
        shell, pass_fds=(theirs, ours), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for end in (theirs, ours):
        os.close(end)
    try:
        tab = Tab(commands, answers)
        tab.call("Emulation.setDeviceMetricsOverride", **screen)
        tab.call("Emulation.setTouchEmulationEnabled", enabled=screen["mobile"], maxTouchPoints=5)
        yield tab
    finally:
        process.terminate()
        process.wait()
        for end in (commands, answers):
            os.close(end)
