"""An approximation family of the user's own: chosen, searched for, proven, exported, compiled, verified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime
import pytest

import intc
from intc.codegen import rules
from intc.errors import ArtifactCorrupt, UsageError
from intc.export.onnx_model import onnx_model
from intc.ir.graph import Node
from intc.ir.op import Array, FormulaOp, Op, Sizes
from intc.ir.types import TensorType
from intc.ops import OPS
from intc.ops.dyadic import dyadic
from intc.ops.scalar import EXACT
from intc.ops.shift import check_rows, normalise
from intc.passes.integer.families import FAMILIES, LOG2_E, Family, filled, register_family, wide_scores
from intc.passes.integer.forms import Form, Forms, emitted
from intc.passes.plan import read_plan
from intc.report.verify import verify_artifact
from tests.emulated import check_graph as check_emulated
from tests.emulated import emulation
from tests.kernel_cases import Case
from tests.native import check_graph, check_op
from tests.test_c_kernels import check as check_c
from tests.test_c_kernels import consistent, side_by_side
from tests.test_kernels_generic import all_cases
from tests.tiny_encoder import tiny_encoder, tiny_feeds

FORMULAS = sorted(name for name, op in OPS.items() if issubclass(op, FormulaOp))


@pytest.fixture
def by_formula(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """At most three cases of every operator with a formula, none of which has another kernel any more."""
    for table in ("RULES", "SCALAR_RULES", "GPU_RULES"):
        others = {n: r for n, r in getattr(rules, table).items() if n not in FORMULAS}
        monkeypatch.setattr(rules, table, others)
    cases = all_cases()
    few = [case for name in FORMULAS for case in [c for c in cases if c.op.name == name][:3]]
    assert {case.op.name for case in few} == set(FORMULAS)
    return few


@pytest.mark.parametrize("target", ["x86-64-v2", "native"])
def test_every_formula_is_a_kernel(target: str, by_formula: list[Case]) -> None:
    """Sums, roots, tables and masks; lowering refuses floating point in the machine code."""
    check = partial(check_graph, target=target)
    check_op([(case.op, case.inputs, case.sizes) for case in by_formula], check)


def test_every_formula_is_c(by_formula: list[Case], tmp_path: Path) -> None:
    check_c(side_by_side([case for case in by_formula if consistent(case)]), tmp_path)


def test_every_formula_is_a_gpu_kernel(by_formula: list[Case]) -> None:
    with emulation():
        check_op([(case.op, case.inputs, case.sizes) for case in by_formula], check_emulated)


@dataclass(frozen=True)
class LineSoftmax(FormulaOp):
    """Softmax by ``2**-r ~ 1 - r/2``; ``m, e`` turn score units into Q15 octaves."""

    m: int
    e: int
    name: ClassVar[str] = "line_softmax"
    arity: ClassVar[tuple[int, ...]] = (1, 2)

    def infer(self, *types: TensorType) -> TensorType:
        check_rows(types[0], types[1:])
        return TensorType(types[0].shape, "uint8")

    def evaluate(self, *arrays: Array, sizes: Sizes) -> Array:
        return np.asarray(self.formula(EXACT, arrays[0].astype(np.int64), *arrays[1:]), np.uint8)

    def formula(self, ns: Any, *operands: Any) -> Any:
        octaves = ns.minimum((ns.distance(*operands) * self.m) >> self.e, 2**20 - 1)
        weights = (32768 - ((octaves & 32767) >> 1)) >> (octaves >> 15)
        return normalise(ns, ns.where(operands[1], weights, 0) if len(operands) == 2 else weights, 8)


def line_softmax(forms: Forms, node: Node, mask: tuple[str, ...]) -> Form:
    scores, mask = filled(forms, node, wide_scores(forms, node.inputs[0]), mask)
    m, e = dyadic(Fraction(float(scores.scale)) * LOG2_E * 2**15)
    return emitted(forms, node, LineSoftmax(m, e), (scores.name, *mask), np.float64(2.0**-8))


@pytest.fixture
def line() -> Iterator[str]:
    register_family("line", Family(softmax=line_softmax, ops=(LineSoftmax,)))
    yield "line"
    del FAMILIES["line"], OPS["line_softmax"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    onnx.save(tiny_encoder(layers=1), path)
    return str(path)


def compiled(model: str, **options: Any) -> intc.Module:
    return intc.compile(model, tiny_feeds(24, 12), rounding="nearest", **options)


def test_a_registered_family_is_compiled_verified_and_exported(
    line: str, encoder: str, tmp_path: Path
) -> None:
    module = compiled(encoder, approximation=line)
    used = [node.op.name for node in module.prepared.nodes]
    assert used.count("line_softmax") == 1 and "shift_weights" not in used
    assert {n.family for n in module.report().nodes if n.op == "line_softmax"} == {line}
    feeds = tiny_feeds(8, 9, seed=2)
    path = tmp_path / "encoder.intc"
    module.save(path)
    checked = verify_artifact(path, feeds)
    assert checked.passed and checked.bit_exact and checked.float_free
    (other,) = compiled(encoder).run(None, feeds)
    (mine,) = module.run(None, feeds)
    assert not np.array_equal(mine, other) and np.corrcoef(mine.ravel(), other.ravel())[0, 1] > 0.99

    session = onnxruntime.InferenceSession(onnx_model(module.graph).SerializeToString())
    integers = {n: v.astype(module.graph.type(n).dtype) for n, v in feeds.items()}
    (exported,) = session.run(None, integers)
    np.testing.assert_array_equal(exported, next(iter(module.graph.run(integers).values())))


def test_a_plan_names_it_and_a_search_leaves_it_for_a_better_one(line: str, encoder: str) -> None:
    plan = {"default": {"approximation": line}}
    assert read_plan(plan).default.approximation == line
    search = intc.Search(families=("shift",), max_slowdown=100, weights=(8,), activations=(8,))
    searched = compiled(encoder, approximation=line, bits="auto", search=search)
    assert {c.approximation for n, c in searched.plan.nodes.items() if n.startswith("Soft")} == {"shift"}
    assert {c.weights for c in searched.plan.nodes.values()} <= {None, 8}
    with pytest.raises(UsageError, match=r"weights=\(3,\): expected some of \(4, 8, 16\)"):
        intc.Search(weights=(3,))


def test_an_artifact_of_an_unknown_family_runs_and_is_refused_by_name(encoder: str, tmp_path: Path) -> None:
    register_family("line", Family(softmax=line_softmax, ops=(LineSoftmax,)))
    path = tmp_path / "encoder.intc"
    try:
        compiled(encoder, approximation="line").save(path)
    finally:
        del FAMILIES["line"], OPS["line_softmax"]
    feeds = tiny_feeds(2, 5)
    assert intc.load(path).run(None, feeds)[0].shape == (2, 5)
    with pytest.raises(ArtifactCorrupt, match=r"operator 'line_softmax' is not known.*register_family"):
        verify_artifact(path, feeds)


class NoFormula(Op):
    name: ClassVar[str] = "no_formula"


class Taken(LineSoftmax):
    name: ClassVar[str] = "shiftmax"


@pytest.mark.parametrize(
    ("name", "family", "message"),
    [
        ("lut", Family(), "'lut' is registered already"),
        ("My family", Family(), "lower-case letters"),
        ("mine", Family(ops=(NoFormula,)), "'no_formula' is no FormulaOp"),  # type: ignore[arg-type]
        ("mine", Family(ops=(Taken,)), "another operator is called 'shiftmax'"),
    ],
)
def test_what_cannot_be_registered(name: str, family: Family, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        register_family(name, family)
    assert "mine" not in FAMILIES
