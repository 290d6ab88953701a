"""Phase 3: the canonical float graph becomes the integer graph, node by node, in topological order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from intc.calibration.histogram import Calibrator
from intc.calibration.observers import Statistics
from intc.errors import CalibrationError, GraphError, QuantizationError, RangeUnknown, UnsupportedModel
from intc.ir.graph import Builder, Graph, Node
from intc.ir.op import Array
from intc.ir.spool import trim
from intc.ir.types import TensorType
from intc.ops.elementwise import Add, Cast, Div, Mul, Sub
from intc.ops.fake_quantize import FakeQuantize
from intc.ops.movement import Concat, Gather, GatherElements, Reshape, Slice, Transpose
from intc.ops.pointwise import CURVED, Pointwise
from intc.ops.requantize import Clip
from intc.passes.integer import rules_curve, rules_quantised
from intc.passes.integer.codes import UNSIGNED_STEP
from intc.passes.integer.context import Context
from intc.passes.integer.forms import DTYPE, LIMIT, Form, Forms, as_scale
from intc.passes.integer.noise import LOUD, Seen, rounding
from intc.passes.integer.rounding import Rounding
from intc.passes.integer.rules import RULES
from intc.passes.plan import Plan

OUTPUT_BITS = 16
STATE_BITS = 8
ROOM = 4  # times the calibrated range, for sums that several readers share
LISTED = 8  # values whose range is unknown, in the error
SEEN = 1024  # numbers of an input, before none of them being negative says something
COMPARED_BITS = 24  # of the larger operand of a comparison


@dataclass(frozen=True)
class Integerise:
    """``family``: auto, shift, ivit, ibert or lut; ``stats``: what calibration saw of every float value;
    ``plan``: what differs from 8 bits and ``family``.

    Float inputs become int8 (per tensor; wider for products that read more bits), float outputs int16 with
    one scale, so that integer logits can be compared (int32 where 16 bits are too few); a
    state is int8 at one scale on both sides.
    UnsupportedModel lists every node that has no integer form, all at once.
    """

    stats: dict[str, Statistics] = field(repr=False)
    family: str = "auto"
    calibrator: Calibrator = "mse"
    rounding: Rounding = "gptq"
    plan: Plan = field(default=Plan(), repr=False)
    name: str = "integerise"

    def run(self, graph: Graph) -> Graph:
        builder = Builder(graph.name, graph.states)
        forms = Forms(graph, builder, self.stats, self.calibrator)
        resolved = self.plan.resolve(graph, self.family, Seen(self.stats, self.calibrator))
        context = Context(forms, resolved, graph.users(), self.rounding)
        indexed = _index_ranges(graph)
        unknown: list[str] = []  # values that data would have to show
        for name in graph.inputs:
            try:
                _input(context, name, indexed)
            except RangeUnknown as error:
                unknown.append(error.value)
        problems: list[tuple[str, str, str]] = []
        for node in graph.nodes:
            self._node(context, node, problems, unknown)
            trim()
        if problems:
            raise UnsupportedModel(graph.name, problems)
        if unknown:
            raise _unknown_ranges(graph, unknown)
        continued = {index: name for name, index in graph.states.items()}
        for index, name in enumerate(graph.outputs):
            if index in continued:
                state = forms.base[continued[index]]
                builder.output(forms.quantised(name, STATE_BITS, state.scale).name)
                continue
            rest = forms.sentinels.rest(name) if graph.type(name).is_float else None
            builder.output(_output(forms, name), rest.number if rest is not None and rest.returned else None)
        return builder.finish()

    def _node(
        self, context: Context, node: Node, problems: list[tuple[str, str, str]], unknown: list[str]
    ) -> None:
        forms = context.forms
        if any(forms.source.type(x).is_float and _missing(context, x) for x in node.inputs):
            return  # its producer is already on the list
        try:
            if not forms.source.type(node.output).is_float:
                _copy_integer(forms, node)
            elif forms.deferred(node) and not _is_lookup(forms, node):
                return  # replayed on the form that a consumer asks for
            elif type(node.op) in RULES:
                forms.base[node.output] = RULES[type(node.op)](context, node)
                if _differs_by_reader(context, node.output):
                    roomy = ROOM * forms.scale_for(node.output, 16)
                    forms.base[node.output] = forms.quantised(node.output, 16, roomy)
            else:
                problems.append((node.source or node.output, node.op.name, "no integer form is known"))
        except RangeUnknown as error:
            unknown.append(error.value)
        except (QuantizationError, GraphError, KeyError) as error:
            problems.append((node.source or node.output, node.op.name, str(error)))


def _unknown_ranges(graph: Graph, values: list[str]) -> CalibrationError:
    producers = graph.producers()
    whose = {v: producers.get(v) for v in values}
    named = [f"'{v}' ({n.op.name} of node '{n.source}')" if n else f"input '{v}'" for v, n in whose.items()]
    more = [f"{len(named) - LISTED} more"] if len(named) > LISTED else []
    return CalibrationError(
        f"{graph.name}: the model's own scales do not give the range of {', '.join(named[:LISTED] + more)}; "
        "give calibration data (calibration=, --calibration NPZ)"
    )


def _differs_by_reader(context: Context, value: str) -> bool:
    """Whether several readers want the 32-bit sums ``value`` at scales of their own: they share 16 bits, so
    that the product is stored once.
    """
    forms, form = context.forms, context.forms.base[value]
    wide = forms.builder.graph.type(form.name).dtype == "int32" and not form.per_tensor and form.plain
    if not wide:
        return False
    readers = [n for n in _readers(context, value) if not rules_curve.circles(context, n)]
    return len(readers) > 1 and len(context.products(value)) < len(readers)


def _readers(context: Context, value: str) -> Iterator[Node]:
    """The nodes that read ``value``, directly or through data movement."""
    for user in context.users[value]:
        if context.forms.deferred(user):
            yield from _readers(context, user.output)
        else:
            yield user


def _missing(context: Context, value: str) -> bool:
    """Whether ``value`` depends on a node that was refused."""
    forms, pending, seen = context.forms, [value], set[str]()
    while pending:
        current = pending.pop()
        if current in seen or current in forms.base or current in forms.source.constants:
            continue
        seen.add(current)
        node = forms.nodes.get(current)
        if node is None or not forms.deferred(node) or _is_lookup(forms, node):
            return True
        pending += [x for x in node.inputs if forms.source.type(x).is_float]
    return False


def _is_lookup(forms: Forms, node: Node) -> bool:
    """A gather of constant rows by computed indices: an embedding."""
    constants = forms.source.constants
    return isinstance(node.op, Gather) and node.inputs[0] in constants and node.inputs[1] not in constants


def _copy_integer(forms: Forms, node: Node) -> None:
    """``node``, whose result is not float, on integers; floats that it reads are brought to one scale."""
    reals = [x for x in node.inputs if forms.source.type(x).is_float]
    scale = _common_scale(forms, node, reals) if reals else np.asarray(1.0)
    inputs = [forms.quantised(x, 32, scale).name if x in reals else forms.integer(x) for x in node.inputs]
    if isinstance(node.op, Gather | GatherElements):
        inputs[1] = forms.index(node.inputs[1], forms.source.type(node.inputs[0]).shape[node.op.axis])
    name = forms.builder.emit(node.op, *inputs, name=node.output, source=node.source)
    forms.base[node.output] = Form(name, np.asarray(1.0))


def _common_scale(forms: Forms, node: Node, reals: list[str]) -> Array:
    """The scale at which the float operands of a comparison or a cast mean what their integers do."""
    if isinstance(node.op, Cast) and node.op.dtype != "bool":
        if float(forms.as_is(reals[0], 32, 16).scale) != 1.0:
            raise QuantizationError("a computed number becomes an integer, which rounding would change")
        return np.asarray(1.0)
    return np.asarray(max(forms.range_of(x, 32) for x in reals) / 2**COMPARED_BITS)


def _index_ranges(graph: Graph) -> dict[str, int]:
    """For each integer input used as a row index (through data movement), the number of rows: the fewest of
    the tables that it chooses from as a whole, else, where every part of it chooses from one, the most.
    """
    out: dict[str, int] = {}
    users = graph.users()
    for name in graph.inputs:
        read = list(_rows_read(graph, users, name))
        whole = [rows for rows, part in read if rows and not part]
        if whole:
            out[name] = min(whole)
        elif read and all(rows for rows, _ in read):
            out[name] = max(rows for rows, _ in read)
    return out


def _rows_read(graph: Graph, users: Mapping[str, list[Node]], value: str) -> Iterator[tuple[int, bool]]:
    """For each reader of ``value`` (through data movement) the rows of the constant table that it indexes, 0
    where it does something else, and whether it reads only a ``part``.
    """
    pending = [(node, False) for node in users[value]]
    while pending:
        node, part = pending.pop()
        if isinstance(node.op, Gather) and node.inputs[0] in graph.constants:
            yield graph.constants[node.inputs[0]].shape[node.op.axis], part
        elif len(node.inputs) == 1:
            part = part or isinstance(node.op, Slice)
            pending += [(reader, part) for reader in users[node.output]]
        else:
            yield 0, part


def _input(context: Context, name: str, indexed: dict[str, int]) -> None:
    forms = context.forms
    type_ = forms.source.type(name)
    if type_.is_float:
        grid = _grid(context, name)
        if grid is not None:
            dtype, lo, hi = rules_quantised.holder(grid)
            forms.builder.input(name, TensorType(type_.shape, dtype, lo, hi), grid.scale)
            forms.base[name] = Form(name, np.asarray(grid.scale))
            return
        held = name in forms.source.states
        bits = STATE_BITS if held else _reader_bits(context, name)
        scale = forms.scale_for(forms.source.outputs[forms.source.states[name]] if held else name, bits)
        if bits == 8 and not held and _never_negative(forms, name):
            scale = np.asarray(scale * UNSIGNED_STEP)
            forms.builder.input(name, TensorType(type_.shape, "uint8", 0, 255), float(scale))
            forms.base[name] = Form(name, scale)
            return
        wanted = TensorType(type_.shape, DTYPE[bits], -LIMIT[bits], LIMIT[bits])
        forms.builder.input(name, wanted, float(scale))
        forms.base[name] = Form(name, scale)
        return
    if name in indexed:
        type_ = TensorType(type_.shape, type_.dtype, 0, indexed[name] - 1)
    forms.builder.input(name, type_)
    forms.base[name] = Form(name, np.asarray(1.0))


def _never_negative(forms: Forms, name: str) -> bool:
    """Whether none of SEEN numbers or more of the input ``name`` was negative."""
    stats = forms.stats.get(name)
    if stats is None or stats.tensor is None or stats.tensor.counts.sum() < SEEN:
        return False
    return float(stats.low.min()) >= 0


def _grid(context: Context, value: str) -> FakeQuantize | None:
    """The one grid that all readers of the input ``value`` put it on; None where they differ."""
    grids = {n.op for n in context.users[value] if isinstance(n.op, FakeQuantize)}
    alone = len(grids) == 1 and all(isinstance(n.op, FakeQuantize) for n in context.users[value])
    return grids.pop() if alone and value not in context.forms.source.outputs else None


def _meets_grid(context: Context, value: str) -> bool:
    """Whether the model quantises ``value``, directly or behind constants (the normalisation of an image)."""
    for user in context.users[value]:
        live = [x for x in user.inputs if context.constant(x) is None]
        affine = isinstance(user.op, Add | Sub | Mul | Div | Reshape | Transpose) and len(live) == 1
        if isinstance(user.op, FakeQuantize) or (affine and _meets_grid(context, user.output)):
            return True
    return False


def _reader_bits(context: Context, value: str) -> int:
    """The most bits that ``value`` is read with, directly or through data movement: those of products, and 16
    where anything else reads it (a norm, a sum with it).
    """
    products = context.products(value)
    bits = [context.plan.activations(n, w.shape[0]) for n, w in products]
    users = context.users[value]
    moved = [n for n in users if context.forms.deferred(n) and not isinstance(n.op, Concat)]
    read = {n.output for n in (*moved, *(n for n, _ in products))}
    other = any(n.output not in read and not isinstance(n.op, Concat) for n in users)
    if other or _meets_grid(context, value):  # of a grid, the model's own rounding is the one that counts
        return 16
    return max(8, *bits, *(_reader_bits(context, n.output) for n in moved), 8)


def _wide_output(forms: Forms, name: str) -> Form | None:
    """The 32-bit integers that the output ``name`` is, where it is a steep function or where OUTPUT_BITS are
    too few for it.
    """
    value = name
    while value not in forms.base and (node := forms.nodes.get(value)) is not None and forms.deferred(node):
        value = forms.operand(node)[0]
    form, found, made = forms.base.get(value), forms.stats.get(name), forms.nodes.get(value)
    if form is None or found is None or made is None or not form.per_tensor or not form.plain:
        return None
    steep = isinstance(made.op, (Pointwise, *CURVED))
    loud = steep or rounding(found, float(forms.scale_for(name, OUTPUT_BITS))) > LOUD
    wide = forms.builder.graph.type(form.name).dtype == "int32" and float(form.scale) > 0
    return forms.as_is(name, 32, OUTPUT_BITS) if wide and loud else None


def _output(forms: Forms, name: str) -> str:
    if not forms.source.type(name).is_float:
        return forms.integer(name)
    form = _wide_output(forms, name) or forms.quantised(name, OUTPUT_BITS)
    if forms.builder.graph.values[form.name].scale == as_scale(form.scale):
        return form.name
    same = Clip(
        -LIMIT[OUTPUT_BITS], LIMIT[OUTPUT_BITS], DTYPE[OUTPUT_BITS]
    )  # a factor changed the scale only
    return forms.builder.emit(same, form.name, name=f"{name}.scaled", scale=as_scale(form.scale))
