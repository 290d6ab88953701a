"""The fused attention kernel equals plain numpy integers, for every instruction set, mask and edge."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from intc.codegen.cpu.attention import attention
from intc.codegen.cpu.attention_spec import (
    AttentionSpec,
    Rows,
    attention_arguments,
    attention_scratch_bytes,
    attention_tasks,
)
from intc.codegen.cpu.epilogue import plan_requantize, stage_arguments
from intc.codegen.cpu.fused import VALUES_BEYOND
from intc.codegen.cpu.isa import ISAS, Isa
from intc.codegen.cpu.probabilities import score_parameters
from intc.codegen.targets import native
from intc.ops import scalar
from tests.kernel_calls import aligned, call, compile_kernel, host_isas, intact

ISA_PARAMS = [pytest.param(isa, id=isa.name) for isa in host_isas() if isa.name != "avx512-generic"]
DTYPES = {"score": "int32", "scratch": "int32"}


def contexts(
    x: NDArray[np.int64], v: NDArray[np.int64], m: int, shift: int, keep: NDArray[np.bool_], uniform: bool
) -> NDArray[Any]:
    """The definition, row by row in Python integers: weights, their product with v, the division, in Q8."""
    if uniform:
        empty = ~keep.any(axis=-1, keepdims=True)
        x, keep = np.where(empty, 0, x), keep | empty
    out = np.zeros((*x.shape[:-1], v.shape[-1]), object)
    for at in np.ndindex(*x.shape[:-1]):
        kept = np.flatnonzero(keep[at])
        if not kept.size:
            continue
        distance = x[at][kept].max() - x[at][kept]
        bounded = scalar.bounded_distance(scalar.EXACT, distance, shift)
        weights = ((scalar.exp2_weight(scalar.EXACT, bounded, m) + 64) >> 7).astype(object)
        total = int(weights.sum())
        bits = total.bit_length()
        factor = (2 ** (30 + bits) - 1) // total
        for c in range(v.shape[-1]):
            context = int((weights * v[at[:-1]][kept, c].astype(object)).sum())
            moved = context << 23 - bits if bits <= 23 else context >> bits - 23
            out[(*at, c)] = min(max((((moved * factor) >> 32) + 4096) >> 13, -32767), 32767)
    return out


@dataclass
class Case:
    """Shapes and numbers of one run: q, k and v are slices of one tensor [B, S, 3*H*D] when Sq == Sk."""

    isa: Isa
    heads: int
    dim: int
    masked: bool = False
    uniform: bool = False
    m: int = 23456
    shift: int = 4
    narrow: bool = False
    per_channel: bool = False
    parallel: int = 0

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.dim)
        width = self.heads * self.dim
        count = width if self.per_channel else 1
        self.mo, self.eo = rng.integers(2**30, 2**31, count), rng.integers(36, 38, count)
        if self.narrow:
            self.mo, self.eo = rng.integers(100, 600, count), np.full(count, 15)
        form, m, e = plan_requantize(self.mo, self.eo, -128, 127, -32767, 32767)
        pad = (0, VALUES_BEYOND if self.per_channel else 0)
        factors = (m,) if form.narrow else (m, e)
        assert form.narrow == self.narrow
        self.params = [
            aligned(score_parameters(self.m, self.shift)),
            *(aligned(np.pad(a, pad)) for a in factors),
        ]
        left = self.shift < 0
        rows, out = Rows(self.heads, self.dim, 3 * width), Rows(self.heads, self.dim, width)
        self.spec = AttentionSpec(rows, rows, rows, out, form, self.masked, left=left, uniform=self.uniform)
        names = attention_arguments(self.spec)
        kinds = {**DTYPES, **dict(stage_arguments(self.spec.stages))}
        dtypes = {n: kinds.get(n, "int8") for n in names[: names.index("sq")]}
        self.module = compile_kernel(attention(self.spec, self.isa), names, dtypes, parallel=self.parallel)

    def check(
        self, q: NDArray[np.int8], kv: NDArray[np.int8], mask: NDArray[np.int8] | None = None, split: int = 0
    ) -> NDArray[np.int8]:
        """Compares with the definition and returns the output."""
        (b, sq, _), sk, width = q.shape, kv.shape[1], self.heads * self.dim
        x, y = aligned(q), aligned(kv)
        out = aligned(np.full((b, sq, width), 0x5A, np.int8))
        area = attention_scratch_bytes(self.spec, self.isa, sk)
        scratch = aligned(np.full(area * max(1, self.parallel), -1, np.int8))
        masks, strides = self._mask(mask, sk)
        tasks = attention_tasks(self.spec, b, sq)
        cuts = [*range(0, tasks, split or tasks), tasks]
        for begin, end in pairwise(cuts):
            call(
                self.module, x, (y, width), (y, 2 * width), *masks, *self.params, out, scratch,
                sq, sk, *strides, begin, end, *([area] if self.parallel else []),
            )  # fmt: skip
        assert intact(out)
        assert intact(scratch)
        keep = np.ones((b, self.heads, sq, sk), bool)
        if mask is not None:
            keep &= (mask[:, None, None, :] if mask.ndim == 2 else mask) != 0
        assert np.array_equal(out, self._expected(q, kv, keep))
        return out

    def _mask(self, mask: NDArray[np.int8] | None, sk: int) -> tuple[list[Any], list[int]]:
        if mask is None:
            return [], []
        if mask.ndim == 2:
            return [aligned(mask)], [sk, 0, 0]
        b, h, r, _ = mask.shape
        return [aligned(mask)], [h * r * sk if b > 1 else 0, r * sk if h > 1 else 0, sk if r > 1 else 0]

    def _expected(
        self, q: NDArray[np.int8], kv: NDArray[np.int8], keep: NDArray[np.bool_]
    ) -> NDArray[np.int64]:
        width = self.heads * self.dim

        def split(a: NDArray[np.int8], offset: int) -> NDArray[np.int64]:
            used = a[:, :, offset : offset + width].astype(np.int64)
            return np.swapaxes(used.reshape(*a.shape[:2], self.heads, self.dim), 1, 2)

        scores = split(q, 0) @ np.swapaxes(split(kv, width), -1, -2)
        context = contexts(scores, split(kv, 2 * width), self.m, self.shift, keep, self.uniform)
        flat = np.swapaxes(context, 1, 2).reshape(q.shape[0], q.shape[1], width)
        mo, eo = self.mo.astype(object), self.eo.astype(object)
        return np.clip((flat * mo + 2 ** (eo - 1)) // 2**eo, -128, 127).astype(np.int64)


def tokens(rng: np.random.Generator, *shape: int, spread: int = 128) -> NDArray[np.int8]:
    return rng.integers(-spread, spread, shape).astype(np.int8)


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(("heads", "dim"), [(2, 32), (1, 21)])
def test_shapes(isa: Isa, heads: int, dim: int) -> None:
    rng = np.random.default_rng(dim)
    case = Case(isa, heads, dim, per_channel=dim == 21, narrow=dim == 32)
    width = 3 * heads * dim
    for batch, sq, sk in ((1, 1, 1), (2, 13, 13), (1, 3, 50), (1, 100, 7)):
        q, kv = tokens(rng, batch, sq, width, spread=20), tokens(rng, batch, sk, width, spread=20)
        case.check(q, kv)
    whole = tokens(rng, 2, 27, width, spread=30)
    assert len(np.unique(case.check(whole, whole, split=1))) > 20


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_masks(isa: Isa) -> None:
    rng = np.random.default_rng(3)
    heads, dim, b, sq, sk = 2, 16, 2, 9, 37
    case = Case(isa, heads, dim, masked=True)
    q, kv = tokens(rng, b, sq, 3 * heads * dim, spread=24), tokens(rng, b, sk, 3 * heads * dim, spread=24)
    for shape in ((b, sk), (b, 1, 1, sk), (1, heads, sq, sk), (b, heads, sq, sk), (1, 1, sq, sk)):
        case.check(q, kv, (rng.random(shape) < 0.6).astype(np.int8))
    nothing = np.zeros((b, sk), np.int8)
    assert not case.check(q, kv, nothing).any(), "a row without keys is zero"
    nothing[1, 36] = 1
    case.check(q, kv, nothing)


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_rows_without_keys_that_weigh_all_alike(isa: Isa) -> None:
    rng = np.random.default_rng(5)
    heads, dim, b, sq, sk = 2, 16, 2, 5, 37
    case = Case(isa, heads, dim, masked=True, uniform=True)
    q, kv = tokens(rng, b, sq, 3 * heads * dim, spread=24), tokens(rng, b, sk, 3 * heads * dim, spread=90)
    mask = (rng.random((b, 1, sq, sk)) < 0.5).astype(np.int8)
    mask[0, 0, 2], mask[1] = 0, 0
    found = case.check(q, kv, mask)
    assert np.array_equal(found[1, 0], found[1, 4]), "rows of equal weights are equal"
    assert found[1].any()


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_ends_of_the_interval(isa: Isa) -> None:
    dim = 64
    case = Case(isa, 1, dim)
    for a in (-128, 127):
        for c in (-128, 127):
            kv = np.full((1, 20, 3 * dim), c, np.int8)
            case.check(np.full((1, 20, 3 * dim), a, np.int8), kv)
            kv[:, ::3, dim : 2 * dim] = -c - 1
            case.check(np.full((1, 20, 3 * dim), a, np.int8), kv)


def test_long_rows_and_score_scales() -> None:
    """Many keys, and scales from vanishing to saturating, to both sides."""
    isa, dim = ISAS[native().level], 16
    rng = np.random.default_rng(4)
    for m, shift in ((0, 0), (2**14, 31), (2**15 - 1, 8), (3, 0), (2**15 - 1, -3), (2**15 - 1, -14)):
        case = Case(isa, 1, dim, m=m, shift=shift)
        for length in (1, 40, 600):
            case.check(tokens(rng, 1, 3, 3 * dim), tokens(rng, 1, length, 3 * dim))


def test_threads() -> None:
    rng = np.random.default_rng(12)
    case = Case(ISAS[native().level], 3, 32, parallel=2)
    x = tokens(rng, 2, 110, 288, spread=30)
    case.check(x, x)
