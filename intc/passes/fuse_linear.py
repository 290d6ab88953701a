"""Phase 5: a constant-weight product and everything behind it up to the next stored tensor become one
``linear``.

``requantize(matmul(x, w) + bias)``, with GELU: ``requantize(gelu(requantize(...)))``, with a residual:
``clip(requantize(...) + requantize(r))``. Each value inside must have no other reader.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ir.op import Array
from intc.ops.elementwise import Add
from intc.ops.fused import WIDE, Linear
from intc.ops.matmul import MatMul
from intc.ops.poly import PolyGelu
from intc.ops.requantize import Clip, Requantize
from intc.ops.shift import ShiftGelu
from intc.passes.match import Uses


@dataclass(frozen=True)
class Product:
    """``x @ w + bias`` as found in the graph."""

    x: str
    w: str
    bias: str | None


@dataclass(frozen=True)
class FuseLinear:
    name: str = "fuse_linear"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)
        plans = _plan(graph, uses)
        absorbed = {value for plan in plans.values() for value in plan.inside}

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            if node.output in absorbed:
                return node.output  # nothing reads it any more
            plan = plans.get(node.output)
            return None if plan is None else plan.emit(graph, b, node)

        return rebuild(graph, visit)


@dataclass(frozen=True)
class Plan:
    """A ``linear`` that replaces the node computing its output; ``inside`` are the values it absorbs."""

    op: Linear
    product: Product
    factors: tuple[str, ...]
    inside: tuple[str, ...]

    def emit(self, graph: Graph, b: Builder, node: Node) -> str:
        columns = graph.type(self.product.w).shape[1]
        assert isinstance(columns, int)
        bias = self.product.bias or b.constant(f"{node.output}.bias", np.zeros(columns, np.int32))
        if self.product.bias and graph.type(bias).shape != (columns,):
            bias = b.constant(
                f"{node.output}.bias", np.broadcast_to(graph.constants[bias].ravel(), (columns,))
            )
        per_column = len(self.factors) - 3 * self.op.residual
        factors = [
            _widened(graph, b, f, columns) if i < per_column else f for i, f in enumerate(self.factors)
        ]
        scale = graph.values[node.output].scale
        source = node.source
        return b.emit(
            self.op,
            self.product.x,
            self.product.w,
            bias,
            *factors,
            name=node.output,
            source=source,
            scale=scale,
        )


def _widened(graph: Graph, b: Builder, name: str, columns: int) -> str:
    """A per-tensor factor repeated for every column."""
    array: Array = graph.constants[name]
    return (
        name if array.size == columns else b.constant(name, np.full(columns, array.ravel()[0], array.dtype))
    )


def _product(graph: Graph, uses: Uses, value: str) -> tuple[Product, tuple[str, ...]] | None:
    """The product that computes ``value``, which only the caller's node reads, and the values inside it."""
    bias: str | None = None
    inside: tuple[str, ...] = (value,)
    if not uses.single(value):
        return None
    node = uses.producer(value, Add)
    if node is not None:
        left, right = node.inputs
        if right not in graph.constants or graph.constants[right].size != graph.type(value).shape[-1]:
            return None
        bias, value = right, left
        inside = (*inside, value)
        if not uses.single(value):
            return None
    node = uses.producer(value, MatMul)
    if node is None or node.inputs[1] not in graph.constants or graph.type(node.inputs[1]).rank != 2:
        return None
    if (
        graph.type(node.inputs[0]).dtype not in ("int8", "uint8", "int16")
        or graph.type(node.inputs[1]).dtype != "int8"
    ):
        return None
    return Product(node.inputs[0], node.inputs[1], bias), inside


def _plan(graph: Graph, uses: Uses) -> dict[str, Plan]:
    plans: dict[str, Plan] = {}
    for node in graph.nodes:
        if not isinstance(node.op, Requantize):
            continue
        found = _residual(graph, uses, node) or _gelu(graph, uses, node) or _plain(graph, uses, node)
        if found is not None:
            output, plan = found
            plans.setdefault(output, plan)
    return plans


def _plain(graph: Graph, uses: Uses, node: Node) -> tuple[str, Plan] | None:
    assert isinstance(node.op, Requantize)
    x, m, e = node.inputs
    lo, relu = node.op.lo, uses.only(x, Clip)
    if relu is not None and _cuts_below_zero(graph, relu) and (graph.constants[m] > 0).all():
        found, lo = _product(graph, uses, relu.inputs[0]), max(lo, 0)  # 0 stays 0
    else:
        found, relu = _product(graph, uses, x), None
    if found is None or (node.op.dtype == "int32" and uses.sole_user(node.output, Add)):
        return None
    op = Linear(lo, node.op.hi, node.op.dtype)
    return node.output, Plan(op, found[0], (m, e), (x, *found[1]) if relu else found[1])


def _cuts_below_zero(graph: Graph, clip: Node) -> bool:
    """Whether ``clip`` only replaces negative values by 0."""
    assert isinstance(clip.op, Clip)
    return clip.op.lo == 0 and clip.op.hi >= graph.type(clip.inputs[0]).interval[1]


def _gelu(graph: Graph, uses: Uses, node: Node) -> tuple[str, Plan] | None:
    assert isinstance(node.op, Requantize)
    x, m2, e2 = node.inputs
    gelu = uses.only(x, ShiftGelu) or uses.only(x, PolyGelu)
    inner = uses.only(gelu.inputs[0], Requantize) if gelu else None
    found = _product(graph, uses, inner.inputs[0]) if inner else None
    if gelu is None or inner is None or found is None:
        return None
    assert isinstance(gelu.op, ShiftGelu | PolyGelu) and isinstance(inner.op, Requantize)
    if (inner.op.lo, inner.op.hi) != (-32767, 32767):
        return None
    kind = gelu.op.kind if isinstance(gelu.op, PolyGelu) else "shift"
    centred = len(gelu.inputs) == 2
    op = Linear(node.op.lo, node.op.hi, node.op.dtype, gelu=kind, frac=gelu.op.frac, centred=centred)
    inside = (x, gelu.inputs[0], *found[1])
    centre = gelu.inputs[1:]
    return node.output, Plan(op, found[0], (inner.inputs[1], inner.inputs[2], *centre, m2, e2), inside)


def _residual(graph: Graph, uses: Uses, node: Node) -> tuple[str, Plan] | None:
    """``node`` is the product's branch of a residual sum."""
    assert isinstance(node.op, Requantize)
    total = uses.sole_user(node.output, Add)
    clip = uses.sole_user(total.output, Clip) if total else None
    if total is None or clip is None or node.op.hi != WIDE or len(set(total.inputs)) != 2:
        return None
    assert isinstance(clip.op, Clip)
    other = total.inputs[1] if total.inputs[0] == node.output else total.inputs[0]
    branch = uses.only(other, Requantize)
    if branch is not None and isinstance(branch.op, Requantize) and branch.op.hi == WIDE:
        r, mr, er = branch.inputs
        inside: tuple[str, ...] = (other,)
    else:
        return None
    found = _product(graph, uses, node.inputs[0])
    if (
        found is None
        or graph.type(r).dtype not in ("int8", "int16")
        or not graph.type(r).shape == graph.type(clip.output).shape == graph.type(node.output).shape
    ):
        return None
    op = Linear(clip.op.lo, clip.op.hi, clip.op.dtype, residual=True)
    inside = (*inside, node.output, total.output, *found[1])
    return clip.output, Plan(op, found[0], (node.inputs[1], node.inputs[2], r, mr, er), inside)
