"""How many instructions the digits transformer executes on emulated processors, from one image to its logits.

    python examples/c/demo.py            # writes the sources
    python examples/c/instructions.py    # a line for each processor that can be emulated here

The emulators (qemu-user and qemu-system-arm) run the check of the network, which is one inference, one
instruction at a time and log each. On a board everything is counted; elsewhere twice the check less once.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
MAIN = """#include "digits_vit.h"
int main(int argc, char **argv)
{
    (void)argv;
    while (argc-- > 0) {
        if (digits_vit_check() != 0) {
            return 1;
        }
    }
    return 0;
}
"""
BOARD = ("-nostdlib", "-ffreestanding", "-Wl,--gc-sections", "-T", str(HERE / "bare" / "memory.ld"))
HELIUM = ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=softfp")
SCALAR = ("-mcpu=cortex-m55", "-mthumb", "-mfloat-abi=soft")
M55 = ("mps3-an547", "0", "0x20000000", "64K")
M4 = ("mps2-an386", "0", "0x20000000", "64K")
M33 = ("mps2-an505", "0x10000000", "0x38000000", "64K")
PROCESSORS = (  # name, compiler, options, and the board: its machine, flash, RAM and size of RAM
    ("AArch64", "aarch64-linux-gnu-gcc", ("-march=armv8-a",), None),
    ("AArch64 with dot products", "aarch64-linux-gnu-gcc", ("-march=armv8.2-a+dotprod",), None),
    ("Cortex-M4", "arm-none-eabi-gcc", ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=soft"), M4),
    ("Cortex-M33", "arm-none-eabi-gcc", ("-mcpu=cortex-m33", "-mthumb", "-mfloat-abi=soft"), M33),
    ("Cortex-M55 without Helium", "arm-none-eabi-gcc", SCALAR, M55),
    ("Cortex-M55", "arm-none-eabi-gcc", HELIUM, M55),
)


def built(compiler: str, options: tuple[str, ...], board: tuple[str, ...] | None, sources: Path) -> Path:
    """The program that runs the check, in a folder of its own beside nothing."""
    program = Path(tempfile.mkdtemp(prefix="intc-")) / "program"
    files = [str(sources / f"digits_vit{part}.c") for part in ("", "_weights", "_check")]
    if board is None:
        main = program.with_suffix(".c")
        main.write_text(MAIN)
        rest = [str(main), "-static"]
    else:
        places = zip(("flash", "ram", "ram_size"), board[1:], strict=True)
        rest = [str(HERE / "bare" / "start.c"), *BOARD, *(f"-Wl,--defsym={k}={v}" for k, v in places)]
    command = [compiler, "-std=gnu99", *options, f"-I{sources}", *files, *rest, "-lgcc", "-o", str(program)]
    subprocess.run(command, check=True)
    return program


def executed(command: list[str]) -> int:
    """The instructions that an emulator's ``command`` logs; its program must end well."""
    logged = ["-singlestep", "-d", "exec,nochain", "-D", "/dev/stderr"]
    with subprocess.Popen([command[0], *logged, *command[1:]], stderr=subprocess.PIPE) as running:
        assert running.stderr is not None
        count = sum(line.startswith(b"Trace") for line in running.stderr)
    if running.returncode:
        sys.exit(f"{command[0]}: the check failed")
    return count


def count(program: Path, board: tuple[str, ...] | None) -> int:
    """The instructions of one check."""
    if board is None:
        emulator = ["qemu-aarch64", "-cpu", "max", str(program)]
        return executed([*emulator, "again"]) - executed(emulator)
    return executed(
        ["qemu-system-arm", "-M", board[0], "-nographic", "-semihosting", "-kernel", str(program)]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sources", type=Path, nargs="?", default=HERE / "build", help="of digits_vit.c")
    sources: Path = parser.parse_args().sources
    print(f"{'processor':<28}{'option':<8}{'instructions':>13}")
    for name, compiler, options, board in PROCESSORS:
        emulator = "qemu-aarch64" if board is None else "qemu-system-arm"
        if shutil.which(compiler) is None or shutil.which(emulator) is None:
            print(f"{name:<28}needs {compiler} and {emulator}")
            continue
        for option in ("-Os", "-O2"):
            program = built(compiler, (*options, option), board, sources)
            print(f"{name:<28}{option:<8}{count(program, board):>13,}", flush=True)
            shutil.rmtree(program.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
