"""How each approximation family turns a float softmax, GELU, LayerNorm or tanh into integer operators.

Every function takes the forms built so far and a float node, emits integer nodes and returns the result's
form.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Final, TypeAlias

import numpy as np

from intc.errors import QuantizationError, UsageError
from intc.ir.graph import Node
from intc.ir.op import Array, FormulaOp
from intc.ops import OPS, scalar
from intc.ops.dyadic import dyadic
from intc.ops.elementwise import Cast, Where
from intc.ops.gelu import Gelu
from intc.ops.ibert import IbertGelu, IbertLayerNorm, IbertSoftmax
from intc.ops.ivit import IvitLayerNorm, IvitShiftGelu, IvitShiftmax
from intc.ops.layer_norm import LayerNorm
from intc.ops.logic import Not, Or
from intc.ops.lut import LutSoftmax
from intc.ops.poly import PolyGelu
from intc.ops.reduce import ReduceSum
from intc.ops.row_softmax import ShiftWeights, octave_factor
from intc.ops.shift import ShiftGelu, ShiftLayerNorm, Shiftmax, ShiftSigmoid, ShiftTanh
from intc.ops.softmax import Softmax
from intc.ops.table import Table
from intc.passes.integer.forms import COVERED, LIMIT, Form, Forms, as_scale, emitted

Rule: TypeAlias = Callable[[Forms, Node], Form]
SoftmaxRule: TypeAlias = Callable[[Forms, Node, tuple[str, ...]], Form]
Norm: TypeAlias = Callable[[Forms, Node, int, Array], Form]
LOG2_E: Final = Fraction(1.4426950408889634)
PROBABILITY_SCALE: Final = np.float64(2.0**-8)


def fixed_point(
    forms: Forms, value: str, low: int, high: int, unit: float = 1.0, room: float = 1.0
) -> tuple[Form, int]:
    """``value`` in units of ``unit`` as int16 in Q``frac`` with the most fraction bits in [low, high] that
    hold ``room`` times its calibrated range.
    """
    frac = math.floor(math.log2(32767 * unit / (room * forms.range_of(value))))
    frac = max(low, min(high, frac))
    return forms.quantised(value, 16, np.float64(unit * 2.0**-frac)), frac  # type: ignore[arg-type]


def wide_scores(forms: Forms, value: str) -> Form:
    """Scores of at most 32 bits, any two less than 2**31 apart, that grow with their integers."""
    form = forms.as_is(value, 32, 32)
    lo, hi = forms.builder.graph.type(form.name).interval
    return form if hi - lo < 2**31 and float(form.scale) > 0 else forms.quantised(value, 32)


def filled(forms: Forms, node: Node, scores: Form, mask: tuple[str, ...]) -> tuple[Form, tuple[str, ...]]:
    """Scores and mask of a softmax; where it is uniform, rows that keep nothing become equal scores that keep
    everything.
    """
    assert isinstance(node.op, Softmax)
    if not mask or not node.op.uniform:
        return scores, mask
    b, keep = forms.builder, mask[0]
    zero = b.constant("zero", np.zeros(1, b.graph.type(scores.name).dtype))
    ones = b.emit(Cast("int32"), keep, name=f"{keep}.int32")
    count = b.emit(ReduceSum((-1,), True), ones, name=f"{keep}.count")
    some = b.emit(Cast("bool"), count, name=f"{keep}.some")
    kept = b.emit(Where(), some, scores.name, zero, name=f"{scores.name}.some", scale=as_scale(scores.scale))
    full = b.emit(Or(), keep, b.emit(Not(), some, name=f"{keep}.none"), name=f"{keep}.full")
    return replace(scores, name=kept), (full,)


def shiftmax(forms: Forms, node: Node, mask: tuple[str, ...]) -> Form:
    scores, mask = filled(forms, node, wide_scores(forms, node.inputs[0]), mask)
    m, e = dyadic(Fraction(float(scores.scale)) * LOG2_E * 2**15)
    return emitted(forms, node, Shiftmax(m, e, 16), (scores.name, *mask), np.float64(2.0**-15))


def shift_weights(forms: Forms, node: Node, mask: tuple[str, ...]) -> Form:
    """Softmax that only weighs values: numerators, to be divided by their sums behind the product."""
    scores = wide_scores(forms, node.inputs[0])
    assert isinstance(node.op, Softmax)
    op = ShiftWeights(*octave_factor(Fraction(float(scores.scale)) * LOG2_E), node.op.uniform)
    return replace(emitted(forms, node, op, (scores.name, *mask), np.float64(1.0)), row_sums=True)


def ivit_softmax(forms: Forms, node: Node, mask: tuple[str, ...]) -> Form:
    scores, mask = filled(forms, node, forms.quantised(node.inputs[0], 8), mask)
    op = IvitShiftmax.from_scale(float(scores.scale))
    return emitted(forms, node, op, (scores.name, *mask), np.float64(op.output_scale))


def ibert_softmax(forms: Forms, node: Node, mask: tuple[str, ...]) -> Form:
    scores, mask = filled(forms, node, forms.quantised(node.inputs[0], 16), mask)
    op = IbertSoftmax.from_scale(float(scores.scale))
    return emitted(forms, node, op, (scores.name, *mask), np.float64(op.output_scale))


def lut_softmax(forms: Forms, node: Node, mask: tuple[str, ...]) -> Form:
    scores, mask = filled(forms, node, forms.quantised(node.inputs[0], 8), mask)
    table = forms.builder.constant(f"{node.output}.table", LutSoftmax.table(float(scores.scale)))
    return emitted(forms, node, LutSoftmax(8), (scores.name, table, *mask), PROBABILITY_SCALE)


def shift_gelu(forms: Forms, node: Node) -> Form:
    x, frac = fixed_point(forms, node.inputs[0], 4, 12)
    return emitted(forms, node, ShiftGelu(frac), (x.name,), np.float64(2.0 ** -(frac + 15)))


def poly_gelu(forms: Forms, node: Node, centre: Array | None = None) -> Form:
    assert isinstance(node.op, Gelu)
    unit, room = scalar.GELU_UNITS[node.op.approximate], 1.0 if node.op.has_families else COVERED
    x, frac = fixed_point(forms, node.inputs[0], 4, 12, unit, room)
    op, scale = PolyGelu(frac, node.op.approximate), np.float64(unit * 2.0**-frac)
    if centre is None:
        return emitted(forms, node, op, (x.name,), scale)
    integers = np.clip(np.rint(centre / scale), 0, 16383).astype(np.int16)
    c = forms.builder.constant(f"{node.output}.centre", integers)
    return replace(emitted(forms, node, op, (x.name, c), scale), centre=integers * scale)


def ivit_gelu(forms: Forms, node: Node) -> Form:
    x = forms.quantised(node.inputs[0], 8)
    op = IvitShiftGelu.from_scale(float(x.scale))
    return emitted(forms, node, op, (x.name,), np.float64(op.output_scale))


def ibert_gelu(forms: Forms, node: Node) -> Form:
    x = forms.quantised(node.inputs[0], 16)
    op = IbertGelu.from_scale(float(x.scale))
    return emitted(forms, node, op, (x.name,), np.float64(op.output_scale))


def table_gelu(forms: Forms, node: Node) -> Form:
    return _table(forms, node, lambda x: 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0))), 8)


def shift_tanh(forms: Forms, node: Node) -> Form:
    x, frac = fixed_point(forms, node.inputs[0], 5, 12)
    return emitted(forms, node, ShiftTanh(frac), (x.name,), np.float64(2.0**-15))


def table_tanh(forms: Forms, node: Node) -> Form:
    return _table(forms, node, np.tanh, 8)


def shift_sigmoid(forms: Forms, node: Node) -> Form:
    x, frac = fixed_point(forms, node.inputs[0], 4, 12)
    return emitted(forms, node, ShiftSigmoid(frac), (x.name,), np.float64(2.0**-15))


def shift_layer_norm(forms: Forms, node: Node, bits: int, scale: Array) -> Form:
    """LayerNorm straight into ``bits`` bits at ``scale`` (one, or one per channel): gamma, beta and scale
    fold. Rows of more than 2**15 channels are read in less than 16 bits, as their sums have room for.
    """
    assert isinstance(node.op, LayerNorm)
    channels = int(forms.source.type(node.inputs[0]).shape[-1])  # type: ignore[arg-type]
    beyond = max(0, (channels - 1).bit_length() - 15)
    if beyond > 8:
        raise QuantizationError(f"node '{node.source}' (layer_norm): a row of {channels} values, beyond 2^23")
    x = forms.quantised(node.inputs[0], 16 - beyond)
    rows = np.stack([*_affine(forms, node), _spread(scale, channels)], axis=1)
    rows, places = np.unique(rows, axis=0, return_inverse=True)  # long rows repeat a few
    gamma, beta, scales = ([Fraction(float(v)) for v in column] for column in rows.T)
    gain = [g / s / 2**20 for g, s in zip(gamma, scales, strict=True)]
    largest = max(max(abs(g) for g in gain), Fraction(1, 2**31))
    e = dyadic(largest)[1]
    if not 32 <= e <= 62:
        e = min(max(e, 32), 62)
        if largest * 2**e >= 2**31:
            share = 2.0 ** (bits - 21) / float(largest)
            raise QuantizationError(
                f"node '{node.source}': it gives at most {share:.0e} of its weights, as what it norms hardly"
                " varies beside epsilon; are the model's weights trained?"
            )
    exact = np.array([round(r * 2**e) for r in gain], np.int64)
    g = np.clip(exact, -(2**31) + 1, 2**31 - 1).astype(np.int32)[places.ravel()]
    shift, top = [t / s for t, s in zip(beta, scales, strict=True)], 2**61
    b = np.array([max(-top, min(top, round(r * 2**e))) + 2 ** (e - 1) for r in shift], np.int64)
    b = b[places.ravel()]
    s_x = Fraction(float(x.scale))
    eps_q = max(1, round(Fraction(node.op.epsilon) * channels * channels / (s_x * s_x)))
    limit = LIMIT[bits]
    op = ShiftLayerNorm(eps_q, e, -limit, limit, "int8" if bits == 8 else "int16", node.op.centred)
    consts = (forms.builder.constant(f"{node.output}.g", g), forms.builder.constant(f"{node.output}.b", b))
    return emitted(forms, node, op, (x.name, *consts), scale)


def published_layer_norm(op_class: type[IvitLayerNorm] | type[IbertLayerNorm]) -> Norm:
    """The published form of ``op_class``, then a requantisation to the wanted scale; RMSNorm, of which none
    is published, in the shift family's form.
    """

    def run(forms: Forms, node: Node, bits: int, scale: Array) -> Form:
        assert isinstance(node.op, LayerNorm)
        if not node.op.centred:
            return shift_layer_norm(forms, node, bits, scale)
        x = forms.quantised(node.inputs[0], 16)
        op, bias, out_scale = op_class.from_affine(*_affine(forms, node))
        b = forms.builder.constant(f"{node.output}.b", bias)
        forms.base[node.output] = emitted(forms, node, op, (x.name, b), out_scale)
        return forms.quantised(node.output, bits, scale)

    return run


def _affine(forms: Forms, node: Node) -> tuple[Array, Array]:
    gamma, beta = (forms.source.constants.get(x) for x in node.inputs[1:3])
    if gamma is None or beta is None:
        raise QuantizationError(f"node '{node.source}' (layer_norm): gamma and beta must be constants")
    return gamma.astype(np.float64).ravel(), beta.astype(np.float64).ravel()


def _spread(scale: Array, channels: int) -> Array:
    return np.broadcast_to(np.asarray(scale, np.float64), (channels,))


def _table(forms: Forms, node: Node, function: object, bits: int) -> Form:
    """A 256-entry table of ``function`` over the int8 input at its calibrated scale."""
    assert callable(function)
    # everything that was seen: a clipped input would meet the wrong entry, however rare
    x = forms.quantised(node.inputs[0], bits, np.asarray(forms.range_of(node.inputs[0]) / LIMIT[bits]))
    scale = forms.scale_for(node.output, 8)
    codes = np.arange(-128, 128)
    entries = np.clip(np.rint(function(codes * float(x.scale)) / float(scale)), -127, 127).astype(np.int8)
    table = forms.builder.constant(f"{node.output}.table", entries)
    return emitted(forms, node, Table("int8"), (x.name, table), scale)


@dataclass(frozen=True)
class Family:
    """How each non-linear operator is approximated; what is left out is that of ``auto``.

    ``softmax(forms, node, mask)``, ``gelu(forms, node)`` and ``tanh(forms, node)`` emit integer nodes for the
    float ``node`` and return the result's :class:`Form`; ``mask`` holds no value or one, of bools.
    ``layer_norm`` as :func:`shift_layer_norm`. ``ops``: the operators that only this family emits.
    """

    softmax: SoftmaxRule = shiftmax
    gelu: Rule = poly_gelu
    layer_norm: Norm = shift_layer_norm
    tanh: Rule = shift_tanh
    ops: tuple[type[FormulaOp], ...] = ()

    @property
    def weighs(self) -> bool:
        """Whether a softmax that only weighs values leaves its division behind the product."""
        return self.softmax is shiftmax


FAMILIES: Final[dict[str, Family]] = {
    "auto": Family(),
    "shift": Family(gelu=shift_gelu),
    "ivit": Family(ivit_softmax, ivit_gelu, published_layer_norm(IvitLayerNorm)),
    "ibert": Family(ibert_softmax, ibert_gelu, published_layer_norm(IbertLayerNorm)),
    "lut": Family(lut_softmax, table_gelu, tanh=table_tanh),
}
NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


def register_family(name: str, family: Family) -> None:
    """Make ``family`` one more value of ``approximation`` in :func:`intc.compile`, in plans and in searches.

    Its ``ops`` need no kernel, no proof and no form in ONNX of their own: all of them are their formula. The
    registration holds for this process. One that reads the graph of an artifact (``intc.report.verify``,
    ``open_module``, ``load(.., recompile=True)``) needs it too; one that only runs the artifact does not.
    UsageError where a name is taken or is no lower-case identifier, or an operator has no formula.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"family '{name}': a name consists of lower-case letters, digits and '_'")
    if name in FAMILIES:
        raise UsageError(f"family '{name}' is registered already")
    for op in family.ops:
        if not issubclass(op, FormulaOp) or op.formula is FormulaOp.formula:
            raise UsageError(f"family '{name}': operator '{op.name}' is no FormulaOp with a formula")
        if not NAME.fullmatch(op.name):
            raise UsageError(f"family '{name}': operator name '{op.name}' is no lower-case identifier")
        if OPS.get(op.name, op) is not op:
            raise UsageError(f"family '{name}': another operator is called '{op.name}'")
    OPS.update({op.name: op for op in family.ops})
    FAMILIES[name] = family
