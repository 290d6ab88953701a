"""The linear kernel equals plain numpy integers, for every instruction set, at every edge."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from intc.codegen.cpu.epilogue import (
    Pointwise,
    Requantize,
    Residual,
    plan_requantize,
    stage_arguments,
)
from intc.codegen.cpu.isa import AVX2, AVX512, AVX512_VNNI, ISAS, SSE4, Isa
from intc.codegen.cpu.linear import (
    LinearSpec,
    linear,
    linear_arguments,
    linear_scratch_bytes,
    linear_tasks,
    pad_channels,
    start_values,
    weight_layout,
)
from intc.codegen.cpu.peak import CHAINS, peak
from intc.codegen.targets import native, resolve
from intc.errors import CodegenError
from intc.ops import scalar
from tests.kernel_calls import aligned, assembly, call, compile_kernel, host_isas, inner_loop, intact

EVERY_ISA = [pytest.param(isa, id=isa.name) for isa in host_isas()]
ISA_PARAMS = [p for p in EVERY_ISA if not p.id.startswith("avx512") or "generic" not in p.id]
WIDE = 2**30 - 1


def requantized(x: NDArray[Any], m: NDArray[Any], e: NDArray[Any], lo: int, hi: int) -> NDArray[np.int64]:
    """The definition, in unbounded Python integers."""
    big, half = x.astype(object), 2 ** (e.astype(object) - 1)
    return np.clip((big * m.astype(object) + half) // 2 ** e.astype(object), lo, hi).astype(np.int64)


class Case:
    """A compiled linear kernel with weights; ``run`` compares nothing, it returns the output."""

    def __init__(
        self,
        isa: Isa,
        spec: LinearSpec,
        w: NDArray[np.int8],
        bias: NDArray[Any],
        params: list[Any],
        parallel: int = 0,
    ) -> None:
        isa = isa.wide() if spec.x_dtype == "int16" else isa
        self.isa, self.spec, self.parallel = isa, spec, parallel
        dtypes = {
            "x": spec.x_dtype,
            "w": "int8",
            "bias": "int32",
            "out": spec.out_dtype,
            "scratch": "int32",
        }
        dtypes |= dict(stage_arguments(spec.stages))
        self.module = compile_kernel(linear(spec, isa), linear_arguments(spec), dtypes, parallel=parallel)
        packed = weight_layout(spec.k, spec.n, isa, spec.w_bits).apply(w).reshape(-1)
        self.fixed = [aligned(packed), aligned(start_values(w, bias, isa, spec.x_dtype))]
        self.params = [aligned(pad_channels(p, isa)) if p is not None else None for p in params]

    def run(self, x: NDArray[Any], residual: NDArray[Any] | None = None, split: int = 0) -> NDArray[Any]:
        rows = len(x)
        out = aligned(np.full((rows, self.spec.n), 0x5A, self.spec.out_dtype))
        area = linear_scratch_bytes(self.spec, self.isa)
        scratch = aligned(np.full(area * max(1, self.parallel), -1, np.int8))
        other = aligned(residual) if residual is not None else None
        params = [other if p is None else p for p in self.params]
        tasks = linear_tasks(self.spec, self.isa, rows)
        cuts = [0, tasks] if not split else [*range(0, tasks, split), tasks]
        extra = [area] if self.parallel else []
        for begin, end in pairwise(cuts):
            call(self.module, aligned(x), *self.fixed, *params, out, scratch, rows, begin, end, *extra)
        assert intact(out)
        assert intact(scratch)
        return out


def weights(rng: np.random.Generator, k: int, n: int) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    return rng.integers(-128, 128, (k, n)).astype(np.int8), rng.integers(-(2**20), 2**20, n)


def product(x: NDArray[Any], w: NDArray[Any], bias: NDArray[Any]) -> NDArray[np.int64]:
    return x.astype(np.int64) @ w.astype(np.int64) + bias


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize(
    ("x_dtype", "k", "n"),
    [("int8", 1, 1), ("uint8", 65, 40), ("int8", 131, 200), ("int16", 65, 40), ("int16", 200, 131)],
)
def test_accumulators(isa: Isa, x_dtype: str, k: int, n: int) -> None:
    rng = np.random.default_rng(k * n)
    w, bias = weights(rng, k, n)
    info = np.iinfo(x_dtype)
    case = Case(isa, LinearSpec(k, n, x_dtype), w, bias, [])
    for rows in (1, 2, 7, 197):
        x = rng.integers(info.min, info.max + 1, (rows, k)).astype(x_dtype)
        assert np.array_equal(case.run(x), product(x, w, bias))


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_ends_of_the_interval(isa: Isa) -> None:
    k, n = 257, 32
    w = np.full((k, n), 127, np.int8)
    w[:, ::2] = -128
    for x_dtype in ("int8", "uint8"):
        case = Case(isa, LinearSpec(k, n, x_dtype), w, np.zeros(n), [])
        for value in (np.iinfo(x_dtype).min, np.iinfo(x_dtype).max):
            x = np.full((5, k), value, x_dtype)
            assert np.array_equal(case.run(x), product(x, w, np.zeros(n)))


@pytest.mark.parametrize("isa", EVERY_ISA)
@pytest.mark.parametrize(("x_dtype", "k", "n"), [("int8", 131, 200), ("uint8", 65, 40), ("int16", 70, 33)])
def test_four_bit_weights(isa: Isa, x_dtype: str, k: int, n: int) -> None:
    rng = np.random.default_rng(k + n)
    w, bias = rng.integers(-8, 8, (k, n)).astype(np.int8), rng.integers(-(2**20), 2**20, n)
    w[:, 0], w[:, -1] = -8, 7
    info = np.iinfo(x_dtype)
    case = Case(isa, LinearSpec(k, n, x_dtype, w_bits=4), w, bias, [])
    for rows in (1, 2, 7, 30):
        x = rng.integers(info.min, info.max + 1, (rows, k)).astype(x_dtype)
        x[0] = info.min
        assert np.array_equal(case.run(x), product(x, w, bias))


def test_four_bit_weights_take_half_a_byte() -> None:
    w = np.zeros((384, 128), np.int8)
    narrow, wide = (weight_layout(384, 128, AVX2, bits).apply(w) for bits in (4, 8))
    assert narrow.nbytes == 384 * 128 // 2 == wide.nbytes // 2


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_ends_of_sixteen_bits(isa: Isa) -> None:
    """The largest sums that 16-bit rows may reach: next to 2**31, with every product of one sign."""
    k, n = 516, 33
    w = np.full((k, n), 127, np.int8)
    w[:, ::2] = -127
    bias = np.where(w[0] > 0, 1, -1) * (2**31 - 1 - k * 127 * 32767)
    case = Case(isa, LinearSpec(k, n, "int16"), w, bias, [])
    for value in (-32767, 32767):
        x = np.full((5, k), value, np.int16)
        assert np.array_equal(case.run(x), product(x, w, bias))


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(
    ("exponents", "lo", "hi", "dtype"),
    [
        ((33, 63), -128, 127, "int8"),
        ((20, 24), 0, 255, "uint8"),
        ((1, 30), -32767, 32767, "int16"),
        ((1, 62), -WIDE, WIDE, "int32"),
    ],
)
def test_requantize_per_channel(isa: Isa, exponents: tuple[int, int], lo: int, hi: int, dtype: str) -> None:
    rng = np.random.default_rng(5)
    k, n = 48, 70
    w, bias = weights(rng, k, n)
    m = rng.integers(-(2**31) + 1, 2**31, n)
    m[:4] = 0, 1, 2**31 - 1, 2**30
    e = rng.integers(*exponents, n)
    if dtype == "uint8":
        m = np.abs(m)
    stage, ms, es = plan_requantize(m, e, lo, hi)
    assert stage.exact64 == (dtype != "int8")
    case = Case(isa, LinearSpec(k, n, stages=(stage,), out_dtype=dtype), w, bias, [ms, es])
    x = rng.integers(-128, 128, (13, k)).astype(np.int8)
    assert np.array_equal(case.run(x), requantized(product(x, w, bias), m, e, lo, hi))


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(("x_bound", "clamp"), [(2**31 - 1, True), (2**24, False)])
def test_requantize_with_a_shift_first(isa: Isa, x_bound: int, clamp: bool) -> None:
    rng = np.random.default_rng(8)
    k, n = 20, 16
    w, bias = weights(rng, k, n)
    bias = bias * 500 if clamp else bias
    m, e = rng.integers(2**30, 2**31, n), rng.integers(31, 34 if clamp else 50, n)
    e[0] = 31
    stage, ms, es = plan_requantize(m, e, -128, 127, -x_bound, x_bound)
    assert (stage.pre, stage.clamp) == (2, clamp)
    case = Case(isa, LinearSpec(k, n, stages=(stage,), out_dtype="int8"), w, bias, [ms, es])
    x = rng.integers(-128, 128, (9, k)).astype(np.int8)
    assert np.array_equal(case.run(x), requantized(product(x, w, bias), m, e, -128, 127))


def test_plans() -> None:
    def plan(m: int, e: int, lo: int = -128, hi: int = 127, x: int = 2**31 - 1) -> Requantize:
        return plan_requantize(np.array(m), np.array(e), lo, hi, -x, x)[0]

    assert plan(2**30, 40) == Requantize(-128, 127, per_channel=False)
    assert plan(2**30, 30) == Requantize(-128, 127, per_channel=False, pre=3, clamp=True)
    assert plan(2**30, 30, x=1000).clamp is False
    assert plan(2**20, 23) == plan(2**30, 33), "small mantissas are normalised"
    assert plan(2**30, 30, -WIDE, WIDE).exact64
    assert plan(2**14, 15, -WIDE, WIDE, x=99) == Requantize(-32768, 32767, per_channel=False, narrow=True)
    for bad in ((1, 0), (1, 63), (2**31, 40)):
        with pytest.raises(CodegenError, match="renormalise"):
            plan(*bad)


@pytest.mark.parametrize("isa", ISA_PARAMS)
def test_gelu(isa: Isa) -> None:
    rng = np.random.default_rng(6)
    k, n, frac = 64, 72, 10
    w, bias = weights(rng, k, n)
    m, e = rng.integers(2**30, 2**31, n), rng.integers(36, 38, n)
    m2, e2 = rng.integers(2**30, 2**31, n), rng.integers(48, 50, n)
    first, m_a, e_a = plan_requantize(m, e, -32767, 32767)
    second, m_b, e_b = plan_requantize(m2, e2, -128, 127)
    spec = LinearSpec(k, n, stages=(first, Pointwise("shift", frac), second), out_dtype="int8")
    case = Case(isa, spec, w, bias, [m_a, e_a, m_b, e_b])
    x = rng.integers(-128, 128, (50, k)).astype(np.int8)
    fixed = requantized(product(x, w, bias), m, e, -32767, 32767)
    want = requantized(scalar.gelu(scalar.EXACT, fixed, frac), m2, e2, -128, 127)
    assert len(np.unique(want)) > 50
    assert np.array_equal(case.run(x), want)


@pytest.mark.parametrize("isa", ISA_PARAMS)
@pytest.mark.parametrize(("n", "scale"), [(64, False), (45, True)])
def test_residual(isa: Isa, n: int, scale: bool) -> None:
    rng = np.random.default_rng(n)
    k = 96
    w, bias = weights(rng, k, n)
    m, e = rng.integers(2**30, 2**31, n), rng.integers(34, 38, n)
    mr, er = rng.integers(2**30, 2**31, 1), np.array([31])
    x = rng.integers(-128, 128, (31, k)).astype(np.int8)
    r = rng.integers(-32768, 32768, (31, n)).astype(np.int16)
    branch = requantized(product(x, w, bias), m, e, -WIDE, WIDE)
    first, m_a, e_a = plan_requantize(m, e, -WIDE, WIDE)
    scaled, m_b, e_b = plan_requantize(mr, er, -WIDE, WIDE, -32768, 32767)
    other = requantized(r, mr, er, -WIDE, WIDE) if scale else r.astype(np.int64)
    residual = Residual(-32768, 32767, requantize=scaled if scale else None)
    spec = LinearSpec(k, n, stages=(first, residual), out_dtype="int16")
    case = Case(isa, spec, w, bias, [m_a, e_a, None, *([m_b, e_b] if scale else [])])
    assert np.array_equal(case.run(x, r), np.clip(branch + other, -32768, 32767))


@pytest.mark.parametrize("isa", EVERY_ISA)
def test_any_cut_of_the_tasks_and_threads(isa: Isa) -> None:
    rng = np.random.default_rng(9)
    k, n = 70, 300
    w, bias = weights(rng, k, n)
    case = Case(isa, LinearSpec(k, n), w, bias, [], parallel=3)
    for rows in (0, 1, 100, 250):
        x = rng.integers(-128, 128, (rows, k)).astype(np.int8)
        want = product(x, w, bias)
        for split in (0, 1, 4):
            assert np.array_equal(case.run(x, split=split), want)


@pytest.mark.parametrize(
    ("target", "isa", "instruction"),
    [
        ("avx512-vnni", AVX512_VNNI, "vpdpbusd"),
        ("x86-64-v4", AVX512, "vpmaddwd"),
        ("x86-64-v3", AVX2, "vpmaddwd"),
        ("x86-64-v2", SSE4, "pmaddwd"),
    ],
)
def test_inner_loop_keeps_its_accumulators_in_registers(target: str, isa: Isa, instruction: str) -> None:
    spec = LinearSpec(128, 128)
    dtypes = {"x": "int8", "w": "int8", "bias": "int32", "out": "int32", "scratch": "int32"}
    text = assembly(compile_kernel(linear(spec, isa), linear_arguments(spec), dtypes, resolve(target)))
    loop = inner_loop(text, instruction)
    assert sum(instruction in line for line in loop) == 2 * isa.rows * isa.vectors
    assert not any("(%rsp" in line for line in loop), "accumulators are spilled"
    assert "pmaddubsw" not in text


def test_sixteen_bit_rows_where_the_dot_product_is_of_bytes() -> None:
    """VNNI: LLVM turns multiply-add pairs and sums into ``vpdpwssd`` where it can."""
    isa, spec = AVX512_VNNI.wide(), LinearSpec(128, 128, "int16")
    dtypes = {"x": "int16", "w": "int8", "bias": "int32", "out": "int32", "scratch": "int32"}
    kernel = compile_kernel(linear(spec, isa), linear_arguments(spec), dtypes, resolve("avx512-vnni"))
    text = assembly(kernel)
    assert "vpdpwssd" in text
    loop = inner_loop(text.replace("vpmaddwd", "vpdpwssd"), "vpdpwssd")  # either form
    assert sum("vpdpwssd" in line for line in loop) == 2 * isa.rows * isa.vectors
    assert not any("(%rsp" in line for line in loop), "accumulators are spilled"


def test_peak_runs() -> None:
    isa = ISAS[native().level]
    module = compile_kernel(peak(isa), ("data", "iterations"), {"data": "int32"})
    data = aligned(np.zeros(CHAINS * isa.lanes, np.int32))
    assert not any("(%rsp" in line for line in inner_loop(assembly(module), isa.dot.partition(".")[0]))
    call(module, data, 10)
    assert np.all(data == 0)
    assert intact(data)
