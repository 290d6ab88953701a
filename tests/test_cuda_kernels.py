"""Every operator on a GPU, as far as a CPU can tell: the kernels' own source, run by an emulator of the
hardware, equals ``evaluate`` bit for bit, in whatever order threads take turns.
"""

from __future__ import annotations

import ctypes
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from intc.codegen.cuda.gelu import short_poly_gelu
from intc.codegen.cuda.linear import DEEP, HUGE, LARGE, MIDDLE, SMALL
from intc.codegen.lower import lower
from intc.errors import CodegenError
from intc.ir.dims import symbol
from intc.ir.types import TensorType
from intc.ops import scalar
from intc.ops.fused import Attention, Linear
from intc.ops.im2col import Im2col
from intc.ops.shift import ShiftLayerNorm
from tests.emulated import build, check_graph, emulation, host_source
from tests.kernel_cases import Case, ints
from tests.native import check_op
from tests.product_cases import learned_attention_case, linear_case
from tests.test_c_kernels import side_by_side
from tests.test_kernels_generic import GROUPS

ORDERS = ("forward", "backward", "shuffled")
BYTES = Linear(-127, 127, "int8")


def t(shape: tuple[int, ...], dtype: Any, lo: int | None = None, hi: int | None = None) -> TensorType:
    return TensorType(shape, dtype, lo, hi)


def check(cases: list[Case], order: str = "forward", processors: int = 1, target: str = "cuda") -> None:
    with emulation(order, processors):
        run = partial(check_graph, target=target)
        check_op([(case.op, case.inputs, {}) for case in cases], run)


@pytest.mark.parametrize("group", GROUPS)
def test_kernels_equal_evaluate(group: str) -> None:
    with emulation():
        check_op([(case.op, case.inputs, case.sizes) for case in GROUPS[group]()], check_graph)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "processors", [1, 1000]
)  # one: the large tiles; many: the small ones, with split sums
def test_products_of_many_sizes(order: str, processors: int) -> None:
    whole = [(1, 64, 64), (64, 192, 576), (197, 768, 128), (300, 256, 256), (130, 1040, 64), (260, 320, 384)]
    ragged = [(129, 65, 33), (63, 17, 130), (65, 200, 1), (2, 1100, 72)]
    cases = [linear_case(t((m, k), "int8", -127, 127), n, BYTES) for m, k, n in whole + ragged]
    cases += [
        linear_case(t((m, k), "uint8"), n, Linear(0, 255, "uint8")) for m, k, n in (whole[1], ragged[0])
    ]
    raw = Linear(-(2**31), 2**31 - 1, "int32", raw=True)
    cases += [linear_case(t((m, k), "int16", -4096, 4095), n, raw) for m, k, n in (whole[2], ragged[1])]
    residual = Linear(-32767, 32767, "int16", residual=True)
    cases += [linear_case(t((m, k), "int8", -127, 127), n, residual) for m, k, n in (whole[3], ragged[3])]
    four_bits = linear_case(t((40, 96), "int8", -127, 127), 64, BYTES)
    cases.append(
        replace(
            four_bits, inputs=(four_bits.inputs[0], ints(-7, 7, (96, 64), np.int8), *four_bits.inputs[2:])
        )
    )
    check(cases, order, processors)


@pytest.mark.parametrize("kind", scalar.POLY_GELU)
def test_short_poly_gelus_are_those_of_the_operator(kind: str) -> None:
    ends = np.array([2**31 - 1, 10**9])
    x = np.concatenate([-ends, np.arange(-70_000, 70_000), ends])
    for frac in range(4, 13):
        want = scalar.poly_gelu(scalar.EXACT, np.clip(x, -32767, 32767), frac, kind)
        assert np.array_equal(short_poly_gelu(scalar.EXACT, x, frac, kind), want)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16"])
def test_products_at_the_ends_of_the_interval(dtype: Any) -> None:
    k, n = 516, 33
    w = np.full((k, n), 127, np.int8)
    w[:, ::2] = -127
    info = np.iinfo(dtype)
    op = Linear(-(2**31), 2**31 - 1, "int32", raw=True)
    bias = np.zeros(n, np.int32)
    check([Case(op, (np.full((5, k), value, dtype), w, bias)) for value in (max(info.min, -32767), info.max)])


def attention_case(dim: int, heads: int, queries: Any, keys: Any, offset: int, **options: Any) -> Case:
    """Queries in a tensor of their own, keys and values side by side."""
    width = heads * dim
    op = Attention(heads, heads, dim, 0, 0, width + offset, 20077, 5, -127, 127, **options)
    q, kv = t((2, queries, width), "int8", -127, 127), t((2, keys, 2 * width + offset), "int8", -127, 127)
    scores = (2, heads, queries, keys)
    extra: list[Any] = [t(scores, "bool")] if op.masked else []
    if op.uniform:  # many rows keep nothing
        extra = [np.random.default_rng(keys).random(scores) < 1 / (1 + keys)]
    extra += [t((1, heads, queries, keys), "int32", -5000, 5000)] if op.biased else []
    mo, eo = ints(2**30, 2**31 - 1, (width,), np.int32), ints(37, 39, (width,), np.int32)
    return Case(op, (q, kv, kv, mo, eo, *extra))


@pytest.mark.parametrize("order", ORDERS)
def test_attention_of_many_sizes(order: str) -> None:
    cases = [
        attention_case(64, 2, 197, 197, 0),
        attention_case(32, 3, 49, 49, 0, masked=True, biased=True),
        attention_case(96, 1, 65, 130, 16, masked=True),
        attention_case(64, 2, 70, 130, 0, masked=True, uniform=True),
        attention_case(128, 1, 64, 64, 0, biased=True),
        attention_case(20, 2, 1, 300, 4),
        attention_case(1, 2, 33, 257, 0),  # whole tiles of negative scores among them
        attention_case(1, 2, 33, 300, 0, masked=True),
        attention_case(7, 3, 70, 63, 1, masked=True),
        learned_attention_case(queries=True),
        learned_attention_case(queries=False),
    ]
    for processors in (1, 1000):  # many: blocks of 16 rows, whose keys four warps divide
        check(cases, order, processors)


def wide_attention_case(dim: int, rows: Any, q_limit: int, k_limit: int, **options: Any) -> Case:
    """Queries and keys of up to 16 bits."""
    shape = (2, rows, 2 * dim)
    q, k = (t(shape, "int8" if x < 128 else "int16", -x, x) for x in (q_limit, k_limit))
    mo, eo = ints(2**30, 2**31 - 1, shape[2:], np.int32), ints(37, 39, shape[2:], np.int32)
    extra = [t((2, rows), "bool")] if options.get("masked") else []
    op = Attention(2, 2, dim, 0, 0, 0, 20077, 12, -127, 127, **options)
    return Case(op, (q, k, t(shape, "int8", -127, 127), mo, eo, *extra))


@pytest.mark.parametrize("order", ORDERS)
def test_attention_of_wide_queries_and_keys(order: str) -> None:
    cases = [
        wide_attention_case(64, 70, 4095, 4095),
        wide_attention_case(32, 30, 5791, 5791, masked=True),
        wide_attention_case(24, 65, 32639, 127),
        wide_attention_case(7, 20, 127, 32639, masked=True),
        wide_attention_case(96, 33, 2047, 2047),
        wide_attention_case(1, 9, 32639, 32639),
        wide_attention_case(64, 197, 4095, 4095),
        wide_attention_case(64, 145, 4095, 127, masked=True),
    ]
    of_keys = wide_attention_case(40, 150, 127, 2047, masked=True, uniform=True)
    nothing = np.arange(2)[:, None] > np.arange(150) - 100  # that is kept of the first
    cases.append(replace(of_keys, inputs=(*of_keys.inputs[:-1], nothing & (np.arange(2)[:, None] > 0))))
    for processors in (1, 1000):
        check(cases, order, processors)


@pytest.mark.parametrize("order", ORDERS)
def test_attention_of_lengths_that_a_run_tells(order: str) -> None:
    """Up to 128 keys a warp holds the scores of its rows, up to 256 two or four do, beyond them none."""
    rows = symbol("rows")
    cases = [
        wide_attention_case(64, rows, 4095, 4095, masked=True),
        wide_attention_case(33, rows, 127, 127, masked=True, uniform=True),
        attention_case(96, 1, rows, rows, 16, masked=True, biased=True),
    ]
    for processors, lengths in ((1, (1, 16, 100, 128, 130, 240, 256, 257)), (1000, (5, 100, 193, 256))):
        with emulation(order, processors):
            check_op([(c.op, c.inputs, {"rows": n}) for c in cases for n in lengths], check_graph)


def test_keys_that_do_not_vanish() -> None:
    """Weights that fall so slowly that no distance makes them 0: what a mask drops is known by its score."""
    for options in ({"masked": True}, {"masked": True, "uniform": True}, {}):
        for m, shift in ((20077, 31), (3, 0), (32767, -14)):
            case = attention_case(32, 2, 20, 75, 0, **options)
            check([replace(case, op=replace(case.op, m=m, shift=shift))])


@pytest.mark.parametrize("order", ORDERS)
def test_without_tensor_cores(order: str) -> None:
    """sm_61 and sm_70: the same kernels, mma from dot products of four bytes."""
    raw = Linear(-(2**31), 2**31 - 1, "int32", raw=True)
    cases = [linear_case(t((65, 192), "int8", -127, 127), 72, BYTES)]
    cases += [
        linear_case(t((3, 1100), "uint8"), 33, raw),
        linear_case(t((70, 80), "int16", -4096, 4095), 64, raw),
    ]
    cases += [attention_case(32, 2, 70, 70, 0, masked=True), attention_case(7, 3, 5, 130, 1)]
    for processors in (1, 1000):
        check(cases, order, processors, "cuda:sm_61")


@pytest.mark.parametrize("channels", [1, 31, 96, 192, 1000, 2304])
def test_layer_norm_of_many_widths(channels: int) -> None:
    op = ShiftLayerNorm(3, 40, -127, 127, "int8")
    g, b = ints(-(2**20), 2**20, (channels,), np.int32), ints(-(2**45), 2**45, (channels,), np.int64)
    magnitude = min(32767, (2**31 - 1) // (2 * channels))
    constant = np.full((1, channels), 77, np.int16)
    check([Case(op, (x, g, b)) for x in (t((9, channels), "int16", -magnitude, magnitude), constant)])


ROOTS = """
extern "C" u64 first_wrong(const u64* x, u64 count) {
  for (u64 i = 0; i < count; ++i) {
    u32 root, inverse;
    int bits;
    root_and_inverse(x[i], root, inverse, bits);
    const bool low = (u64)root * root <= x[i], high = (u64)(root + 1) * (root + 1) > x[i];
    const bool length = bits == bit_length(root);
    if (!low || !high || !length || inverse != ((1ull << (30 + bits)) - 1) / root) return x[i];
  }
  return 0;
}
"""


def test_roots_and_inverses_of_layer_norm() -> None:
    """Every small number, powers of two, squares and their neighbours, and random ones of every length."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(0, 62, 200_000)
    drawn = (rng.integers(2**61, 2**62, lengths.size) >> lengths).astype(np.uint64)
    roots = rng.integers(1, 2**31, 100_000) >> rng.integers(0, 31, 100_000)
    roots = np.concatenate([roots, np.arange(1, 3000), 2**31 - np.arange(1, 3000)])
    centres = np.concatenate([roots**2, 2 ** np.arange(62)])
    near = (centres[:, None] + np.arange(-2, 3)).ravel()
    numbers = np.concatenate([np.arange(1, 300_000), drawn, near[(near > 0) & (near < 2**62)]]).astype(
        np.uint64
    )
    library = ctypes.CDLL(str(build(host_source({}) + ROOTS)))
    library.first_wrong.restype = ctypes.c_uint64
    pointer = numbers.ctypes.data_as(ctypes.c_void_p)
    assert library.first_wrong(pointer, ctypes.c_uint64(numbers.size)) == 0


def test_rows_too_wide_for_layer_norm() -> None:
    row = t((1, 2**18), "int16", -1, 1)
    g, b = np.ones(2**18, np.int32), np.zeros(2**18, np.int64)
    with pytest.raises(CodegenError, match=r"less than 262144 channels, not 262144"):
        check([Case(ShiftLayerNorm(3, 40, -127, 127, "int8"), (row, g, b))])


@pytest.mark.parametrize(
    ("target", "found"), [("cuda", [90, 0, 0]), ("cuda:sm_90", [90, 0, 0]), ("cuda:sm_80", [0, 0])]
)
def test_the_widest_tile_is_for_groups_of_warps(target: str, found: list[int]) -> None:
    graph = side_by_side([linear_case(t((64, 192), "int8", -127, 127), 192, BYTES)])
    with emulation():
        (launch,) = lower(graph, target).launches
    assert [choice.architecture for choice in launch.choices] == found


def test_tiles_fit_shared_memory() -> None:
    """99 KB is what every architecture from sm_80 on gives a block, 227 KB what sm_90 has for its blocks."""
    for tile, x_bytes, y_bytes in ((LARGE, 1, 2), (MIDDLE, 2, 4), (SMALL, 2, 4), (DEEP, 1, 4)):
        assert tile.data_bytes(x_bytes, y_bytes) + tile.columns * 64 <= 99 << 10
    for tile in (HUGE, LARGE):
        assert tile.resident * (tile.data_bytes(1, 2) + tile.columns * 32 + 1024) <= 227 << 10


def test_windows_without_padding() -> None:
    """The strided views, in both orders of axes."""
    steps = ((4, 4), (4, 4)), ((3, 2), (2, 1))
    cases = [Case(Im2col(*s, (0, 0, 0, 0), (1, 1)), (t((2, 3, 8, 12), "int8"),)) for s in steps]
    cases += [Case(Im2col(*s, (0, 0, 0, 0), (2, 1), True), (t((2, 9, 12, 5), "uint8"),)) for s in steps]
    patches, tokens = (
        Im2col((16, 16), (16, 16), (0, 0, 0, 0), (1, 1)),
        Im2col(*steps[1], (0, 0, 0, 0), (1, 1), True),
    )
    cases += [Case(patches, (t((2, 3, 32, 48), dtype),)) for dtype in ("int8", "int16")]
    cases += [Case(tokens, (t((2, 9, 12, 24), dtype),)) for dtype in ("uint8", "int16")]
    check(cases)
