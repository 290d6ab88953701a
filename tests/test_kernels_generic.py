"""Every integer operator: the kernel equals ``evaluate`` bit for bit, for any number of tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from intc.codegen.rules import RULES
from intc.codegen.targets import TARGETS, host_features
from intc.ops import OPS
from tests.kernel_cases import (
    Case,
    elementwise_cases,
    family_cases,
    layer_norm_cases,
    movement_cases,
    requantize_cases,
    row_softmax_cases,
    shiftmax_cases,
)
from tests.native import check_graph, check_op
from tests.op_cases import FLOAT_ONLY
from tests.product_cases import attention_cases, linear_cases, matmul_cases

GROUPS: dict[str, Callable[[], list[Case]]] = {
    "requantize": requantize_cases,
    "shiftmax": shiftmax_cases,
    "row_softmax": row_softmax_cases,
    "layer_norm": layer_norm_cases,
    "elementwise": elementwise_cases,
    "movement": movement_cases,
    "matmul": matmul_cases,
    "families": family_cases,
    "linear": linear_cases,
    "attention": attention_cases,
}


def all_cases() -> list[Case]:
    return [case for group in GROUPS.values() for case in group()]


HERE = [t.name for t in TARGETS if host_features().issuperset(t.features)]


@pytest.mark.parametrize("target", HERE)
@pytest.mark.parametrize("group", GROUPS)
def test_kernels_equal_evaluate(group: str, target: str) -> None:
    """On every instruction set of this machine; lowering refuses floating point in their machine code."""
    check = partial(check_graph, target=target)
    check_op([(case.op, case.inputs, case.sizes) for case in GROUPS[group]()], check)


def test_every_integer_operator_has_a_rule_and_a_case() -> None:
    integer = set(OPS) - FLOAT_ONLY
    assert integer <= set(RULES), f"no kernel for {sorted(integer - set(RULES))}"
    tested = {case.op.name for case in all_cases()}
    assert set(RULES) <= tested, f"no kernel test for {sorted(set(RULES) - tested)}"
