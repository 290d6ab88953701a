"""Every registered operator has all of its parts: docstring, typing rule, meaning, case, error bound."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest

from intc.errors import IntcError
from intc.ir.op import Op
from intc.ir.types import type_of_array
from intc.ops import OPS
from tests.op_bounds import BOUNDS
from tests.op_cases import CASES, COMPOSED, EXACT, FLOAT_ONLY, Case, sample


@pytest.mark.parametrize("op", OPS.values(), ids=OPS.keys())
def test_parts(op: type[Op]) -> None:
    assert OPS[op.name] is op
    assert (op.__doc__ or "").strip()
    assert op.infer is not Op.infer
    assert op.evaluate is not Op.evaluate
    assert op.arity
    assert any(type(case.op) is op for case in CASES)


def test_every_operator_says_how_exact_it_is() -> None:
    groups = (set(BOUNDS), EXACT, FLOAT_ONLY, COMPOSED)
    assert sum(map(len, groups)) == len(OPS), "an operator belongs to two groups, or to none"
    assert set().union(*groups) == set(OPS)
    assert {name for name, op in OPS.items() if hasattr(op, "error_bound") and op.error_bound} == set(BOUNDS)


@pytest.mark.parametrize("name", BOUNDS)
def test_error_bound(name: str) -> None:
    bound = OPS[name].error_bound  # type: ignore[attr-defined]
    measured = BOUNDS[name]()
    assert bound / 4 < measured <= bound, "a bound says what holds, and not much more"


@pytest.mark.parametrize("how", ["random", "lowest", "highest"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.op.name)
def test_results_have_the_inferred_type(case: Case, how: str) -> None:
    inferred = case.op.infer(*case.inputs)
    rng = np.random.default_rng(1)
    for _ in range(20 if how == "random" else 1):
        result = case.op.evaluate(*(sample(type_, rng, how) for type_ in case.inputs), sizes={})
        got = type_of_array(result)
        assert (got.shape, got.dtype) == (inferred.shape, inferred.dtype)
        if not inferred.is_float:
            (low, high), (lo, hi) = got.interval, inferred.interval
            assert lo <= low <= high <= hi


@pytest.mark.parametrize("case", [c for c in CASES if c.op.name in BOUNDS], ids=lambda c: c.op.name)
def test_an_attribute_out_of_range_is_refused(case: Case) -> None:
    for field in fields(case.op):
        if type(getattr(case.op, field.name)) is int and field.name not in ("lo", "hi"):
            wrong = replace(case.op, **{field.name: 1 if field.name == "x0" else -99})
            with pytest.raises(IntcError):
                wrong.infer(*case.inputs)
