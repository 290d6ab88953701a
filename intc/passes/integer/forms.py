"""Integer forms of float values, and how one form becomes another.

A float value ``v`` of the canonical graph first gets a *base form*: the integers that its node computes
naturally (a 32-bit sum, an 8-bit probability, a 16-bit residual). A consumer asks for the form it needs with
:meth:`Forms.quantised`; data movement is replayed on the form asked for, so that it always moves the narrow
integers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from intc.calibration.histogram import Calibrator
from intc.calibration.observers import Statistics
from intc.errors import QuantizationError, RangeUnknown
from intc.ir.dims import Dim
from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array, Op
from intc.ir.types import DType, narrowest
from intc.ops.dyadic import dyadic_array
from intc.ops.elementwise import Add, Cast, Div, Max, Min, Mul, Sub
from intc.ops.fused import WIDE
from intc.ops.im2col import Im2col
from intc.ops.matmul import MatMul
from intc.ops.movement import MOVEMENT, Concat, Gather, GatherElements
from intc.ops.positions import Positions
from intc.ops.requantize import Clip, Requantize
from intc.passes.integer import noise
from intc.passes.integer.sentinels import Sentinels
from intc.passes.integer.widths import headroom

COVERED: float = 2.0  # a curve, and SiLU, take this much more than the calibrated range of their input
LIMIT: dict[int, int] = {bits: 2 ** (bits - 1) - 1 for bits in range(8, 17)} | {32: WIDE}
DTYPE: dict[int, DType] = {bits: "int8" if bits == 8 else "int16" for bits in range(8, 17)} | {32: "int32"}

NARROW_LOOSENESS = 2.0  # of a derived range, in few bits
WIDE_BITS = 16  # can spare what a value may reach beyond the data
STEP_BITS = 9  # bits that a derived range must leave to what occurs, where there are more
END_ROOM = 2.0  # as much again: nothing behind an output evens out that it was cut off
GRID_MIN = 32  # a coarser grid would waste more than 3 % of the range


@dataclass(frozen=True)
class Form:
    """An integer value and its scale: real = integer * scale; shape () or [C] along the last axis.

    With ``row_sums`` the real value is, instead, integer / (the sum of its row): softmax weights. With
    ``centre`` [C] it is integer * scale + centre, which only constant products can read. ``fixed``: the
    model itself quantised it so, and products read it as it is.
    """

    name: str
    scale: Array
    row_sums: bool = False
    centre: Array | None = None
    fixed: bool = False

    @property
    def plain(self) -> bool:
        """Whether the real value is integer * scale."""
        return not self.row_sums and self.centre is None

    @property
    def per_tensor(self) -> bool:
        return self.scale.ndim == 0


@dataclass
class Forms:
    """The forms built so far while one float graph is being integerised."""

    source: Graph
    builder: Builder
    stats: dict[str, Statistics]
    calibrator: Calibrator = "mse"
    base: dict[str, Form] = field(default_factory=dict)
    cache: dict[tuple[object, ...], Form] = field(default_factory=dict)
    nodes: dict[str, Node] = field(default_factory=dict)
    sentinels: Sentinels = field(init=False)
    ends: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.nodes = self.source.producers()
        self.ends = set().union(*(self._end(x) for x in self.source.outputs))
        self.sentinels = Sentinels(self.source, self.stats, self.nodes, self.source.users())

    def range_of(self, value: str, bits: int = 16) -> float:
        """The magnitude of a float value to represent in ``bits`` bits; 1.0 where it is always zero.

        The calibrators weigh clipping against 8-bit steps; wider integers hold everything that was seen.
        """
        if value in self.source.constants:
            return float(np.abs(self.source.constants[value]).max(initial=0.0)) or 1.0
        if (rest := self.sentinels.rest(value)) is not None:
            return max(abs(factor) * self.range_of(part, bits) for part, factor in rest.parts)
        found = self.seen(value, bits)
        magnitude = found.range(self.calibrator if bits == 8 else "minmax")
        return (max(magnitude, found.reach) if bits >= WIDE_BITS else magnitude) or 1.0

    def seen(self, value: str, bits: int) -> Statistics:
        """The statistics of ``value``, good enough for ``bits`` bits: RangeUnknown where its range was
        derived and may be so wide that few steps are left within what occurs.
        """
        found = self.stats.get(value)
        if found is None or found.looseness > max(NARROW_LOOSENESS, 2.0 ** (bits - STEP_BITS)):
            raise RangeUnknown(value)
        return found

    def scale_for(self, value: str, bits: int) -> Array:
        """The per-tensor scale that spreads the calibrated range of ``value`` over ``bits`` signed bits, with
        room beyond it where there are many, and twice as much in what an output ends in if data showed it.
        """
        room = 1.0 if value in self.source.constants else headroom(bits)
        if bits == WIDE_BITS and value in self.ends and self.stats[value].tensor is not None:
            room *= END_ROOM
        return np.float64(self.range_of(value, bits) * room / LIMIT[bits])  # type: ignore[return-value]

    def _end(self, output: str) -> set[str]:
        """Where ``output`` is a product or a sum: it, what it is only moved or rescaled from, and the sum's
        terms; of all that it is joined from. Norms are bounded, and functions have ranges of their own.
        """
        found, value = {output}, output
        while (node := self.nodes.get(value)) is not None:
            if isinstance(node.op, Concat):
                return found.union(*map(self._end, node.inputs))
            computed = [x for x in node.inputs if x not in self.source.constants]
            if self.deferred(node):
                value = self.operand(node)[0]
            elif isinstance(node.op, Mul) and len(computed) == 1:
                value = computed[0]
            else:
                break
            found.add(value)
        if node is None or not isinstance(node.op, Add | Sub | MatMul):
            return set()
        return (
            found if isinstance(node.op, MatMul) else found | (set(node.inputs) - set(self.source.constants))
        )

    def loud(self, node: Node, bits: int) -> tuple[bool, bool]:
        """Whether ``bits`` bits are too few for the left and for the right operand of ``node``, a product of
        two computed values that the model does not quantise itself.
        """
        known = [x in self.stats and not (x in self.base and self.base[x].fixed) for x in node.inputs]
        if not all(known):
            return False, False
        left, right = (float(self.scale_for(x, bits)) for x in node.inputs)
        shape = self.source.type(node.inputs[1]).shape[-2:] if isinstance(node.op, MatMul) else None
        shares = noise.in_product(self.stats, node, shape, (left, right))
        limit = noise.limit(self.source, self.stats, node)
        return shares[0] > limit, shares[1] > limit

    def quantised(self, value: str, bits: int, scale: Array | None = None, unsigned: bool = False) -> Form:
        """``value`` as signed ``bits``-wide integers, or ``unsigned`` ones of 8 bits, at ``scale`` (default:
        its calibrated per-tensor scale as signed ones).
        """
        wanted = self.scale_for(value, bits) if scale is None else np.asarray(scale, np.float64)
        if scale is None and bits == 8:
            wanted = self.on_grid(value, wanted)
        key = (value, bits, wanted.tobytes(), unsigned)
        if key not in self.cache:
            self.cache[key] = self._quantise(value, bits, wanted, unsigned)
        return self.cache[key]

    def never_negative(self, value: str) -> bool:
        """Whether ``value`` is known to hold no negative numbers."""
        form, node = self.base.get(value), self.nodes.get(value)
        if value in self.source.constants:
            return bool((self.source.constants[value] >= 0).all())
        if form is not None:
            lowest = self.builder.graph.type(form.name).interval[0]
            return form.plain and lowest >= 0 and bool(np.all(form.scale > 0))
        if node is None or not self.deferred(node):
            return False
        if isinstance(node.op, Concat):
            return all(map(self.never_negative, node.inputs))
        inner, factor = self.operand(node)
        return (factor is None or factor > 0) and self.never_negative(inner)

    def on_grid(self, value: str, scale: Array, room: float = 1.0) -> Array:
        """:func:`grid_scale` for the int16 integers of ``value``; ``scale`` itself where it has none."""
        node = self.nodes.get(value)
        while value not in self.base and node is not None and self.deferred(node):
            value, factor = self.operand(node)
            if factor is not None:
                return scale
            node = self.nodes.get(value)
        base = self.base.get(value)
        if base is None or not base.per_tensor or self.builder.graph.type(base.name).dtype != "int16":
            return scale
        return grid_scale(base.scale, scale, room)

    def as_is(self, value: str, widest: int, bits: int) -> Form:
        """The base form where it is an integer of at most ``widest`` bits with one scale, else
        ``quantised(bits)``.
        """
        form = self.base.get(value)
        if form is not None and form.per_tensor:
            type_ = self.builder.graph.type(form.name)
            narrow = type_.magnitude < 2 ** (widest - 1) or (widest == 8 and type_.dtype == "uint8")
            if narrow or (form.fixed and type_.dtype != "int32"):
                return form
            if form.fixed:  # a zero point beside 16 bits takes a 17th
                return self.within(value, form, max(bits, 16))
        node = self.nodes.get(value)
        if form is None and node is not None and not isinstance(node.op, Concat):
            inner, factor = self.operand(node)
            if inner not in self.source.constants:
                moved = self.as_is(inner, widest, bits)
                return (
                    self.move(node, moved)
                    if factor is None
                    else Form(moved.name, np.asarray(moved.scale * factor))
                )
        return self.quantised(value, bits)

    def within(self, value: str, form: Form, bits: int) -> Form:
        """``form`` of ``value`` in ``bits`` bits that hold its whole interval."""
        magnitude = self.builder.graph.type(form.name).magnitude
        return self.quantised(value, bits, np.asarray(form.scale * max(1.0, magnitude / LIMIT[bits])))

    def deferred(self, node: Node) -> bool:
        """Whether ``node`` has no base form of its own: data movement, or a product with one constant number.

        Such nodes are replayed on (or only rescale) whatever form of their operand a consumer asks for.
        """
        if isinstance(node.op, (*MOVEMENT, Im2col)):
            return True
        return isinstance(node.op, Mul | Div) and self.operand(node)[1] is not None

    def operand(self, node: Node) -> tuple[str, float | None]:
        """The data operand of ``node``, and the factor where the node only multiplies it by one constant
        number.
        """
        if isinstance(node.op, Mul | Div):
            left, right = node.inputs
            if left in self.source.constants and isinstance(node.op, Mul):
                left, right = right, left
            constant = self.source.constants.get(right)
            same = self.source.type(left).shape == self.source.type(node.output).shape
            if constant is not None and constant.size == 1 and same and float(constant.ravel()[0]):
                value = float(constant.ravel()[0])
                return left, 1.0 / value if isinstance(node.op, Div) else value
        return node.inputs[0], None

    def _quantise(self, value: str, bits: int, scale: Array, unsigned: bool) -> Form:
        b, (lo, hi, dtype) = self.builder, _interval(bits, unsigned)
        if value in self.source.constants:
            data = np.rint(self.source.constants[value].astype(np.float64) / scale)
            integers = np.clip(data, lo, hi).astype(dtype)
            return Form(b.constant(f"{value}.q{bits}", integers, scale=as_scale(scale)), scale)
        if value not in self.base:
            node = self.nodes[value]
            if isinstance(node.op, Concat):
                parts = self._alike([self.quantised(x, bits, scale, unsigned).name for x in node.inputs])
                return Form(self._emit(node, *parts, bits=bits, scale=scale), scale)
            if self.deferred(node):
                inner, factor = self.operand(node)
                if factor is not None:
                    return Form(self.quantised(inner, bits, scale / factor, unsigned).name, scale)
                if bits == 32:  # what moves is narrow
                    return self.requantised(self.as_is(value, 16, 16), value, bits, scale)
                return self.move(node, self.quantised(inner, bits, scale, unsigned), bits)
            raise QuantizationError(
                f"node '{node.source or node.output}' ({node.op.name}): no integer form exists"
            )
        return self.requantised(self.base[value], value, bits, scale, unsigned)

    def requantised(self, form: Form, value: str, bits: int, scale: Array, unsigned: bool = False) -> Form:
        """``form`` of ``value`` in ``bits`` bits at ``scale``; itself where it is that already."""
        b, (lo, hi, dtype) = self.builder, _interval(bits, unsigned)
        if np.array_equal(form.scale, scale) and b.graph.type(form.name).magnitude <= hi:
            return form
        m, e = self.ratio(form.scale / scale)
        suffix = "u8" if unsigned else f"q{bits}"
        op = Requantize(lo, hi, dtype)
        name = b.emit(op, form.name, m, e, name=f"{value}.{suffix}", scale=as_scale(scale))
        return Form(name, scale)

    def _alike(self, values: list[str]) -> list[str]:
        """Integers of several widths, all in the widest of them."""
        types = [self.builder.graph.type(x) for x in values]
        if len({t.dtype for t in types}) == 1:
            return values
        holds = narrowest(min(t.interval[0] for t in types), max(t.interval[1] for t in types))
        widest = max((holds, *(t.dtype for t in types)), key=lambda d: np.dtype(d).itemsize)
        return [
            x if t.dtype == widest else self.builder.emit(Cast(widest), x, name=f"{x}.{widest}")
            for x, t in zip(values, types, strict=True)
        ]

    def ratio(self, ratios: Array) -> tuple[str, str]:
        """Constants ``m`` and ``e`` of the dyadic form of ``ratios`` (at least one element)."""
        m, e = dyadic_array(np.atleast_1d(np.asarray(ratios, np.float64)))
        return self.builder.constant("m", m), self.builder.constant("e", e)

    def move(self, node: Node, form: Form, bits: int = 0) -> Form:
        """``form`` of the operand of ``node`` moved as ``node`` does."""
        node = _around(node, form)
        rest = [self.integer(x) for x in node.inputs[1:]]
        if isinstance(node.op, Gather | GatherElements):
            rest = [self.index(node.inputs[1], self.source.type(node.inputs[0]).shape[node.op.axis])]
        return Form(self._emit(node, form.name, *rest, bits=bits, scale=form.scale), form.scale)

    def windowed(self, node: Node, form: Form, bits: int) -> Form:
        """The windows of ``form``, whose scales per channel repeat with every tap."""
        assert isinstance(node.op, Im2col)
        taps = node.op.kernel[0] * node.op.kernel[1]
        scale = form.scale if form.per_tensor else np.tile(form.scale, taps)
        centre = form.centre if form.centre is None or form.per_tensor else np.tile(form.centre, taps)
        name = self._emit(_around(node, form), form.name, bits=bits, scale=scale)
        return Form(name, scale, centre=centre)

    def integer(self, value: str) -> str:
        """The copy of an integer or bool value of the source graph."""
        return self.base[value].name if value in self.base else self.copy_constant(value)

    def index(self, value: str, rows: Dim) -> str:
        """The integer ``value`` as an index of ``rows`` rows, cut to them where nothing proves that it is."""
        name = self.integer(value)
        type_ = self.builder.graph.type(name)
        if not isinstance(rows, int):
            for op, bound in ((Max(), -rows), (Min(), rows - 1)):
                limit = self.builder.emit(Positions((1,), (0,), bound), name=f"{value}.limit")
                name = self.builder.emit(op, name, limit, name=f"{value}.row")
            return name
        if -rows <= type_.interval[0] and type_.interval[1] < rows:
            return name
        return self.builder.emit(Clip(-rows, rows - 1, type_.dtype), name, name=f"{value}.row")

    def copy_constant(self, value: str) -> str:
        """An integer or bool constant of the source graph, copied once."""
        key = (value, "constant")
        if key not in self.cache:
            self.cache[key] = Form(
                self.builder.constant(value, self.source.constants[value]), np.asarray(1.0)
            )
        return self.cache[key].name

    def _emit(self, node: Node, *inputs: str, bits: int, scale: Array) -> str:
        name = f"{node.output}.q{bits}" if bits else node.output
        return self.builder.emit(node.op, *inputs, name=name, source=node.source, scale=as_scale(scale))


def _around(node: Node, form: Form) -> Node:
    """``node`` with what stands for zero in ``form`` around the images that it takes windows of."""
    if not isinstance(node.op, Im2col) or form.centre is None:
        return node
    zero = -float((form.centre / form.scale).ravel()[0])
    return replace(node, op=replace(node.op, fill=round(zero)))


def _interval(bits: int, unsigned: bool) -> tuple[int, int, DType]:
    """The smallest and the largest of such integers, and the type that holds them."""
    return (0, 255, "uint8") if unsigned else (-LIMIT[bits], LIMIT[bits], DTYPE[bits])


def grid_scale(base: Array, scale: Array, room: float = 1.0) -> Array:
    """The smallest scales at or above ``scale`` that int16 integers at the scale ``base`` reach by m / 2**15;
    the largest such m is less than 2**15, for which a scale may grow up to ``room`` times.

    Such a requantisation takes 16-bit lanes. Where it does not apply, ``scale`` itself.
    """
    m = np.floor(base / scale * 2**15)
    m = np.where(m < room * 2**15, np.minimum(m, 2**15 - 1), m)
    usable = np.all((m >= GRID_MIN) & (m < 2**15))
    return np.asarray(base * 2**15 / m) if usable else scale


def as_scale(scale: Array) -> float | tuple[float, ...]:
    """A numpy scale as the graph stores it."""
    return float(scale) if np.ndim(scale) == 0 else tuple(float(s) for s in scale)


def emitted(
    forms: Forms, node: Node, op: Op, inputs: tuple[str, ...], scale: Array | np.float64, suffix: str = ""
) -> Form:
    """``op`` on ``inputs`` as what ``node`` computes (or, with a ``suffix``, a step of it), at ``scale``."""
    wanted = np.asarray(scale, np.float64)
    name = forms.builder.emit(
        op, *inputs, name=node.output + suffix, source=node.source, scale=as_scale(wanted)
    )
    return Form(name, wanted)
