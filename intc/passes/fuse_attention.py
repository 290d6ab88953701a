"""Phase 5: ``reshape(transpose(requantize(normalise_rows(w @ v, w))))`` over split heads becomes one
``attention``, where ``w = shift_weights(q @ k^T)``; also without the ``requantize``, which is then by one.

The split ``reshape -> transpose`` of q, k and v and the merge of the result are absorbed: the kernel reads
and writes token-major rows. A score bias or other layouts stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ops.fused import Attention
from intc.ops.matmul import MatMul
from intc.ops.movement import Reshape, Transpose
from intc.ops.requantize import Requantize
from intc.ops.row_softmax import NormaliseRows, ShiftWeights
from intc.passes.match import Uses

IDENTITY = (2**30, 30)  # m and e that multiply by one
HEADS_FIRST = (0, 2, 1, 3)
KEYS_LAST = (0, 2, 3, 1)


@dataclass(frozen=True)
class FuseAttention:
    name: str = "fuse_attention"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            found = _match(graph, uses, node)
            if found is None:
                return None
            op, operands = found
            if not operands[3]:
                operands[3:5] = [
                    b.constant(n, np.array([v], np.int32)) for n, v in zip("me", IDENTITY, strict=True)
                ]
            operands[5:] = [_of_rank_4(b, x) for x in operands[5:]]
            scale = graph.values[node.output].scale
            return b.emit(op, *operands, name=node.output, source=node.source, scale=scale)

        return rebuild(graph, visit)


def _of_rank_4(b: Builder, mask: str) -> str:
    """``mask``, which broadcasts to [B, H, Sq, Sk], with all axes: rank 2 means [B, Sk] to the operator."""
    shape = b.graph.type(mask).shape
    full = (1,) * (4 - len(shape)) + tuple(shape)
    return mask if len(shape) == 4 else b.emit(Reshape(full), mask, name=f"{mask}.rank4")


def _split(graph: Graph, uses: Uses, value: str, perm: tuple[int, ...]) -> tuple[str, int, int] | None:
    """``value = transpose(reshape(x), perm)`` splitting [B, S, H*D] into heads: x, H and D."""
    moved = uses.producer(value, Transpose)
    if moved is None or not isinstance(moved.op, Transpose) or tuple(moved.op.perm) != perm:
        return None
    shaped = uses.producer(moved.inputs[0], Reshape)
    if shaped is None:
        return None
    x = graph.type(shaped.inputs[0])
    b, s, heads, dim = graph.type(shaped.output).shape
    if x.rank != 3 or x.shape[:2] != (b, s) or x.dtype != "int8" or not isinstance(heads, int):
        return None
    return (shaped.inputs[0], heads, dim) if isinstance(dim, int) and x.shape[2] == heads * dim else None


def _match(graph: Graph, uses: Uses, merge: Node) -> tuple[Attention, list[str]] | None:
    if not isinstance(merge.op, Reshape) or graph.type(merge.output).rank != 3:
        return None
    moved = uses.only(merge.inputs[0], Transpose)
    narrow = uses.only(moved.inputs[0], Requantize) if moved and tuple(moved.op.perm) == HEADS_FIRST else None  # type: ignore[attr-defined]
    whole = narrow is None and moved is not None and tuple(moved.op.perm) == HEADS_FIRST  # type: ignore[attr-defined]
    source = narrow.inputs[0] if narrow else moved.inputs[0] if moved and whole else ""
    rows = uses.only(source, NormaliseRows)
    context = uses.only(rows.inputs[0], MatMul) if rows else None
    weights = uses.producer(context.inputs[0], ShiftWeights) if context else None
    scores = uses.only(weights.inputs[0], MatMul) if weights else None
    if rows is None or context is None or weights is None or scores is None:
        return None
    if rows.inputs[1] != weights.output or len(uses.users[weights.output]) != 2:
        return None
    assert isinstance(weights.op, ShiftWeights)
    q = _split(graph, uses, scores.inputs[0], HEADS_FIRST)
    k = _split(graph, uses, scores.inputs[1], KEYS_LAST)
    v = _split(graph, uses, context.inputs[1], HEADS_FIRST)
    if q is None or k is None or v is None or not q[1:] == k[1:] == v[1:]:
        return None
    heads, dim = q[1:]
    lo, hi = graph.type(rows.output).interval
    factors: tuple[str, ...] = ("", "")  # as it is: 16 bits
    if narrow is not None:
        assert isinstance(narrow.op, Requantize)
        lo, hi, factors = narrow.op.lo, narrow.op.hi, narrow.inputs[1:]
        if narrow.op.dtype not in ("int8", "int16") or graph.constants[factors[0]].size != 1:
            return None
    out = graph.type(merge.output).shape
    if out[:2] != graph.type(q[0]).shape[:2] or out[2] != heads * dim:
        return None
    op = Attention(heads, dim, 0, 0, 0, weights.op.m, weights.op.shift, lo, hi)
    mask = list(weights.inputs[1:])
    if any(graph.type(x).shape[-1:] != graph.type(scores.output).shape[-1:] for x in mask):
        return None  # a mask of whole rows
    return op, [q[0], k[0], v[0], *factors, *mask]
