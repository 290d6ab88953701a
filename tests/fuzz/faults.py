"""A target with every fault that the supervisor must notice."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

from intc.errors import GraphError
from tests.fuzz import watch


class Faulty:
    """The first cases of every process are the faults that the supervisor looks for."""

    def write(self, rng: Random, folder: Path) -> Path:
        count = int((folder / "count").read_text()) if (folder / "count").exists() else 0
        (folder / "count").write_text(str(count + 1))
        return folder / str(count)

    def read(self, path: Path) -> None:
        match path.name:
            case "0":
                raise GraphError("an error of intc")
            case "1":
                raise ValueError("not an error of intc")
            case "2":
                bytearray(2 * watch.BYTES)
            case "3":
                while True:
                    pass
            case "4":
                os.abort()
