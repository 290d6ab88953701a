"""Products on inputs that their kernels are tested with: of two values, with weights, and attention."""

from __future__ import annotations

from typing import Any

import numpy as np

from intc.ir.dims import Dim
from intc.ir.types import TensorType
from intc.ops.fused import Attention, Linear
from intc.ops.matmul import MatMul
from tests.kernel_cases import B, Case, S, ints, t


def matmul_cases() -> list[Case]:
    return [
        Case(MatMul(), (t((B, 2, S, 5), "int8"), t((B, 2, 5, S), "int8"))),
        Case(MatMul(), (t((B, 2, S, S), "uint8"), t((B, 2, S, 5), "int8"))),
        Case(MatMul(), (t((B, S, 33), "int8"), ints(-128, 127, (33, 17), np.int8))),
        Case(MatMul(), (t((B, 1, S, 9), "int16", -3000, 3000), t((4, 9, 3), "int8"))),
        Case(MatMul(), (t((9,), "int8"), ints(-128, 127, (9, 4), np.int8))),
        # more rows than a block, whole panels and parts of them, leading axes repeated on either side
        Case(MatMul(), (t((B, 100, 40), "int8"), t((B, 40, 128), "int8"))),
        Case(MatMul(), (t((B, 3, 13, 9), "uint8"), t((3, 9, 66), "int8"))),
        Case(MatMul(), (t((3, 1, 5, 19), "int8"), t((B, 19, 24), "uint8"))),
        Case(MatMul(), (t((B, 1, S, S), "uint8"), t((2, S, S), "int16", -99, 99))),
        Case(MatMul(), (t((2, 3, 101, 8), "int8"), ints(-128, 127, (8, 80), np.int8))),
        Case(MatMul(), (ints(-128, 127, (12, 16), np.int8), t((B, 16, 9), "int8"))),
    ]


def linear_case(x: TensorType, n: int, op: Linear, spread: tuple[int, int] = (36, 46)) -> Case:
    k = x.shape[-1]
    assert isinstance(k, int)
    inputs: list[Any] = [x, ints(-127, 127, (k, n), np.int8), ints(-(10**6), 10**6, (n,), np.int32)]
    if not op.raw:
        inputs += [ints(2**30, 2**31 - 1, (n,), np.int32), ints(*spread, (n,), np.int32)]
    if op.centred:
        inputs += [ints(0, 16383, (n,), np.int16)]
    if op.gelu:
        m, e = ((2**30, 2**31 - 1), (46, 52)) if op.gelu in ("shift", "tanh") else ((32, 2**15 - 1), (15, 15))
        inputs += [ints(*m, (n,), np.int32), ints(*e, (n,), np.int32)]
    if op.residual:
        inputs += [t((*x.shape[:-1], n), "int16", -32767, 32767)]
        inputs += [ints(2**30, 2**31 - 1, (1,), np.int32), ints(29, 33, (1,), np.int32)]
    return Case(op, tuple(inputs))


def linear_cases() -> list[Case]:
    x, u = t((B, S, 40), "int8", -127, 127), t((B, S, 33), "uint8")
    return [
        linear_case(x, 24, Linear(-127, 127, "int8")),
        linear_case(u, 17, Linear(0, 255, "uint8")),
        linear_case(x, 1, Linear(-32767, 32767, "int16")),
        linear_case(u, 50, Linear(-(2**31), 2**31 - 1, "int32", raw=True)),
        linear_case(x, 31, Linear(-127, 127, "int8", gelu="shift", frac=11)),
        *(
            linear_case(x, 33, Linear(-127, 127, "int8", gelu=k, frac=f))
            for k, f in (("none", 12), ("quick", 9))
        ),
        linear_case(x, 40, Linear(-32767, 32767, "int16", gelu="tanh", frac=11)),
        linear_case(x, 41, Linear(-127, 127, "int8", gelu="none", frac=11, centred=True)),
        linear_case(x, 48, Linear(-32767, 32767, "int16", residual=True)),
        linear_case(x, 24, Linear(-127, 127, "int8"), (1, 62)),
    ]


def attention_case(heads: int, dim: int, shared: bool, mask: tuple[Dim, ...] | None, keys: Dim = S) -> Case:
    width = heads * dim
    op = Attention(
        heads,
        heads,
        dim,
        0,
        width if shared else 3,
        2 * width if shared else 1,
        20077,
        3 - 5 * (dim == 5),
        -127,
        127,
        masked=mask is not None,
    )
    q = t((B, S, 3 * width), "int8", -127, 127)
    k, v = (
        (q, q)
        if shared
        else (t((B, keys, width + 3), "int8", -127, 127), t((B, keys, width + 2), "int8", -127, 127))
    )
    exact = dim == 16  # multipliers over 2**15: in 16-bit lanes
    mo = ints(64, 400, (width,), np.int32) if exact else ints(2**30, 2**31 - 1, (width,), np.int32)
    eo = ints(15, 15, (width,), np.int32) if exact else ints(37, 39, (width,), np.int32)
    return Case(op, (q, k, v, mo, eo, *([t(mask, "bool")] if mask else [])), {"batch": 2, "seq": 29})


def grouped_attention_case(shared: int, first: bool, bias: tuple[Dim, ...], mask: bool) -> Case:
    """Head-major rows, ``shared`` heads of queries to one of keys, values in token order."""
    dim, groups = 8, 2
    heads, keys = shared * groups, S + 5
    op = Attention(
        *(heads, groups, dim, 0, 0, 3, 20077, 1, -32767, 32767), masked=mask, biased=True, heads_first=first
    )
    q, k = t((B, heads, S, dim), "int8", -127, 127), t((B, groups, keys, dim), "int8", -127, 127)
    v = t((B, keys, groups * dim + 3), "int8", -127, 127)
    factors = (ints(2**30, 2**31 - 1, (1,), np.int32), ints(33, 33, (1,), np.int32))
    extra = [t((B, keys), "bool")] if mask else []
    return Case(op, (q, k, v, *factors, *extra, t(bias, "int32", -40000, 40000)), {"batch": 2, "seq": 29})


def wide_attention_case(dim: int, q_limit: int, k_limit: int, mask: bool) -> Case:
    """Queries and keys of up to 16 bits; where both are wide, side by side in one tensor."""
    heads, width = 2, 2 * dim
    shared = q_limit == k_limit
    op = Attention(heads, heads, dim, 0, width if shared else 0, 0, 20077, 9, -127, 127, masked=mask)
    q = t((B, S, width * (1 + shared)), "int16", -q_limit, q_limit)
    k = q if shared else t((B, S, width), "int16" if k_limit > 127 else "int8", -k_limit, k_limit)
    factors = (ints(2**30, 2**31 - 1, (width,), np.int32), ints(37, 39, (width,), np.int32))
    extra = [t((B, S), "bool")] if mask else []
    return Case(op, (q, k, t((B, S, width), "int8", -127, 127), *factors, *extra), {"batch": 2, "seq": 29})


def learned_attention_case(queries: bool) -> Case:
    """Constant queries, or constant keys and values side by side."""
    heads, dim, rows = 2, 16, 37
    width = heads * dim
    op = Attention(heads, heads, dim, 0, 0, width, 20077, 3, -127, 127)
    learned = ints(-127, 127, (1, rows, width if queries else 2 * width), np.int8)
    tokens = t((1, 29, 2 * width if queries else width), "int8", -127, 127)
    q, kv = (learned, tokens) if queries else (tokens, learned)
    factors = (ints(2**30, 2**31 - 1, (width,), np.int32), ints(37, 39, (width,), np.int32))
    return Case(op, (q, kv, kv, *factors))


def attention_cases() -> list[Case]:
    return [
        wide_attention_case(64, 4095, 4095, False),
        wide_attention_case(5, 8191, 8191, True),
        wide_attention_case(32, 32639, 127, True),
        wide_attention_case(16, 127, 32639, False),
        grouped_attention_case(1, True, (1, 2, S, S + 5), False),
        grouped_attention_case(3, False, (6, 1, S + 5), True),
        grouped_attention_case(2, True, (B, 1, S, S + 5), True),
        attention_case(2, 16, True, None),
        attention_case(3, 32, True, (B, S)),
        attention_case(1, 5, True, (B, 1, S, S)),
        attention_case(2, 8, False, (1, 2, 1, 70), 70),
        attention_case(2, 64, False, None, 197),
        learned_attention_case(queries=True),
        learned_attention_case(queries=False),
    ]
