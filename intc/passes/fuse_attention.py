"""Phase 5: ``requantize(normalise_rows(w @ v, w))`` becomes one ``attention``, where
``w = shift_weights(q @ k^T [+ bias])``; also without the ``requantize``, which is then by one.

What splits rows into heads is absorbed, since the kernel reads token-major and head-major rows alike:
``reshape -> transpose`` of q, k and v, the repetition of keys that several heads share, and the merge of the
result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from intc.ir.dims import Dim
from intc.ir.graph import Builder, Graph, Node, rebuild
from intc.ops.elementwise import Add
from intc.ops.fused import Attention
from intc.ops.matmul import MatMul
from intc.ops.movement import Expand, Reshape, Transpose
from intc.ops.requantize import Requantize
from intc.ops.row_softmax import NormaliseRows, ShiftWeights
from intc.passes.match import Uses

IDENTITY = (2**30, 30)  # m and e that multiply by one
HEADS_FIRST = (0, 2, 1, 3)
KEYS_LAST = (0, 2, 3, 1)
SWAPPED = (0, 1, 3, 2)


@dataclass(frozen=True)
class FuseAttention:
    name: str = "fuse_attention"

    def run(self, graph: Graph) -> Graph:
        uses = Uses.of(graph)
        matches = (_match(graph, uses, node) for node in graph.nodes if isinstance(node.op, NormaliseRows))
        found = {match.output: match for match in matches if match is not None}

        def visit(b: Builder, node: Node, inputs: tuple[str, ...]) -> str | None:
            match = found.get(node.output)
            return None if match is None else match.emit(b, graph.values[node.output].scale, node.source)

        return rebuild(graph, visit)


@dataclass(frozen=True)
class _Rows:
    """``value`` holds the rows of ``heads``: [B, heads, S, dim], or [B, S, heads, dim] if ``tokens``."""

    value: str
    heads: int
    dim: int
    tokens: bool

    def emit(self, b: Builder) -> str:
        """As the operator takes them; ``reshape`` moves nothing."""
        if not self.tokens:
            return self.value
        shape = b.graph.type(self.value).shape
        whole = (*shape[:2], self.heads * self.dim)
        split = next((n for n in b.graph.nodes if n.output == self.value), None)
        if (
            split is not None
            and isinstance(split.op, Reshape)
            and b.graph.type(split.inputs[0]).shape == whole
        ):
            return split.inputs[0]
        return b.emit(Reshape(whole), self.value, name=f"{self.value}.rows")


@dataclass(frozen=True)
class _Match:
    """An attention that computes ``output``; ``beside`` are its mask and its bias, ``factors`` m and e."""

    op: Attention
    output: str
    rows: tuple[_Rows, _Rows, _Rows]
    factors: tuple[str, ...]
    beside: tuple[str, ...]

    def emit(self, b: Builder, scale: object, source: str) -> str:
        factors = self.factors or tuple(
            b.constant(n, np.array([v], np.int32)) for n, v in zip("me", IDENTITY, strict=True)
        )
        beside = (_of_rank_4(b, x, self.op.heads) for x in self.beside)
        operands = (*(rows.emit(b) for rows in self.rows), *factors, *beside)
        return b.emit(self.op, *operands, name=self.output, source=source, scale=scale)  # type: ignore[arg-type]


def _of_rank_4(b: Builder, x: str, heads: int) -> str:
    """``x``, which broadcasts to the scores, with the axes [B, H, Sq, Sk]: rank 2 means [B, Sk] to the
    operator, and rank 3 scores are those of one head.
    """
    shape = tuple(b.graph.type(x).shape)
    if len(shape) == 4:
        return x
    full = (shape[0], 1, *shape[1:]) if len(shape) == 3 and heads == 1 else (1,) * (4 - len(shape)) + shape
    return b.emit(Reshape(full), x, name=f"{x}.rank4")


def _match(graph: Graph, uses: Uses, rows: Node) -> _Match | None:
    """The attention around ``normalise_rows``, as far as it reaches."""
    context = uses.only(rows.inputs[0], MatMul)
    weights = uses.producer(rows.inputs[1], ShiftWeights)
    if context is None or weights is None or context.inputs[0] != weights.output:
        return None
    if len(uses.users[weights.output]) != 2 or weights.output in uses.outputs:
        return None
    assert isinstance(weights.op, ShiftWeights)
    biased = uses.only(weights.inputs[0], Add)
    scores, bias = _biased(graph, uses, biased) if biased else (uses.only(weights.inputs[0], MatMul), ())
    if scores is None or graph.type(scores.output).rank not in (3, 4):
        return None
    q = _rows(graph, uses, scores.inputs[0])
    k = _keys(graph, uses, scores.inputs[1])
    v = _rows(graph, uses, context.inputs[1])
    if q is None or k is None or v is None or k.heads != v.heads or q.heads % k.heads:
        return None
    if not q.dim == k.dim == v.dim:
        return None
    beside = (*weights.inputs[1:], *bias)
    if any(graph.type(x).shape[-1:] != graph.type(scores.output).shape[-1:] for x in beside):
        return None  # a mask of whole rows
    end, (lo, hi) = rows, graph.type(rows.output).interval
    factors: tuple[str, ...] = ()
    narrow = uses.sole_user(rows.output, Requantize)
    if narrow is not None and graph.constants[narrow.inputs[1]].size == 1:
        assert isinstance(narrow.op, Requantize)
        if narrow.op.dtype in ("int8", "int16"):
            end, lo, hi, factors = narrow, narrow.op.lo, narrow.op.hi, narrow.inputs[1:]
    merge = _merge(graph, uses, end.output)
    heads_first = merge is None and graph.type(end.output).rank == 4
    op = Attention(
        *(q.heads, k.heads, q.dim, 0, 0, 0, weights.op.m, weights.op.shift, lo, hi),
        masked=len(weights.inputs) == 2,
        biased=bool(bias),
        heads_first=heads_first,
    )
    return _Match(op, (merge or end).output, (q, k, v), tuple(factors), beside)


def _biased(graph: Graph, uses: Uses, total: Node) -> tuple[Node | None, tuple[str, ...]]:
    """``scores + bias`` taken apart."""
    for scores, bias in (total.inputs, total.inputs[::-1]):
        node = uses.only(scores, MatMul)
        same = graph.type(scores).shape == graph.type(total.output).shape
        if node is not None and same and graph.type(bias).dtype == "int32":
            return node, (bias,)
    return None, ()


def _rows(graph: Graph, uses: Uses, value: str) -> _Rows | None:
    """The rows that ``value`` [B, H, S, D] or [B, S, D] shows."""
    value = _unshared(graph, uses, value)
    type_ = graph.type(value)
    heads = type_.shape[1] if type_.rank == 4 else 1
    return _tokens(graph, uses, value, HEADS_FIRST) or _made(graph, value, heads, False)


def _keys(graph: Graph, uses: Uses, value: str) -> _Rows | None:
    """Like :func:`_rows`, of ``value`` [B, H, D, S] or [B, D, S]."""
    moved = uses.producer(value, Transpose)
    if moved is not None and tuple(moved.op.perm) in (SWAPPED, (0, 2, 1)):  # type: ignore[attr-defined]
        return _rows(graph, uses, moved.inputs[0])
    return _tokens(graph, uses, value, KEYS_LAST)


def _tokens(graph: Graph, uses: Uses, value: str, perm: tuple[int, ...]) -> _Rows | None:
    """The rows [B, S, H, D] of which ``value`` is the transpose."""
    moved = uses.producer(value, Transpose)
    if moved is None or not isinstance(moved.op, Transpose) or tuple(moved.op.perm) != perm:
        return None
    return _made(graph, moved.inputs[0], graph.type(moved.inputs[0]).shape[2], True)


def _made(graph: Graph, value: str, heads: Dim, tokens: bool) -> _Rows | None:
    type_ = graph.type(value)
    dim = type_.shape[-1]
    known = isinstance(heads, int) and isinstance(dim, int) and type_.dtype == "int8"
    return _Rows(value, heads, dim, tokens) if known else None  # type: ignore[arg-type]


def _unshared(graph: Graph, uses: Uses, value: str) -> str:
    """x [B, G, S, D] where ``value`` [B, G*n, S, D] repeats each of its heads n times; else ``value``."""
    merged = uses.producer(value, Reshape)
    repeated = uses.producer(merged.inputs[0], Expand) if merged else None
    split = uses.producer(repeated.inputs[0], Reshape) if repeated else None
    if repeated is None or split is None or graph.type(value).rank != 4:
        return value
    x, wide, whole = (graph.type(n).shape for n in (split.inputs[0], repeated.output, value))
    one = graph.type(split.output).shape
    fits = len(x) == 4 and len(wide) == 5 and one == (*x[:2], 1, *x[2:])
    return split.inputs[0] if fits and (*wide[:2], *wide[3:]) == x and whole[2:] == x[2:] else value


def _merge(graph: Graph, uses: Uses, value: str) -> Node | None:
    """The node that makes [B, S, H*D] of ``value`` [B, H, S, D], where nothing else reads it."""
    moved = uses.sole_user(value, Transpose)
    if moved is None or not isinstance(moved.op, Transpose) or tuple(moved.op.perm) != HEADS_FIRST:
        return None
    merged = uses.sole_user(moved.output, Reshape)
    b, s, h, d = graph.type(moved.output).shape
    return merged if merged is not None and graph.type(merged.output).shape == (b, s, h * d) else None
