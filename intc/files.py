"""Files that are complete or unchanged: written under a temporary name beside their place, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from intc.errors import UsageError


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of ``path`` if the block ends without an error.

    It is flushed to disk first and gets the permissions of a new file. UsageError where it cannot be written.
    """
    temporary = ""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
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


def write_text(path: Path, text: str) -> None:
    """Write ``path``, and the folder that it lies in, in one step; UsageError where that fails."""
    write_texts({path: text})


def write_texts(files: Mapping[Path, str]) -> None:
    """Write all ``files``, and their folders: none takes its place before all are written."""
    with ExitStack() as stack:
        for path, text in files.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
            file = stack.enter_context(replacing(path))
            try:
                file.write(text.encode())
                file.flush()
            except OSError as error:
                raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
