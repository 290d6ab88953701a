"""Rules of functions that integers know by their curve alone."""

from __future__ import annotations

import math

import numpy as np

from intc.calibration.derived import is_square
from intc.errors import QuantizationError
from intc.ir.dims import Dim
from intc.ir.graph import Node
from intc.ir.op import Array
from intc.ops.curve import KNOTS, Curve
from intc.ops.elementwise import Add, Cos, Div, Mul, Sin, Where
from intc.ops.logic import And, Less
from intc.ops.movement import MOVEMENT
from intc.ops.pointwise import CURVED, Pointwise
from intc.ops.reduce import CumSum, ReduceMean, ReduceSum
from intc.ops.requantize import Clip, Requantize
from intc.passes.integer import noise
from intc.passes.integer.context import Context, Rule
from intc.passes.integer.forms import COVERED, LIMIT, Form, Forms, emitted

CURVE_BITS = 10  # its pieces are at least as fine as that
FINEST = 16  # times as many pieces, where the function bends between two knots
BENT = 1e-6  # of its power: the squared error that lines may have
MANY_TURNS: float = 4 * math.pi  # an angle that reaches further is brought into one turn
REACH: float = 1.5  # and so much where its result has more than 16 bits
MARGIN: float = 1.25  # a result of 16 bits has this much more room than others
MAGNIFIED = 1e-4  # of its power: the error that rounding its operand may cause
CLOSER = 2**7  # times as fine, around 0
LOOKS = 3  # so fine, at most
SMALL = 2.0**-14  # of an operand, where roots and logarithms still differ
RARE = 2.0**-11  # of the largest one: the least seen lies below where small ones count
SQUARED: float = 8.0  # a square that is summed: what is 4 times as large as was seen
TERM_BITS = 29  # of the largest sum


def pointwise(context: Context, node: Node) -> Form:
    formula = node.op.formula if isinstance(node.op, Pointwise) else f"({node.op.name} x)"
    return curve(context, Node(Pointwise(formula), node.inputs, node.output, node.source))


def curve(context: Context, node: Node) -> Form:
    """The function at even steps over its input's calibrated range, entries within that of its result; one
    that is :func:`_steep` as the square of its root.
    """
    forms, op = context.forms, node.op
    assert isinstance(op, Pointwise)
    steep = _steep(context, node, op)
    reach = (REACH if steep else COVERED) * forms.range_of(node.inputs[0], CURVE_BITS)
    turns = circles(context, node)
    x = _phase(forms, node) if turns else forms.quantised(node.inputs[0], 16, np.asarray(reach / 32767))
    at = _points(float(x.scale))
    if not steep:
        scale = MARGIN * float(forms.scale_for(node.output, 16))
        if not turns:
            return _closer(forms, node, op, x, scale)
        return _tabulated(forms, node, x, op.function(at), scale)
    scale = math.sqrt(_largest(forms, node, op, REACH)) / 32767
    root = _tabulated(forms, node, x, np.sqrt(np.maximum(op.function(at), 0.0)), scale, ".root")
    return emitted(forms, node, Mul(), (root.name, root.name), np.asarray(root.scale**2))


def _closer(forms: Forms, node: Node, op: Pointwise, x: Form, scale: float) -> Form:
    """The curve over all of ``x``, and around 0 over the same operand in finer steps, as long as rounding it
    is magnified there.
    """
    b, value, limit = forms.builder, node.inputs[0], LIMIT[16]
    finer = _finer_steps(forms, node, op, float(x.scale), scale)
    whole = _tabulated(forms, node, x, op.function(_points(float(x.scale))), scale, ".far" if finer else "")
    for number, step in enumerate(finer, 1):
        near = forms.quantised(value, 16, np.asarray(step))
        curve = _tabulated(forms, node, near, op.function(_points(step)), scale, ".near")
        end = b.constant(f"{node.output}.end", np.full(1, limit, np.int16))
        inside = b.emit(Less(), near.name, end, name=f"{node.output}.inside")
        if float(forms.stats[value].low.min()) < 0:
            start = b.constant(f"{node.output}.start", np.full(1, -limit, np.int16))
            inside = b.emit(And(), inside, b.emit(Less(), start, near.name, name=f"{node.output}.above"))
        parts = (inside, curve.name, whole.name)
        whole = emitted(forms, node, Where(), parts, curve.scale, "" if number == len(finer) else ".far")
    return whole


def _points(step: float) -> Array:
    """All that 16 bits hold in steps of ``step``, evenly."""
    return np.linspace(-32768, 32768, FINEST * (KNOTS - 1) + 1) * step


def _finer_steps(forms: Forms, node: Node, op: Pointwise, step: float, scale: float) -> list[float]:
    """The steps in which the operand of the function ``op`` is looked at around 0, where those of ``step``
    make the result err by more than MAGNIFIED, and the operand's integers are finer.
    """
    found, steps = forms.stats.get(node.output), list[float]()
    if found is None or found.tensor is None or not found.tensor.limit.size:
        return steps
    while len(steps) < LOOKS:
        at = _points(step)
        exact = _within(node, op.function(at), scale) * scale
        seen = _results(forms, node, exact)
        errors = np.diff(exact, prepend=exact[0]) ** 2 / 12
        if float(seen @ errors) <= MAGNIFIED * found.power * float(found.tensor.counts.sum()):
            break
        least = float(forms.as_is(node.inputs[0], 32, 16).scale)
        if not 0 < 4 * least <= step:
            break
        step = max(step / CLOSER, least)
        steps.append(step)
    return steps


def _results(forms: Forms, node: Node, exact: Array) -> Array:
    """How often calibration saw results of ``node`` between each two of ``exact``, where those grow or fall
    all the way; else none.
    """
    rising = exact if exact[-1] >= exact[0] else exact[::-1]
    if np.any(np.diff(rising) < 0):
        return np.zeros(exact.size)
    return _seen(forms, node.output, rising)[:: 1 if rising is exact else -1]


def magnifies(forms: Forms, node: Node) -> bool:
    """Whether ``node`` is a function that tells small operands apart, as roots and logarithms do, and some
    were seen.
    """
    found = forms.stats.get(node.inputs[0])
    if not isinstance(node.op, Pointwise) or found is None or found.magnitude == 0:
        return False
    if not 0 <= found.low.min() < found.magnitude * RARE:
        return False
    tiny, small, largest = node.op.function(found.magnitude * np.array([SMALL / 64, SMALL, 1.0]))
    return bool(abs(small - tiny) > abs(largest) / 128)


def read_small(context: Context, value: str) -> bool:
    """Whether a function that magnifies reads ``value``, or a quotient divides by it, or by sums and means of
    it.
    """
    users = context.users[value]
    summing = (*MOVEMENT, ReduceMean, ReduceSum, CumSum)
    return any(
        magnifies(context.forms, n)
        or _divides(context.forms, n, value)
        or ((isinstance(n.op, summing) or _shifted(context, n)) and read_small(context, n.output))
        for n in users
    )


def _divides(forms: Forms, node: Node, value: str) -> bool:
    """Whether ``node`` divides by ``value``, of which small ones were seen."""
    found = forms.stats.get(value)
    if not isinstance(node.op, Div) or node.inputs[1] != value or found is None or not found.magnitude:
        return False
    return 0 <= float(found.low.min()) < found.magnitude * RARE


def _shifted(context: Context, node: Node) -> bool:
    """Whether ``node`` only adds a constant."""
    return isinstance(node.op, Add) and any(context.constant(x) is not None for x in node.inputs)


def small_terms(context: Context, node: Node, count: Dim) -> Form | None:
    """What the sum ``node`` adds ``count`` of in as many bits as 32 hold the sum of, where the operand has
    more than 16, and is a square or a function that magnifies reads the sum; else None.
    """
    forms, value = context.forms, node.inputs[0]
    form, made = forms.base.get(value), forms.nodes.get(value)
    if form is None or made is None or not form.per_tensor or not isinstance(count, int):
        return None
    square = is_square(forms.source, made)
    limit = 2**TERM_BITS // count
    if not square and not read_small(context, node.output):
        return None
    if forms.builder.graph.type(form.name).dtype != "int32" or limit <= LIMIT[16]:
        return None
    room = SQUARED if square else REACH
    scale = np.asarray(max(room * forms.range_of(value, 32) / limit, float(form.scale)))
    op = Requantize(-limit, limit, "int32")
    name = forms.builder.emit(op, form.name, *forms.ratio(form.scale / scale), name=f"{value}.terms")
    return Form(name, scale)


def _steep(context: Context, node: Node, op: Pointwise) -> bool:
    """Whether a function of no negative values leaves 16 bits just beyond its input's calibrated range, as
    exponentials do, or 16 bits are too few for what occurred, or for what reads small ones of it.
    """
    forms = context.forms
    found = forms.stats.get(node.output)
    if found is None or not found.low.size or float(found.low.min()) < 0 or isinstance(node.op, Sin | Cos):
        return False
    if found.magnitude == 0:
        return False
    scale = MARGIN * float(forms.scale_for(node.output, 16))
    low, high = _ends(forms, node, REACH)
    exact = op.function(np.linspace(low, high, KNOTS))
    if not np.isfinite(exact).all() or exact.min() < 0:
        return False
    leaves = _largest(forms, node, op, MARGIN) > 32767 * scale
    return leaves or noise.rounding(found, scale) > noise.LOUD or read_small(context, node.output)


def _ends(forms: Forms, node: Node, margin: float) -> tuple[float, float]:
    """The ends of the calibrated range of the operand of ``node``, ``margin`` times as far from zero."""
    found = forms.stats[node.inputs[0]]
    return float(found.low.min(initial=0.0)) * margin, float(found.high.max(initial=0.0)) * margin


def _largest(forms: Forms, node: Node, op: Pointwise, margin: float) -> float:
    """The largest value of the function there."""
    return float(op.function(np.linspace(*_ends(forms, node, margin), KNOTS)).max())


def _tabulated(forms: Forms, node: Node, x: Form, exact: Array, scale: float, suffix: str = "") -> Form:
    """The curve through the values ``exact`` of a function at even steps over the 16 bits of ``x``."""
    exact = _within(node, exact, scale)
    at = np.linspace(-32768, 32768, exact.size) * float(x.scale)
    seen = _seen(forms, node.inputs[0], at)
    if suffix:  # one of several, which differ where the operand is small
        seen = seen + _results(forms, node, exact * scale)
    entries = exact[:: _spacing(exact, seen)]
    name = forms.builder.constant(f"{node.output}.curve", np.rint(entries).astype(np.int16))
    return emitted(forms, node, Curve(), (x.name, name), np.asarray(scale), suffix)


def _within(node: Node, exact: Array, scale: float) -> Array:
    """The values ``exact`` of a function in steps of ``scale``, of 16 bits; outside its domain the nearest
    inside.
    """
    exact = exact / scale
    known = np.flatnonzero(~np.isnan(exact))
    if not known.size:
        formula = node.op.formula if isinstance(node.op, Pointwise) else node.op.name
        raise QuantizationError(f"node '{node.source}' ({formula}): it is defined nowhere")
    return np.clip(np.interp(np.arange(exact.size), known, exact[known]), -32767, 32767)


def _seen(forms: Forms, value: str, at: Array) -> Array:
    """How often calibration saw ``value`` near each of the points ``at``, which are even, as weights."""
    stats = forms.stats.get(value)
    if stats is None or stats.tensor is None or not stats.tensor.limit.size:
        return np.asarray(np.abs(at) <= forms.range_of(value), np.float64)
    counts, limit = stats.tensor.counts[0], float(stats.tensor.limit[0]) or 1.0
    edges = np.linspace(-limit, limit, counts.size + 1)
    return np.diff(np.interp(at, edges, np.concatenate([[0], np.cumsum(counts)])), prepend=0.0)


def _spacing(exact: Array, seen: Array) -> int:
    """How many points of ``exact``, FINEST at most, may lie between two entries of a table for lines between
    them to keep the shape of the function where values were seen.
    """
    power, points = float(seen @ exact**2), np.arange(exact.size)
    for halvings in range(FINEST.bit_length() - 1):
        spacing = FINEST >> halvings
        lines = np.interp(points, points[::spacing], exact[::spacing])
        if float(seen @ (lines - exact) ** 2) <= BENT * power:
            return spacing
    return 1


def circles(context: Context, node: Node) -> bool:
    """Whether ``node`` is a sine or cosine of so many turns that only what is beyond whole ones is kept."""
    circular = isinstance(node.op, Sin | Cos) or (
        isinstance(node.op, Pointwise) and node.op.formula in ("(sin x)", "(cos x)")
    )
    return circular and MARGIN * context.forms.range_of(node.inputs[0], CURVE_BITS) > MANY_TURNS


def _phase(forms: Forms, node: Node) -> Form:
    """What the operand of a circular ``node`` is beyond whole turns, of 2**16 steps each."""
    b, steps = forms.builder, 2**16
    most = LIMIT[32] // steps + 1
    angle = forms.quantised(node.inputs[0], 32, np.asarray(2 * math.pi / steps))
    op = Requantize(-most, most, "int32")
    ratio = forms.ratio(np.asarray(1 / steps))
    turns = b.emit(op, angle.name, *ratio, name=f"{node.output}.turns", source=node.source)
    full = b.constant(f"{node.output}.turn", np.full(1, -steps, np.int32))
    whole = b.emit(Mul(), turns, full, name=f"{node.output}.whole", source=node.source)
    rest = b.emit(Add(), angle.name, whole, name=f"{node.output}.rest", source=node.source)
    return emitted(forms, node, Clip(-32768, 32767, "int16"), (rest,), angle.scale, ".phase")


RULES: dict[type, Rule] = {Pointwise: pointwise, **dict.fromkeys(CURVED, pointwise)}
