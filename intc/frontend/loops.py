"""Loops whose steps do not depend on one another, all steps at once: what a step computes gets a first axis,
one entry a step. torch writes such loops for ``nn.EmbeddingBag``: each step reads the rows between two
positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from intc.errors import GraphError
from intc.frontend.agreement import require_equal
from intc.frontend.call import Call
from intc.frontend.converters.movement import reshape_to
from intc.frontend.load import decode
from intc.frontend.symbolic import Imported, Index, Items, Stacked, axes_of, dims_of, tidy
from intc.ir.dims import Dim, Shape, as_dim, product
from intc.ops import elementwise as ew
from intc.ops.logic import And, Less, LessOrEqual
from intc.ops.matmul import MatMul
from intc.ops.reduce import ReduceMax, ReduceMean, ReduceSum

if TYPE_CHECKING:
    from intc.frontend.importer import Importer

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Neg", "Cast", "Identity", "Where")
TESTS = ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not")
REDUCTIONS = {"ReduceSum": ReduceSum, "ReduceMean": ReduceMean, "ReduceMax": ReduceMax}


@dataclass(frozen=True)
class Each:
    """A value of every step, [steps, ..]."""

    value: Imported


@dataclass(frozen=True)
class Rows:
    """Those rows of ``data`` [N, ..] for which ``mask`` [steps, N] holds."""

    data: Imported
    mask: str


@dataclass(frozen=True)
class Appended:
    """A sequence that each step makes longer by ``value``, or before the first one."""

    value: Each | None = None


Step = Each | Rows | Appended


def at_once(ctx: Importer, node: onnx.NodeProto, label: str) -> list[Imported]:
    """What the Loop ``node`` gives; GraphError where a step depends on the one before or is not supported."""
    body = next(a.g for a in node.attribute if a.name == "body")
    inputs = [ctx.env[x] if x else None for x in node.input]
    carried = [x.name for x in body.input[2:]]
    counters = [name for name, value in zip(carried, inputs[2:], strict=True) if _is_zero(value)]
    count = _count(ctx, body, inputs[0], counters)
    steps = Steps(ctx, count, label)
    step = Each(Index((count,), (1,)))
    ctx.env[body.input[0].name], ctx.env[body.input[1].name] = step, np.asarray(True)
    for name, value in zip(carried, inputs[2:], strict=True):
        empty = isinstance(value, Items) and not value.values
        ctx.env[name] = step if name in counters else Appended() if empty else None
        steps.refuse(ctx.env[name] is None, f"its steps depend on one another by '{name}'")
    steps.nodes(body)
    if inputs[0] is not None:
        on = [inputs[1] if inputs[1] is not None else True, ctx.env[body.output[0].name]]
        ends_early = any(not isinstance(x, bool | np.ndarray) or not np.all(x) for x in on)
        steps.refuse(ends_early, "a condition ends it")
    ends = [ctx.env[o.name] for o in body.output[1:]]
    results: list[Imported] = []
    for name, end in zip(carried, ends, strict=False):
        if name in counters:
            steps.refuse(end != Each(Index((count,), (1,), 1)), f"'{name}' does not count the steps")
            results.append(tidy(np.asarray(count, object)))
        else:
            steps.refuse(not isinstance(end, Appended) or end.value is None, f"'{name}' is not appended to")
            results.append(Stacked(steps.joined(end.value)))
    for end in ends[len(carried) :]:
        steps.refuse(not isinstance(end, Each), "what a step gives has a size of its own")
        results.append(end.value)
    return results


def _is_zero(value: Imported) -> bool:
    return isinstance(value, np.ndarray) and value.size == 1 and value.dtype.kind == "i" and not value.any()


def _count(ctx: Importer, body: onnx.GraphProto, most: Imported, counters: Sequence[str]) -> Dim:
    """How many steps there are: ``most``, or as many as leave ``step + 1 < count``."""
    last = next((n for n in body.node if n.output[0] == body.output[0].name), None)
    if isinstance(most, np.ndarray):
        return as_dim(most.ravel()[0])
    if most is None and last is not None and last.op_type == "Less":
        after = {o.name: i.name for i, o in zip(body.input[2:], body.output[1:], strict=False)}
        bound = ctx.env.get(last.input[1])
        if after.get(last.input[0]) in counters and isinstance(bound, np.ndarray) and bound.size == 1:
            return as_dim(bound.ravel()[0])
    raise GraphError("how many steps it has depends on input values")


class Steps:
    """The nodes of a loop's body for all ``count`` steps; values live in the importer's environment."""

    def __init__(self, ctx: Importer, count: Dim, label: str) -> None:
        self.ctx, self.count, self.label = ctx, count, label
        self.tests: dict[str, tuple[Index, Dim]] = {}  # conditions that hold in a single step
        self.masks: dict[tuple[Any, ...], tuple[Dim, str]] = {}  # of rows between two places, of how many
        self.only: tuple[Index, Dim] | None = None  # the one that holds in the branch being taken

    def refuse(self, condition: object, reason: str) -> None:
        if condition:
            raise GraphError(f"{reason} (only loops of independent steps are supported)")

    def nodes(self, graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            self.ctx.env[tensor.name] = decode(tensor, self.ctx.source)
        for node in graph.node:
            if node.op_type == "If" and isinstance(self.ctx.env[node.input[0]], Each):
                self._branches(node)
            elif any(isinstance(self.ctx.env.get(x), Step) for x in node.input):
                attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
                given = [self.ctx.env[x] if x else None for x in node.input]
                call = Call(self.ctx, node, given, attributes, self.label)
                self.ctx.env[node.output[0]] = self._result(call, node.op_type)
            else:
                self.ctx.convert(node)
                self.refuse(self.ctx.failed & {*node.output}, f"a step has '{node.op_type}'")

    def joined(self, rows: Each) -> Imported:
        """``rows``, [r, ..] in every step, one behind the other."""
        shape = self._shape(rows)
        return reshape_to(self._call(), self._live(rows), (product(shape[:2]), *shape[2:]), True)

    def _call(self) -> Call:
        return Call(self.ctx, onnx.helper.make_node("Loop", [], [self.label]), [], {}, self.label)

    def _shape(self, x: Each) -> Shape:
        return self.ctx.shape_of(x.value)

    def _live(self, x: Each) -> str:
        return self.ctx.live(x.value, "steps")

    def _result(self, call: Call, op: str) -> Step | Imported:
        x, *others = call.inputs
        if op == "SequenceInsert" and x == Appended() and len(others) == 1 and isinstance(others[0], Each):
            return Appended(others[0])
        if op == "Gather" and not isinstance(x, Step) and not call.attributes.get("axis", 0):
            at = others[0]
            if isinstance(at, Rows):
                return Rows(call.apply("Gather", [x, at.data])[0], at.mask)
            assert isinstance(at, Each)
            return self._gathered(call, x, at)
        if op == "Slice" and not isinstance(x, Step):
            return self._between(call, *call.inputs)
        if op in REDUCTIONS and isinstance(x, Each | Rows):
            return self._reduced(call, op, x)
        if op == "CastLike" and not isinstance(x, Step):
            return x  # integers, like all that steps count
        if op == "CastLike":
            call.inputs, op = [x], "Identity"
        if op in ("Reshape", "Unsqueeze", "Squeeze") and isinstance(x, Each | Rows):
            return self._moved(call, op, x)
        self.refuse(op not in (*ARITHMETIC, *TESTS), f"a step has '{op}'")
        return self._elementwise(call, op)

    def _elementwise(self, call: Call, op: str) -> Step | Imported:
        rows = [x for x in call.inputs if isinstance(x, Rows)]
        if rows:
            rank = len(self.ctx.shape_of(rows[0].data))
            alike = all(x.mask == rows[0].mask for x in rows) and not any(
                isinstance(x, Each) for x in call.inputs
            )
            for x in call.inputs:
                alike &= isinstance(x, Rows) or len(self.ctx.shape_of(x)) < rank
            self.refuse(not alike, "rows of different steps meet")
            data = [x.data if isinstance(x, Rows) else x for x in call.inputs]
            return Rows(call.apply(op, data, **call.attributes)[0], rows[0].mask)
        ranks = [
            len(self._shape(x)) - 1 if isinstance(x, Each) else len(self.ctx.shape_of(x)) for x in call.inputs
        ]
        values = [self._padded(call, x, max(ranks)) if isinstance(x, Each) else x for x in call.inputs]
        (value,) = call.apply(op, values, **call.attributes)
        if op == "Equal" and isinstance(values[0], Index):
            other = values[1]
            if isinstance(other, np.ndarray) and other.size == 1:
                self.tests[call.node.output[0]] = values[0], as_dim(other.ravel()[0])
        known = isinstance(value, np.ndarray) and value.size and (value == value.flat[0]).all()
        return np.asarray(value.flat[0]) if known else Each(value)

    def _padded(self, call: Call, x: Each, rank: int) -> Imported:
        """``x`` with axes of size 1 behind that of the steps, [steps, 1, .., ..], ``rank`` without that."""
        steps, *shape = self._shape(x)
        return self._shaped(call, x.value, (steps, *(1,) * (rank - len(shape)), *shape))

    def _shaped(self, call: Call, value: Imported, shape: Sequence[Dim]) -> Imported:
        if tuple(self.ctx.shape_of(value)) == tuple(shape):
            return value
        return call.apply("Reshape", [value, np.asarray(shape, object)], allowzero=1)[0]

    def _moved(self, call: Call, op: str, x: Each | Rows) -> Step:
        """A reshape, or axes of size 1 added or removed."""
        target = None if op == "Reshape" else axes_of(call.inputs, call.attributes)
        if isinstance(x, Rows):
            rank = len(self.ctx.shape_of(x.data)) + len(target or ())
            ahead = target is None or any(a % rank == 0 for a in target)
            self.refuse(op != "Unsqueeze" or ahead, "rows of a step are reshaped")
            return Rows(call.apply(op, [x.data, np.asarray(target)])[0], x.mask)
        steps, *shape = self._shape(x)
        if target is None:
            new = list(dims_of(call.known(1, "the target shape")))
            rest = product(d for d in new if d != -1)
            new = [product(shape) // rest if d == -1 else d for d in new]
        elif op == "Unsqueeze":
            new, rank = list(shape), len(shape) + len(target)
            for axis in sorted(a % rank for a in target):
                new.insert(axis, 1)
        else:
            new = [d for a, d in enumerate(shape) if a not in {t % len(shape) for t in target}]
        return Each(self._shaped(call, x.value, (steps, *new)))

    def _gathered(self, call: Call, table: Imported, at: Each) -> Each:
        if isinstance(table, Index) and isinstance(at.value, Index) and len(table.shape) == 1:
            (step,), inner = table.steps, at.value
            steps = tuple(step * s for s in inner.steps)
            return Each(Index(inner.shape, steps, table.offset + step * inner.offset))
        return Each(call.apply("Gather", [table, at.value])[0])

    def _between(
        self, call: Call, x: Imported, start: Any, stop: Any, axes: Any = None, steps: Any = None
    ) -> Step:
        """Rows of ``x`` between two positions of each step: as many in every step, or by a mask."""
        plain = all(v is None or (isinstance(v, np.ndarray) and v.size == 1) for v in (axes, steps))
        self.refuse(
            not plain or (axes is not None and axes.item()) or (steps is not None and steps.item() != 1),
            "a step slices more than rows",
        )
        first, end = (
            self._shaped(call, v.value, (self.count,)) if isinstance(v, Each) else v for v in (start, stop)
        )
        length = self._length(first, end)
        size, *rest = self.ctx.shape_of(x)
        if length == 1:
            row = self._gathered(call, x, Each(first))
            return Each(self._shaped(call, row.value, (self.count, 1, *rest)))
        if length is not None and first.steps == (length,) and first.offset == 0:
            require_equal(size, length * self.count)
            return Each(self._shaped(call, x, (self.count, length, *rest)))
        key = tuple(v if isinstance(v, Each | str) else as_dim(v.ravel()[0]) for v in (start, stop))
        if key not in self.masks:
            left, right = (self._column(call, v) for v in (start, stop))
            at = self.ctx.live(Index((1, size), (0, 1)), "positions")
            sides = call.emit(LessOrEqual(), left, at, last=False), call.emit(Less(), at, right, last=False)
            self.masks[key] = size, call.emit(And(), *sides, last=False)
        require_equal(size, self.masks[key][0])
        return Rows(x, self.masks[key][1])

    def _column(self, call: Call, position: Any) -> str:
        """One position for each step, [steps, 1], or for all, [1, 1]."""
        if isinstance(position, Each):
            return reshape_to(call, self._live(position), (self.count, 1), True)
        if isinstance(position, np.ndarray):
            position = Index((1,), (0,), as_dim(position.ravel()[0]))
        return reshape_to(call, self.ctx.live(position, "positions"), (1, 1), True)

    def _length(self, first: Imported, end: Imported) -> int | None:
        """``end - first``, where that is the same number in every step (that the branch is taken in)."""
        if not isinstance(first, Index):
            return None
        if isinstance(end, Index):
            length = end.offset - first.offset
            return length if end.steps == first.steps and isinstance(length, int) else None
        if self.only is not None and isinstance(end, np.ndarray) and end.size == 1:
            (counted, k) = self.only
            if counted.steps[0] == 1:
                step = k - counted.offset
                length = as_dim(end.ravel()[0]) - (first.offset + first.steps[0] * step)
                return length if isinstance(length, int) else None
        return None

    def _reduced(self, call: Call, op: str, x: Each | Rows) -> Each:
        """Over the rows of a step."""
        axes, kept = (
            [int(a) for a in axes_of(call.inputs, call.attributes)],
            bool(call.attributes.get("keepdims", 1)),
        )
        self.refuse(axes != [0], "a step reduces other axes than its rows")
        if isinstance(x, Each):
            return Each(call.emit(REDUCTIONS[op]((1,), kept), self._live(x)))
        data = self.ctx.live(x.data, "rows")
        size, *rest = call.shape(data)
        flat = reshape_to(call, data, (size, product(rest)), True)
        if op == "ReduceMax":
            minus = call.constant(-np.ones(1))
            lowest = call.emit(
                ReduceMax((0,), True), call.emit(ew.Mul(), flat, minus, last=False), last=False
            )
            lowest = call.emit(ew.Mul(), lowest, minus, last=False)
            mask = reshape_to(call, x.mask, (self.count, size, 1), True)
            found = call.emit(
                ReduceMax((1,), False), call.emit(ew.Where(), mask, flat, lowest, last=False), last=False
            )
        else:
            mask = call.emit(ew.Cast("float32"), x.mask, last=False)
            found = call.emit(MatMul(), mask, flat, last=False)
        if op == "ReduceMean":
            number = call.emit(
                ReduceSum((1,), True), call.emit(ew.Cast("int64"), x.mask, last=False), last=False
            )
            one = self.ctx.live(Index((1,), (0,), 1), "one")
            number = call.emit(ew.Cast("float32"), call.emit(ew.Max(), number, one, last=False), last=False)
            found = call.emit(ew.Div(), found, number, last=False)
        return Each(reshape_to(call, found, (self.count, *((1,) if kept else ()), *rest), True))

    def _branches(self, node: onnx.NodeProto) -> None:
        """Both branches, and in every step what its condition chooses."""
        condition, before = self.ctx.env[node.input[0]], self.only
        found: list[list[Any]] = []
        for name in ("then_branch", "else_branch"):
            graph = next(a.g for a in node.attribute if a.name == name)
            self.only = self.tests.get(node.input[0]) if name == "then_branch" else before
            self.nodes(graph)
            found.append([self.ctx.env[o.name] for o in graph.output])
        self.only = before
        call = Call(self.ctx, onnx.helper.make_node("Where", [], list(node.output)), [], {}, self.label)
        for name, a, b in zip(node.output, *found, strict=True):
            self.ctx.env[name] = self._chosen(call, condition, a, b)

    def _chosen(self, call: Call, condition: Each, a: Any, b: Any) -> Step | Imported:
        if isinstance(a, Step) and isinstance(b, Step) and a == b:
            return a
        if isinstance(a, Rows) and isinstance(b, Rows):
            self.refuse(a.data != b.data, "branches read different rows")
            which = reshape_to(call, self._live(condition), (self.count, 1), True)
            return Rows(a.data, call.emit(ew.Where(), which, a.mask, b.mask, last=False))
        self.refuse(
            isinstance(a, Rows | Appended) or isinstance(b, Rows | Appended), "branches differ in kind"
        )
        call.inputs = [condition, a, b]
        return self._elementwise(call, "Where")
