"""Roots and quotients of eight rows at once: equal to Python's, at both sides of every step."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

from intc.codegen.cpu.roots import normalised_quotient, square_root
from intc.codegen.cpu.vector import Vec, buffer, pointer, ramp
from tests.kernel_calls import aligned, call, compile_kernel, intact

LANES = 8
NAMES = ("v", "root", "length", "factor")


@pytest.fixture(scope="module")
def module() -> Any:
    with IRBuilder() as builder:
        with T.prim_func(is_private=True):
            pointers = [pointer(name, "int64") for name in NAMES]
            blocks = T.arg("blocks", T.int32())
            v, *outs = (buffer(p, "int64") for p in pointers)
            with T.serial(0, blocks) as block:
                at = ramp(block * LANES, LANES)
                root, bits = square_root(Vec(v[at], LANES, "int64"))
                for out, value in zip(outs, (root, bits, normalised_quotient(root, bits)), strict=True):
                    T.buffer_store(out, value.expr, [at])
    return compile_kernel(builder.get(), (*NAMES, "blocks"), dict.fromkeys(NAMES, "int64"))


def check(module: Any, values: NDArray[np.int64]) -> None:
    v = aligned(np.concatenate([values, np.ones(-len(values) % LANES, np.int64)]))
    outs = [aligned(np.zeros_like(v)) for _ in NAMES[1:]]
    call(module, v, *outs, len(v) // LANES)
    roots = [math.isqrt(x) for x in v.tolist()]
    assert all(intact(x) for x in outs)
    assert outs[0].tolist() == roots
    assert outs[1].tolist() == [r.bit_length() for r in roots]
    assert outs[2].tolist() == [(2 ** (30 + r.bit_length()) - 1) // r for r in roots]


def test_small_and_largest_numbers(module: Any) -> None:
    check(module, np.arange(1, 70_000))
    check(module, np.arange(2**62 - 20_000, 2**62))


def test_both_sides_of_squares(module: Any) -> None:
    """Of roots of every length, powers of two and their neighbours among them."""
    rng = np.random.default_rng(0)
    roots = np.concatenate([rng.integers(2**b, 2 ** (b + 1), 500) for b in range(31)])
    steps = np.concatenate([2**b + np.arange(-3, 4) for b in range(2, 31)])
    for roots_of in (roots, steps, 2**31 - 1 - np.arange(100)):
        squares = roots_of[roots_of < 2**31] ** 2
        for beside in (-1, 0, 1):
            check(module, np.maximum(squares + beside, 1))


def test_random_numbers_of_every_length(module: Any) -> None:
    rng = np.random.default_rng(1)
    check(module, np.concatenate([rng.integers(2**b, 2 ** (b + 1), 1000) for b in range(62)]))
