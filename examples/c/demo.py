"""The digits transformer as C: built, run on every held-out image, and its size on small processors.

    python examples/c/demo.py    # exit status 1 if a class differs from the exact reference's

Needs a C compiler; sizes are printed for those cross compilers of SIZES that are installed.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import intc

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "digits"))
from data import load_split  # noqa: E402

FREESTANDING = ("-std=c99", "-ffreestanding", "-fno-builtin")
SIZES = (
    ("Cortex-M0", ("arm-none-eabi-gcc", "-mcpu=cortex-m0", "-mthumb")),
    ("Cortex-M4", ("arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=soft")),
    ("Cortex-M33", ("arm-none-eabi-gcc", "-mcpu=cortex-m33", "-mthumb", "-mfloat-abi=soft")),
    ("Cortex-M55", ("arm-none-eabi-gcc", "-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=soft")),
    ("AArch64", ("aarch64-linux-gnu-gcc",)),
    ("RISC-V RV64GC", ("riscv64-linux-gnu-gcc",)),
    ("x86-64", ("gcc",)),
)


def sections(compiler: tuple[str, ...], files: list[Path], folder: Path) -> tuple[int, int]:
    """Bytes of code with constants, and of variables, of all ``files`` together."""
    prefix = compiler[0].removesuffix("gcc")
    objects = [str(folder / f"{file.stem}.o") for file in files]
    for file, target in zip(files, objects, strict=True):
        subprocess.run([*compiler, *FREESTANDING, "-c", str(file), "-o", target], check=True)
    listing = subprocess.run([f"{prefix}size", *objects], capture_output=True, text=True, check=True).stdout
    rows = [[int(n) for n in line.split()[:3]] for line in listing.splitlines()[1:]]
    return sum(text for text, _, _ in rows), sum(data + bss for _, data, bss in rows)


def stack(file: Path, name: str) -> int:
    """The stack of the network by gcc: that of its own function and of the largest that it calls."""
    rows = [line.split("\t") for line in file.read_text().splitlines()]
    used = {row[0].rpartition(":")[2]: int(row[1]) for row in rows}
    own = used.pop(f"{name}_run_in") + used.pop(f"{name}_run", 0)
    return own + max(used.values(), default=0)


def footprints(files: list[Path], folder: Path) -> None:
    """Print flash (code, constants), RAM and stack for the installed compilers."""
    code, weights = files
    print(f"{'processor':<16}{'option':<8}{'code':>8}{'constants':>11}{'RAM':>8}{'stack':>8}   bytes")
    for name, compiler in SIZES:
        if shutil.which(compiler[0]) is None:
            continue
        for option in ("-Os", "-O2"):
            text, ram = sections((*compiler, option, "-fstack-usage"), [code], folder)
            constants, _ = sections((*compiler, option), [weights], folder)
            deep = stack(folder / f"{code.stem}.su", code.stem)
            print(f"{name:<16}{option:<8}{text:>8}{constants:>11}{ram:>8}{deep:>8}")


def classes(program: Path, images: NDArray[np.float32]) -> NDArray[np.int64]:
    """What the C program says about ``images`` [N, 1, 8, 8] in [-1, 1]."""
    pixels = np.rint((images.reshape(len(images), -1) + 1) * 8).astype(int)
    text = "\n".join(" ".join(map(str, row)) for row in pixels)
    done = subprocess.run([str(program)], input=text, capture_output=True, text=True, check=True)
    return np.array(done.stdout.split(), np.int64)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=HERE / "build", help="where the sources go")
    folder: Path = parser.parse_args().output

    split = load_split()
    model = HERE.parent / "digits" / "digits_vit.onnx"
    module = intc.compile(str(model), {"input": split.x_train[:128]}, target="c", sizes={"batch": 1})
    files = [f for f in module.save(folder) if f.suffix == ".c" and not f.stem.endswith("_check")]
    program = folder / "digits"
    command = [
        "gcc",
        "-std=c99",
        "-O2",
        f"-I{folder}",
        str(HERE / "main.c"),
        *map(str, files),
        "-o",
        str(program),
    ]
    subprocess.run(command, check=True)

    found = classes(program, split.x_test)
    wanted = module.graph.evaluate({"input": split.x_test})[0].argmax(axis=1)
    print(f"{len(found)} images, {np.mean(found == split.y_test):.2%} right; ", end="")
    print(f"the class of the exact reference on {np.mean(found == wanted):.2%}")
    footprints(files, folder)
    return 0 if np.array_equal(found, wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
