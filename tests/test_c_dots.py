"""Dot products of every kind by the instructions that compilers offer for them: the bits of plain loops."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from intc.codegen.c.dots import DOTS, KINDS, MOST, dots_name
from intc.codegen.c.source import Source, lower_source
from intc.ir.types import TensorType
from intc.ops.fused import Linear
from tests.c_programs import BOARDS, available, compile_network, link, run_program
from tests.native import random_feed
from tests.product_cases import attention_cases, linear_case, linear_cases
from tests.test_c_kernels import side_by_side

GNU = "aarch64-linux-gnu-gcc"
PAIRS = ("smlad", "sxtb16", "uxtb16", "pkhbt", "pkhtb")


@cache
def network() -> Source:
    """Products of 8 and 16 bits, lengths that are no whole vectors among them."""
    rows = TensorType((7, 43), "int16", -4096, 4095)
    wide = linear_case(rows, 5, Linear(-(2**31), 2**31 - 1, "int32", raw=True))
    few = attention_cases()
    graph = side_by_side([*linear_cases()[:4], wide, *few[1:4], few[9]])
    return lower_source(graph, graph.outputs)


def test_every_kind_of_rows_has_a_function() -> None:
    pairs = [("int8", "int8"), ("uint8", "int8"), ("int16", "int8"), ("int8", "int16"), ("int16", "int16")]
    assert {dots_name(rows, *pair) for pair in pairs for rows in range(1, MOST + 1)} == set(DOTS)
    assert len(DOTS) == len(KINDS) * MOST
    text = "\n".join(network().files("net", "test").values())
    assert {name for name in DOTS if f"DOTS void {name}(" in text} >= {n for n in DOTS if n[4] == "4"}


@pytest.mark.parametrize("option", ["-Os", "-O2"])
def test_dot_products_of_aarch64(tmp_path: Path, option: str) -> None:
    """Signed and unsigned bytes; 16-bit rows are loops."""
    if not available(GNU, "qemu-aarch64"):
        pytest.skip(f"needs the cross compiler {GNU} and the emulator qemu-aarch64")
    source = network()
    objects = compile_network(source, tmp_path, GNU, [option, "-march=armv8.2-a+dotprod+i8mm"])
    command = ["aarch64-linux-gnu-objdump", "-d", "--no-show-raw-insn", str(objects[0])]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"\bsdot\b", listing) and re.search(r"\busdot\b", listing)
    assert not re.search(r":\t(?:f(?!mov)\w+|[su]cvtf)\b", listing), "floating point"
    assert_equal_bits(source, link(source, objects, GNU, ["-static"]), "qemu-aarch64")


def assert_equal_bits(source: Source, program: Path, emulator: str) -> None:
    graph, rng = source.program.graph, np.random.default_rng(3)
    feeds = [{n: random_feed(graph.type(n), {}, rng) for n in graph.inputs} for _ in range(2)]
    for feed, found in zip(feeds, run_program(source, program, feeds, [emulator]), strict=True):
        for name, want in graph.run(feed).items():
            assert np.array_equal(found[name], want), name


@pytest.mark.parametrize("option", ["-Os", "-O2"])
def test_dot_products_of_arm(tmp_path: Path, option: str) -> None:
    """Rows of every kind, two products an instruction."""
    compiler = "arm-linux-gnueabi-gcc"
    if not available(compiler, "qemu-arm"):
        pytest.skip(f"needs the cross compiler {compiler} and the emulator qemu-arm")
    source = network()
    objects = compile_network(source, tmp_path, compiler, [option, "-march=armv7-a", "-mfloat-abi=soft"])
    command = ["arm-linux-gnueabi-objdump", "-d", "--no-show-raw-insn", str(objects[0])]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert all(re.search(rf"\b{name}\b", listing) for name in PAIRS)
    assert_equal_bits(source, link(source, objects, compiler, ["-static"]), "qemu-arm")


def listed(name: str, folder: Path) -> str:
    """The instructions of the network for a board on which its check has passed."""
    board = BOARDS[name]
    if not available(*board.tools):
        pytest.skip(f"needs {', '.join(board.tools)}")
    for file, text in network().files("digits_vit", "test").items():
        (folder / file).write_text(text)
    assert board.check(folder) == 0
    return board.assembly(folder)


@pytest.mark.parametrize("name", [name for name in BOARDS if "cortex-m4" in name])
def test_dot_products_of_the_dsp_extension(tmp_path: Path, name: str) -> None:
    listing = listed(name, tmp_path)
    assert all(re.search(rf"\b{instruction}\b", listing) for instruction in PAIRS)


@pytest.mark.parametrize("name", [name for name in BOARDS if "Helium" in name])
def test_dot_products_of_helium(tmp_path: Path, name: str) -> None:
    listing = listed(name, tmp_path)
    assert all(re.search(rf"vml(ad)?avat?\.s{bits}", listing) for bits in (8, 16))
    assert not re.search(r"(?<!vmov)\.f(16|32|64)\b", listing)
