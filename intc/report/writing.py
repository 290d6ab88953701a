"""Writing a report in one step."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from intc.errors import UsageError


def write_text(path: Path, text: str) -> None:
    """Write ``path`` under a temporary name beside it, then rename it into place: complete, or unchanged."""
    temporary = ""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    finally:
        if temporary:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
