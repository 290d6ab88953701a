"""Sums of bytes in 16 bits: only where the weights prove that they fit, and then exact at the ends."""

from __future__ import annotations

import numpy as np
import pytest

from intc.codegen.cpu.isa import AVX2, AVX512, SSE4, Isa
from intc.codegen.cpu.linear import LinearSpec
from intc.codegen.cpu.sixteen import run_words
from intc.codegen.disassembly import disassembly
from intc.codegen.lower import lower
from intc.ir.graph import Builder, Graph
from intc.ir.op import Array
from intc.ir.types import TensorType
from intc.ops.fused import Linear
from tests.kernel_calls import host_isas
from tests.native import Native, random_feed
from tests.test_kernels_generic import HERE
from tests.test_kernels_linear import Case, product

ISAS = [pytest.param(isa, id=isa.name) for isa in (SSE4, AVX2, AVX512) if isa in host_isas()]
RNG = np.random.default_rng(11)


def four_bits(k: int, n: int) -> Array:
    return np.clip(np.rint(RNG.normal(0, 2.3, (k, n))), -7, 7).astype(np.int8)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("x_dtype", "k", "n", "w_bits"), [("int8", 131, 200, 4), ("uint8", 65, 40, 8), ("int8", 9, 1, 4)]
)
def test_rows_of_any_length(isa: Isa, x_dtype: str, k: int, n: int, w_bits: int) -> None:
    """Whole runs and a rest, whole panels and a rest."""
    w, bias = four_bits(k, n), RNG.integers(-(2**20), 2**20, n)
    longest = run_words(w, 0, 255, isa)
    assert longest >= min(16, isa.narrow().words(k))
    info = np.iinfo(x_dtype)
    for run in {4, longest}:
        case = Case(isa.narrow(), LinearSpec(k, n, x_dtype, w_bits=w_bits, run=run), w, bias, [])
        for rows in (1, 7, 50):
            x = RNG.integers(info.min, info.max + 1, (rows, k)).astype(x_dtype)
            assert np.array_equal(case.run(x), product(x, w, bias))


@pytest.mark.parametrize("isa", ISAS)
def test_the_longest_run_reaches_the_ends_of_sixteen_bits(isa: Isa) -> None:
    """16 products in every sum of a run of 8 words: 16 * 16 * 127 is below 2**15, 16 * 16 * 128 is not."""
    for weight, most in ((16, 127), (-16, 128)):
        w = np.full((32, 40), weight, np.int8)
        assert (run_words(w, 0, most, isa), run_words(w, 0, most + 1, isa)) == (8, 4)
        x = np.full((5, 32), most, np.uint8)
        case = Case(isa.narrow(), LinearSpec(32, 40, "uint8", run=8), w, np.zeros(40), [])
        assert np.array_equal(case.run(x), product(x, w, np.zeros(40)))


@pytest.mark.parametrize("isa", ISAS)
def test_a_run_that_is_too_long_is_wrong(isa: Isa) -> None:
    """What the proof is for: the instruction saturates, and sums wrap."""
    w = np.full((32, 16), 100, np.int8)
    assert run_words(w, 0, 255, isa) == 0
    case = Case(isa.narrow(), LinearSpec(32, 16, "uint8", run=8), w, np.zeros(16), [])
    x = np.full((3, 32), 255, np.uint8)
    assert not np.array_equal(case.run(x), product(x, w, np.zeros(16)))


def test_one_column_decides() -> None:
    w = np.zeros((64, 24), np.int8)
    assert run_words(w, 0, 255, AVX2) == 16
    w[20:22, 23] = 127
    assert run_words(w, 0, 255, AVX2) == 0
    assert run_words(w, 0, 128, AVX2) == 16
    w[20:22, 23] = 127, -127
    assert run_words(w, 0, 255, AVX2) == 16


def network(w: Array, x: TensorType) -> Graph:
    b = Builder("product")
    raw = Linear(-(2**31), 2**31 - 1, "int32", raw=True)
    bias = RNG.integers(-999, 999, w.shape[1]).astype(np.int32)
    b.output(b.emit(raw, b.input("x", x), b.constant("w", w), b.constant("bias", bias)))
    return b.finish()


@pytest.mark.parametrize("target", [name for name in HERE if name != "avx512-vnni"])
def test_kernels_take_it_where_it_is_proven(target: str) -> None:
    k, n = 96, 50
    eight = np.clip(np.rint(RNG.normal(0, 38, (k, n))), -127, 127).astype(np.int8)
    for w, lo, hi, taken in (
        (four_bits(k, n), -128, 127, True),
        (eight, -128, 127, False),
        (eight, -128, -127, True),  # the input has two values only
    ):
        graph = network(w, TensorType((7, k), "int8", lo, hi))
        lowered = lower(graph, target)
        text = "\n".join(disassembly(lowered.library).values())
        assert ("pmaddubsw" in text) == taken
        feeds = {"x": random_feed(graph.type("x"), {}, RNG)}
        feeds["x"][:2] = np.array([[lo], [hi]])
        (name,) = graph.outputs
        assert np.array_equal(Native(graph, lowered).run(feeds)[name], graph.run(feeds)[name])


def test_instruction_sets_with_a_dot_of_bytes_do_without() -> None:
    graph = network(four_bits(64, 16), TensorType((7, 64), "int8"))
    text = "\n".join(disassembly(lower(graph, "avx512-vnni").library).values())
    assert "pmaddubsw" not in text and "vpdpbusd" in text
