"""The files of a C source on disk."""

from __future__ import annotations

import os
from pathlib import Path

from intc.codegen.c.header import identifier
from intc.codegen.c.source import Source
from intc.errors import UsageError
from intc.files import write_texts


def place_of(path: str | os.PathLike[str], model: str) -> tuple[Path, str]:
    """The folder and the common name of the files: ``path`` and the name of ``model``; or, where ``path``
    ends in ``.c``, its own. UsageError for the name of some other single file.
    """
    place = Path(path)
    if place.suffix == ".c" and not place.is_dir():
        return place.parent, identifier(place.stem)
    if place.is_file() or place.suffix in (".h", ".intc", ".so", ".o", ".zip"):
        raise UsageError(f"{place}: target 'c' writes several files; name a folder, or a file ending in .c")
    return place, identifier(Path(model).stem)


def write_source(source: Source, path: str | os.PathLike[str], model: str, origin: str) -> list[Path]:
    """Write the files of ``source`` (see :func:`place_of`) and return them.

    All are complete under temporary names before the first takes its place.
    """
    folder, name = place_of(path, model)
    files = {folder / file: text for file, text in source.files(name, origin).items()}
    write_texts(files)
    return list(files)
