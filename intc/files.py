"""Files that are complete or unchanged: written under a temporary name beside their place, then renamed; and
arrays read from files that may hold anything.
"""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from intc.errors import IntcError, UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which takes the place of ``path`` if the block ends without an error.

    It is flushed to disk first and gets the permissions of a new file. Devices and pipes are written to as
    they are. UsageError where it cannot be written.
    """
    temporary = ""
    try:
        if path.exists() and not path.is_file() and not path.is_dir():
            buffer = io.BytesIO()  # a device does not know where in itself it is
            yield buffer
            with open(path, "wb") as file:
                file.write(buffer.getbuffer())
            return
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


def check_writable(path: Path, *sources: Path) -> None:
    """UsageError where ``path`` surely cannot be written later, or is one of the files it is made from."""
    folder = next(p for p in path.absolute().parents if p.exists())
    cause = "is a directory" if path.is_dir() else ""
    if not folder.is_dir():
        cause = f"'{folder}' is no directory"
    elif not os.access(folder, os.W_OK | os.X_OK):
        cause = f"no permission to write in '{folder}'"
    if cause:
        raise UsageError(f"{path}: cannot be written ({cause})")
    for source in sources:
        if path.exists() and source.exists() and path.samefile(source):
            raise UsageError(f"{path}: would overwrite the file that it is made from; name another output")


def read_npz(path: str | os.PathLike[str], refusal: type[IntcError] = UsageError) -> dict[str, NDArray[Any]]:
    """The arrays of an ``.npz`` file; ``refusal`` where it is none (object arrays are never loaded)."""
    import numpy as np  # not above: the command line imports this file first

    if not Path(path).exists():
        raise refusal(f"{path}: no such file")
    if not Path(path).is_file() or not zipfile.is_zipfile(path):
        raise refusal(f"{path}: not an .npz file")
    try:
        with np.load(path, allow_pickle=False) as data:
            arrays = {name: data[name] for name in data.files}
    except Exception as error:  # zip, zlib, struct, tokenize: whatever numpy meets in a damaged file
        cause = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise refusal(f"{path}: not a readable .npz file of plain arrays ({cause})") from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise refusal(f"{path}: its member '{name}' is not an array")
    return arrays


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
