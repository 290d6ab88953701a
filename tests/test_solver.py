"""The scalar formulas before an independent judge: z3 proves, for all inputs of the stated intervals, that
no intermediate leaves its register and that the result lies where the docstring says.

Formulas of one 16-bit input are gone through exhaustively in test_proof.py; these have inputs of more bits,
or more inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from intc.ops import scalar
from intc.ops.division import Divide
from intc.ops.ivit import quotient, shift_exp
from intc.ops.row_softmax import NormaliseRows
from intc.ops.shift import normalise

z3 = pytest.importorskip("z3")
TOP = 2**31 - 1


class Term:
    """An integer of the solver, unbounded, with the operators that formulas use."""

    def __init__(self, ns: Proof, expr: Any) -> None:
        self.ns, self.expr = ns, expr

    def __add__(self, other: Any) -> Term:
        return self.ns.note(self.expr + self.ns.lift(other))

    def __sub__(self, other: Any) -> Term:
        return self.ns.note(self.expr - self.ns.lift(other))

    def __rsub__(self, other: Any) -> Term:
        return self.ns.note(self.ns.lift(other) - self.expr)

    def __mul__(self, other: Any) -> Term:
        return self.ns.note(self.expr * self.ns.lift(other))

    def __rshift__(self, other: Any) -> Term:
        return self._shifted(other, lambda n: self.expr / (1 << n))  # z3 rounds down for positive divisors

    def __lshift__(self, other: Any) -> Term:
        return self._shifted(other, lambda n: self.expr * (1 << n))

    def _shifted(self, other: Any, by: Callable[[int], Any]) -> Term:
        if isinstance(other, int):
            return self.ns.note(by(other))
        self.ns.demand(other.expr, 0, 33)
        out = by(33)
        for n in range(33):
            out = z3.If(other.expr == n, by(n), out)
        return self.ns.note(out)

    def __and__(self, mask: int) -> Term:
        assert mask & (mask + 1) == 0
        return self.ns.note(self.expr % (mask + 1))

    def __ge__(self, other: Any) -> Any:
        return self.expr >= self.ns.lift(other)

    def __gt__(self, other: Any) -> Any:
        return self.expr > self.ns.lift(other)

    __radd__, __rmul__ = __add__, __mul__


class Proof:
    """The algebra; ``bits`` is the width that every intermediate must fit, ``nb`` the bit length of a sum."""

    def __init__(self, bits: int, nb: int = 0) -> None:
        self.bits, self.nb = bits, nb
        self.facts: list[Any] = []
        self.demands: list[Any] = []

    def variable(self, name: str, lo: int, hi: int) -> Term:
        expr = z3.Int(name)
        self.facts += [expr >= lo, expr <= hi]
        return Term(self, expr)

    def note(self, expr: Any) -> Term:
        named = z3.FreshInt()
        self.facts.append(named == expr)
        self.demand(named, -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1)
        return Term(self, named)

    def demand(self, expr: Any, lo: int, hi: int) -> None:
        self.demands.append(z3.And(expr >= lo, expr <= hi))

    def lift(self, value: Any) -> Any:
        return value.expr if isinstance(value, Term) else z3.IntVal(int(value))

    def where(self, condition: Any, a: Any, b: Any) -> Term:
        return self.note(z3.If(condition, self.lift(a), self.lift(b)))

    def minimum(self, a: Any, b: Any) -> Any:
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self.where(self.lift(a) <= self.lift(b), a, b)

    def maximum(self, a: Any, b: Any) -> Any:
        if isinstance(a, int) and isinstance(b, int):
            return max(a, b)
        return self.where(self.lift(a) >= self.lift(b), a, b)

    def mulhrs(self, a: Any, b: Any) -> Term:
        return self.note((self.lift(a) * self.lift(b) + 16384) / 32768)

    def assume(self, value: Any, lo: int, hi: int) -> Any:
        """Here nothing is assumed: it becomes one more thing to prove."""
        self.demand(self.lift(value), lo, hi)
        return value

    def product(self, a: Any, b: Any, lo: int, hi: int) -> Any:
        return self.assume(self.note(self.lift(a) * self.lift(b)), lo, hi)

    def floor_div(self, a: Any, b: Any) -> Term:
        divisor = self.lift(b)
        if isinstance(b, int) and b < 0:
            return self.note(-self.lift(a) / -divisor)
        self.demands.append(divisor > 0)
        return self.note(self.lift(a) / divisor)

    def bit_length(self, x: Any) -> int:
        """Taken as known, the proof being done for each: it is a fact about x."""
        self.facts += [x.expr < 1 << self.nb, x.expr >= (1 << self.nb) >> 1]
        return self.nb

    def row_sum(self, x: Any) -> Any:
        return self.total

    def holds(self, result: Any, lo: int, hi: int) -> bool:
        """Whether no input breaks a demand or leaves ``[lo, hi]``; not to know counts as no."""
        self.demand(self.lift(result), lo, hi)
        solver = z3.Solver()
        solver.set("timeout", 60_000)
        solver.add(*self.facts, z3.Not(z3.And(*self.demands)))
        return bool(solver.check() == z3.unsat)

    total: Any = None


def test_the_judge_finds_what_is_wrong() -> None:
    ns = Proof(32)
    x = ns.variable("x", 0, 2**16)
    assert not ns.holds(x * x, 0, 2**32)  # leaves 32 bits
    ns = Proof(33)
    x = ns.variable("x", 0, 2**15)
    assert ns.holds(x * x, 0, 2**30)
    ns = Proof(34)
    x = ns.variable("x", 0, 2**15)
    assert not ns.holds(x * x, 0, 2**30 - 1)  # one off


@pytest.mark.parametrize("e", range(1, 63))
def test_requantize_for_every_input_and_multiplier(e: int) -> None:
    ns = Proof(64)
    x, m = ns.variable("x", -TOP, TOP), ns.variable("m", -TOP, TOP)
    assert ns.holds(scalar.requantize(ns, x, m, e, -128, 127), -128, 127)


SCALARS: dict[str, tuple[Callable[[Any, Any], Any], tuple[int, int], tuple[int, int]]] = {
    "exp2_neg": (scalar.exp2_neg, (0, TOP), (0, 32768)),
    "reciprocal_1_2": (scalar.reciprocal_1_2, (2**15, 2**16), (16383, 32768)),
    "bounded_distance": (lambda ns, d: scalar.bounded_distance(ns, d, 7), (0, TOP), (0, 32767)),
    "bounded_distance to the left": (lambda ns, d: scalar.bounded_distance(ns, d, -5), (0, TOP), (0, 32767)),
}


@pytest.mark.parametrize("name", SCALARS)
def test_formulas_of_one_input(name: str) -> None:
    formula, given, result = SCALARS[name]
    ns = Proof(32)
    assert ns.holds(formula(ns, ns.variable("x", *given)), *result)


def test_softmax_weights_for_every_distance_and_factor() -> None:
    ns = Proof(17)  # 16 bits and a sign: registers hold 32640, and sums of it, without one
    weight = scalar.exp2_weight(ns, ns.variable("distance", 0, 32767), ns.variable("m", 0, 32767))
    assert ns.holds((weight + 64) >> 7, 0, 255)


@pytest.mark.parametrize("nb", range(1, 32))
@pytest.mark.parametrize("bits", [8, 16])
def test_probabilities_for_every_row_sum(bits: int, nb: int) -> None:
    """A weight is a part of its sum; for shiftmax the sum is at least the maximum's 2**15."""
    ns = Proof(64, nb)
    weight, ns.total = ns.variable("weight", 0, 2**15), ns.variable("total", 1, TOP)
    ns.facts.append(weight.expr <= ns.total.expr)
    assert ns.holds(normalise(ns, weight, bits), 0, 255 if bits == 8 else 32767)


@pytest.mark.parametrize("nb", range(1, 25))
def test_averages_for_every_sum_of_weights(nb: int) -> None:
    """``|context| <= 255 * total``: products of weights and 8-bit values; sums of weights take 24 bits."""
    ns = Proof(64, nb)
    context, ns.total = ns.variable("context", -(2**31), TOP), ns.variable("total", 1, 65535 * 255)
    ns.facts += [context.expr <= 255 * ns.total.expr, context.expr >= -255 * ns.total.expr]
    assert ns.holds(NormaliseRows().formula(ns, context, None), -32767, 32767)


@pytest.mark.parametrize("nb", [1, 2, 16, 30, 31])
def test_layer_norm_factors(nb: int) -> None:
    ns = Proof(64, nb)
    deviation = ns.variable("deviation", 1, TOP)
    bits = ns.bit_length(deviation)
    assert ns.holds(ns.floor_div((1 << (30 + bits)) - 1, deviation), 2**29, 2**31)


def test_quotients() -> None:
    ns = Proof(64)
    op = Divide(shift=20, limit=2**30)
    assert ns.holds(op.formula(ns, ns.variable("a", -TOP, TOP), ns.variable("b", -TOP, TOP)), -(2**30), 2**30)


@pytest.mark.parametrize("x0", [-1, -40, -(2**20)])
def test_the_published_exponential(x0: int) -> None:
    ns = Proof(64)
    x = ns.variable("x", -(2**31), 0)
    octaves = ns.maximum(x + (x >> 1) - (x >> 4), 15 * x0)
    q = ns.floor_div(octaves, x0)
    assert ns.holds(ns.assume(octaves - q * x0, x0 + 1, 0), x0 + 1, 0)
    ns = Proof(64)
    x = ns.variable("x", -(2**31), 0)
    assert ns.holds(shift_exp(ns, x, x0, 15), 0, -x0 << 15)


def test_the_published_quotient() -> None:
    ns = Proof(64)
    e, total = ns.variable("e", 0, 2**61), ns.variable("total", 1, 2**62)
    ns.facts.append(e.expr <= total.expr)
    assert ns.holds(quotient(ns, e, total, 8), 0, 2**38)


def test_newton_steps_fall_to_the_root_and_no_further() -> None:
    """For s = floor(sqrt(v)), q = v // r: (r + q) // 2 >= s for every r >= 1, and it is below r if r > s."""
    r, q, s, v = z3.Reals("r q s v")
    facts = [r >= 1, q >= 0, s >= 0, v >= s * s, v < (s + 1) * (s + 1), q * r <= v, v < r * (q + 1)]
    for claim in (r + q + 1 > 2 * s, z3.Implies(r >= s + 1, q < r)):
        solver = z3.Solver()
        solver.add(*facts, z3.Not(claim))
        assert solver.check() == z3.unsat
