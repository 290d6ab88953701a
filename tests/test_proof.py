"""The prover on trial: bounds hold for every intermediate, and are reached by inputs made to reach them."""

from __future__ import annotations

from functools import cache
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import intc
from intc.codegen.cpu.fused import isa_of, linear_spec
from intc.codegen.lower import lower
from intc.codegen.program import Program
from intc.codegen.targets import TARGETS, host_features, resolve
from intc.errors import QuantizationError
from intc.ir.graph import Builder, Graph, Value, quantize_feed
from intc.ir.op import Array, FormulaOp
from intc.ir.types import TensorType
from intc.ops import scalar
from intc.ops.elementwise import Add
from intc.ops.fused import Attention, Linear
from intc.ops.intervals import Condition, Interval, Intervals, signed_bits
from intc.ops.matmul import MatMul
from intc.ops.row_softmax import NormaliseRows, ShiftWeights
from intc.ops.window import GroupedConv
from intc.passes.unfuse import Unfuse
from intc.report.proof import Bounds, proofs, prove
from tests.native import Native
from tests.op_cases import CASES, Case, sample

MODEL = Path(intc.__file__).parents[1] / "examples" / "digits" / "digits_vit.onnx"
HERE = [t.name for t in TARGETS if host_features().issuperset(t.features)]


# ---------------------------------------------------------------- every intermediate of every formula


class Both:
    """An exact array beside the interval that is to contain it; every operation checks that it does."""

    def __init__(self, ns: Together, exact: Any, interval: Any) -> None:
        self.ns, self.exact, self.interval = ns, np.asarray(exact), interval
        if isinstance(interval, Condition):
            assert interval.may_hold or not self.exact.any()
            assert interval.may_fail or self.exact.all()
        elif self.exact.size:
            ends = int(self.exact.min()), int(self.exact.max())
            assert interval.lo <= ends[0] <= ends[1] <= interval.hi
            ns.reached = min(ns.reached[0], ends[0]), max(ns.reached[1], ends[1])

    def _apply(self, name: str, *others: Any) -> Both:
        exact, interval = self.ns.split(others)
        return Both(self.ns, getattr(self.exact, name)(*exact), getattr(self.interval, name)(*interval))

    def __rlshift__(self, other: int) -> Both:
        return Both(self.ns, np.int64(other) << self.exact, other << self.interval)

    def __rsub__(self, other: int) -> Both:
        return Both(self.ns, other - self.exact, other - self.interval)


for operation in ("add", "radd", "sub", "mul", "rmul", "rshift", "lshift", "and", "ge", "gt"):
    name = f"__{operation}__"
    setattr(Both, name, lambda self, *others, _name=name: self._apply(_name, *others))


class Together:
    """The exact algebra and that of intervals, step by step; ``reached`` covers every exact value."""

    def __init__(self, row: int) -> None:
        self.intervals, self.reached = Intervals(64, row), (0, 0)

    def split(self, values: Any) -> tuple[list[Any], list[Any]]:
        exact = [v.exact if isinstance(v, Both) else v for v in values]
        return exact, [v.interval if isinstance(v, Both) else v for v in values]

    def size(self, x: Any) -> int:
        return self.intervals.row

    def assume(self, value: Both, lo: int, hi: int) -> Both:
        assert lo <= int(value.exact.min()) <= int(value.exact.max()) <= hi
        return Both(self, value.exact, self.intervals.assume(value.interval, lo, hi))

    def __getattr__(self, name: str) -> Any:
        def both(*values: Any) -> Both:
            exact, interval = self.split(values)
            return Both(self, getattr(scalar.EXACT, name)(*exact), getattr(self.intervals, name)(*interval))

        return both


FORMULAS = [case for case in CASES if isinstance(case.op, FormulaOp)]


def operand(ns: Together, type_: TensorType, array: Array) -> Both:
    if type_.dtype == "bool":
        return Both(ns, array, Condition(True, True))
    return Both(ns, array.astype(np.int64), ns.intervals.interval(*type_.interval))


@pytest.mark.parametrize("case", FORMULAS, ids=lambda case: case.op.name)
@pytest.mark.parametrize("how", ["random", "lowest", "highest"])
def test_every_intermediate_lies_in_its_interval(case: Case, how: str) -> None:
    op = case.op
    assert isinstance(op, FormulaOp)
    row = op.row(*case.inputs)
    assert isinstance(row, int)
    ns = Together(row)
    for seed in range(5 if how == "random" else 1):
        arrays = [sample(t, np.random.default_rng(seed), how) for t in case.inputs]
        result = op.formula(ns, *(operand(ns, t, a) for t, a in zip(case.inputs, arrays, strict=True)))
        np.testing.assert_array_equal(result.exact, op.evaluate(*arrays, sizes={}))


SPARE = {
    **dict.fromkeys(("curve", "shift_gelu", "shift_tanh", "shift_sigmoid"), 1),
    "normalise_rows": 2,  # the case's sums are not those of its weights
    # the published families: intervals forget how a dividend and its divisor belong together
    "ivit_shiftmax": 20,
    "ivit_shift_gelu": 17,
    "ivit_layer_norm": 9,
    "ibert_layer_norm": 15,
    "lut_softmax": 13,
}  # bits of the proven register that no input was found to need


def extreme(type_: TensorType, how: int, rng: np.random.Generator) -> Array:
    """All at one end, drawn, or rows of which one element or half are at the other end."""
    if how < 3 or type_.dtype == "bool" or not type_.rank:
        return sample(type_, rng, ("lowest", "highest", "random")[how % 3])
    low = sample(type_, rng, "lowest")
    high = sample(type_, rng, "highest")
    apart = np.arange(low.shape[-1]) < (1 if how < 5 else low.shape[-1] // 2)
    return np.where(apart, high, low) if how % 2 else np.where(apart, low, high)


@pytest.mark.parametrize("case", FORMULAS, ids=lambda case: case.op.name)
def test_inputs_made_for_it_need_the_proven_register(case: Case) -> None:
    """Some input drives an intermediate of each formula to the width that the certificate states."""
    op, rng = case.op, np.random.default_rng(0)
    assert isinstance(op, FormulaOp)
    row = op.row(*case.inputs)
    assert isinstance(row, int)
    ns = Together(row)
    for hows in islice(product(range(7), repeat=len(case.inputs)), 49):
        arrays = [extreme(t, how, rng).astype(np.int64) for t, how in zip(case.inputs, hows, strict=True)]
        op.formula(ns, *(operand(ns, t, a) for t, a in zip(case.inputs, arrays, strict=True)))
    proven = min(lo for lo, _ in ns.intervals.seen), max(hi for _, hi in ns.intervals.seen)
    assert signed_bits(*proven) - signed_bits(*ns.reached) <= SPARE.get(op.name, 0)
    if op.name in ("requantize", "clip", "root", "shiftmax", "shift_weights"):
        assert ns.reached == proven


@pytest.mark.parametrize("kind", scalar.GELU_UNITS)
@pytest.mark.parametrize("frac", [4, 9, 12])
def test_the_polynomial_for_every_input(kind: str, frac: int) -> None:
    ns = Together(1)
    ns.intervals = Intervals(17)  # 16 bits, and what the interval algebra cannot see: that x + |x| is even
    x = Both(ns, np.arange(-32767, 32768), ns.intervals.interval(-32767, 32767))
    scalar.poly_gelu(ns, x, frac, kind)  # type: ignore[arg-type]


@pytest.mark.parametrize("frac", [5, 11, 14])
def test_the_logistic_family_for_every_input(frac: int) -> None:
    for formula in (scalar.gelu, scalar.sigmoid, scalar.tanh):
        ns = Together(1)
        ns.intervals = Intervals(32)
        x = Both(ns, np.arange(-32768, 32768), ns.intervals.interval(-32768, 32767))
        formula(ns, x, frac)  # type: ignore[arg-type]


# ---------------------------------------------------------------- whole graphs


@cache
def digits() -> Graph:
    """The prepared graph of the digits transformer."""
    pixels = np.clip(np.random.default_rng(0).normal(-0.4, 0.7, (24, 1, 8, 8)), -1, 1).astype(np.float32)
    return intc.compile(MODEL, {"input": pixels}, rounding="nearest").prepared


def feeds(graph: Graph, seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {"input": rng.uniform(-3, 3, (5, 1, 8, 8)).astype(np.float32)}


def test_taking_apart_changes_no_bit() -> None:
    graph, plain = digits(), Unfuse().run(digits())
    assert any(isinstance(n.op, Linear) for n in graph.nodes)
    assert any(isinstance(n.op, Attention) for n in graph.nodes)
    assert not any(isinstance(n.op, Linear | Attention) for n in plain.nodes)
    for seed in range(3):
        given = feeds(graph, seed)
        for ours, theirs in zip(plain.evaluate(given), graph.evaluate(given), strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "case", [c for c in CASES if isinstance(c.op, Linear | Attention)], ids=lambda case: case.op.name
)
def test_taking_apart_single_operators(case: Case) -> None:
    b = Builder("one")
    names = [b.input(f"x{i}", t) for i, t in enumerate(case.inputs)]
    b.output(b.emit(case.op, *names, name="y"))
    graph, rng = b.finish(), np.random.default_rng(0)
    raw = {name: sample(t, rng) for name, t in zip(names, case.inputs, strict=True)}
    np.testing.assert_array_equal(Unfuse().run(graph).run(raw)["y"], graph.run(raw)["y"])


def test_bounds_are_within_types_and_hold() -> None:
    plain, bounds = Unfuse().run(digits()), prove(digits())
    for name, found in bounds.items():
        low, high = plain.type(name).interval
        assert low <= found.ends[0] <= found.ends[1] <= high
        assert found.widest[0] <= found.ends[0] <= found.ends[1] <= found.widest[1]

    def observe(value: Value, array: Array) -> None:
        if value.name in bounds and value.type.dtype != "bool":
            assert np.all(array >= bounds[value.name].lo), value.name
            assert np.all(array <= bounds[value.name].hi), value.name

    for seed in range(3):
        raw = {"input": quantize_feed(plain.values["input"], feeds(plain, seed)["input"])}
        plain.run(raw, observe)


def test_actual_weights_justify_narrower_accumulators() -> None:
    graph = digits()
    plain, found = Unfuse().run(graph), proofs(graph)
    sums = [n for n in plain.nodes if isinstance(n.op, MatMul) and n.inputs[1] in plain.constants]
    assert len(sums) > 8
    for node in sums:
        name, wide = node.output, plain.type(node.inputs[0]).dtype == "int16"
        _, low, high = found[name]["type"]
        assert found[name]["bits"] <= (30 if wide else 24)
        assert high - low > found[name]["proven"][1] - found[name]["proven"][0]


def test_inputs_made_for_it_reach_every_bound() -> None:
    """For each product: in every column, the row that makes its sum largest, and the one that makes it
    smallest, give exactly what was proven.
    """
    plain = Unfuse().run(digits())
    bounds: dict[str, Bounds] = prove(digits())
    products = [n for n in plain.nodes if isinstance(n.op, MatMul) and n.inputs[1] in plain.constants]
    for node in products:
        w, x = plain.constants[node.inputs[1]], bounds[node.inputs[0]]
        lo, hi = (np.broadcast_to(end, w.shape[:1])[:, None] for end in (x.lo, x.hi))
        for largest in (True, False):
            rows = np.where((w > 0) == largest, hi, lo).T  # one row for each column
            sums = np.diagonal(node.op.evaluate(rows, w, sizes={}))
            want = bounds[node.output].hi if largest else bounds[node.output].lo
            np.testing.assert_array_equal(sums, want)


def test_images_and_pairs_of_values_reach_every_bound() -> None:
    """Of grouped convolutions channel by channel; of products of two values, and of sums, at all ends."""
    w = np.random.default_rng(1).integers(-127, 128, (3, 2, 2, 6)).astype(np.int8)
    b = Builder("ends")
    x = b.input("x", TensorType((6, 3, 2, 4), "int8", -128, 90))
    b.emit(GroupedConv((1, 1), (1, 1), 2), x, b.constant("w", w), name="image")
    left, right = b.input("left", TensorType((5, 70), "int8")), b.input("right", TensorType((70, 4), "uint8"))
    scores = b.emit(MatMul(), left, right, name="scores")
    b.output(b.emit(Add(), scores, b.input("mask", TensorType((5, 4), "int16")), name="masked"))
    b.output("image")
    graph = b.finish()
    bounds = prove(graph)
    for end, high in (("lo", False), ("hi", True)):
        images = np.zeros((6, 3, 2, 4), np.int8)
        for channel in range(6):
            group = slice(0, 2) if channel < 3 else slice(2, 4)
            images[channel, ..., group] = np.where((w[..., channel] > 0) == high, 90, -128)
        raw: dict[str, Array] = {"x": images, "right": np.full((70, 4), 255, np.uint8)}
        raw["left"] = np.full((5, 70), 127 if high else -128, np.int8)
        raw["mask"] = np.full((5, 4), 32767 if high else -32768, np.int16)
        found = graph.run(raw)
        np.testing.assert_array_equal(
            np.diagonal(found["image"].reshape(6, 6)), getattr(bounds["image"], end)
        )
        assert np.unique(found["masked"]) == getattr(bounds["masked"], end)


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("raw", [True, False])
def test_kernels_are_exact_at_the_ends_of_their_accumulators(target: str, raw: bool) -> None:
    """Rows that drive every accumulator to its bound, through the kernel of each instruction set."""
    rng = np.random.default_rng(5)
    k, n = 700, 36
    w = np.where(rng.random((k, n)) < 0.5, -128, 127).astype(np.int8)
    bias = rng.choice([-(2**30), 2**30], n).astype(np.int32)
    b = Builder("ends")
    x = b.input("x", TensorType((2 * n, k), "int8"))
    operands = [b.constant("w", w), b.constant("bias", bias)]
    op = Linear(-(2**31), 2**31 - 1, "int32", raw=True)
    if not raw:
        operands += [
            b.constant("m", np.full(n, 2**31 - 1, np.int32)),
            b.constant("e", np.full(n, 40, np.int32)),
        ]
        op = Linear(-(2**30), 2**30, "int32")
    b.output(b.emit(op, x, *operands, name="y"))
    graph = b.finish()
    rows = np.concatenate([np.where(w > 0, 127, -128).T, np.where(w > 0, -128, 127).T]).astype(np.int8)
    want = graph.run({"x": rows})["y"]
    np.testing.assert_array_equal(Native(graph, lower(graph, target)).run({"x": rows})["y"], want)
    if raw:
        bounds = prove(graph)["y"]
        np.testing.assert_array_equal(np.diagonal(want[:n]), bounds.hi)
        np.testing.assert_array_equal(np.diagonal(want[n:]), bounds.lo)


@pytest.mark.parametrize("target", HERE)
def test_proven_sums_are_rescaled_in_32_bits(target: str) -> None:
    """Few weights are not 0: what they can reach admits the short form where the type asks for 64 bits; the
    next wider sums do not, and both are exact where the proof ends.
    """
    k, n, e = 700, 36, 24
    b = Builder("sparse")
    x = b.input("x", TensorType((2 * n, k), "int8"))
    m = b.constant("m", np.where(np.arange(n) % 2, 1, -1).astype(np.int32) * (2**30 + 7))
    graphs = {}
    for name, some in (("proven", 250), ("beyond", 262)):
        rng = np.random.default_rng(3)
        w = np.zeros((k, n), np.int8)
        for column in range(n):
            w[rng.choice(k, some, replace=False), column] = rng.choice([-127, 127], some)
        operands = [b.constant(f"{name}.w", w), b.constant(f"{name}.bias", np.zeros(n, np.int32)), m]
        op = Linear(-(2**30), 2**30, "int32")
        graphs[name] = b.emit(op, x, *operands, b.constant(f"{name}.e", np.full(n, e, np.int32)), name=name)
        b.output(graphs[name])
    graph = b.finish()
    program = Program(graph, resolve(target))
    forms = {node.output: linear_spec(program, node, isa_of(program))[0].stages[0] for node in graph.nodes}
    assert not forms["proven"].exact64 and forms["beyond"].exact64
    assert proofs(graph)["proven/sums"]["bits"] <= 32 - forms["proven"].pre
    for name in graphs:
        w = graph.constants[f"{name}.w"]
        rows = np.concatenate([np.where(w > 0, 127, -128).T, np.where(w > 0, -128, 127).T]).astype(np.int8)
        want = graph.run({"x": rows})[name]
        np.testing.assert_array_equal(Native(graph, lower(graph, target)).run({"x": rows})[name], want)


# ---------------------------------------------------------------- refusals


def test_a_division_by_foreign_weights_is_refused() -> None:
    """The product fits because the context is a sum of 8-bit values, weighed by what it is divided by."""
    b = Builder("foreign")
    scores = b.input("scores", TensorType((2, 9), "int32", -99, 99))
    values, other = b.input("v", TensorType((9, 4), "int8")), b.input("other", TensorType((2, 9), "uint8"))
    weights = b.emit(ShiftWeights(20000, 2), scores)
    context = b.emit(MatMul(), weights, values)
    good = b.emit(NormaliseRows(), context, weights, name="good")
    b.output(good)
    assert prove(b.graph)["good"].widest[1] < 2**63
    b.output(b.emit(NormaliseRows(), context, other, name="bad"))
    with pytest.raises(QuantizationError, match=r"'bad'.*does not divide sums by their weights"):
        prove(b.graph)


def test_an_assumption_that_does_not_hold_is_an_error() -> None:
    weights = np.array([[0, 0, 1]], np.uint8)
    with pytest.raises(QuantizationError, match="an intermediate leaves"):
        NormaliseRows().evaluate(np.array([[2**30]], np.int32), weights, sizes={})


def test_intervals_refuse_what_they_cannot_divide_or_root() -> None:
    ns = Intervals(64)
    with pytest.raises(QuantizationError, match="division"):
        ns.floor_div(5, Interval(-1, 1, 64))
    with pytest.raises(QuantizationError, match="negative"):
        ns.isqrt(Interval(-1, 9, 64))
    with pytest.raises(QuantizationError, match="beyond 64 bits"):
        Intervals(64, row=2**40).row_sum(Interval(0, 2**31, 64))
