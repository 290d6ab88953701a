"""The memory plan: disjoint lifetimes share slots, nothing alive is overwritten, sizes are proven."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from intc.codegen.lower import lower
from intc.codegen.memory import ALIGN, Plan, Step, arena_bytes, never_larger, pack, plan
from intc.errors import CodegenError, UsageError
from intc.ir.dims import Dim, evaluate, symbol
from intc.ir.graph import Builder
from intc.ir.types import TensorType
from intc.ops.elementwise import Add
from intc.ops.logic import Not
from intc.ops.movement import Reshape, Transpose
from intc.ops.requantize import Clip
from tests.native import check_graph

B, S = symbol("batch"), symbol("seq")


def lifetimes(steps: list[Step], keep: set[str]) -> dict[str, tuple[int, int]]:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for i, step in enumerate(steps):
        for name in step.writes:
            first.setdefault(name, i)
        last.update(dict.fromkeys((*step.reads, *step.writes), i))
    last.update(dict.fromkeys(keep, len(steps)))
    return {name: (first[name], last[name]) for name in first}


def check(steps: list[Step], sizes: dict[str, Dim], keep: set[str]) -> Plan:
    """Plan, and prove: every value fits its slot and shares it with no value that is alive beside it."""
    result = plan(steps, sizes, keep)
    alive = lifetimes(steps, keep)
    assert set(result.slot_of) == {n for s in steps for n in s.writes if n in sizes}
    for name, slot in result.slot_of.items():
        for env in ({"batch": 1, "seq": 1}, {"batch": 9, "seq": 1}, {"batch": 1, "seq": 300}):
            assert evaluate(sizes[name], env) <= evaluate(result.slots[slot], env)
    for a, b in combinations(result.slot_of, 2):
        if result.slot_of[a] == result.slot_of[b]:
            (a0, a1), (b0, b1) = alive[a], alive[b]
            assert a1 < b0 or b1 < a0, f"{a} and {b} share a slot while both are alive"
    return result


def test_a_chain_of_equal_sizes_needs_two_slots() -> None:
    steps = [Step((f"v{i}",), (f"v{i + 1}",)) for i in range(10)]
    result = check(steps, {f"v{i}": B * S * 4 for i in range(1, 10)}, set())
    assert len(result.slots) == 2


def test_a_slot_grows_only_where_the_order_of_sizes_is_proven() -> None:
    steps = [Step((), ("a",)), Step(("a",), ("b",)), Step(("b",), ("c",)), Step(("c",), ("d",))]
    grown = check(steps, {"a": B * 8, "b": B, "c": B * S * 8, "d": B}, set())
    assert set(grown.slots) == {B, B * S * 8}
    apart = check(steps, {"a": B * B, "b": 1, "c": S * 8, "d": 1}, set())
    assert B * B in apart.slots and S * 8 in apart.slots


@pytest.mark.parametrize("seed", range(20))
def test_random_programs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    choices: list[Dim] = [64, 1000, B * 8, S * 3, B * S, B * S * 4, B * S * S, B * B + 7, S * S * 2]
    names = [f"v{i}" for i in range(40)]
    sizes = {n: choices[rng.integers(len(choices))] for n in names}
    steps = []
    for i, name in enumerate(names):
        reads = tuple({names[int(j)] for j in rng.integers(max(0, i - 8), i, 2)}) if i else ()
        steps.append(Step(reads, (name,)))
    check(steps, sizes, {names[5], names[-1]})


def test_never_larger_is_sound_for_symbols_from_one() -> None:
    assert never_larger(B, B * S)
    assert never_larger(B + S, B * S * 2)
    assert not never_larger(B * S, B * 100)
    assert not never_larger(S, B)
    assert never_larger(5, B * 5) and not never_larger(6, B * 5)


def test_arena_bytes_rounds_every_slot_and_gives_each_task_its_scratch() -> None:
    assert arena_bytes([B * 3, 1], [10, S], 4, {"batch": 30, "seq": 100}) == 128 + 64 + 4 * 2 * ALIGN


def test_outputs_inputs_and_aliases_share_and_copy() -> None:
    """Outputs that are inputs, constants, reshapes or each other all arrive; nothing else is overwritten."""
    builder = Builder("aliases")
    x = builder.input("x", TensorType((B, S, 4), "int16", -3000, 3000))
    keep = builder.input("keep", TensorType((B, S), "bool"))
    flat = builder.emit(Reshape((B * S * 4,)), x)
    total = builder.emit(Add(), flat, flat)
    shaped = builder.emit(Reshape((B, S * 4)), total)
    constant = builder.constant("c", np.arange(6, dtype=np.int8).reshape(2, 3))
    for name in (x, flat, total, shaped, constant, builder.emit(Reshape((3, 2)), constant)):
        builder.output(name)
    builder.output(builder.emit(Not(), keep))
    builder.output(builder.emit(Transpose((1, 0)), shaped))
    check_graph(builder.finish(), {"batch": 3, "seq": 5})


def test_equal_kernels_are_emitted_once() -> None:
    builder = Builder("chain")
    value = builder.input("x", TensorType((B, 64), "int32", -1000, 1000))
    for i in range(12):
        value = builder.emit(Clip(-900 + 0 * i, 900, "int32"), value)
        builder.output(value)  # which stores it
    lowered = check_graph(builder.finish(), {"batch": 2})
    assert len(lowered.stages) == 12 and len({kernel for kernel, _, _ in lowered.stages}) == 1


def test_refusals_name_their_cause() -> None:
    builder = Builder("float")
    builder.output(builder.input("x", TensorType((B,), "float32")))
    with pytest.raises(CodegenError, match="'x' is float32"):
        lower(builder.finish())
    with pytest.raises(UsageError, match="aarch64"):
        lower(Builder("empty").finish(), "aarch64")


def test_packed_values_never_overlap_while_alive() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        count = int(rng.integers(2, 14))
        sizes = {f"v{i}": int(rng.integers(1, 5000)) for i in range(count)}
        steps = [
            Step(tuple(f"v{j}" for j in range(i) if rng.random() < 0.4), (f"v{i}",)) for i in range(count)
        ]
        offsets, end = pack(steps, sizes, 8)
        alive = {n: [i for i, s in enumerate(steps) if n in (*s.reads, *s.writes)] for n in sizes}
        assert set(offsets) == set(sizes) and end == max(offsets[n] + sizes[n] for n in sizes)
        assert all(offset % 8 == 0 for offset in offsets.values())
        for a in sizes:
            for b in sizes:
                together = alive[a][0] <= alive[b][-1] and alive[b][0] <= alive[a][-1]
                apart = offsets[a] + sizes[a] <= offsets[b] or offsets[b] + sizes[b] <= offsets[a]
                assert a == b or apart or not together
        busiest = max(sum(sizes[n] for n in sizes if alive[n][0] <= i <= alive[n][-1]) for i in range(count))
        assert busiest <= end <= sum(sizes.values()) + 8 * count


def test_packed_chains_take_two_values() -> None:
    steps = [Step((f"v{i - 1}",) if i else (), (f"v{i}",)) for i in range(9)]
    assert pack(steps, {f"v{i}": 100 for i in range(9)}, 4)[1] == 200
