"""Builds C sources of networks into programs and runs them, natively or under an emulator."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from intc.codegen.c.header import Port
from intc.codegen.c.source import Source
from intc.ir.op import Array

STRICT = ("-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-builtin")
UNDEFINED = ("-fsanitize=undefined", "-fno-sanitize-recover=all")
MAIN = """#include <stdio.h>
#include "net.h"
int main(void)
{
    %(arrays)s
    int status = 0;
    while (status == 0 && %(read)s) {
        status = net_run(%(arguments)s);
        if (status == 0) {
            %(write)s
        }
    }
    return status < 0 ? 100 : status;
}
"""


BARE = Path(__file__).parents[1] / "examples" / "c" / "bare"


@dataclass(frozen=True)
class Board:
    """A Cortex-M of the emulator: its machine, the addresses of flash and RAM, the size of RAM; and how to
    compile for it.
    """

    machine: str
    cpu: str
    flash: str
    ram: str
    ram_size: str
    floats: str = "soft"
    compiler: str = "arm-none-eabi-gcc"

    @property
    def tools(self) -> tuple[str, ...]:
        """What must be installed."""
        return (self.compiler, "arm-none-eabi-gcc", "qemu-system-arm")

    @property
    def options(self) -> list[str]:
        return [f"-mcpu={self.cpu}", "-mthumb", f"-mfloat-abi={self.floats}"]

    def _compile(self, folder: Path, *rest: str) -> str:
        kind = ["--target=arm-none-eabi", "-munaligned-access"] if self.compiler == "clang" else []
        command = [self.compiler, *kind, *self.options, *STRICT, "-O2", "-ffunction-sections", *rest]
        done = subprocess.run(
            [*command, str(folder / "digits_vit.c")], capture_output=True, text=True, check=False
        )
        assert not done.returncode, done.stderr[:4000]
        return done.stdout

    def assembly(self, folder: Path) -> str:
        """The network in ``folder``, whose files are called digits_vit, in instructions."""
        return self._compile(folder, "-S", "-o", "-")

    def check(self, folder: Path) -> int:
        """The exit status of the network's check on the board."""
        code, image = folder / "digits_vit.o", folder / "image.elf"
        self._compile(folder, "-c", "-o", str(code))
        rest = [str(folder / f"digits_vit_{part}.c") for part in ("weights", "check")]
        places = {"flash": self.flash, "ram": self.ram, "ram_size": self.ram_size}
        defined = ",".join(f"--defsym={k}={v}" for k, v in places.items())
        link = ["-nostdlib", f"-Wl,{defined},--gc-sections", "-T", str(BARE / "memory.ld"), f"-I{folder}"]
        sources = [str(BARE / "start.c"), str(code), *rest, "-lgcc", "-o", str(image)]
        command = ["arm-none-eabi-gcc", *self.options, "-Os", "-ffreestanding", *link, *sources]
        subprocess.run(command, check=True)
        emulator = [
            "qemu-system-arm",
            "-M",
            self.machine,
            "-nographic",
            "-semihosting",
            "-kernel",
            str(image),
        ]
        return subprocess.run(emulator, timeout=120, check=False).returncode


BOARDS = {
    "cortex-m0": Board("microbit", "cortex-m0", "0", "0x20000000", "16K"),
    "cortex-m3": Board("mps2-an385", "cortex-m3", "0", "0x20000000", "64K"),
    "cortex-m4": Board("mps2-an386", "cortex-m4", "0", "0x20000000", "512K"),
    "cortex-m4 by clang": Board("mps2-an386", "cortex-m4", "0", "0x20000000", "512K", compiler="clang"),
    "cortex-m33": Board("mps2-an505", "cortex-m33", "0x10000000", "0x38000000", "64K"),
    "Helium by gcc": Board("mps3-an547", "cortex-m55", "0", "0x20000000", "512K", "softfp"),
    "Helium by clang": Board("mps3-an547", "cortex-m55", "0", "0x20000000", "512K", "softfp", "clang"),
}


def main_text(named: Sequence[Port]) -> str:
    """A program that reads all inputs from stdin, again and again, and writes all outputs to stdout."""
    inputs, outputs = ([p for p in named if p.output == o] for o in (False, True))
    whole = "{1}(p_{0}, sizeof p_{0}, 1, {2}) == 1"
    return MAIN % {
        "arrays": " ".join(f"static {p.ctype} p_{p.name}[{p.size}];" for p in named),
        "read": " && ".join(whole.format(p.name, "fread", "stdin") for p in inputs),
        "write": " ".join(f"fwrite(p_{p.name}, sizeof p_{p.name}, 1, stdout);" for p in outputs),
        "arguments": ", ".join(f"p_{p.name}" for p in named),
    }


def compile_network(
    source: Source, folder: Path, compiler: str = "gcc", flags: Sequence[str] = ("-O1",), strict: bool = True
) -> list[Path]:
    """The objects of the network, compiled as freestanding C99 without a single warning."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in source.files("net", "test").items():
        (folder / name).write_text(text)
    out = []
    for stem in ("net", "net_weights"):
        path = folder / f"{stem}.o"
        command = [
            compiler,
            *(STRICT if strict else ()),
            *flags,
            "-c",
            str(folder / f"{stem}.c"),
            "-o",
            str(path),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert not done.returncode, done.stderr[:4000]
        out.append(path)
    return out


def link(source: Source, objects: Sequence[Path], compiler: str = "gcc", flags: Sequence[str] = ()) -> Path:
    """The program of :func:`main_text` around ``objects``."""
    folder = objects[0].parent
    main, program = folder / "main.c", folder / "program"
    main.write_text(main_text(source.ports))
    command = [compiler, *flags, str(main), *map(str, objects), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr[:4000]
    return program


def run_program(
    source: Source, program: Path, feeds: Sequence[Mapping[str, Array]], emulator: Sequence[str] = ()
) -> list[dict[str, Array]]:
    """The outputs of every feed of raw integers, by value name."""
    graph = source.program.graph
    given = b"".join(np.ascontiguousarray(f[name]).tobytes() for f in feeds for name in graph.inputs)
    done = subprocess.run([*emulator, str(program)], input=given, capture_output=True, check=False)
    assert not done.returncode, f"exit status {done.returncode}: {done.stderr.decode()[:2000]}"
    results, at = [], 0
    for _ in feeds:
        found = {}
        for port, name in zip(source.ports[len(graph.inputs) :], graph.outputs, strict=True):
            array = np.frombuffer(done.stdout, port.dtype, port.size, at).reshape(port.shape)
            found[name] = array
            at += array.nbytes
        results.append(found)
    assert at == len(done.stdout)
    return results


def undefined_symbols(path: Path, tool: str = "nm") -> set[str]:
    """What an object expects from elsewhere, other than constants of the network."""
    listing = subprocess.run([tool, "-u", str(path)], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in listing.splitlines() if line.strip()}
    return {n for n in names if not re.fullmatch(r"net_c\d+", n)}


def available(*tools: str) -> bool:
    """Whether all of ``tools`` are installed."""
    return all(shutil.which(t) for t in tools)
